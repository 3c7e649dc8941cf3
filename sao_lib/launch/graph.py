"""The graph of groups: written for snakemake, handed to it, and done by it one group at a time through `do_group`."""

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sao_lib.errors import Killed, SaoError
from sao_lib.files import write_atomic
from sao_lib.launch import cluster as clusters
from sao_lib.launch.cards import cards_here, held
from sao_lib.launch.execute import execute
from sao_lib.launch.kernel import one_kernel
from sao_lib.machine import available_gib, cores, idle_share
from sao_lib.plan.chain import Planned
from sao_lib.plan.groups import Group, groups
from sao_lib.progress import clock
from sao_lib.runs import LOCK, MANIFEST, OUTPUTS
from sao_lib.settings import ROOT, Machine

SPARE_GIB = 1.0
PREFIX = ".graph-"
FAILED = clusters.FAILED


def run_graph(name: str, runs: Sequence[Planned], machine: Machine, cluster: str) -> dict[str, str]:
    """Do those of `runs` that are missing; `name` is profile/table. Returns those that failed, {folder: reason}.

    Raises SaoError when snakemake stops for another reason than a run's.
    """
    missing = [run for run in runs if not run.done]
    local = cluster == clusters.LOCAL
    jobs, why = jobs_at_once(machine) if local else (None, "")
    pool = [card.number for card in cards_here()] if local else None
    made = groups(missing, machine, max(1, len(pool) // machine.gpus) if pool and machine.gpus else jobs)
    how = f"{jobs} at once ({why})" if local else f"handed to {cluster}"
    profile, _, table = name.partition("/")
    print(
        f"{table} on {profile}: {len(missing)} of {len(runs)} runs to do, in {len(made)} group(s), {how}.", flush=True
    )
    for run in missing:
        (run.path / FAILED).unlink(missing_ok=True)  # why it failed before says nothing of this time
    with _folder(OUTPUTS / name) as folder:
        plan = {**_plan(folder, runs, made, machine, cluster), "pool": pool}
        write_atomic(folder / "plan.json", json.dumps(plan, indent=1))
        options = clusters.executor(cluster) if pool is None else clusters.here(jobs or 1, len(pool))
        # What a group leaves is a file in `folder`, made anew for every command: hence no locks, no metadata.
        command = [sys.executable, "-m", clusters.program(cluster), "-s", str(ROOT / "Snakefile")]
        command += ["--config", f"plan={folder / 'plan.json'}", "--nolock", "--ignore-incomplete", "--drop-metadata"]
        command += ["--keep-going", "--rerun-triggers", "mtime", "--directory", str(ROOT), *options]
        code, said = clusters.call(command, ROOT, show=not local)
        failed = _lost(plan["groups"], made)
    failed |= {r.folder: (r.path / FAILED).read_text().strip() for r in missing if (r.path / FAILED).exists()}
    if not failed and (code or any(not run.done for run in missing)):
        raise SaoError(f"snakemake stopped: {said if local else 'the reason is above.'}")
    return failed


def _lost(nodes: Sequence[dict[str, Any]], made: Sequence[Group]) -> dict[str, str]:
    """Runs that ended with their jobs, without a reason of their own: {folder: the scheduler's}."""
    notes = [(group, clusters.noted(node["mark"])) for node, group in zip(nodes, made, strict=True)]
    return {
        run.folder: clusters.told(run, said)
        for group, said in notes
        for run in group
        if said and clusters.left_without_reason(run.path)
    }


@contextlib.contextmanager
def _folder(of: Path) -> Iterator[Path]:
    """A folder for one command's plan and marks; those that a killed command left are removed."""
    of.mkdir(parents=True, exist_ok=True)
    for left in of.glob(f"{PREFIX}*"):
        with contextlib.suppress(Timeout), FileLock(left / LOCK, timeout=0):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=of))
    try:
        with FileLock(folder / LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plan(
    folder: Path, runs: Sequence[Planned], made: Sequence[Group], machine: Machine, cluster: str
) -> dict[str, Any]:
    """The graph as the Snakefile reads it."""
    mark = {run.folder: f"{folder}/{number}.done" for number, group in enumerate(made, 1) for run in group}
    nodes = [
        {
            "name": f"{group[0].spec['stage']}_{number}",
            "runs": [str(run.path) for run in group],
            "inputs": sorted({mark[i] for run in group for i in run.inputs.values() if i in mark}),
            "mark": mark[group[0].folder],
            "threads": max(clusters.threads(run, machine, cluster) for run in group),
            "resources": clusters.resources(group, machine, cluster),
            "cards": clusters.cards_of(group, machine),
        }
        for number, group in enumerate(made, 1)
    ]
    return {"python": sys.executable, "of": [str(run.path) for run in runs], "groups": nodes}


def jobs_at_once(machine: Machine) -> tuple[int, str]:
    """How many single-threaded jobs fit now, and why: cores not busy, memory left, or the profile's own number."""
    if machine.jobs:
        return machine.jobs, "as the profile says"
    count = cores()
    idle = max(1, round(count * idle_share()))
    room = max(1, int((available_gib() - SPARE_GIB) // machine.memory_gib))
    jobs = max(1, min(idle, room))
    return jobs, f"{count} cores, {idle} of them idle, memory for {room}"


def do_group(folders: Sequence[Path], plan_file: Path | None, cards: int | None = None) -> None:
    """Execute runs one after another in one kernel; a run's failure is left in its error.txt, and the next is done.

    They see `cards` cards of the plan's pool, None: those that are visible now. Passed over are a run that reads one
    which is missing, and one that has failed in an earlier try of this command. On a cluster a run whose process was
    killed leaves no reason, so that its job is tried again. Raises SaoError then, and when no run could be done.
    """
    failures: list[str] = []
    pool = json.loads(plan_file.read_text())["pool"] if plan_file and cards is not None else None
    again, scheduled = False, cards is not None and pool is None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(cards or 0, pool))
        except SaoError as reason:
            for folder in [] if scheduled else folders:  # on another node there may be what this one lacks
                write_atomic(folder / FAILED, f"{reason}\n")
            raise
        kernel = stack.enter_context(one_kernel())
        for folder in folders:
            if _lacks_input(folder) or _has_failed(folder, plan_file):
                continue
            (folder / FAILED).unlink(missing_ok=True)
            try:
                execute(folder, kernel, _label(plan_file))
            except SaoError as reason:
                failures.append(str(reason))
                if scheduled and isinstance(reason, Killed):
                    again = True
                    continue
            except OSError as reason:  # a disk that is full, or gone
                failures.append(f"{folder} failed: {reason.strerror or reason}; what it wrote is kept.")
            else:
                continue
            try:
                write_atomic(folder / FAILED, f"{failures[-1]}\n")
            except SaoError:
                raise SaoError(failures[-1]) from None  # no room even for the reason: it is said instead
    if again or not any((folder / MANIFEST).is_file() for folder in folders):
        raise SaoError("\n".join(failures) or "Nothing was done: what these runs read has not finished.")


def _has_failed(folder: Path, plan_file: Path | None) -> bool:
    """Whether the run has failed, with a reason, since this command began."""
    file = folder / FAILED
    return bool(plan_file and file.is_file() and file.stat().st_mtime > plan_file.stat().st_mtime)


def _lacks_input(folder: Path) -> bool:
    try:
        inputs = json.loads((folder / "spec.yaml").read_text())["inputs"].values()
    except (OSError, ValueError):
        return False  # execute says what is wrong
    return not all((OUTPUTS / other / MANIFEST).is_file() for other in inputs)


def _label(plan_file: Path | None) -> str:
    """`[4/33, 6:10 left] `: a run's place among all, and the time left from this command's pace once there is one."""
    if not plan_file or not plan_file.is_file():
        return ""
    folders = [Path(folder) for folder in json.loads(plan_file.read_text())["of"]]
    done = [f for f in folders if (f / MANIFEST).is_file()]
    since = plan_file.stat().st_mtime
    fresh = [f for f in done if (f / MANIFEST).stat().st_mtime > since]
    left = ""
    if len(fresh) > 1:
        left = f", {clock((time.time() - since) / len(fresh) * (len(folders) - len(done)))} left"
    return f"[{len(done) + 1}/{len(folders)}{left}] "
