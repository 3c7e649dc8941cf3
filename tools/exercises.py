"""The exercises, from their sources in exercises/: `student` writes copies to work on, `solutions` proves the checks.

The sources are in nbgrader's format, so a lecturer may put the folder into a course's source/. Here its preprocessors
are used as plain functions, without a course or a database. Beside nbgrader's, an answer's metadata has `wrong`: the
sources of planted wrong answers, each of which the check under it must refuse. They stay out of the students' copies.
"""

import contextlib
import copy
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "exercises"
STUDENT = ROOT / "build" / "student"


def sources() -> list[Path]:
    """The source notebooks, in their order."""
    return sorted(SOURCES.glob("[0-9]*.ipynb"))


def student_copy(source: NotebookNode) -> NotebookNode:
    """`source` as students get it: no solutions, hidden tests, planted answers or outputs; checks cannot be edited."""
    from nbgrader.preprocessors import ClearHiddenTests, ClearOutput, ClearSolutions, LockCells

    notebook = copy.deepcopy(source)
    for step in (LockCells(), ClearSolutions(), ClearOutput(), ClearHiddenTests()):
        notebook, _ = step.preprocess(notebook, {})
    for cell in notebook.cells:
        cell.metadata.pop("wrong", None)
    return notebook


def write_student(folder: Path = STUDENT) -> None:
    """Write the students' copies and the rows that they read into `folder`, over those of an earlier call.

    Copies whose cells a student may have answered are no copies of ours: work in a copy of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(SOURCES / "data", folder / "data", dirs_exist_ok=True)
    for path in sources():
        copied = student_copy(nbformat.read(path, 4))
        for cell in copied.cells:  # build/student lies one folder deeper
            cell.source = cell.source.replace("](../", "](../../")
        nbformat.write(copied, folder / path.name)


def failures(source: NotebookNode) -> list[str]:
    """What is wrong with a source notebook, a sentence each: none if its checks do what they are for.

    Every solution passes its check; every check fails on the student's copy; every answer has planted wrong ones, and
    each of these runs and is refused by an assertion of the check.
    """
    with contextlib.chdir(SOURCES):
        return [*_of_solutions(source), *_of_copy(student_copy(source))]


def _of_solutions(source: NotebookNode) -> Iterator[str]:
    names: dict[str, Any] = {}
    before: dict[str, Any] = {}
    answer: NotebookNode | None = None
    for cell in _code(source):
        if _is(cell, "grade"):
            name = cell.metadata.nbgrader.grade_id
            if (raised := _run(cell.source, names)) is not None:
                yield f"{name} refuses the solution: {raised!r}."
            planted = answer.metadata.get("wrong", []) if answer is not None else []
            if not planted:
                yield f"{name} has no planted wrong answer."
            for number, wrong in enumerate(planted, 1):
                tried = dict(before)
                if (raised := _run(wrong, tried)) is not None:
                    yield f"Wrong answer {number} of {name} does not run: {raised!r}."
                elif not isinstance(raised := _run(cell.source, tried), AssertionError):
                    yield f"{name} accepts wrong answer {number}, or fails on it by {raised!r}."
            answer = None
            continue
        if _is(cell, "solution"):
            answer, before = cell, dict(names)
        if (raised := _run(cell.source, names)) is not None:
            yield f"A cell raises {raised!r}:\n{cell.source}"


def _of_copy(notebook: NotebookNode) -> Iterator[str]:
    names: dict[str, Any] = {}
    for cell in _code(notebook):
        raised = _run(cell.source, names)
        if _is(cell, "grade") and raised is None:
            yield f"{cell.metadata.nbgrader.grade_id} accepts the student's copy, which answers nothing."


def _run(source: str, names: dict[str, Any]) -> Exception | None:
    """Execute a cell; the exception that it raised. Cells hold no magics, so this is what a kernel does."""
    try:
        exec(compile(source, "<cell>", "exec"), names)
    except Exception as raised:
        return raised
    return None


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _is(cell: NotebookNode, what: str) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get(what))


def main(command: str) -> int:
    """`student` or `solutions`; the exit status."""
    if command == "student":
        write_student()
        print(f"{len(sources())} notebooks without solutions: {os.path.relpath(STUDENT)}")
        return 0
    found = {path: failures(nbformat.read(path, 4)) for path in sources()}
    for path, sentences in found.items():
        print(f"{path.name}: {'; '.join(sentences) or 'every check passes its solution and fails all else'}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
