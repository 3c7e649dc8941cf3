"""`make notebooks` and `make lesson-rows`: the lessons as people read them, and the rows that they start from.

A notebook in `notebooks/` holds the outputs of one lesson run, and in its metadata a digest of the code that gave them.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sao_lib.errors import SaoError
from sao_lib.files import write_atomic
from sao_lib.launch.kernel import Kernel
from sao_lib.lesson import LESSONS
from sao_lib.progress import clock
from sao_lib.provenance import cells_of
from sao_lib.settings import ROOT

FOLDER = ROOT / "notebooks"
START = "00_start_here"
NUMBERS = ROOT / "docs" / "lessons.md"
TAG = "lesson"  # in a notebook's metadata: {code, seconds} of the run whose outputs it holds
LARGEST = 300_000  # bytes of a notebook that a browser still shows
UNWANTED = {  # in what is committed
    "a time of day": re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d"),
    "a library's log line": re.compile(r"\b(WARNING|INFO)\b.*[:\]]|Warning: "),
    "an error": re.compile(r"Traceback \(most recent call last\)"),
}


def stale() -> list[str]:
    """The notebooks, in reading order, whose outputs are none or not of the code that stands there."""
    return [name for name in names() if (_read(name).metadata.get(TAG) or {}).get("code") != cells_of(_path(name))]


def names() -> list[str]:
    """The notebooks in reading order."""
    return sorted({START, *LESSONS.values()} & {path.stem for path in FOLDER.glob("*.ipynb")})


def write(wanted: Sequence[str] = ()) -> None:
    """Execute a lesson of each notebook in `wanted`, else of each that is stale, and write its outputs into notebooks/.

    Raises SaoError when a cell fails or an output is not fit to be committed; that notebook then stays as it was.
    """
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        raise SaoError(f"There is no notebook '{unknown[0]}'; there are: {', '.join(names())}.")
    found = wanted or stale()
    to_do = [name for name in names() if name in found and name != START]
    if to_do or START in found:
        to_do.append(START)  # it shows how long the others took
    for name in to_do:
        print(f"{name}: started", flush=True)
        seconds = _write(name)
        write_atomic(NUMBERS, numbers())
        print(f"{name}: done in {clock(seconds)}", flush=True)
    write_atomic(NUMBERS, numbers())  # of words that changed where no code did
    print(f"{len(to_do)} notebook(s) executed; the others are of the code that stands there. Numbers: docs/lessons.md")


def _write(name: str) -> float:
    notebook = _read(name)
    with tempfile.TemporaryDirectory(prefix="sao-lesson-") as outputs:
        seconds = _execute(notebook, name, Path(outputs))
        cleaned(notebook, Path(outputs))
    notebook.metadata[TAG] = {"code": cells_of(_path(name)), "seconds": round(seconds)}
    import nbformat

    text = nbformat.writes(notebook).rstrip() + "\n"
    if found := list(unfit(notebook, len(text.encode()))):
        raise SaoError(f"notebooks/{name}.ipynb is left as it was: its outputs hold {'; '.join(found)}.")
    write_atomic(_path(name), text)
    return seconds


def _execute(notebook: Any, name: str, outputs: Path) -> float:
    """Run All in a new process, as a reader does it; the seconds that took."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    kernel, start = Kernel({"SAO_OUTPUTS": str(outputs)}), time.monotonic()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    try:
        client = NotebookClient(notebook, km=kernel.manager(), timeout=None, record_timing=False, coalesce_streams=True)
        client.skip_cells_with_tag = ""  # what production skips is for readers
        client.execute()
    except CellExecutionError as error:
        raise SaoError(f"{name} failed: {error.ename}: {error.evalue[:300]}") from None
    finally:
        kernel.close(interrupted=False)
    return time.monotonic() - start


def cleaned(notebook: Any, outputs: Path) -> None:
    """Take out what is of this machine or this hour: paths, addresses, widgets, libraries' words, metadata but tags."""
    for cell in notebook.cells:
        cell.metadata = type(cell.metadata)({k: v for k, v in cell.metadata.items() if k == "tags"})
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            _without_paths(output, outputs)
    notebook.metadata = type(notebook.metadata)(
        kernelspec={"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )


def _without_paths(value: Any, outputs: Path) -> None:
    for key, part in list(value.items()):
        if isinstance(part, dict):
            _without_paths(part, outputs)
        elif isinstance(part, str):
            part = part.replace(str(outputs), "outputs").replace(f"{ROOT}{os.sep}", "")
            value[key] = re.sub(r" at 0x[0-9a-f]{6,}", "", part)  # of an object in memory


def unfit(notebook: Any, size: int) -> Iterator[str]:
    """What keeps a notebook's outputs from being committed, in words."""
    if size > LARGEST:
        yield f"{size // 1000} kB, more than {LARGEST // 1000}"
    for text in _texts(notebook):
        for what, pattern in UNWANTED.items():
            if found := pattern.search(text):
                yield f"{what} ({text[found.start() :][:80]!r})"
        if (home := str(ROOT)) in text or (home := tempfile.gettempdir()) in text:
            yield f"a path of this machine ({home})"


def _texts(notebook: Any) -> Iterator[str]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            yield from (text for mime, text in data.items() if isinstance(text, str) and mime.startswith("text/"))
            yield output.get("text", "") + "\n".join(output.get("traceback", []))


def numbers() -> str:
    """docs/lessons.md: of each notebook its cells, words, figures, size and minutes."""
    head = ["notebook", "minutes", "code cells", "prose cells a code cell", "words a line of code", "figures", "kB"]
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *map(_row, names())]]
    return (
        "# The lessons in numbers\n\nWritten by `make notebooks`, which ran each notebook from its first cell to its "
        "last, in a process of its own.\nMinutes are of the machine that ran them, whatever else it did; words are of "
        "prose, without formulas.\n\n" + "\n".join(lines) + "\n"
    )


def _row(name: str) -> list[str]:
    notebook = _read(name)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    prose = [c for c in notebook.cells if c.cell_type == "markdown"]
    words = sum(len(re.findall(r"[A-Za-z]+", re.sub(r"\$.*?\$", "", c.source, flags=re.DOTALL))) for c in prose)
    lines = sum(bool(line.strip()) for c in code for line in c.source.splitlines())
    figures = sum("image/png" in o.get("data", {}) for c in code for o in c.outputs)
    seconds = (notebook.metadata.get(TAG) or {}).get("seconds")
    minutes = "not run" if seconds is None else f"{seconds / 60:.1f}"
    size = round(_path(name).stat().st_size / 1000)
    return [
        f"[{name}](../notebooks/{name}.ipynb)", minutes, str(len(code)), f"{len(prose) / max(1, len(code)):.2f}",
        f"{words / max(1, lines):.1f}", str(figures), str(size),
    ]  # fmt: skip


def _path(name: str) -> Path:
    return FOLDER / f"{name}.ipynb"


def _read(name: str) -> Any:
    import nbformat

    return nbformat.read(_path(name), 4)
