"""`make lesson-rows`: keeps of finished runs of the cpu profile what the lessons read, in `notebooks/data`."""

import copy
import json
import shutil
from collections.abc import Sequence
from typing import Any

from sao_lib import lesson
from sao_lib.errors import SaoError
from sao_lib.evaluate import alpaca_eval
from sao_lib.files import Record, file_digest, read_rows, write_atomic, write_rows
from sao_lib.plan import planning
from sao_lib.plan.chain import Planned, Row
from sao_lib.runs import MANIFEST
from sao_lib.yaml_files import shown

TABLE, STAGES = "lesson", "lesson-stages"  # in params/experiments
SELF = ("synthesize", "judge", "train", "rating")  # the lessons of which are runs of the row `self`, else of `vanilla`
READ = {  # of the runs that lessons read, by stage; results are in the manifest
    "synthesize": ("prompts.jsonl", "responses.jsonl"), "judge": ("verdicts.jsonl", "preferences.jsonl", "audit.jsonl"),
    "answer": ("answers.jsonl",), "evaluate": ("annotations.jsonl",),
}  # fmt: skip
FIRST = {"prompts.jsonl": 42, "responses.jsonl": 36, "verdicts.jsonl": 36, "preferences.jsonl": 36,
         "answers.jsonl": 24, "annotations.jsonl": 24}  # fmt: skip  # rows; of other files all
TABLE_READS = ("audit.jsonl", "annotations.jsonl")  # all that a table wants of its rows' runs
KEPT = ("results", "git_commit", "seconds", "finished")  # of a manifest, beside spec and files


def planned() -> tuple[dict[str, dict[str, Any]], list[Planned]]:
    """The lessons' specs by stage, and the finished runs that they read, each once.

    Settings are those of `lesson-stages`, so small; what a stage reads is another's run in the table `lesson`.
    """
    table, stages = (planning.make("cpu", name) for name in (TABLE, STAGES))
    of = {row.name: row for row in table.rows}
    sources = {
        "synthesize": of["self"].roles["synthesize"],
        "judge": of["self"].roles["judge"],
        "calibration": of["vanilla"].roles["evaluate"],
        "answers": _answered(of["vanilla"]),
    }
    specs = {}
    for row in stages.rows:
        found = {**row.roles, "answer": _answered(row)}
        for stage, run in found.items():
            if (stage in SELF) == (row.name == "self"):
                inputs = {role: sources[role].folder for role in run.inputs}
                specs[stage] = {**run.spec, "inputs": inputs}
    spec = table.table.spec
    specs["ablate"] = {**spec, "params": {**spec["params"], "outdated": {}}}
    read = {folder for each in specs.values() for folder in each["inputs"].values()}
    return specs, [run for run in table.runs if run.folder in read]


def _answered(row: Row) -> Planned:
    """The run in which the model of `row` answered."""
    folder = row.roles["evaluate"].inputs["answers"]
    return row.runs[folder]


def write() -> None:
    """Write `notebooks/data` anew from finished runs; raises SaoError where one has not finished."""
    specs, runs = planned()
    if missing := [run.folder for run in runs if not run.done]:
        raise SaoError(f"{missing[0]} has not finished; `make reproduce-{TABLE}` runs what lessons read.")
    shutil.rmtree(lesson.ROWS, ignore_errors=True)
    for stage, spec in specs.items():
        write_atomic(lesson.SPECS / f"{stage}.json", json.dumps(spec, ensure_ascii=False) + "\n")
    read_whole = {f for stage, spec in specs.items() if stage != "ablate" for f in spec["inputs"].values()}
    for run in runs:
        _keep(run, READ[run.spec["stage"]] if run.folder in read_whole else TABLE_READS)
    size = sum(path.stat().st_size for path in lesson.DATA.rglob("*") if path.is_file())
    print(f"{len(runs)} runs kept in {shown(lesson.DATA)}/, {size // 1000} kB.")


def _keep(run: Planned, wanted: Sequence[str]) -> None:
    """The first rows of the files `wanted` of a finished run, and a manifest of them."""
    target = lesson.ROWS / run.folder
    made = json.loads((run.path / MANIFEST).read_text())
    files = [name for name in wanted if (run.path / name).is_file()]
    for name in files:
        write_rows(target / name, read_rows(run.path / name)[: FIRST.get(name)])
    if "annotations.jsonl" in files:
        made = _rescored(made, read_rows(target / "annotations.jsonl"))
    manifest = {"spec": made["spec"], **{key: made[key] for key in KEPT},
                "files": {name: (target / name).stat().st_size for name in files},
                "sha256": {name: file_digest(target / name) for name in files}}  # fmt: skip
    write_atomic(target / MANIFEST, json.dumps(manifest, ensure_ascii=False) + "\n")


def _rescored(made: dict[str, Any], annotations: list[Record]) -> dict[str, Any]:
    """An evaluation's manifest as of these annotations alone, so that its number and its scores are theirs."""
    made = copy.deepcopy(made)
    made["spec"]["params"]["evaluate"]["n"] = len(annotations)
    answers = [{"output": a["output_2"]} for a in annotations]
    scores = {**alpaca_eval.win_rates(annotations, None), **alpaca_eval.against_untrained(annotations)}
    made["results"] |= {"scores": scores, "mean_length": alpaca_eval.mean_length(answers)}
    return made
