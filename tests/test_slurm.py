"""Clusters: what each stage asks for, and a real graph through snakemake's SLURM plugin on a real one-node SLURM."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import interrupted
import pytest
from filelock import FileLock
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from sao_lib.errors import SaoError
from sao_lib.launch import cluster
from sao_lib.plan import planning as plan
from sao_lib.runs import LOCK
from sao_lib.settings import NOTEBOOKS, ROOT, Stage

SCRIPTS = ROOT / "tests" / "slurm"
SMALLEST = ["synthesize.n=4", "synthesize.pairs=2", "synthesize.max_response_tokens=16", "judge.source=length",
            "judge.audit_questions=1", "engine.kind=transformers"]  # fmt: skip  # which starts sooner than vLLM


class Resources(dict):  # type: ignore[type-arg]
    """As the plugin's functions read snakemake's."""

    def __getattr__(self, name: str) -> object:
        return self[name]


def asked(run: plan.Planned, made: plan.Plan) -> str:
    """sbatch's options for a run, by the plugin's own functions."""
    machine = made.base.machine
    job = SimpleNamespace(
        resources=Resources(cluster.resources([run], machine)), threads=cluster.threads(run, machine, "slurm")
    )
    given = dict.fromkeys(("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir"), "x")
    return get_submit_command(job, given) + set_gres_string(job)


@pytest.fixture(scope="module")
def paper() -> plan.Plan:
    return plan.make("paper", "table6")


def test_training_on_the_papers_machine_asks_for_its_cards_memory_and_time(paper: plan.Plan) -> None:
    train = next(run for run in paper.runs if run.spec["stage"] == "train")
    call = asked(train, paper)
    for option in ("--gpus=4", "--mem 262144", "-t 1440", "--cpus-per-task=32"):
        assert option in call
    assert "--ntasks" not in call  # as many tasks as cards would multiply the cores


@pytest.mark.parametrize(("name", "gpus"), [("random", None), ("length", None), ("armorm", 1), ("self", 4)])
def test_a_judge_asks_for_the_gpus_that_its_model_takes(paper: plan.Plan, name: str, gpus: int | None) -> None:
    judge = next(r for r in paper.runs if r.spec["stage"] == "judge" and r.spec["name"].startswith(name))
    assert re.findall(r"--gpus=(\d+)", asked(judge, paper)) == ([str(gpus)] if gpus else [])


def test_tables_ask_for_no_gpu(paper: plan.Plan) -> None:
    assert "gpu" not in cluster.resources([paper.table], paper.base.machine)


def test_every_stage_can_be_given_resources() -> None:
    assert set(NOTEBOOKS) == set(get_args(Stage))


def test_resources_are_no_part_of_a_runs_identity() -> None:
    given = ["machine.stages.train.minutes=5", "machine.cpus=2"]
    assert [r.folder for r in plan.make("cpu", "smoke").runs] == [
        r.folder for r in plan.make("cpu", "smoke", given).runs
    ]


@pytest.mark.parametrize(
    ("name", "said"), [("sge", "There is no cluster 'sge'"), ("slurm", "sbatch"), ("kubernetes", "finds no cluster")]
)
def test_a_cluster_that_cannot_be_had_is_one_sentence(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.shutil, "which", lambda _: None)
    monkeypatch.setattr(cluster, "find_spec", lambda module: True)
    monkeypatch.setenv("KUBECONFIG", "/dev/null/config")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SaoError, match=said):
        cluster.check(name)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a real SLURM with this host as its one node; stopped afterwards."""
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPTS / "start.sh", folder], stderr=subprocess.PIPE, text=True, check=False)
    if started.returncode == 3:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    yield folder
    subprocess.run([SCRIPTS / "stop.sh", folder], check=True)


def environment(outputs: Path) -> dict[str, str]:
    given = {"SAO_OUTPUTS": str(outputs), "SNAKEMAKE_PROFILE": str(SCRIPTS / "profile")}
    return {**os.environ, **given, "OPENAI_API_KEY": "", "HF_HUB_OFFLINE": "1"}


def reproduce(outputs: Path, **given: str) -> subprocess.Popen[str]:
    """The smallest real table on SLURM, in a process group of its own."""
    words = ["reproduce", "table13", "--cluster", "slurm", "--set", *SMALLEST]
    return interrupted.start(words, {**environment(outputs), **given})


