"""Experiment + profile -> runs: what each needs, in an order in which they can be done.

A run's identity is the hash of the parameters its stage uses, of the files those name and of the runs it
reads, so that two rows, or two tables, that need the same run share it.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sao_lib import models, settings
from sao_lib.errors import SaoError
from sao_lib.runs import MANIFEST, OUTPUTS, digest, file_digest, load, write_atomic
from sao_lib.settings import ROOT, Judge, Settings

NOTEBOOKS = {
    "synthesize": "01_synthesize",
    "judge": "02_judge",
    "train": "03_train",
    "evaluate": "04_evaluate",
    "ablate": "05_ablate",
}


@dataclass(frozen=True)
class Planned:
    """A run to be: `folder` is relative to outputs/, `inputs` maps a role to another run's folder."""

    folder: str
    spec: dict[str, Any]

    @property
    def path(self) -> Path:
        return OUTPUTS / self.folder

    @property
    def inputs(self) -> dict[str, str]:
        return dict(self.spec["inputs"])

    @property
    def done(self) -> bool:
        return (self.path / MANIFEST).is_file()


@dataclass(frozen=True)
class Row:
    """One row of an experiment's table with the settings it runs under."""

    name: str
    label: str
    settings: Settings


@dataclass(frozen=True)
class Plan:
    profile: str
    experiment: str
    rows: list[Row]
    runs: list[Planned]

    @property
    def table(self) -> Planned:
        return self.runs[-1]


def make(profile: str, experiment: str, assignments: list[str] | None = None) -> Plan:
    """The plan of an experiment on a profile; raises SaoError for anything wrong in the parameters."""
    rows = table_rows(profile, experiment, assignments or [])
    found: dict[str, Planned] = {}
    evaluated: list[dict[str, str]] = []
    inputs: dict[str, str] = {}
    for row in rows:
        chain = _chain(profile, row)
        for run in chain.values():
            found.setdefault(run.folder, run)
        evaluated.append({"name": row.name, "label": row.label})
        inputs |= {f"{row.name}/{stage}": chain[stage].folder for stage in ("judge", "train", "evaluate")}
        inputs["reference"] = chain["reference"].folder
        inputs["synthesize"] = chain["synthesize"].folder
    params = {"experiment": experiment, "rows": evaluated}
    spec = _spec(
        profile, "ablate", experiment, params, inputs, [f"params/experiments/{experiment}.yaml", "params/paper.yaml"]
    )
    found[experiment] = Planned(f"{profile}/{experiment}", spec)
    return Plan(profile, experiment, rows, list(found.values()))


def table_rows(profile: str, experiment: str, assignments: list[str]) -> list[Row]:
    """The experiment's rows with merged, validated settings; stand-ins put in where the profile names them."""
    base = settings.read_yaml(settings.profile_file(profile))
    body = settings.read_yaml(settings.experiment_file(experiment))
    where = f"params/experiments/{experiment}.yaml"
    line = ("the command line", settings.from_command_line(assignments))
    layers = [(f"params/profiles/{profile}.yaml", base), (where, body.get("settings", {}).get(profile, {})), line]
    common = settings.validate(layers)
    rows = []
    for name, row in body["rows"].items():
        extra = {k: v for k, v in row.items() if k != "label"}
        layer = (f"{where}, row {name}", extra)
        label, stand_in = row["label"], common.stand_ins.get(extra.get("judge", {}).get("model") or "")
        if stand_in and not (stand_in.unless_env and os.environ.get(stand_in.unless_env)):
            layer = (f"{where}, row {name}, stand-in", {**extra, "judge": stand_in.judge})
            label = f"{label} ({stand_in.label})"
        rows.append(Row(name, label, settings.validate([*layers[:2], layer, line])))
    return rows


