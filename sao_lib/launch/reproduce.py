"""`make reproduce-X` and `make reproduce-all`: plan, check, hand the graph to snakemake, print the tables."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from sao_lib.errors import SaoError
from sao_lib.files import write_atomic
from sao_lib.launch import cluster as clusters
from sao_lib.launch.doctor import gpus_here
from sao_lib.launch.execute import execute
from sao_lib.machine import available_gib, cores, idle_share
from sao_lib.plan import cost, planning
from sao_lib.plan.planning import Plan
from sao_lib.progress import clock
from sao_lib.report.check import check
from sao_lib.runs import MANIFEST, OUTPUTS
from sao_lib.settings import ROOT, Machine, shown

SPARE_GIB = 1.0
FRESH = ("", "stale", "all")


def reproduce(
    profile: str, experiments: list[str], assignments: list[str], cluster: str = clusters.LOCAL, fresh: str = ""
) -> None:
    """Run what is missing of the experiments and print their tables; raises SaoError in one sentence.

    A row that lacks a model, a key or a data set, or whose run fails, is left out and named; the rest is done.
    Finished runs that other code made are named and used; `fresh` makes them again (`stale`), or all of them (`all`).
    """
    clusters.check(cluster)
    if fresh not in FRESH:
        raise SaoError(f"FRESH is '{fresh}'; it must be stale, all or nothing.")
    local = cluster == clusters.LOCAL  # a cluster's login node has neither its GPUs nor its cores, and quotas for disk
    plans, impossible = _plans(profile, experiments, assignments, local, fresh)
    cost.check_cap(_distinct(plans))
    missing = [run for run in _distinct(plans) if not run.done]
    failed: dict[str, str] = {}
    if missing:
        if local:
            _check_disk(_distinct(plans))
        failed = _snakemake(profile, plans, missing, cluster)
    if failed:  # the tables of rows that did finish
        plans, more = _remaining(plans, failed)
        impossible += more
        missing = [run for run in _distinct(plans) if not run.done]
        if missing:
            _snakemake(profile, plans, missing, cluster)
    for plan in plans:
        if plan.table.done:
            print((plan.table.path / f"{plan.experiment}.md").read_text())
            print(f"Table, figure and executed notebook: {shown(plan.table.path)}/\n")
    _close(plans, impossible, failed)


def _plans(
    profile: str, experiments: list[str], assignments: list[str], local: bool, fresh: str
) -> tuple[list[Plan], list[str]]:
    """Plans with their specs written, and a sentence for every experiment that cannot run at all."""
    plans, impossible = [], []
    for name in experiments:
        try:
            plan = planning.make(profile, name, assignments)
            check(plan.experiment)
            if local:
                _check_gpus(profile, plan.base.machine)
            plans.append(planning.verified(plan))
        except SaoError as reason:
            if len(experiments) == 1:
                raise
            impossible.append(f"{name}: {reason}")
    if not plans:
        raise SaoError("Nothing can be run. " + impossible[0])
    plans = _renewed(plans, fresh)
    for plan in plans:
        planning.write_specs(plan)
    return plans, impossible


def _renewed(plans: list[Plan], fresh: str) -> list[Plan]:
    """Say which finished runs other code made, and set those aside that are to be made again."""
    if fresh:
        again = {run.folder: run for plan in plans for run in planning.fresh(plan, fresh)}
        for run in again.values():
            planning.replaced(run)
        if again:
            print(f"To be made again: {', '.join(again)}. If this is interrupted, go on without FRESH.")
        return [planning.joined(plan) for plan in plans]
    outdated = {f: why for plan in plans for f, why in plan.table.spec["params"]["outdated"].items()}
    if outdated:
        print(f"{len(outdated)} finished run(s) were made by other code than this. They are kept and used:")
        print("\n".join(f"  {folder}: changed since: {', '.join(why)}" for folder, why in outdated.items()))
        print("FRESH=stale makes these again, FRESH=all everything of the table.", flush=True)
    return plans


def _remaining(plans: list[Plan], failed: dict[str, str]) -> tuple[list[Plan], list[str]]:
    kept, impossible = [], []
    for plan in plans:
        try:
            reduced = planning.without(plan, failed)
        except SaoError as reason:
            impossible.append(f"{plan.experiment}: {reason}")
            continue
        planning.write_specs(reduced)
        kept.append(reduced)
    return kept, impossible


def _distinct(plans: list[Plan]) -> list[planning.Planned]:
    """The runs of all plans, once each, in an order in which they can be done."""
    return list({run.folder: run for plan in plans for run in plan.runs}.values())


def _close(plans: list[Plan], impossible: list[str], failed: dict[str, str]) -> None:
    """What was shared, what did not run; raises SaoError if a run failed or a table could not be made."""
    asked, distinct = sum(len(plan.runs) for plan in plans), len(_distinct(plans))
    if len(plans) > 1:
        print(
            f"{len(plans)} tables and figures ask for {asked} runs; {distinct} of them are distinct and ran once each."
        )
    for plan in plans:
        for row in plan.rows:
            if row.skipped:
                print(f"Not run: {plan.experiment}, {row.label}: {row.skipped}")
    own = [reason for reason in impossible if not any(why in reason for why in failed.values())]
    if failed or own:
        reasons = "\n".join([*failed.values(), *own])
        raise SaoError(f"{len(failed) + len(own)} failure(s); everything finished is kept.\n{reasons}")


def jobs_at_once(machine: Machine) -> tuple[int, str]:
    """How many single-threaded jobs fit now, and why: cores not busy, memory left, or the profile's own number."""
    if machine.jobs:
        return machine.jobs, "as the profile says"
    count = cores()
    idle = max(1, round(count * idle_share()))
    room = max(1, int((available_gib() - SPARE_GIB) // machine.memory_gib))
    jobs = max(1, min(idle, room))
    return jobs, f"{count} cores, {idle} of them idle, memory for {room}"


def _check_gpus(profile: str, machine: Machine) -> None:
    need, here = machine.gpus, len(gpus_here())
    if here < need:
        raise SaoError(
            f"Profile {profile} needs {need} GPU(s) and this machine has {here}; use a machine that has them or "
            "PROFILE=cpu. `make doctor` says what is missing."
        )


def _check_disk(runs: list[planning.Planned]) -> None:
    need = cost.disk_needed(runs)
    stat = os.statvfs(OUTPUTS if OUTPUTS.exists() else ROOT)
    free = stat.f_bavail * stat.f_frsize / 2**30
    if free < need:
        raise SaoError(
            f"{shown(OUTPUTS)} has {free:.1f} GiB free and these runs need about {need:.0f}; make room first."
        )


def _snakemake(profile: str, plans: list[Plan], missing: list[planning.Planned], cluster: str) -> dict[str, str]:
    """Hand the graph to snakemake; returns the runs that failed, {folder: reason}."""
    machine = plans[0].base.machine
    name = plans[0].table.folder.rpartition("/")[2] if len(plans) == 1 else "all"
    total = _distinct(plans)
    if cluster == clusters.LOCAL:
        jobs, why = jobs_at_once(machine)
        how, options = f"{jobs} at once ({why})", ["--cores", str(jobs), "--quiet", "all"]
    else:
        how, options = f"handed to {cluster}", clusters.executor(cluster)
    print(f"{name} on {profile}: {len(missing)} of {len(total)} runs to do, {how}.", flush=True)
    content = {
        "outputs": str(OUTPUTS),
        "python": sys.executable,
        "experiment": f"{profile}/{name}",
        "targets": [plan.table.folder for plan in plans],
        "runs": [_node(run, machine, cluster) for run in total],
    }
    file = OUTPUTS / profile / name / "plan.json"
    write_atomic(file, json.dumps(content, indent=1))
    for run in missing:
        (run.path / "error.txt").unlink(missing_ok=True)  # why it failed before says nothing of this time
    # A finished run is one with a manifest, whatever snakemake remembers: hence no locks, no metadata.
    command = [sys.executable, "-m", clusters.program(cluster), "-s", str(ROOT / "Snakefile")]
    command += ["--config", f"plan={file}", "--nolock", "--ignore-incomplete", "--drop-metadata", "--keep-going"]
    command += ["--rerun-triggers", "mtime", "--directory", str(ROOT), *options]
    code, said = clusters.call(command, ROOT, show=cluster != clusters.LOCAL)
    if not code:
        return {}
    failed = {
        r.folder: (r.path / "error.txt").read_text().strip()
        for r in missing
        if not r.done and (r.path / "error.txt").exists()
    }
    if not failed:
        raise SaoError(f"snakemake stopped: {said if cluster == clusters.LOCAL else 'the reason is above.'}")
    return failed


def _node(run: planning.Planned, machine: Machine, cluster: str) -> dict[str, Any]:
    """A run as the Snakefile reads it."""
    return {
        "folder": run.folder,
        "inputs": sorted(set(run.inputs.values())),
        "threads": clusters.threads(run, machine, cluster),
        "resources": clusters.resources(run, machine, cluster),
    }


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
