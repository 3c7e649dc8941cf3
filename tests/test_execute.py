"""What a run's folder holds when its notebook has been executed, whatever happened on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from sao_lib import runs, writers
from sao_lib.errors import Killed, SaoError
from sao_lib.launch import execute, kernel, reproduce
from sao_lib.launch.kernel import Kernel
from sao_lib.plan import chain, planning
from sao_lib.runs import Run
from sao_lib.settings import ROOT

KEY = "secret-T3BlbkFJ0a1b2c3d4e5f"
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


def test_what_a_killed_command_left_is_cleared_and_the_manifest_comes_last(
    fake_papermill: Callable[[Executed], Path],
) -> None:
    seen: list[bool] = []

    def done(run: Run, notebook: Path) -> None:
        run.finish({"score": 1})
        seen.append((run.folder / runs.MANIFEST).is_file())

    folder = fake_papermill(done)
    for left in (".table.csv.123.tmp", runs.PENDING, "notebook.tmp.ipynb"):
        (folder / left).write_text("{}")
    (folder / ".spec.yaml.7.tmp").write_text("another command's")
    execute.execute(folder, FakeKernel())  # type: ignore[arg-type]
    assert seen == [False]
    assert sorted(path.name for path in folder.iterdir() if path.name not in (runs.LOCK, writers.WRITING)) == [
        ".spec.yaml.7.tmp", "notebook.ipynb", "run.json", "spec.yaml"
    ]  # fmt: skip
    found = runs.load(folder)
    assert found
    assert found.results == {"score": 1}


def started(code: str, folder: Path) -> subprocess.Popen[bytes]:
    """A process that this one has started, as it is told."""
    environment = {**os.environ, writers.STARTED_BY: str(os.getpid())}
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], env=environment, cwd=ROOT)


def wait_for(file: Path) -> None:
    for _ in range(1200):
        if file.exists():
            return
        time.sleep(0.05)
    pytest.fail(f"{file} did not come")


CHILD = """
import pathlib, sys, time
from sao_lib.writers import die_with_parent
folder = pathlib.Path(sys.argv[1])
(folder / "ready").touch()
while not (folder / "go").exists(): time.sleep(0.02)
die_with_parent()
(folder / "went on").touch()
"""
STARTER = f"""
import os, subprocess, sys, time
os.environ["SAO_STARTED_BY"] = str(os.getpid())
subprocess.Popen([sys.executable, "-c", {CHILD!r}, sys.argv[1]])
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("killed", [True, False])
def test_a_process_whose_starter_is_dead_and_not_reaped_ends(killed: bool, tmp_path: Path) -> None:
    """A kernel or trainer that was still importing when its starter was killed, which this process does not reap."""
    starter = started(STARTER, tmp_path)
    try:
        wait_for(tmp_path / "ready")
        (child,) = psutil.Process(starter.pid).children()
        if killed:
            starter.kill()
            while psutil.Process(starter.pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.02)
        (tmp_path / "go").touch()
        if killed:
            psutil.wait_procs([child], timeout=60)
            assert not (tmp_path / "went on").exists()
        else:
            wait_for(tmp_path / "went on")
    finally:
        starter.kill()
        starter.wait()


HOLDER = """
import pathlib, sys, time
from sao_lib.writers import hold
folder = pathlib.Path(sys.argv[1])
hold(folder)
(folder / "ready").touch()
while not (folder / "go").exists(): time.sleep(0.02)
"""


def test_the_next_command_waits_for_a_trainer_that_still_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = started(HOLDER, tmp_path)
    waited = threading.Event()
    thread = threading.Thread(target=lambda: (writers.wait_for_writers(tmp_path), waited.set()), daemon=True)
    try:
        wait_for(tmp_path / "ready")
        thread.start()
        assert not waited.wait(0.5)
        (tmp_path / "go").touch()
        assert waited.wait(60)
    finally:
        trainer.kill()
        trainer.wait()
    assert "waiting for a process of an earlier command" in capsys.readouterr().out


