"""The website: no warnings, nothing from another machine, figures in words too, and it works in a browser."""

import contextlib
import functools
import http.server
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sao_lib.settings import ROOT

pytest.importorskip("myst_nb", reason="the course's packages are not installed: make .venv/.course")
sys.path.insert(0, str(ROOT / "tools"))
import website  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    assert website.build(website.gather(folder / "source"), folder / "html") == 0
    return folder / "html"


class Page(HTMLParser):
    """What a page loads (scripts, styles, images), and images without a description."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.undescribed: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loads.append(str(given["src"]))
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "search", "index"):
            self.loads.append(str(given["href"]))
        if tag == "img" and not given.get("alt") and "logo" not in str(given.get("class")):
            self.undescribed.append(str(given["src"]))


def remote(addresses: list[str]) -> list[str]:
    return [a for a in addresses if a.startswith(("http:", "https:", "//"))]


def test_no_page_loads_anything_from_another_machine_and_every_figure_is_described(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert {path.relative_to(site).as_posix() for path in pages} >= {
        "index.html", "notebooks/02_judge.html", "exercises/02_judge.html", "docs/teaching.html", "report/table6.html",
        "search.html",
    }  # fmt: skip
    assert {p.name: remote(page.loads) for p, page in pages.items() if remote(page.loads)} == {}
    assert {p.name: page.undescribed for p, page in pages.items() if page.undescribed} == {}
    math = Page(site / "notebooks" / "06_logits_skew.html").loads
    assert any("mathjax/tex-chtml" in script for script in math)
    assert (site / "_static" / "mathjax" / "tex-chtml.js").is_file()


def test_a_remote_script_or_a_figure_without_words_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text('<script src="https://cdn/a.js"></script><link rel=stylesheet href="//b/c.css"><img src=d.png>')
    page = Page(path)
    assert remote(page.loads) == ["https://cdn/a.js", "//b/c.css"]
    assert page.undescribed == ["d.png"]


def test_no_solution_is_on_the_site(site: Path) -> None:
    text = (site / "exercises" / "02_judge.html").read_text()
    assert "NotImplementedError" in text
    assert "SOLUTION" not in text
    assert "HIDDEN" not in text


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("page", "mathematics", "pictures", "tables"),
    [
        ("notebooks/06_logits_skew", True, True, True),
        ("exercises/02_judge", True, False, False),
        ("report/table6", False, True, True),
        ("docs/teaching", True, False, True),
    ],
)
def test_pages_show_mathematics_figures_and_tables_on_a_phone_and_ask_nobody_else(
    site: Path, browser: Any, page: str, mathematics: bool, pictures: bool, tables: bool
) -> None:
    with served(site) as address:
        view = browser.new_page(viewport={"width": 390, "height": 844})
        asked: list[str] = []
        view.on("request", lambda request: asked.append(request.url))
        view.goto(f"{address}/{page}.html", wait_until="networkidle")
        if mathematics:
            view.wait_for_selector("article mjx-container")
        if pictures:
            assert view.evaluate("[...document.querySelectorAll('article img')].every(i => i.naturalWidth > 0)")
            assert view.locator("article img").count() > 0
        if tables:
            assert view.locator("article table").count() > 0
        assert view.evaluate("document.documentElement.scrollWidth") <= 390
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        view.close()
