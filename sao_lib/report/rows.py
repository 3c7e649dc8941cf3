"""The rows of a table run: what the paper prints for each, and the runs whose results are ours."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

from sao_lib.plan.chain import replicate_role
from sao_lib.plan.experiment import Experiment, read
from sao_lib.report import paper
from sao_lib.runs import Run
from sao_lib.settings import Stage


@dataclass(frozen=True)
class TableRow:
    """`printed` maps the paper's columns to its numbers for this row; `run(role)` is a finished run of ours.

    A row that ran several times has `replicates`; each of them is a row too, whose runs are of one `replicate`.
    `published` names a model of alpaca_eval's leaderboard; `skipped` says why the row did not run here.
    """

    name: str
    label: str
    printed: dict[str, float | None]
    table: Run
    data: str | None = None
    published: str | None = None
    skipped: str | None = None
    replicate: int = 1

    def has(self, role: str) -> bool:
        return self._key(role, self.replicate) in self.table.spec["inputs"]

    def run(self, role: str) -> Run:
        return self.table.input(self._key(role, self.replicate))

    def _key(self, role: str, replicate: int) -> str:
        return f"{self.name}/{replicate_role(role, replicate)}"

    @cached_property
    def replicates(self) -> list["TableRow"]:
        """This row once for each of its replicates, the first first; itself where it ran once."""
        count = 1
        while any(self._key(role, count + 1) in self.table.spec["inputs"] for role in get_args(Stage)):
            count += 1
        return [replace(self, replicate=number) for number in range(1, count + 1)]

    @property
    def ours(self) -> bool:
        """Whether anything of this row ran here."""
        return not self.published and not self.skipped

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """Every synthesized prompt, made by the policy also where another model answers them (table 8)."""
        made = self.run("synthesize")
        return (made.input("prompts") if "prompts" in made.spec["inputs"] else made).rows("prompts.jsonl")

    @cached_property
    def annotations(self) -> list[dict[str, Any]]:
        """alpaca_eval's annotations with a preference, empty where this row has none."""
        found = self.run("evaluate").rows("annotations.jsonl") if self.has("evaluate") else []
        return [a for a in found if a["preference"] is not None]

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The evaluated answers in alpaca_eval's format, empty where this row has none."""
        if not self.has("evaluate"):
            return []
        run = self.run("evaluate")  # answers that somebody published lie in its own folder
        return (run.input("answers") if "answers" in run.spec["inputs"] else run).rows("answers.jsonl")

    @cached_property
    def leaderboard(self) -> dict[str, Any] | None:
        """This row's line of the leaderboard that the alpaca-eval package ships; None if it is not on it."""
        if not self.published:
            return None
        import pandas as pd
        from alpaca_eval.constants import ALPACAEVAL_2_LEADERBOARD_PATHS

        file = ALPACAEVAL_2_LEADERBOARD_PATHS / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv"
        frame = pd.read_csv(file, index_col=0)
        return dict(frame.loc[self.published]) if self.published in frame.index else None


TableRows = dict[str, TableRow]


def experiment_of(run: Run) -> Experiment:
    """The experiment of a table run."""
    return read(run.params["experiment"])


def table_rows(run: Run) -> TableRows:
    """The rows of a table run by name, in the experiment's order."""
    printed = printed_rows(run.params["experiment"], experiment_of(run))
    return {
        row["name"]: TableRow(
            row["name"], row["label"], printed[row["name"]], run, row["data"], row["published"], row["skipped"]
        )
        for row in run.params["rows"]
    }


def printed_rows(name: str, experiment: Experiment) -> dict[str, dict[str, float | None]]:
    """The paper's numbers for each row: of the row and the columns that its `printed` names, without their prefix."""
    table = paper.printed().get(experiment.printed_in or name, {}).get("rows")
    numbers = table if isinstance(table, dict) else {}  # table 12's rows are prompts
    found = {}
    for key, row in experiment.rows.items():
        prefix, there = row.printed.prefix, numbers.get(row.printed.row or key, {})
        found[key] = {
            k.removeprefix(prefix): v for k, v in there.items() if k.startswith(prefix) and not isinstance(v, str)
        }
    return found
