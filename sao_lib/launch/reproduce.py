"""`make reproduce-X` and `make reproduce-all`: plan, check, do what is missing, print the tables."""

import os

from sao_lib.errors import SaoError
from sao_lib.launch import cluster as clusters
from sao_lib.launch.doctor import gpus_here
from sao_lib.launch.graph import jobs_at_once, run_graph
from sao_lib.plan import cost, planning
from sao_lib.plan.planning import Plan
from sao_lib.report.check import check
from sao_lib.runs import OUTPUTS
from sao_lib.settings import ROOT, Machine, shown

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
    plans, impossible = _plans(profile, experiments, assignments, local)
    again = {run.folder: run for plan in plans for run in planning.fresh(plan, fresh)}
    to_do = [run for run in _distinct(plans) if not run.done or run.folder in again]
    cost.check_cap(to_do, _distinct(plans))
    if to_do and local:
        _check_disk(to_do, _distinct(plans), plans[0].base.machine)
    plans = _renewed(plans, fresh, again)
    failed: dict[str, str] = {}
    if any(not run.done for run in _distinct(plans)):
        failed = run_graph(_name(plans), _distinct(plans), plans[0].base.machine, cluster)
    if failed:  # the tables of rows that did finish
        plans, more = _remaining(plans, failed)
        impossible += more
        if any(not run.done for run in _distinct(plans)):
            run_graph(_name(plans), _distinct(plans), plans[0].base.machine, cluster)
    for plan in plans:
        if plan.table.done:
            print((plan.table.path / f"{plan.experiment}.md").read_text())
            print(f"Table, figure and executed notebook: {shown(plan.table.path)}/\n")
    _close(plans, impossible, failed)


def _name(plans: list[Plan]) -> str:
    """profile/table, or profile/all of several."""
    return plans[0].table.folder if len(plans) == 1 else f"{plans[0].profile}/all"


def _plans(profile: str, experiments: list[str], assignments: list[str], local: bool) -> tuple[list[Plan], list[str]]:
    """Plans of what can run here, and a sentence for every experiment that cannot run at all."""
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
    return plans, impossible


def _renewed(plans: list[Plan], fresh: str, again: dict[str, planning.Planned]) -> list[Plan]:
    """The plans with their specs written, after setting aside the finished runs `again` that are to be made again.

    Those that other code made and that are kept are named.
    """
    for run in again.values():
        planning.replaced(run)
    if again:
        print(f"To be made again: {', '.join(again)}. If this is interrupted, go on without FRESH.")
    plans = [planning.joined(plan) for plan in plans]
    for plan in plans:
        planning.write_specs(plan)
    if fresh:
        return plans
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


def _check_gpus(profile: str, machine: Machine) -> None:
    need, here = machine.gpus, len(gpus_here())
    if here < need:
        raise SaoError(
            f"Profile {profile} needs {need} GPU(s) and this machine has {here}; use a machine that has them or "
            "PROFILE=cpu. `make doctor` says what is missing."
        )


def _check_disk(to_do: list[planning.Planned], runs: list[planning.Planned], machine: Machine) -> None:
    need = cost.disk_needed(to_do, runs, jobs_at_once(machine)[0] if machine.gpus else 1)
    stat = os.statvfs(OUTPUTS if OUTPUTS.exists() else ROOT)
    free = stat.f_bavail * stat.f_frsize / 2**30
    if free < need:
        raise SaoError(
            f"{shown(OUTPUTS)} has {free:.1f} GiB free and these runs need about {need:.0f}; make room first."
        )
