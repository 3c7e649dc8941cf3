"""The rows of a table run: what the paper prints for each, and the runs whose results are ours."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sao_lib.report.paper import PAPER
from sao_lib.runs import Run
from sao_lib.settings import experiment_file, read_yaml


@dataclass(frozen=True)
class TableRow:
    """`paper` maps the paper's columns to its numbers for this row; `run(role)` is a finished run of ours.

    `published` names a model of alpaca_eval's leaderboard; `skipped` says why the row did not run here.
    """

    name: str
    label: str
    paper: dict[str, float | None]
    table: Run
    data: str | None = None
    published: str | None = None
    skipped: str | None = None

    def has(self, role: str) -> bool:
        return f"{self.name}/{role}" in self.table.spec["inputs"]

    def run(self, role: str) -> Run:
        return self.table.input(f"{self.name}/{role}")

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
        """alpaca_eval's annotations, empty where this row has none."""
        return self.run("evaluate").rows("annotations.jsonl") if self.has("evaluate") else []

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


def experiment_of(run: Run) -> dict[str, Any]:
    """The experiment file of a table run."""
    return read_yaml(experiment_file(run.params["experiment"]))


def table_rows(run: Run) -> dict[str, TableRow]:
    """The rows of a table run by name, in the experiment's order."""
    experiment = experiment_of(run)
    printed = read_yaml(PAPER).get(experiment.get("paper_table", run.params["experiment"]), {}).get("rows")
    numbers = printed if isinstance(printed, dict) else {}  # table 12's rows are prompts
    return {
        row["name"]: TableRow(
            row["name"],
            row["label"],
            _paper(numbers, row["name"], experiment["rows"][row["name"]].get("paper", {})),
            run,
            row["data"],
            row["published"],
            row["skipped"],
        )
        for row in run.params["rows"]
    }


def _paper(numbers: dict[str, dict[str, Any]], name: str, mapped: dict[str, str]) -> dict[str, float | None]:
    """The paper's numbers of a row: of the row `mapped` names, and of its columns with a prefix, without it."""
    found, prefix = numbers.get(mapped.get("row", name), {}), mapped.get("prefix", "")
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix) and not isinstance(v, str)}
