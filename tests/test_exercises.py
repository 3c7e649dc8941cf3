"""The exercises: solutions pass, nothing else does, and nbgrader grades the folder as it is."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from sao_lib.settings import ROOT

pytest.importorskip("nbgrader", reason="the course's packages are not installed: make .venv/.course")
sys.path.insert(0, str(ROOT / "tools"))
import exercises  # noqa: E402

HEADER = re.compile(r"^Exercise \d+\.\d+ · \d+ minutes · difficulty [1-5] of 5 · needs: \S", re.MULTILINE)
SOURCES = exercises.sources()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_solutions_pass_and_blanks_and_planted_wrong_answers_fail(path: Path) -> None:
    assert exercises.failures(nbformat.read(path, 4)) == []


def test_every_notebook_of_the_course_has_three_to_five_exercises_with_time_and_difficulty() -> None:
    topics = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - {"00_start_here", "04_answer"}
    assert {path.stem for path in SOURCES} == topics
    for path in SOURCES:
        cells = nbformat.read(path, 4).cells
        graded = [c for c in cells if c.metadata.get("nbgrader", {}).get("grade")]
        assert 3 <= len(graded) <= 5
        assert sum(len(HEADER.findall(c.source)) for c in cells if c.cell_type == "markdown") == len(graded)
        assert all("### BEGIN HIDDEN TESTS" in c.source for c in graded)
        assert not any(c.get("outputs") for c in cells)


def test_the_rows_are_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "exercises" / "data").iterdir()) <= 200_000


def _exercise(answer: str, check: str, wrong: list[str]) -> NotebookNode:
    def marks(name: str, grade: bool) -> dict[str, Any]:
        return {"schema_version": 3, "grade_id": name, "solution": not grade, "grade": grade, "locked": grade,
                "task": False, "points": 1}  # fmt: skip

    first = new_code_cell(answer, metadata={"nbgrader": marks("answer", False), "wrong": wrong})
    return new_notebook(cells=[first, new_code_cell(check, metadata={"nbgrader": marks("check", True)})])


TWO = "x = 0\n### BEGIN SOLUTION\nx = 2\n### END SOLUTION"


@pytest.mark.parametrize(
    ("answer", "check", "wrong", "said"),
    [
        (TWO, "assert x == 2", ["x = 3"], []),
        (TWO, "assert x == 3", ["x = 4"], ["refuses the solution"]),
        (TWO, "x", ["x = 3"], ["accepts wrong answer 1", "accepts the student's copy"]),
        (TWO, "assert x == 2", [], ["no planted wrong answer"]),
        (TWO, "assert x == 2", ["x = y"], ["Wrong answer 1 of check does not run"]),
        (TWO, "assert 4 / x == 2", ["x = 0"], ["fails on it by ZeroDivisionError"]),
    ],
)
def test_a_check_that_checks_nothing_is_found(answer: str, check: str, wrong: list[str], said: list[str]) -> None:
    found = exercises.failures(_exercise(answer, check, wrong))
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))


def test_students_get_no_solution_and_no_hidden_check(tmp_path: Path) -> None:
    exercises.write_student(tmp_path)
    for path in SOURCES:
        text = (tmp_path / path.name).read_text()
        assert "raise NotImplementedError()" in text
        assert not re.search(r"BEGIN|END SOLUTION|HIDDEN|\"wrong\"", text)
        for link in re.findall(r"\]\((\.\./[^)]+)\)", text):
            assert (exercises.STUDENT / link).resolve().is_file()
    assert (tmp_path / "data" / "verdicts.jsonl").is_file()


def test_nbgrader_makes_the_assignment_and_grades_a_submission(tmp_path: Path, monkeypatch: Any) -> None:
    """One notebook is handed in solved but for its first exercise, one as it was given out."""
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # it calls alembic
    given = tmp_path / "source" / "exercises"
    shutil.copytree(ROOT / "exercises" / "data", given / "data")
    solved, blank = SOURCES[0], SOURCES[5]
    for path in (solved, blank):
        shutil.copy(path, given)
    settings = Config()
    settings.CourseDirectory.root = str(tmp_path)
    settings.CourseDirectory.course_id = "sao"
    api = NbGraderAPI(config=settings)
    assert api.generate_assignment("exercises")["success"]
    handed_in = tmp_path / "submitted" / "a-student" / "exercises"
    shutil.copytree(tmp_path / "release" / "exercises", handed_in)
    notebook, answers = nbformat.read(handed_in / solved.name, 4), nbformat.read(solved, 4)
    own = [cell for cell in answers.cells if cell.metadata.get("nbgrader", {}).get("solution")]
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        cell.source = next((s.source for s in own[1:] if s.metadata.nbgrader.grade_id == name), cell.source)
    nbformat.write(notebook, handed_in / solved.name)
    done = api.autograde("exercises", "a-student")
    assert done["success"], done["log"] + done["error"]
    with api.gradebook as book:
        found = {n.name: n for n in book.find_submission("exercises", "a-student").notebooks}
        points = {g.name: g.auto_score for g in found[solved.stem].grades}
        assert points.pop("check-01-1") == 0
        assert all(points.values())
        assert found[blank.stem].score == 0 < found[blank.stem].max_score
