"""`make reproduce-X` and `make reproduce-all`: plan, check, do what is missing, print the tables."""

import os
from collections.abc import Callable

from sao_lib.engines import models
from sao_lib.errors import SaoError
from sao_lib.files import check_writable
from sao_lib.launch import cards
from sao_lib.launch import cluster as clusters
from sao_lib.launch.graph import jobs_at_once, run_graph
from sao_lib.plan import cost, planning, summary
from sao_lib.plan.needs import models_of
from sao_lib.plan.planning import Plan
from sao_lib.report.check import check
from sao_lib.runs import OUTPUTS
from sao_lib.settings import Machine
from sao_lib.yaml_files import shown

FRESH = ("", "stale", "all")


def reproduce(
    profile: str, experiments: list[str], assignments: list[str], cluster: str = clusters.LOCAL, fresh: str = ""
) -> None:
    """Run what is missing of the experiments and print their tables; raises SaoError in one sentence.

    A row that lacks a model, a key or a data set, or whose run fails, is left out and named; the rest is done.
    Finished runs that other code made are named and used; `fresh` makes them again (`stale`), or all of them (`all`).
    What reads a run that is made again follows only if that comes out otherwise.
    """
    clusters.check(cluster)
    if fresh not in FRESH:
        raise SaoError(f"FRESH is '{fresh}'; it must be stale, all or nothing.")
    local = cluster == clusters.LOCAL  # a cluster's login node has neither its GPUs nor its cores, and quotas for disk
    plans, impossible = _plans(profile, experiments, assignments, local)
    again = {run.folder: run for plan in plans for run in planning.fresh(plan, fresh)}
    perhaps = {run.folder for plan in plans for run in planning.with_readers(plan, again)}
    to_do = [run for run in _distinct(plans) if not run.done or run.folder in perhaps]
    cost.check_cap(to_do, _distinct(plans))
    check_writable(OUTPUTS / profile)
    if to_do and local:
        models.check_cache({model for run in to_do for model in models_of(run)})
        _check_disk(to_do, _distinct(plans), plans[0].base.machine)
    plans = _specified(plans, fresh, again)
    if not fresh:
        _name_outdated(plans)
    plans, failed, more = _done(plans, fresh, cluster, set(again))
    impossible += more
    for plan in plans:
        if plan.table.done:
            print((plan.table.path / f"{plan.experiment}.md").read_text())
            print(f"Table, figure and executed notebook: {shown(plan.table.path)}/\n")
    _close(plans, impossible, failed)


def show(profile: str, experiments: list[str], assignments: list[str]) -> None:
    """Print what experiments cost and their runs, without starting one; SaoError names those that cannot be planned."""
    plans, impossible = _each(experiments, lambda name: _checked(profile, name, assignments))
    summary.show_plan(plans)
    if impossible:
        raise SaoError("\n".join([f"{len(impossible)} cannot be planned.", *impossible]))


def _each(experiments: list[str], plan_of: Callable[[str], Plan]) -> tuple[list[Plan], list[str]]:
    """Plans of the experiments, and a sentence for every one that has none; SaoError where none has."""
    plans, reasons = [], {}
    for name in experiments:
        try:
            plans.append(plan_of(name))
        except SaoError as reason:
            reasons[name] = str(reason)
    if not plans:
        said = list(dict.fromkeys(reasons.values()))  # the profile's and the command line's mistakes are everyone's
        raise SaoError(said[0] if len(said) == 1 else f"Nothing can be run. {next(iter(reasons))}: {said[0]}")
    return plans, [f"{name}: {reason}" for name, reason in reasons.items()]


def _checked(profile: str, name: str, assignments: list[str]) -> Plan:
    """The plan of an experiment whose file asks for nothing that no table can show."""
    check(name)
    return planning.make(profile, name, assignments)


def _name(plans: list[Plan]) -> str:
    """profile/table, or profile/all of several."""
    return plans[0].table.folder if len(plans) == 1 else f"{plans[0].profile}/all"