def test_a_process_writes_into_one_folder_at_a_time(tmp_path: Path) -> None:
    """Also where it has forked another meanwhile, as an engine that is kept for the next run."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    writers.hold(tmp_path / "one")
    writers.hold(tmp_path / "one")
    forked = os.fork()
    if not forked:
        time.sleep(60)
        os._exit(0)
    try:
        writers.hold(tmp_path / "two")
        writers.wait_for_writers(tmp_path / "one")
    finally:
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)


def test_a_run_whose_process_is_killed_ends_with_a_sentence_and_the_next_has_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a cell, as when memory ends."""
    monkeypatch.setattr(execute, "OUTPUTS", tmp_path)
    monkeypatch.setattr(execute, "notebook_of", lambda spec: str(tmp_path / "stage"))
    folder = tmp_path / "cpu" / "judge" / "self-1"
    folder.mkdir(parents=True)
    spec = {"stage": "judge", "name": "self", "profile": "cpu", "params": {}, "inputs": {}, "files": {}}
    (folder / "spec.yaml").write_text(json.dumps(spec))
    own = tmp_path / "pid"
    computes = (
        f"import os, pathlib, time; written = pathlib.Path({str(own)!r} + '-'); written.write_text(str(os.getpid()))"
    )
    computes += f"; written.rename({str(own)!r}); time.sleep(600)"
    python = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python"}}
    kernel = Kernel()

    def kill() -> None:
        wait_for(own)
        os.kill(int(own.read_text()), signal.SIGKILL)

    try:
        nbformat.write(new_notebook(cells=[new_code_cell(computes)], metadata=python), tmp_path / "stage.ipynb")
        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(Killed, match=r"judge/self: its process was ended from outside.*run the same command"):
            execute.execute(folder, kernel)
        thread.join()
        nbformat.write(new_notebook(cells=[new_code_cell("1 + 1")], metadata=python), tmp_path / "stage.ipynb")
        with pytest.raises(SaoError, match="ended without writing a manifest"):
            execute.execute(folder, kernel)
    finally:
        kernel.close(interrupted=True)


def test_code_that_was_written_meanwhile_is_imported_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Kernel()
    try:
        first = one.manager().provisioner.pid
        assert one.manager().provisioner.pid == first
        monkeypatch.setattr(kernel, "_written", lambda: time.time())
        assert one.manager().provisioner.pid != first
    finally:
        one.close(interrupted=True)


def test_a_table_that_fails_is_not_started_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (runs, chain, reproduce):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path)
    asked: list[list[str]] = []

    def fails_at_the_table(name: str, planned: list[chain.Planned], *_: Any) -> dict[str, str]:
        asked.append([run.folder for run in planned if not run.done])
        for run in planned[:-1]:
            if not run.done:
                Run.open(run.path / "spec.yaml").finish({})
        return {planned[-1].folder: "ablate/smoke failed in cell 4"}

    monkeypatch.setattr(reproduce, "run_graph", fails_at_the_table)
    with pytest.raises(SaoError, match="1 failure.*\nablate/smoke failed in cell 4"):
        reproduce.reproduce("cpu", ["smoke"], [])
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("stale", "otherwise", "rounds"),
    [
        (["judge"], False, [["judge"]]),
        (["judge"], True, [["judge"], ["train"], ["answer"], ["evaluate"], ["smoke"]]),
        (["train", "evaluate"], True, [["train"], ["answer"], ["evaluate"], ["smoke"]]),  # never of old answers
    ],
)
def test_what_reads_a_run_is_made_again_only_if_that_came_out_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: list[str], otherwise: bool, rounds: list[list[str]]
) -> None:
    for module in (runs, chain, reproduce):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path)
    asked: list[list[str]] = []
    results: dict[str, Any] = {}

    def makes(name: str, planned: list[chain.Planned], *_: Any) -> dict[str, str]:
        asked.append([run.folder.split("/")[1] for run in planned if not run.done])
        for run in [run for run in planned if not run.done]:
            Run.open(run.path / "spec.yaml").finish(results)
            (run.path / "smoke.md").touch()
        return {}

    monkeypatch.setattr(reproduce, "run_graph", makes)
    reproduce.reproduce("cpu", ["smoke"], [])
    for run in planning.make("cpu", "smoke").runs:
        if run.spec["stage"] in stale and "self" in run.spec["name"]:
            manifest = json.loads((run.path / "run.json").read_text())
            manifest["code"]["sao_lib/runs.py"] = "another"
            del manifest["digest"]
            (run.path / "run.json").write_text(json.dumps(manifest))
    asked.clear()
    results |= {"came out": "otherwise"} if otherwise else {}
    reproduce.reproduce("cpu", ["smoke"], [], fresh="stale")
    assert asked == rounds
