"""Long work in whole chunks: rows are appended as they come, and a killed run goes on where it stopped."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from sao_lib.files import Record, append_rows, resume_rows
from sao_lib.progress import Progress
from sao_lib.runs import Run

Item = TypeVar("Item")


def in_chunks(
    run: Run, file: str, items: Sequence[Item], make: Callable[[Sequence[Item]], list[Record]], chunk: int
) -> list[Record]:
    """All rows of `file` in the run's folder, one per item: those of complete chunks as read, the rest by `make`."""
    path = run.folder / file
    rows = resume_rows(path, chunk, len(items))
    progress = Progress(run.folder, Path(file).stem.replace("_", " "), len(items), len(rows))
    for start in range(len(rows), len(items), chunk):
        new = make(items[start : start + chunk])
        append_rows(path, new)
        rows += new
        progress.update(len(new))
    return rows
