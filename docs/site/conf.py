"""Settings of the website, see tools/website.py: nothing is executed, and no page asks another machine for anything."""

from typing import Any

from docutils import nodes

project = "SAO, reproduced"
html_title = project
language = "en"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx-mathjax-offline", "sphinx_exercise"]
exclude_patterns = [".doctrees", "notebooks/data"]  # the rows that lessons start from are no page

nb_execution_mode = "off"  # outputs as committed
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
# Links to files that are no pages (params/, sao_lib/) lead nowhere on the site; the repository has them.
suppress_warnings = ["myst.xref_missing", "myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]

html_theme = "sphinx_book_theme"
html_theme_options = {
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "footer_content_items": [],  # else it says that no author is set
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False


def describe(app: Any, document: nodes.document) -> None:
    """Give each figure without a description the words that lead to it: its section and the text before it."""
    for image in document.findall(nodes.image):
        if image.get("alt"):
            continue
        section = image.parent
        while section is not None and not isinstance(section, nodes.section):
            section = section.parent
        if section is None:
            image["alt"] = "A figure"
            continue
        title = section.next_node(nodes.title)
        said = [p.astext() for p in section.findall(nodes.paragraph) if not list(p.findall(nodes.image))]
        image["alt"] = ": ".join(part for part in (title.astext() if title else "", " ".join(said[-1:])[:300]) if part)


def setup(app: Any) -> None:
    app.connect("doctree-read", describe)
