"""What a run's folder holds when its notebook has been executed, whatever happened on the way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sao_lib import runs
from sao_lib.errors import SaoError
from sao_lib.launch import execute
from sao_lib.runs import Run

KEY = "sk-proj-T3BlbkFJ0a1b2c3d4e5f"
Executed = Callable[[Run, Path], None]


class FakeKernel:
    """No process: the fake papermill starts none."""

    def manager(self) -> None: ...


@pytest.fixture
def fake_papermill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Executed], Path]:
    """Lets `execute` call a function in place of papermill, and gives the folder of a run that it can execute."""
    import papermill

    monkeypatch.setattr(execute, "OUTPUTS", tmp_path)
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path)
    folder = tmp_path / "cpu" / "judge" / "self-1"
    folder.mkdir(parents=True)
    spec = {"stage": "judge", "name": "self", "profile": "cpu", "params": {}, "inputs": {}, "files": {}}
    (folder / "spec.yaml").write_text(json.dumps(spec))

    def use(what: Executed) -> Path:
        def executed(source: str, target: str, **_: Any) -> None:
            Path(target).write_text(json.dumps({"cells": [{"outputs": [f"Authorization: Bearer {KEY}"]}]}))
            what(Run.open(folder / "spec.yaml"), Path(target))

        monkeypatch.setattr(papermill, "execute_notebook", executed)
        return folder

    return use


def everything_in(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_a_key_is_in_no_notebook_of_a_run(
    fake_papermill: Callable[[Executed], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from papermill.exceptions import PapermillExecutionError

    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def fails(run: Run, notebook: Path) -> None:
        raise PapermillExecutionError(3, 3, "", "ValueError", "x" * 280 + KEY, [])

    folder = fake_papermill(fails)
    with pytest.raises(SaoError, match="failed in cell 3: ValueError") as refused:
        execute.execute(folder, FakeKernel())  # type: ignore[arg-type]
    assert KEY[:12] not in str(refused.value)
    fake_papermill(lambda run, notebook: run.finish({}) and None)
    execute.execute(folder, FakeKernel())  # type: ignore[arg-type]
    assert (folder / "notebook.ipynb").is_file()
    assert (folder / "notebook.failed.ipynb").is_file()
    assert KEY[:12] not in everything_in(folder)
