"""Experiment + profile -> a plan: rows with their settings, the runs that they share, the table that reads them."""

import json
import os
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sao_lib import settings, sources
from sao_lib.engines import models
from sao_lib.engines.openai_api import JOURNAL, require_key
from sao_lib.errors import SaoError
from sao_lib.plan import layers
from sao_lib.plan.chain import Chain, Planned, Row, models_of, spec_of
from sao_lib.runs import MANIFEST, identity, load, write_atomic
from sao_lib.settings import PARAMS, Settings

ROW_KEYS = ("label", "use", "runs", "trained", "iterations", "published", "paper")
SMOKE = "smoke"  # experiments so named exist for tests and stand in no paper


@dataclass(frozen=True)
class Plan:
    """`runs` in an order in which they can be done, the table's own run last."""

    profile: str
    experiment: str
    base: Settings
    rows: list[Row]
    runs: list[Planned]

    @property
    def table(self) -> Planned:
        return self.runs[-1]


def make(profile: str, experiment: str, assignments: list[str] | None = None, verify: bool = False) -> Plan:
    """The plan of an experiment on a profile; raises SaoError for anything wrong in the parameters.

    With `verify` every row's models, keys and files are looked for, and a row that lacks one is skipped with the
    reason; SaoError if no row is left.
    """
    base, rows = table_rows(profile, experiment, assignments or [])
    return assemble(profile, experiment, base, rows, verify)


def assemble(profile: str, experiment: str, base: Settings, rows: list[Row], verify: bool = False) -> Plan:
    """The plan of rows that are already made."""
    found: dict[str, Planned] = {}
    inputs: dict[str, str] = {}
    kept = []
    for row in rows:
        try:
            chain = Chain(profile, row, base).build()
            if verify:
                for run in chain.runs.values():
                    _check(run)
        except SaoError as reason:
            row = replace(row, skipped=row.skipped or str(reason))
        if not row.skipped:
            found |= chain.runs
            inputs |= {f"{row.name}/{role}": run.folder for role, run in chain.roles.items()}
        kept.append(row)
    if all(row.skipped for row in kept):
        raise SaoError(str(kept[0].skipped))
    table = _table(profile, experiment, base, kept, inputs)
    return Plan(profile, experiment, base, kept, [*found.values(), table])


def without(plan: Plan, failed: dict[str, str]) -> Plan:
    """The plan with every row skipped that needs a run in `failed` (folder -> reason)."""
    rows = []
    for row in plan.rows:
        needed = set() if row.skipped else set(Chain(plan.profile, row, plan.base).build().runs)
        reason = next((why for folder, why in failed.items() if folder in needed), None)
        rows.append(replace(row, skipped=reason) if reason else row)
    return assemble(plan.profile, plan.experiment, plan.base, rows)


def _table(profile: str, experiment: str, base: Settings, rows: list[Row], inputs: dict[str, str]) -> Planned:
    content = [
        {"name": r.name, "label": r.label, "published": r.published, "skipped": r.skipped,
         "data": r.settings.train.data}
        for r in rows
    ]  # fmt: skip
    params = {"experiment": experiment, "rows": content, "policy": base.policy.model}
    files = [f"params/experiments/{experiment}.yaml", "params/paper.yaml"]
    return Planned(f"{profile}/{experiment}", spec_of(profile, "ablate", experiment, params, inputs, list(files)))


def experiments() -> list[str]:
    """Every table and figure of the paper, in the paper's order, tables first."""
    names = [p.stem for p in (PARAMS / "experiments").glob("*.yaml") if not p.stem.startswith(SMOKE)]
    return sorted(names, key=lambda n: (not n.startswith("table"), int("".join(c for c in n if c.isdigit()) or 0)))


def table_rows(profile: str, experiment: str, assignments: list[str]) -> tuple[Settings, list[Row]]:
    """The experiment's settings before any row changes them, and its rows with validated settings.

    Layers, later over earlier: profile, experiment, presets that the row uses, row, command line.
    """
    body = settings.read_yaml(settings.experiment_file(experiment))
    where, file = f"params/experiments/{experiment}.yaml", f"params/profiles/{profile}.yaml"
    line = ("the command line", layers.from_command_line(assignments))
    common = [*layers.profile_layers(profile), (where, (body.get("settings") or {}).get(profile, {}))]
    base = layers.validate([*common, line])
    rows = []
    for name, row in body["rows"].items():
        used = [(f"{file}, preset {n}", *_preset(base, n, f"{where}, row {name}")) for n in row.get("use", [])]
        own = {k: v for k, v in row.items() if k not in ROW_KEYS}
        merged = layers.validate([*common, *((w, layer) for w, layer, _ in used), (f"{where}, row {name}", own), line])
        stand_ins = [label for *_, label in used if label]
        rows.append(
            Row(
                name,
                row["label"] + (f" ({'; '.join(stand_ins)})" if stand_ins else ""),
                merged,
                tuple(row.get("runs", body.get("runs", ["evaluate"]))),
                row.get("trained", True),
                row.get("iterations", 1),
                row.get("published"),
            )
        )
    return base, rows


def _preset(base: Settings, name: str, where: str) -> tuple[dict[str, Any], str | None]:
    preset = base.presets.get(name)
    if preset is None:
        known = ", ".join(sorted(base.presets)) or "none"
        raise SaoError(f"{where} uses the preset '{name}', which this profile does not have; there are: {known}.")
    if preset.unless_env and os.environ.get(preset.unless_env):
        return preset.instead, None
    return preset.settings, preset.label


def _check(run: Planned) -> None:
    """Before anything expensive: can the run's models be had, are its keys and hub files there?"""
    for model in models_of(run):
        if model.startswith("openai/"):
            require_key(model)
        _model_there(model)
    for source in run.spec["files"]:
        if source.startswith("hub:"):
            _source_there(source)


@cache
def _model_there(model: str) -> None:
    models.check(model)


@cache
def _source_there(source: str) -> None:
    sources.check(source)


def write_specs(plan: Plan) -> None:
    """Write spec.yaml into the folder of every run that is not done, and set damaged ones aside."""
    for run in plan.runs:
        try:
            finished = load(run.path)
        except SaoError as error:
            aside = run.path.with_name(f"{run.path.name}.damaged")
            count = 1
            while aside.exists():
                count += 1
                aside = run.path.with_name(f"{run.path.name}.damaged{count}")
            run.path.rename(aside)
            for paid in aside.glob(JOURNAL):
                write_atomic(run.path / JOURNAL, paid.read_text())
            print(f"{error} The folder is kept as {aside.name} and the run is done again.")
            finished = None
        if finished and identity(finished.spec) != identity(run.spec):  # a table whose rows have changed
            (run.path / MANIFEST).unlink()
            finished = None
        if not finished:
            write_atomic(run.path / "spec.yaml", json.dumps(run.spec, indent=1, ensure_ascii=False) + "\n")