def _plans(profile: str, experiments: list[str], assignments: list[str], local: bool) -> tuple[list[Plan], list[str]]:
    """Plans of what can run here, and a sentence for every experiment that cannot run at all."""

    def plan_of(name: str) -> Plan:
        plan = _checked(profile, name, assignments)
        if local:
            _check_gpus(profile, plan.base.machine)
        return planning.verified(plan)

    return _each(experiments, plan_of)


def _specified(plans: list[Plan], fresh: str, again: dict[str, planning.Planned]) -> list[Plan]:
    """The plans with their specs written, after setting aside the finished runs `again` that are to be made again."""
    for run in again.values():
        planning.replaced(run)
    if again:
        stale = fresh == "stale"
        readers = "; then what reads them, where they come out otherwise" if stale else ""
        go_on = "the same command goes on" if stale else "go on without FRESH"
        print(f"To be made again: {', '.join(again)}{readers}. If this is interrupted, {go_on}.", flush=True)
    plans = [planning.joined(plan) for plan in plans]
    for plan in plans:
        planning.write_specs(plan)
    return plans


def _name_outdated(plans: list[Plan]) -> None:
    """Say which finished runs other code made; they are kept."""
    outdated = {f: why for plan in plans for f, why in plan.table.spec["params"]["outdated"].items()}
    if outdated:
        print(f"{len(outdated)} finished run(s) were made by other code than this. They are kept and used:")
        print("\n".join(f"  {folder}: changed since: {', '.join(why)}" for folder, why in outdated.items()))
        print("FRESH=stale makes these again, FRESH=all everything of the table.", flush=True)


def _done(plans: list[Plan], fresh: str, cluster: str, again: set[str]) -> tuple[list[Plan], dict[str, str], list[str]]:
    """Do what is missing: the plans that are left, runs that failed with the reason, a sentence for each lost table.

    With `stale`, in rounds: finished readers of a run that came out otherwise are set aside and made in the next, and
    tables in the last. No run is made twice: `again` are those that this command has made anew.
    """
    failed: dict[str, str] = {}
    lost: list[str] = []
    while any(not run.done for run in _distinct(plans)):
        runs = _distinct(plans)
        below = [run for run in runs if run.spec["stage"] != "ablate"]
        if fresh == "stale" and any(not run.done for run in below):
            runs = below
        newly = run_graph(_name(plans), runs, plans[0].base.machine, cluster)
        if newly:  # the tables of rows that did finish
            failed |= newly
            plans, more = _remaining(plans, newly)
            lost += more
        later = {r.folder: r for p in plans for r in planning.fresh(p, fresh) if r.folder not in again}
        again |= later.keys()
        plans = _specified(plans, fresh, later if fresh == "stale" else {})
    return plans, failed, lost


def _remaining(plans: list[Plan], failed: dict[str, str]) -> tuple[list[Plan], list[str]]:
    """What can still be made without the runs in `failed`, and a sentence for every table that cannot."""
    kept, impossible = [], []
    for plan in plans:
        if plan.table.folder in failed:  # it would fail again
            impossible.append(f"{plan.experiment}: {failed[plan.table.folder]}")
            continue
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
    if lacks := cards.missing(machine):
        raise SaoError(
            f"Profile {profile} needs {'; '.join(lacks)}. Use a machine that has it or PROFILE=cpu; `make doctor` says "
            "what else is missing."
        )


def _check_disk(to_do: list[planning.Planned], runs: list[planning.Planned], machine: Machine) -> None:
    need = cost.disk_needed(to_do, runs, jobs_at_once(machine)[0] if machine.gpus else 1)
    stat = os.statvfs(OUTPUTS)
    free = stat.f_bavail * stat.f_frsize / 2**30
    if free < need:
        raise SaoError(
            f"{shown(OUTPUTS)} has {free:.2f} GiB free and these runs need about {need:.2f}; make room first."
        )