@pytest.fixture(scope="module")
def outputs(slurm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of the smallest real table, whose three runs SLURM did."""
    folder = tmp_path_factory.mktemp("outputs")
    process = reproduce(folder)
    out, err = process.communicate()
    assert process.returncode == 0, err[-2000:] + out[-2000:]
    assert "3 of 3 runs to do, in 3 group(s), handed to slurm" in out
    assert len(re.findall("has been submitted with SLURM jobid", out)) == 3
    assert "| Ranking |" in out
    return folder


def ended(slurm: Path) -> list[dict[str, str]]:
    """SLURM's own record of the jobs that have ended."""
    log = slurm / "jobs.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]


def runs_done(outputs: Path) -> list[str]:
    return [json.loads(line)["run"] for line in (outputs / "cpu" / "done.jsonl").read_text().splitlines()]


def test_slurm_ran_every_stage_with_the_time_and_memory_it_stated(slurm: Path, outputs: Path) -> None:
    jobs = ended(slurm)[:3]
    assert [job["JobState"] for job in jobs] == ["COMPLETED"] * 3
    assert [job["TimeLimit"] for job in jobs] == ["60", "60", "15"]
    made = plan.make("cpu", "table13")
    stated = [cluster.resources([run], made.base.machine)["mem_mb"] for run in made.runs]
    given = [re.findall(r"mem=([\d.]+)G", job["Tres"]) for job in jobs]
    assert [[1024 * float(gib) for gib in found] for found in given] == [[mb] for mb in stated]
    said = "".join(path.read_text() for path in (outputs / "slurm_logs").rglob("*.log"))
    assert all(re.search(rf"{stage}/.*: done in", said) for stage in ("synthesize", "judge", "ablate"))
    assert len(runs_done(outputs)) == 3


def wait_until_idle() -> None:
    """The cores of a job that has ended are free a while later."""
    for _ in range(60):
        state = subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True, check=True)
        if state.stdout.strip() == "idle":
            return
        time.sleep(1)


def test_two_jobs_asked_for_the_same_run_produce_it_once(slurm: Path, outputs: Path) -> None:
    table = next((outputs / "cpu").glob("table13@*"))
    (table / "run.json").unlink()
    before, job = len(runs_done(outputs)), f"{sys.executable} -m sao_lib run {table}"
    submit = ["sbatch", "--mem=2000", "--output", f"{outputs}/%j.log", "--chdir", str(ROOT), "--wrap", job]
    known = len(ended(slurm))
    wait_until_idle()
    for _ in range(2):  # at once where SLURM finds room for both, else one after the other
        subprocess.run(submit, env=environment(outputs), check=True, capture_output=True)
    deadline = time.monotonic() + 240
    while len(ended(slurm)) < known + 2 and time.monotonic() < deadline:
        time.sleep(1)
    first, second = sorted(ended(slurm)[known:], key=lambda job: int(job["JobId"]))
    assert first["ExitCode"] == second["ExitCode"] == "0:0"
    assert (table / "run.json").exists()
    assert len(runs_done(outputs)) == before + 1


def test_an_interrupted_command_takes_its_jobs_back(slurm: Path, tmp_path: Path) -> None:
    """Also while snakemake asks how they are: it forgets them meanwhile."""
    asked, slow = tmp_path / "asked", tmp_path / "bin" / "squeue"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\ntouch {asked}\nsleep 5\nexec {shutil.which("squeue")} "$@"\n')
    slow.chmod(0o755)
    first = tmp_path / "outputs" / plan.make("cpu", "table13", SMALLEST).runs[0].folder
    first.mkdir(parents=True)
    wait_until_idle()
    known = len(ended(slurm))
    with FileLock(first / LOCK):  # the job waits for it, and so cannot end by itself before it is cancelled
        process = reproduce(tmp_path / "outputs", PATH=f"{slow.parent}:{os.environ['PATH']}")
        deadline = time.monotonic() + 120
        while not asked.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said, complaint = process.communicate()
        assert complaint == "Stopped; run the same command to continue.\n", said
        wait_until_idle()
    assert [job["JobState"] for job in ended(slurm)[known:]] == ["CANCELLED"]