def _chain(profile: str, row: Row) -> dict[str, Planned]:
    """The runs of one row, from personas to scores."""
    s = row.settings
    policy, engine = s.policy.model_dump(), s.engine.model_dump()
    synthesize = _planned(
        profile, "synthesize", "policy",
        {"seed": s.seed, "policy": policy, "engine": engine, "synthesize": s.synthesize.model_dump()},
        {}, [s.synthesize.personas, s.synthesize.template, s.policy.chat_template],
    )  # fmt: skip
    judging = s.judge.model_dump()
    needs_engine = s.judge.source == "llm"
    judge = _planned(
        profile, "judge", judge_name(s.judge),
        {"seed": s.seed, "policy": policy if needs_engine else None, "judge": judging,
         "engine": (judging["engine"] or engine) if needs_engine else None},
        {"synthesize": synthesize.folder}, [s.judge.template, s.judge.chat_template] if needs_engine else [],
    )  # fmt: skip
    train = _planned(
        profile, "train", f"{s.train.loss}-{judge_name(s.judge)}",
        {"seed": s.seed, "policy": policy, "train": s.train.model_dump()}, {"judge": judge.folder}, [s.train.deepspeed],
    )  # fmt: skip
    params = {"seed": s.seed, "policy": policy, "engine": engine, "evaluate": s.evaluate.model_dump()}
    files = [s.evaluate.instructions, s.policy.chat_template, "params/data/labelled_answers.jsonl"]
    reference = _planned(profile, "evaluate", "untrained", params, {}, files)
    evaluate = _planned(
        profile,
        "evaluate",
        f"{s.train.loss}-{judge_name(s.judge)}",
        params,
        {"train": train.folder, "reference": reference.folder},
        files,
    )
    return {"synthesize": synthesize, "reference": reference, "judge": judge, "train": train, "evaluate": evaluate}


def judge_name(judge: Judge) -> str:
    """A readable name of a feedback source, the same in every table: self-without-criterion-1, random, ..."""
    name = judge.model.partition("@")[0].rsplit("/", 1)[-1].lower() if judge.model else "self"
    if judge.source in ("random", "length"):
        return judge.source
    without = f"-without-criterion-{judge.without_criterion}" if judge.without_criterion else ""
    order = "-one-order" if judge.source == "llm" and judge.reading == "logprob" and judge.orders == "one" else ""
    return f"{name}{without}{order}"


def _planned(
    profile: str, stage: str, name: str, params: dict[str, Any], inputs: dict[str, str], files: list[str | None]
) -> Planned:
    spec = _spec(profile, stage, name, params, inputs, files)
    identity = {k: v for k, v in spec.items() if k not in ("name", "profile")}
    return Planned(f"{profile}/{stage}/{name}-{digest(identity)[:8]}", spec)


def _spec(
    profile: str, stage: str, name: str, params: dict[str, Any], inputs: dict[str, str], files: list[str | None]
) -> dict[str, Any]:
    local = sorted({f for f in files if f and not f.startswith("hub:")})
    missing = next((f for f in local if not (ROOT / f).is_file()), None)
    if missing:
        raise SaoError(f"{missing}, named in the parameters of {stage} '{name}', does not exist.")
    digests = {f: file_digest(ROOT / f) for f in local}
    return {"stage": stage, "name": name, "profile": profile, "params": params, "inputs": inputs, "files": digests}


def check(plan: Plan) -> None:
    """Before anything expensive: can every model be had, is every key there? Raises SaoError if not."""
    from sao_lib.engines.openai_api import require_key

    for row in plan.rows:
        s = row.settings
        needed = {s.policy.model, s.judge.model, s.evaluate.judge_model} - {None}
        for model in sorted(str(m) for m in needed):
            if model.startswith("openai/"):
                require_key(f"Row '{row.name}' ({model})")
            models.check(model)


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
            print(f"{error} The folder is kept as {aside.name} and the run is done again.")
            finished = None
        if finished and digest(finished.spec) != digest(run.spec):  # a table whose rows have changed
            (run.path / MANIFEST).unlink()
            finished = None
        if not finished:
            write_atomic(run.path / "spec.yaml", json.dumps(run.spec, indent=1, ensure_ascii=False) + "\n")
