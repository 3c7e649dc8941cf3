"""`make site`: notebooks, report, teaching notes and exercises as a website that needs no network, in build/site.

Sphinx reads one folder, so the pages are first gathered into build/site-source: notebooks with the outputs they were
committed with, the students' copies of the exercises, docs/*.md, and a page for each table or figure of
outputs/reference. docs/site/ has the settings and the first page.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from exercises import sources, student_copy
from sao_lib.plan.experiment import experiments

ROOT = Path(__file__).resolve().parents[1]
GATHERED, SITE = ROOT / "build" / "site-source", ROOT / "build" / "site"
REFERENCE = ROOT / "outputs" / "reference" / "cpu"
HEADER = re.compile(r"^Exercise (\d+)\.(\d+) · ", re.MULTILINE)


def gather(folder: Path = GATHERED) -> Path:
    """Make `folder` anew with everything that Sphinx is to read."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "site", folder)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (folder / "docs").mkdir()
    for page in (ROOT / "docs").glob("*.md"):
        text = re.sub(r"\]\(\.\./outputs/reference/cpu/(\w+)/\w+\.md\)", r"](../report/\1.md)", page.read_text("utf-8"))
        (folder / "docs" / page.name).write_text(text, encoding="utf-8")
    (folder / "exercises").mkdir()
    for path in sources():
        nbformat.write(boxed(student_copy(nbformat.read(path, 4))), folder / "exercises" / path.name)
    (folder / "report").mkdir()
    names = experiments(ours=True)  # in the paper's order
    tables = [table for name in names if (table := REFERENCE / name / f"{name}.md").is_file()]
    for table in tables:
        _report_page(table, folder / "report")
    first = (folder / "index.md").read_text(encoding="utf-8")
    listed = "\n".join(f"report/{table.stem}" for table in tables)
    (folder / "index.md").write_text(first.replace(":glob:\n\nreport/*", f"\n{listed}"), encoding="utf-8")
    return folder


def boxed(notebook: NotebookNode) -> NotebookNode:
    """The notebook with sphinx-exercise's directive round the text of each exercise."""
    for cell in notebook.cells:
        found = HEADER.search(cell.source) if cell.cell_type == "markdown" else None
        if found:
            title, text = cell.source.split("\n", 1)
            line, prose = text.strip().split("\n", 1)
            label = f":label: exercise-{found[1]}-{found[2]}\n:nonumber:"
            cell.source = (
                f"{title}\n\n````{{exercise}} {line.removeprefix('Exercise ')}\n{label}\n\n{prose.strip()}\n````"
            )
    return notebook


def _report_page(table: Path, folder: Path) -> None:
    """The table as it was written, its figure, with what it shows in words, before it."""
    heading, _, rest = table.read_text(encoding="utf-8").partition("\n")
    picture = table.with_suffix(".png")
    shown = ""
    if picture.is_file():
        shutil.copy(picture, folder)
        words = heading.removeprefix("# ").replace("[", "(").replace("]", ")")
        shown = f"\n![{words}; its numbers stand in the table below]({picture.name})\n"
    (folder / table.name).write_text(f"{heading}\n{shown}{rest}", encoding="utf-8")


def build(folder: Path, site: Path) -> int:
    """Sphinx's exit status; a warning is a failure."""
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-b", "html", "-d"]
    return subprocess.run([*command, str(folder / ".doctrees"), str(folder), str(site)], check=False).returncode


def main() -> int:
    shutil.rmtree(SITE, ignore_errors=True)
    status = build(gather(), SITE)
    if not status:
        print(f"The site: {(SITE / 'index.html').relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
