"""The main path at its smallest, as a user runs it: real model, real engines, every notebook; killed and resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from sao_lib.settings import NOTEBOOKS, ROOT


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "sao_lib", *words]


def environment(outputs: Path) -> dict[str, str]:
    return {**os.environ, "SAO_OUTPUTS": str(outputs), "OPENAI_API_KEY": "", "HF_HUB_OFFLINE": "1"}


def run(outputs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), env=environment(outputs), capture_output=True, text=True, check=False)


def reproduce(outputs: Path, table: str, *changes: str) -> subprocess.CompletedProcess[str]:
    """One job at a time: another test file has the other core, and there are fewer processes to start."""
    return run(outputs, "reproduce", table, "--set", "machine.jobs=1", *changes)


def started(outputs: Path) -> list[str]:
    log = outputs / "cpu" / "done.jsonl"
    return [json.loads(line)["run"] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of the smoke experiment, after its process group was killed once when three runs were done."""
    folder = tmp_path_factory.mktemp("my oütputs")  # a space and an umlaut, as in ~/My Drive
    process = subprocess.Popen(
        command("reproduce", "smoke"), env=environment(folder), start_new_session=True, stdout=subprocess.DEVNULL
    )
    while len(started(folder)) < 3 and process.poll() is None:
        time.sleep(0.2)
    time.sleep(5)  # into the next runs
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(30):  # a trainer that is still importing notices when it has done so
        alive = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False).stdout
        if not alive:
            break
        time.sleep(1)
    assert not alive, "a killed command leaves nothing behind that goes on writing"
    assert not (folder / "cpu" / "smoke" / "run.json").exists()
    finished = reproduce(folder, "smoke")
    assert finished.returncode == 0, finished.stderr[-2000:]
    return folder


def test_nothing_finished_is_done_twice(outputs: Path) -> None:
    done = started(outputs)
    assert len(done) == len(set(done)) == 20


def test_the_table_is_there_in_three_formats_with_its_figure(outputs: Path) -> None:
    folder = outputs / "cpu" / "smoke"
    table = (folder / "smoke.md").read_text()
    assert "| Self-feedback | 70.28 | 74.04 |" in table
    assert "labelled pairs" in table
    assert (folder / "smoke.csv").read_text().count("\n") == 5
    assert "Controls: 0 of 1 as they must be, the other not tested (one run: not tested)." in table
    assert r"\toprule" in (folder / "smoke.tex").read_text()
    assert (folder / "smoke.png").stat().st_size > 10_000


def test_the_first_notebook_writes_what_table_5_reads(outputs: Path) -> None:
    made = next((outputs / "cpu" / "synthesize").glob("*/run.json"))
    results = json.loads(made.read_text())["results"]
    assert 0 < results["diversity"] < 1
    assert all(0 <= results[key] < 1 for key in ("repetition", "near_duplicates"))


def test_a_second_call_runs_nothing_and_prints_the_same_table(outputs: Path) -> None:
    before = started(outputs)
    again = reproduce(outputs, "smoke")
    assert again.returncode == 0
    assert "runs to do" not in again.stdout
    assert (outputs / "cpu" / "smoke" / "smoke.md").read_text() in again.stdout
    assert started(outputs) == before


def test_executed_notebooks_lie_beside_the_data_without_errors_secrets_or_machine_paths(outputs: Path) -> None:
    found = sorted((outputs / "cpu").rglob("notebook.ipynb"))
    assert len(found) >= 20
    for path in found:
        text = path.read_text()
        notebook = nbformat.reads(text, 4)
        assert all(o.output_type != "error" for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
        assert not re.search(r"sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{20,}", text)
        assert str(ROOT) not in text.replace(str(outputs), "")
        assert len(text) < 400_000


def test_every_other_benchmark_runs_and_the_page_shows_what_has_finished(outputs: Path) -> None:
    done = reproduce(outputs, "smoke-benchmarks")
    assert done.returncode == 0, done.stderr[-2000:]
    row = next(line for line in done.stdout.splitlines() if line.startswith("| Length-based feedback"))
    assert "not run" not in row
    stages = {json.loads(m.read_text())["spec"]["stage"] for m in (outputs / "cpu").rglob("run.json")}
    assert stages == set(NOTEBOOKS)
    page = run(outputs, "report")
    assert "2 tables and figures" in page.stdout
    assert "Not finished: table1" in (outputs / "cpu" / "report.html").read_text()


def test_a_damaged_run_is_said_set_aside_and_done_again(outputs: Path) -> None:
    folder = next((outputs / "cpu" / "judge").glob("length-*"))
    rows = folder / "preferences.jsonl"
    whole = rows.read_text()
    rows.write_text(whole[:-20])
    (outputs / "cpu" / "smoke" / "run.json").unlink()
    again = reproduce(outputs, "smoke")
    assert again.returncode == 0, again.stderr[-2000:]
    assert "not as its manifest says" in again.stdout
    assert (next((outputs / "cpu" / "judge").glob("length-*.damaged")) / "preferences.jsonl").exists()
    assert rows.read_text() == whole


def test_a_run_that_other_code_made_is_kept_used_and_named(outputs: Path) -> None:
    manifest = next((outputs / "cpu" / "train").glob("simpo-self-*/run.json"))
    made = json.loads(manifest.read_text())
    other = {**made, "code": {**made["code"], "sao_lib/method/losses.py": "another"}}
    manifest.write_text(json.dumps({key: value for key, value in other.items() if key != "digest"}))
    name = manifest.parent.name
    again = reproduce(outputs, "smoke")
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"cpu/train/{name}: changed since: sao_lib/method/losses.py" in again.stdout
    caption = f"Made by other code than this: train/{name}. Changed since: sao_lib/method/losses.py."
    assert caption in again.stdout
    assert f"train/{name}: started" not in again.stdout
    run(outputs, "report")
    assert caption in (outputs / "cpu" / "report.html").read_text()
    manifest.write_text(json.dumps(made))
    assert "Made by other code" not in reproduce(outputs, "smoke").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reproduce", "table66"], "There is no experiment 'table66'"),
        (["reproduce", "smoke", "--profile", "laptop"], "There is no profile 'laptop'"),
        (["reproduce", "smoke", "--set", "train.bets=1"], "Unknown parameter 'train.bets' in the command line"),
        (["reproduce", "smoke", "--set", "policy.model=./nowhere"], "The model folder ./nowhere does not exist"),
        (["reproduce", "smoke", "--profile", "paper", "--set", "machine.gpus=99"], "needs 99 GPU(s)"),
        (["run", "outputs/nothing"], "no run's spec.yaml"),
    ],
)
def test_mistakes_are_one_sentence_without_a_traceback(words: list[str], said: str, tmp_path: Path) -> None:
    failed = run(tmp_path, *words)
    assert failed.returncode == 1
    assert said in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_a_failing_run_leaves_its_sentence_and_its_notebook(outputs: Path) -> None:
    """Beside the finished runs, of which it uses what it shares."""
    before = started(outputs)
    changes = ("train.min_completion=64", "judge.audit_questions=2")  # no response is as long; another judge's run
    failed = reproduce(outputs, "smoke-benchmarks", *changes)
    assert failed.returncode == 1
    assert "usable pairs are too few" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert list((outputs / "cpu" / "train").rglob("notebook.failed.ipynb"))
    done = started(outputs)[len(before) :]
    assert len(done) == 2  # the judge's run and the rating that reads it: what could be done was done
    assert {name.partition("-")[0] for name in done} == {"length"}
