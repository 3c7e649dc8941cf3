"""A result names the code that made it: what counts as code, what reaches a stage, what has changed."""

import json
from pathlib import Path

import pytest

from sao_lib import provenance
from sao_lib.settings import NOTEBOOKS

JUDGE = '''"""Orders two responses."""
from sao_lib.ground import seed


def verdict(a, b):
    """Which is better."""
    # the shorter one
    return 1 if len(a) < len(b) else 2
'''


def notebook(*cells: str) -> str:
    made = [{"cell_type": "code", "source": [cell]} for cell in cells]
    return json.dumps({"cells": [{"cell_type": "markdown", "source": ["# Prose"]}, *made]})


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A repository of one notebook and five modules, two of which it does not reach."""
    files = {
        "notebooks/02_judge.ipynb": notebook("from sao_lib.method import judge", "judge.verdict('a', 'bb')"),
        "sao_lib/__init__.py": "",
        "sao_lib/method/__init__.py": "",
        "sao_lib/method/judge.py": JUDGE,
        "sao_lib/ground.py": "def seed():\n    import sao_lib.late\n\n\nCOMMAND = ['-m', 'sao_lib.started']\n",
        "sao_lib/late.py": "x = 1\n",
        "sao_lib/started.py": "x = 1\n",
        "sao_lib/report.py": "x = 1\n",
        "sao_lib/errors.py": "x = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def changed_by(house: Path, name: str, old: str, new: str) -> list[str]:
    before = provenance.code_of("judge", house)
    text = (house / name).read_text()
    assert old in text
    (house / name).write_text(text.replace(old, new))
    return provenance.changed(before, provenance.code_of("judge", house))


def test_code_is_what_a_notebook_reaches_by_imports_wherever_they_stand(house: Path) -> None:
    assert set(provenance.code_of("judge", house)) == {
        "notebooks/02_judge.ipynb", "sao_lib/method/__init__.py", "sao_lib/method/judge.py", "sao_lib/ground.py",
        "sao_lib/late.py", "sao_lib/started.py",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("sao_lib/method/judge.py", "# the shorter one", "# whichever has fewer characters"),
        ("sao_lib/method/judge.py", "Which is better.", "1 or 2."),
        ("sao_lib/method/judge.py", "Orders two responses.", "Stage 2."),
        ("sao_lib/method/judge.py", "1 if len(a) < len(b) else 2", "(\n        1 if len(a) < len(b) else 2\n    )"),
        ("notebooks/02_judge.ipynb", "# Prose", "# Better prose"),
        ("sao_lib/report.py", "x = 1", "x = 2"),
        ("sao_lib/errors.py", "x = 1", "x = 2"),
    ],
)  # fmt: skip
def test_prose_layout_and_what_is_not_reached_change_nothing(house: Path, name: str, old: str, new: str) -> None:
    assert changed_by(house, name, old, new) == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("sao_lib/method/judge.py", "len(a) < len(b)", "len(a) <= len(b)"),
        ("notebooks/02_judge.ipynb", "'bb'", "'bbb'"),
        ("sao_lib/late.py", "x = 1", "x = 2"),
        ("sao_lib/started.py", "x = 1", "x = 2"),
    ],
)
def test_a_changed_line_is_named_by_its_file(house: Path, name: str, old: str, new: str) -> None:
    assert changed_by(house, name, old, new) == [name]


def test_a_line_that_only_ipython_reads_hides_no_module(house: Path) -> None:
    before = provenance.code_of("judge", house)
    magic = notebook(
        "%matplotlib inline\nfrom sao_lib.method import judge", "%%time\nfiles = !ls", "judge.verdict('a', 'bb')"
    )
    (house / "notebooks/02_judge.ipynb").write_text(magic)
    assert provenance.changed(before, provenance.code_of("judge", house)) == ["notebooks/02_judge.ipynb"]


def test_a_part_that_came_or_went_is_a_change(house: Path) -> None:
    assert changed_by(house, "sao_lib/ground.py", "import sao_lib.late", "pass") == [
        "sao_lib/ground.py", "sao_lib/late.py"
    ]  # fmt: skip


def test_a_run_that_two_states_of_the_code_made_is_neithers() -> None:
    first, second = {"a": "1", "b": "1"}, {"a": "1", "b": "2"}
    mixed = provenance.continued(first, second)
    assert provenance.changed(mixed, first) == provenance.changed(mixed, second) == ["b"]
    assert provenance.continued(None, second) == second
    assert provenance.changed(None, second) != []


@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_no_stage_depends_on_what_plans_launches_or_reports_it(stage: str) -> None:
    parts = provenance.code_of(stage)
    assert f"notebooks/{NOTEBOOKS[stage]}.ipynb" in parts
    allowed = ("plan", "report") if stage == "ablate" else ()
    reached = {part.split("/")[1] for part in parts if part.count("/") > 1}
    assert not reached & ({"plan", "launch", "report"} - set(allowed))


def test_the_trainer_counts_although_it_runs_in_a_process_of_its_own() -> None:
    assert {"sao_lib/method/trainer.py", "sao_lib/method/losses.py"} <= set(provenance.code_of("train"))


def test_a_cell_that_runs_pass_over_counts_for_its_readers_alone(house: Path) -> None:
    path = house / "notebooks/02_judge.ipynb"
    runs, readers = provenance.code_of("judge", house), provenance.cells_of(path)
    body = json.loads(path.read_text())
    trap = {"cell_type": "code", "metadata": {"tags": ["skip-execution"]}, "source": ["judge.verdict('', '')"]}
    path.write_text(json.dumps({"cells": [*body["cells"], trap]}))
    assert provenance.code_of("judge", house) == runs
    assert provenance.cells_of(path) != readers
