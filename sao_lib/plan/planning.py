"""Experiment + profile -> a plan: rows with their settings, the runs that they share, the table that reads them."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

from sao_lib import hub, sources
from sao_lib.engines import models, openai_api
from sao_lib.engines.journal import JOURNAL
from sao_lib.errors import SaoError
from sao_lib.files import digest, write_atomic
from sao_lib.plan import layers, relations
from sao_lib.plan.chain import Planned, Row, built, spec_of
from sao_lib.plan.experiment import Experiment, RowSpec, read
from sao_lib.plan.needs import models_of, packages_of
from sao_lib.runs import DECIDES_NOTHING, MANIFEST, identity, load, outdated
from sao_lib.settings import Settings

LONGEST = 60  # characters of assignments in a folder's name


@dataclass(frozen=True)
class Plan:
    """`runs` in an order in which they can be done, the table's own run last.

    `assignments` are those of the command line that decide results.
    """

    profile: str
    experiment: str
    base: Settings
    rows: list[Row]
    runs: list[Planned]
    assignments: tuple[str, ...] = ()

    @property
    def table(self) -> Planned:
        return self.runs[-1]

    @property
    def command(self) -> str:
        """What a person types for this table."""
        given = f" SET={shlex.quote(shlex.join(self.assignments))}" if self.assignments else ""
        return f"make reproduce-{self.experiment} PROFILE={self.profile}{given}"


def make(profile: str, name: str, assignments: Iterable[str] = ()) -> Plan:
    """The plan of an experiment on a profile; raises SaoError for anything wrong in the parameters."""
    experiment, given = read(name), tuple(assignments)
    base, rows = _rows(profile, name, experiment, given)
    planned = []
    for row in rows:
        try:
            planned.append(built(profile, row, base))
        except SaoError as reason:
            planned.append(replace(row, skipped=row.skipped or str(reason)))
    for row in planned:
        relations.check(row.runs)
    return joined(Plan(profile, name, base, planned, [], tuple(filter(_decides, given))))


def verified(plan: Plan) -> Plan:
    """The plan with every row skipped that lacks a model, a key or a file; SaoError if no row is left."""
    rows = []
    for row in plan.rows:
        try:
            for run in row.runs.values():
                _check(run)
            rows.append(row)
        except SaoError as reason:
            rows.append(replace(row, skipped=row.skipped or str(reason)))
    return joined(replace(plan, rows=rows))


def without(plan: Plan, failed: dict[str, str]) -> Plan:
    """The plan with every row skipped that needs a run in `failed` (folder -> reason)."""
    why = {row.name: next((failed[folder] for folder in row.runs if folder in failed), None) for row in plan.rows}
    return joined(replace(plan, rows=[replace(row, skipped=row.skipped or why[row.name]) for row in plan.rows]))


def joined(plan: Plan) -> Plan:
    """The plan's rows with their runs, shared ones once, and the table that reads them."""
    if not plan.rows:
        raise SaoError(f"No row of {plan.experiment} is for profile {plan.profile}; see `profiles` in its file.")
    if all(row.skipped for row in plan.rows):
        raise SaoError(str(plan.rows[0].skipped))
    kept = [row for row in plan.rows if not row.skipped]
    runs = {folder: run for row in kept for folder, run in row.runs.items()}
    inputs = {f"{row.name}/{role}": run.folder for row in kept for role, run in row.roles.items()}
    return replace(plan, runs=[*runs.values(), _table(plan, list(runs.values()), inputs)])


def _table(plan: Plan, runs: list[Planned], inputs: dict[str, str]) -> Planned:
    content = [
        {"name": r.name, "label": r.label, "published": r.published, "skipped": r.skipped,
         "data": r.settings.train.data}
        for r in plan.rows
    ]  # fmt: skip
    params = {"experiment": plan.experiment, "rows": content, "policy": plan.base.policy.model, "command": plan.command,
              "outdated": {run.folder: reasons for run in runs if (reasons := changes(run))}}  # fmt: skip
    if notebook := read(plan.experiment).notebook:
        params["notebook"] = notebook
    said = ("paper", "shows", "fidelity")
    files: list[str | None] = [f"params/experiments/{plan.experiment}.yaml", *(f"params/{name}.yaml" for name in said)]
    name = plan.experiment + _variant(plan.assignments)
    return Planned(f"{plan.profile}/{name}", spec_of(plan.profile, "ablate", name, params, inputs, files))


