"""`make lesson-rows`: keeps of finished runs of the cpu profile what the lessons read, in `notebooks/data`."""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sao_lib import lesson
from sao_lib.errors import SaoError
from sao_lib.evaluate import alpaca_eval
from sao_lib.files import Record, file_digest, read_rows, write_atomic, write_rows
from sao_lib.plan import planning
from sao_lib.plan.chain import Planned, Row
from sao_lib.runs import MANIFEST
from sao_lib.yaml_files import shown

TABLE, STAGES, DOSE = "lesson", "lesson-stages", "dose"  # in params/experiments
SELF = ("synthesize", "judge", "train", "rating")  # the lessons of which are runs of the row `self`, else of `vanilla`
READ = {  # of the runs that lessons of stages read, by stage; results are in the manifest
    "synthesize": ("prompts.jsonl", "responses.jsonl"), "judge": ("verdicts.jsonl", "preferences.jsonl", "audit.jsonl"),
    "answer": ("answers.jsonl",), "evaluate": ("annotations.jsonl",),
}  # fmt: skip
TABLES_READ = {"judge": ("audit.jsonl",), "evaluate": ("annotations.jsonl",)}  # all that a table wants of rows' runs
DOSE_READS = {**TABLES_READ, "judge": ("verdicts.jsonl", "audit.jsonl"), "answer": ("gold.jsonl",)}
FIRST = {"prompts.jsonl": 42, "responses.jsonl": 36, "verdicts.jsonl": 36, "preferences.jsonl": 36,
         "answers.jsonl": 24, "annotations.jsonl": 24}  # fmt: skip  # rows; of other files all
UNREAD = {"annotations.jsonl": {"output_1", "generator_1", "generator_2"},
          "verdicts.jsonl": {"shown", "swapped", "odds_shown", "odds_swapped", "margin"},
          "audit.jsonl": {"shown", "swapped"}, "gold.jsonl": {"good", "bad"}}  # fmt: skip  # columns, by the dose
KEPT = ("results", "git_commit", "seconds", "finished")  # of a manifest, beside spec and files


@dataclass
class Lesson:
    """A lesson: its spec, and by folder the finished runs that it reads, with the files that it wants of each.

    `whole`: it reads every row, without the columns UNREAD, and else the FIRST.
    """

    spec: dict[str, Any]
    whole: bool = False
    reads: dict[str, tuple[Planned, set[str]]] = field(default_factory=dict)

    def read(self, runs: Sequence[Planned], folders: set[str], files: Mapping[str, Sequence[str]]) -> None:
        """Want of those `runs` that lie in `folders` the `files` of their stage."""
        for run in runs:
            if run.folder in folders:
                self.reads.setdefault(run.folder, (run, set()))[1].update(files.get(run.spec["stage"], ()))


def planned() -> dict[str, Lesson]:
    """The lessons by name.

    Those of stages have the small settings of `lesson-stages`, and read runs of the table `lesson`; those of the two
    tables read their rows' runs: the beginnings, or for the dose all, so that it is the table itself.
    """
    table, stages, dose = (planning.make("cpu", name) for name in (TABLE, STAGES, DOSE))
    of = {row.name: row for row in table.rows}
    sources = {
        "synthesize": of["self"].roles["synthesize"],
        "judge": of["self"].roles["judge"],
        "calibration": of["vanilla"].roles["evaluate"],
        "answers": _answered(of["vanilla"]),
    }
    found: dict[str, Lesson] = {}
    for row in stages.rows:
        for stage, run in {**row.roles, "answer": _answered(row)}.items():
            if (stage in SELF) == (row.name == "self"):
                inputs = {role: sources[role].folder for role in run.inputs}
                found[stage] = Lesson({**run.spec, "inputs": inputs})
                found[stage].read(table.runs, set(inputs.values()), READ)
    found["ablate"] = _of_table(table, TABLES_READ)
    found[DOSE] = _of_table(dose, DOSE_READS, whole=True)
    _add_what_is_behind(found[DOSE], dose.runs)
    return found


def _of_table(plan: planning.Plan, files: Mapping[str, Sequence[str]], whole: bool = False) -> Lesson:
    spec = plan.table.spec
    made = Lesson({**spec, "params": {**spec["params"], "outdated": {}}}, whole)
    made.read(plan.runs, set(plan.table.inputs.values()), files)
    return made


def _add_what_is_behind(dose: Lesson, runs: Sequence[Planned]) -> None:
    """The answers behind the dose's evaluations, for their KL, and the untrained model's, for their texts."""

    def inputs(folders: set[str]) -> set[str]:
        return {
            i for run in runs if run.folder in folders and run.spec["stage"] == "evaluate" for i in run.inputs.values()
        }

    behind = inputs(set(dose.reads))
    untrained = inputs(behind)
    dose.read(runs, behind | untrained, DOSE_READS)
    dose.read(runs, untrained, READ)


def _answered(row: Row) -> Planned:
    """The run in which the model of `row` answered."""
    folder = row.roles["evaluate"].inputs["answers"]
    return row.runs[folder]


def write(wanted: Sequence[str] = ()) -> None:
    """Write the rows of the `wanted` lessons, by default of all, anew from finished runs.

    Raises SaoError for a name that is no lesson's, and where a run has not finished.
    """
    lessons = planned()
    names = [name for name in lessons if not wanted or lesson.LESSONS[name] in wanted]
    if unknown := sorted(set(wanted) - set(lesson.LESSONS.values())):
        raise SaoError(f"There is no lesson '{unknown[0]}'; there are: {', '.join(lesson.LESSONS.values())}.")
    runs = {folder: run for name in names for folder, (run, _) in lessons[name].reads.items()}
    if missing := [folder for folder, run in runs.items() if not run.done]:
        raise SaoError(
            f"{missing[0]} has not finished; `make reproduce-{TABLE} reproduce-{DOSE}` runs what lessons read."
        )
    if not wanted:
        shutil.rmtree(lesson.ROWS, ignore_errors=True)
    for name in names:
        spec = json.dumps(lessons[name].spec, ensure_ascii=False)
        write_atomic(lesson.SPECS / f"{name}.json", spec + "\n")
    for folder, run in runs.items():
        readers = [each for each in lessons.values() if folder in each.reads]
        _keep(run, set().union(*(each.reads[folder][1] for each in readers)), any(each.whole for each in readers))
    size = sum(path.stat().st_size for path in lesson.DATA.rglob("*") if path.is_file())
    print(f"{len(runs)} runs kept in {shown(lesson.DATA)}/, which has {size // 1000} kB.")


def _keep(run: Planned, wanted: set[str], whole: bool) -> None:
    """The first rows of the files `wanted` of a finished run, or all as Lesson.whole says, and a manifest of them."""
    target = lesson.ROWS / run.folder
    made = json.loads((run.path / MANIFEST).read_text())
    files = [name for name in sorted(wanted) if (run.path / name).is_file()]
    for name in files:
        rows = read_rows(run.path / name)
        without = [{k: v for k, v in row.items() if k not in UNREAD.get(name, ())} for row in rows]
        write_rows(target / name, without if whole else rows[: FIRST.get(name)])
    if "annotations.jsonl" in files and not whole:
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
