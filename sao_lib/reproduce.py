"""`make reproduce-X`: plan, check, hand the graph to snakemake, print the table."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from sao_lib import plan as planning
from sao_lib.doctor import gpus_here
from sao_lib.errors import SaoError
from sao_lib.execute import execute
from sao_lib.plan import Plan
from sao_lib.progress import clock
from sao_lib.runs import MANIFEST, OUTPUTS, write_atomic
from sao_lib.settings import ROOT, Machine

SPARE_GIB = 1.0
DISK_GIB = {"synthesize": 0.01, "judge": 0.01, "train": 1.0, "evaluate": 0.02, "ablate": 0.01}


def reproduce(profile: str, experiment: str, assignments: list[str]) -> None:
    """Run what is missing of an experiment and print its table; raises SaoError in one sentence."""
    plan = planning.make(profile, experiment, assignments)
    planning.write_specs(plan)
    missing = [run for run in plan.runs if not run.done]
    if missing:
        _check_gpus(plan)
        planning.check(plan)
        _check_disk(missing)
        _snakemake(plan, len(missing))
    print((plan.table.path / f"{experiment}.md").read_text())
    print(f"Table, figure and executed notebook: {_shown(plan.table.path)}/")


def jobs_at_once(machine: Machine) -> tuple[int, str]:
    """How many single-threaded jobs fit now, and why: cores not busy, memory, or the profile's own number."""
    if machine.jobs:
        return machine.jobs, "as the profile says"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    idle = max(1, round(cores * _idle_share()))
    room = max(1, int((_available_gib() - SPARE_GIB) // machine.memory_gib))
    jobs = max(1, min(idle, room))
    return jobs, f"{cores} cores, {idle} of them idle, memory for {room}"


def _idle_share(seconds: float = 1.0) -> float:
    """Share of processor time that nobody used in the last moment; the load average lags by minutes."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 1.0
    first = [int(n) for n in stat.read_text().split("\n", 1)[0].split()[1:]]
    time.sleep(seconds)
    second = [int(n) for n in stat.read_text().split("\n", 1)[0].split()[1:]]
    spent = [b - a for a, b in zip(first, second, strict=True)]
    return (spent[3] + spent[4]) / max(1, sum(spent[:8]))  # idle and waiting for disk, of all


def _available_gib() -> float:
    info = Path("/proc/meminfo")
    if not info.exists():
        return 16.0
    line = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) / 2**20


def _check_gpus(plan: Plan) -> None:
    need, here = plan.rows[0].settings.machine.gpus, len(gpus_here())
    if here < need:
        raise SaoError(
            f"Profile {plan.profile} needs {need} GPU(s) and this machine has {here}; use a machine that has them or "
            "PROFILE=cpu. `make doctor` says what is missing."
        )


def _check_disk(missing: list[planning.Planned]) -> None:
    need = sum(DISK_GIB[run.spec["stage"]] for run in missing)
    stat = os.statvfs(OUTPUTS if OUTPUTS.exists() else ROOT)
    free = stat.f_bavail * stat.f_frsize / 2**30
    if free < need:
        raise SaoError(
            f"{_shown(OUTPUTS)} has {free:.1f} GiB free and these runs need about {need:.0f}; make room first."
        )


def _snakemake(plan: Plan, missing: int) -> None:
    machine = plan.rows[0].settings.machine
    jobs, why = jobs_at_once(machine)
    print(f"{plan.experiment} on {plan.profile}: {missing} of {len(plan.runs)} runs to do, {jobs} at once ({why}).")
    runs = [{"folder": r.folder, "inputs": sorted(set(r.inputs.values()))} for r in plan.runs]
    content = {"outputs": str(OUTPUTS), "python": sys.executable, "machine": machine.model_dump(), "runs": runs}
    file = plan.table.path / "plan.json"
    write_atomic(file, json.dumps({**content, "experiment": f"{plan.profile}/{plan.experiment}"}, indent=1))
    # A finished run is one with a manifest, whatever snakemake remembers: hence no locks, no metadata.
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--config", f"plan={file}"]
    command += ["--cores", str(jobs), "--nolock", "--ignore-incomplete", "--drop-metadata", "--keep-going"]
    command += ["--rerun-triggers", "mtime", "--quiet", "all", "--directory", str(ROOT)]
    done = subprocess.run(command, cwd=ROOT, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        failed = [r for r in plan.runs if not r.done and (r.path / "error.txt").exists()]
        if not failed:
            raise SaoError(f"snakemake stopped: {done.stderr.strip()[-500:]}")
        reasons = "\n".join((r.path / "error.txt").read_text().strip() for r in failed)
        raise SaoError(f"{len(failed)} run(s) did not finish; everything finished is kept.\n{reasons}")


def run_one(folder: Path, of: str) -> None:
    """One node of the graph: execute it, showing its place among all runs; its failure is left in error.txt."""
    plan_file = OUTPUTS / of / "plan.json"
    label = ""
    if of and plan_file.is_file():
        folders = [OUTPUTS / r["folder"] for r in json.loads(plan_file.read_text())["runs"]]
        done = [f for f in folders if (f / MANIFEST).is_file()]
        label = f"[{len(done) + 1}/{len(folders)}{_left(folders, done, plan_file)}] "
    error = folder / "error.txt"
    error.unlink(missing_ok=True)
    try:
        execute(folder, label)
    except SaoError as reason:
        error.write_text(f"{reason}\n")
        raise


def _left(folders: list[Path], done: list[Path], plan_file: Path) -> str:
    """ ", 6:10 left" from the pace since this command started, once there is one."""
    since = plan_file.stat().st_mtime
    fresh = [f for f in done if (f / MANIFEST).stat().st_mtime > since]
    if len(fresh) < 2:
        return ""
    return f", {clock((time.time() - since) / len(fresh) * (len(folders) - len(done)))} left"


def show_plan(profile: str, experiment: str, assignments: list[str]) -> None:
    """Print the runs of an experiment without starting one."""
    plan = planning.make(profile, experiment, assignments)
    done = sum(run.done for run in plan.runs)
    print(f"{experiment} on {profile}: {len(plan.runs)} runs, {done} done")
    for run in plan.runs:
        print(f"  {'done' if run.done else 'to do':5}  {run.folder}")
    s = plan.rows[0].settings
    print(f"{len(plan.rows)} rows; policy {s.policy.model}; {s.synthesize.n} personas")


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