def _decides(assignment: str) -> bool:
    """Whether a result can depend on it: what may be spent and how the machine is used make no other table."""
    key = assignment.partition("=")[0]
    return not key.startswith("machine") and key.rpartition(".")[2] not in DECIDES_NOTHING


def _variant(assignments: tuple[str, ...]) -> str:
    """`@train.beta=2,seed=7` for a folder's name; what no name can hold is left to a digest."""
    text = ",".join(sorted(assignments))
    if not text:
        return ""
    plain = re.sub(r"[^\w.,=+-]+", "-", text)[:LONGEST]
    return f"@{plain}" if plain == text else f"@{plain}-{digest(text)[:8]}"


def changes(run: Planned) -> list[str]:
    """What has changed since a finished run was made; empty where nothing has or where it has not finished.

    An input that is still to be made has not changed: that is known when it is there.
    """
    try:
        found = outdated(run.path) if run.done else []
    except (ValueError, KeyError, TypeError):
        return []  # damaged: write_specs sets it aside
    awaited = {f"its input {folder}" for folder in run.inputs.values() if not Planned(folder, {}).done}
    return [why for why in found if why not in awaited]


def _rows(profile: str, name: str, experiment: Experiment, given: tuple[str, ...]) -> tuple[Settings, list[Row]]:
    """The experiment's settings before any row changes them, and its rows with validated settings.

    Layers, later over earlier: profile, experiment, presets that the row uses, row, command line.
    """
    where, file = f"params/experiments/{name}.yaml", f"params/profiles/{profile}.yaml"
    line = ("the command line", layers.from_command_line(list(given)))
    common = [*layers.profile_layers(profile), (where, experiment.layer(profile))]
    base = layers.validate([*common, line])
    own, stand_ins, wanted = {}, {}, {}
    for key, row in experiment.rows.items():
        if row.profiles and profile not in row.profiles:
            continue
        used = [(f"{file}, preset {n}", *_preset(base, n, f"{where}, row {key}")) for n in row.use]
        own[key] = [*((w, layer) for w, layer, _ in used), (f"{where}, row {key}", row.parameters)]
        stand_ins[key] = [label for *_, label in used if label]
        said = [base.presets[n].trained for n in row.use if base.presets[n].trained is not None]
        wanted[key] = row.model_copy(update={"trained": said[-1]}) if said else row
    _refuse_varied(given, {key: [layer for _, layer in mine] for key, mine in own.items()}, name)
    return base, [
        _row(key, row, layers.validate([*common, *own[key], line]), stand_ins[key], experiment)
        for key, row in wanted.items()
    ]


def _row(key: str, row: RowSpec, merged: Settings, stand_ins: list[str], experiment: Experiment) -> Row:
    label = row.label + (f" ({'; '.join(stand_ins)})" if stand_ins else "")
    stages = experiment.runs if row.runs is None else row.runs
    return Row(key, label, merged, stages, row.trained, row.iterations, row.published)


def _refuse_varied(given: tuple[str, ...], varied: dict[str, list[dict[str, Any]]], experiment: str) -> None:
    """SaoError if the command line would lie over what rows of this experiment set themselves."""
    for text in given:
        path = text.partition("=")[0].split(".")
        own = [name for name, parts in varied.items() if any(_sets(part, path) for part in parts)]
        if own:
            raise SaoError(
                f"SET cannot change {'.'.join(path)} in {experiment}: it is what the row(s) {', '.join(own)} set "
                f"themselves. Change params/experiments/{experiment}.yaml, or copy it under another name."
            )


def _sets(layer: Any, path: list[str]) -> bool:
    """Whether a layer sets the parameter at `path`, a part of it, or the whole that it is part of."""
    for part in path:
        if not isinstance(layer, dict):
            return True
        if part not in layer:
            return False
        layer = layer[part]
    return True


