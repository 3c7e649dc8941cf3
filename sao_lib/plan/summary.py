"""`make plan-...`: what the runs of tables cost, before one is started, and how far they are."""

import json
from collections.abc import Sequence

from sao_lib import machine as hardware
from sao_lib.errors import SaoError
from sao_lib.plan import planning
from sao_lib.plan.chain import Planned
from sao_lib.plan.cost import Cost, Device, checkpoints_gib, devices_of, estimates, hub_models, over_cap
from sao_lib.plan.planning import Plan
from sao_lib.plan.workload import rates
from sao_lib.progress import clock
from sao_lib.runs import MANIFEST
from sao_lib.settings import NOTEBOOKS, Machine


def show_plan(plans: Sequence[Plan]) -> None:
    """Print what plans of one profile cost, and their runs, without starting one."""
    profile, experiments = plans[0].profile, [plan.experiment for plan in plans]
    runs = list({run.folder: run for plan in plans for run in plan.runs}.values())
    done = sum(not _to_do(run) for run in runs)
    name = ", ".join(experiments) if len(experiments) < 4 else f"{len(experiments)} tables and figures"
    print(f"{name} on {profile}: {len(runs)} runs, {done} done, {len(runs) - done} to do\n")
    try:
        print("\n".join(_summary(plans[0], runs)))
    except SaoError as reason:  # a model of the user's own can still be run
        print(f"No estimate: {reason}")
    print("\nRuns:")
    for run in runs:
        print(f"  {_state(run):5}  {run.folder}")
    for plan in plans:
        for row in plan.rows:
            if row.skipped:
                print(f"Not to be run: {plan.experiment}, {row.label}: {row.skipped}")
    if len(plans) > 1:
        print(f"The tables ask for {sum(len(plan.runs) for plan in plans)} runs; these {len(runs)} are distinct.")
    base = plans[0].base
    print(f"{sum(len(p.rows) for p in plans)} rows; policy {base.policy.model}; {base.synthesize.n} personas")


def _state(run: Planned) -> str:
    """`stale`: done, by other code than this or from an input that is another by now; such a table is drawn again."""
    if _to_do(run):
        return "to do"
    return "stale" if run.spec["stage"] != "ablate" and planning.changes(run) else "done"


def _to_do(run: Planned) -> bool:
    """As `reproduce` sees it: what has not finished or is damaged, and a table of other rows, runs or code."""
    return not (planning.drawn(run) if run.spec["stage"] == "ablate" else run.done)


def _summary(plan: Plan, runs: list[Planned]) -> list[str]:
    """The table of stages, then wall clock, rent, downloads and what is assumed."""
    planned, devices = {run.folder: run for run in runs}, devices_of(plan.profile, plan.base.machine)
    unit = "GPU" if plan.base.machine.gpus else "core"
    costs = estimates(runs, plan.base.machine, devices[0])
    lines = [f"{'stage':15}{'runs':>5}{'to do':>6}{'k tokens in':>13}{'k out':>9}{unit + '-hours':>11}"
             f"{'disk GiB':>10}{'API calls':>11}{'API $':>9}"]  # fmt: skip
    for stage in NOTEBOOKS:
        if of := [run for run in runs if run.spec["stage"] == stage]:
            lines.append(_line(stage, of, costs))
    to_do = [run for run in runs if _to_do(run)]
    lines += [_line("total", runs, costs), _line("to do", to_do, costs), ""]
    for device in devices:
        each = estimates(runs, plan.base.machine, device)
        hours = sum(each[run.folder].device_hours for run in to_do)
        lines.append(_clock_and_rent(device, hours, plan.base.machine))
    if passing := max((checkpoints_gib(run, planned) for run in to_do), default=0.0):
        lines.append(f"Disk is what stays. A training's checkpoints take up to {passing:,.0f} GiB more while it runs.")
    if took := _took([run for run in runs if run.done], costs, devices[0], unit):
        lines.append(took)
    if hub := hub_models(to_do, planned):
        lines.append(f"Models to have from the hub: {sum(hub.values()):.0f} GiB ({len(hub)} models).")
    lines.append(f"Rates of {rates()['dated']} (params/rates.yaml). {devices[0].name}: {_origin(devices[0])}.")
    reason = over_cap(to_do, planned)
    return [*lines, f"Would be refused: {reason}"] if reason else lines


def _line(name: str, runs: list[Planned], costs: dict[str, Cost]) -> str:
    cost = sum((costs[run.folder] for run in runs), Cost())
    left = sum(map(_to_do, runs))
    return (
        f"{name:15}{len(runs):>5}{left:>6}{cost.tokens_in / 1e3:>13,.0f}{cost.tokens_out / 1e3:>9,.0f}"
        f"{cost.device_hours:>11,.2f}{cost.disk_gib:>10,.1f}{cost.calls:>11,.0f}{cost.usd:>9,.2f}"
    )


def _took(done: list[Planned], costs: dict[str, Cost], device: Device, unit: str) -> str | None:
    """What finished runs were estimated at and what they took, by their manifests; None if there are none."""
    seconds = [json.loads((run.path / MANIFEST).read_text()).get("seconds", 0) for run in done]
    # A manifest's seconds begin when the notebook's kernel is up.
    hours = sum(s + device.entry["overhead"]["run"] for s in seconds) * device.count / 3600
    planned = sum(costs[run.folder].device_hours for run in done)
    return (
        f"The {len(done)} runs that are done: estimated {planned:.2f}, took {hours:.2f} {unit}-hours." if done else None
    )


def _origin(device: Device) -> str:
    kinds = ("measured", "published", "assumed")
    return "; ".join(f"{kind}, {device.entry[kind]}" for kind in kinds if kind in device.entry)


def _clock_and_rent(device: Device, hours: float, machine: Machine) -> str:
    """Wall clock and rent of `hours` device-hours."""
    if not machine.gpus:
        jobs = machine.jobs or hardware.cores()
        return f"Wall clock for what is to do, {jobs} at once: about {clock(3600 * hours / jobs)}."
    wall = hours / device.count / (machine.jobs or 1)
    return (
        f"On {device.count} x {device.name}: {hours:,.1f} GPU-hours to do, {wall:,.1f} h of wall clock, "
        f"${hours * device.dollars:,.0f} if rented at ${device.dollars:.2f} a card and hour (price assumed)."
    )