def _preset(base: Settings, name: str, where: str) -> tuple[dict[str, Any], str | None]:
    preset = base.presets.get(name)
    if preset is None:
        known = ", ".join(sorted(base.presets)) or "none"
        raise SaoError(f"{where} uses the preset '{name}', which this profile does not have; there are: {known}.")
    if preset.unless_env and os.environ.get(preset.unless_env):
        return preset.instead, preset.instead_label
    return preset.settings, preset.label


def _check(run: Planned) -> None:
    """Before anything expensive: are the run's packages there, its models, its keys and hub files?"""
    for package, instead in packages_of(run).items():
        if find_spec(package) is None:
            raise SaoError(
                f'The package {package} is not installed here and {run.folder} needs it; SET="{instead}" '
                "does without it. docs/machines.md says which systems have it."
            )
    for model in models_of(run):
        openai_api.check(model) if model.startswith("openai/") else _model_there(model)
    for source in run.spec["files"]:
        if source.startswith(hub.ELSEWHERE):
            _source_there(source)


@cache
def _model_there(model: str) -> None:
    models.check(model)


@cache
def _source_there(source: str) -> None:
    sources.check(source)


def fresh(plan: Plan, what: str) -> list[Planned]:
    """The finished runs to be made again: `stale`, those of other code or other input than there is now; `all`; none.

    What reads a stale run, however far behind, is not chosen with it: it is stale only if that comes out otherwise,
    and is made when all that it reads is there.
    """
    if what != "stale":
        return [run for run in plan.runs[:-1] if what and run.done]
    chosen: list[Planned] = []
    awaited: set[str] = set()  # folders of runs that are to be made, or read one that is
    for run in plan.runs[:-1]:
        if not run.done or not awaited.isdisjoint(run.inputs.values()):
            awaited.add(run.folder)
        elif changes(run):
            chosen.append(run)
            awaited.add(run.folder)
    return chosen


def with_readers(plan: Plan, again: Iterable[str]) -> list[Planned]:
    """The runs in `again` (folders), and all that may have to be made with them: what reads them, and so on."""
    found: dict[str, Planned] = {}
    for run in plan.runs[:-1]:
        if run.folder in again or not found.keys().isdisjoint(run.inputs.values()):
            found[run.folder] = run
    return [*found.values()]


def set_aside(run: Planned, suffix: str) -> str:
    """Rename a run's folder so that it is made anew; the new name. Replies that were paid for go with the new run."""
    aside, count = run.path.with_name(f"{run.path.name}.{suffix}"), 1
    while aside.exists():
        count += 1
        aside = run.path.with_name(f"{run.path.name}.{suffix}{count}")
    run.path.rename(aside)
    for paid in aside.glob(JOURNAL):
        write_atomic(run.path / JOURNAL, paid.read_text())
    return aside.name


def replaced(run: Planned) -> None:
    """Set a finished run aside to be made again; of an earlier time nothing is kept, and of this no model."""
    shutil.rmtree(run.path.with_name(f"{run.path.name}.replaced"), ignore_errors=True)
    shutil.rmtree(run.path.with_name(set_aside(run, "replaced")) / "model", ignore_errors=True)


def drawn(table: Planned) -> bool:
    """Whether a table is there as this plan wants it: of these rows and runs, by this code."""
    if not table.done:
        return False
    try:
        made = json.loads((table.path / MANIFEST).read_text())["spec"]
        return identity(made) == identity(table.spec) and not changes(table)
    except (ValueError, KeyError, TypeError):
        return False  # damaged


def write_specs(plan: Plan) -> None:
    """Write spec.yaml into the folder of every run that is not done, and set damaged ones aside."""
    for run in plan.runs:
        try:
            finished = load(run.path)
        except SaoError as error:
            name = set_aside(run, "damaged")
            print(f"{error} It is kept as {name}.")
            finished = None
        if finished and run is plan.table and not drawn(run):
            (run.path / MANIFEST).unlink()  # rows, their runs or the code that draws have changed: seconds
            finished = None
        if not finished or not (run.path / "spec.yaml").is_file():
            write_atomic(run.path / "spec.yaml", json.dumps(run.spec, indent=1, ensure_ascii=False) + "\n")
