"""What is gained against how right the labels were: the measurements behind a figure of kind `dose`.

A gold source labels a pool of pairs; other rows label the same pool, some with a share of gold's verdicts turned. How
often a row's labels agree with gold's is measured on the pool. What it gained is its wins against the untrained
model's answers, by the evaluation judge and by a second reading (`evaluate.second`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any

from sao_lib.method.feedback import Chance, Gold
from sao_lib.report.inference import Arm, Estimate, Line, Values, against, in_words
from sao_lib.report.length_adjusted import LEAST_SHARE
from sao_lib.report.measured import NOTHING, before
from sao_lib.report.metrics import METRICS
from sao_lib.report.rows import TableRow, TableRows, table_rows

MEASURES = {"direct": "the evaluation judge", "second": "the second reading"}
EVEN = 50.0  # wins of a model against itself


@dataclass(frozen=True)
class Placed:
    """A trained row on the dose's axis: each run's agreement with gold (%), its gains by measure, and its distance.

    `gains` are wins in percent; `kl` is the mean over its runs, nats a token. `dosed`: what its labels agree is set and
    not found, so it belongs to the line.
    """

    row: TableRow
    agreement: list[float]
    gains: dict[str, Arm]
    kl: float | None
    dosed: bool

    @property
    def at(self) -> float:
        return fmean(self.agreement)


def gold_row(rows: TableRows) -> TableRow | None:
    """The row whose labels are gold's as they are; None if the table has none."""
    found = (row for row in rows.values() if row.ours and row.has("judge") and _source(row) == (Gold.key, 0))
    return next(found, None)


def _source(row: TableRow) -> tuple[str, float]:
    judge = row.run("judge").params["judge"]
    return str(judge["source"]), float(judge.get("corrupted", 0))


def agreement_with_gold(row: TableRow, gold: TableRow) -> list[float]:
    """Of each of the row's runs, in how many of the pool's pairs its verdict is gold's (percent), both being decided.

    Empty where the two did not label one pool.
    """
    found = []
    for own, right in zip(row.replicates, gold.replicates, strict=False):
        if own.run("judge").spec["inputs"]["synthesize"] != right.run("judge").spec["inputs"]["synthesize"]:
            return []
        known = {v["id"]: v["verdict"] for v in right.run("judge").rows("verdicts.jsonl")}
        same = [v["verdict"] == known[v["id"]] for v in own.run("judge").rows("verdicts.jsonl")
                if v["verdict"] and known.get(v["id"])]  # fmt: skip
        found.append(100 * fmean(same) if same else math.nan)
    return found


def with_gold(row: TableRow) -> Any:
    """The mean of `agreement_with_gold`, as a column shows it."""
    gold = gold_row(table_rows(row.table))
    found = agreement_with_gold(row, gold) if gold and row.has("judge") else []
    return fmean(found) if found else NOTHING


def placed(rows: TableRows) -> list[Placed]:
    """Every row that was trained on labels of gold's pool, in the table's order."""
    gold, found = gold_row(rows), []
    for row in rows.values() if gold else ():
        if not (row.ours and row.has("train") and row.has("judge") and row.has("evaluate")):
            continue
        assert gold
        agreement = agreement_with_gold(row, gold)
        gains = {name: arm for name in MEASURES if (arm := METRICS[name].arm(row)) and arm.runs}
        if agreement and gains:
            found.append(Placed(row, agreement, gains, distance(row), _source(row)[0] in (Gold.key, Chance.key)))
    return found


def distance(row: TableRow) -> float | None:
    """KL from the untrained model, nats a token, the mean over the row's runs; None where a run has none."""
    moved = [one.run("evaluate").input("answers").results["kl"]["kl"] for one in row.replicates]
    return fmean(moved) if all(kl is not None for kl in moved) else None


def line(arms: Sequence[Placed], measure: str) -> Line | None:
    """The line of gain against agreement through the runs of dosed rows; None with fewer than three."""
    points = [
        (x, run, pool) for arm in arms if arm.dosed and measure in arm.gains
        for pool, (x, run) in enumerate(zip(arm.agreement, arm.gains[measure].runs, strict=True))
    ]  # fmt: skip
    return Line(*(list(column) for column in zip(*points, strict=True))) if len(points) > 2 else None


def at_equal_length(arms: Sequence[Placed]) -> list[Placed]:
    """The rows with their gains as they would be if answers were as long as the untrained model's.

    One slope, common to all runs and fitted within them, of an instruction's gain on tanh of the difference in length
    in its standard deviations; a run's values are read off at zero. It is taken as known. Rows with fewer than
    LEAST_SHARE of their answers longer, or shorter, than the untrained model's have no such gain and are left out.
    """
    lengths = {arm.row.name: [_longer(one) for one in arm.row.replicates] for arm in arms}
    kept = [arm for arm in arms if all(map(_overlaps, lengths[arm.row.name]))]
    spread = pstdev([d for arm in kept for run in lengths[arm.row.name] for d in run.values()] or [0]) or 1.0
    x = {name: [{k: math.tanh(d / spread) for k, d in run.items()} for run in runs] for name, runs in lengths.items()}
    slopes = {
        measure: _within([pair for arm in kept if measure in arm.gains
                          for pair in zip(arm.gains[measure].runs, x[arm.row.name], strict=True)])
        for measure in MEASURES
    }  # fmt: skip
    return [
        replace(arm, gains={m: _at_zero(gain, x[arm.row.name], slopes[m]) for m, gain in arm.gains.items()})
        for arm in kept
    ]


def _at_zero(gain: Arm, x: Sequence[Values], slope: float) -> Arm:
    runs = [{k: v - slope * places[k] for k, v in run.items()} for run, places in zip(gain.runs, x, strict=True)]
    return replace(gain, runs=runs)


def _longer(row: TableRow) -> Values:
    """Characters by which each answer is longer than the untrained model's; empty where that did not answer."""
    untrained = before(row)
    if untrained is None:
        return {}
    old = {a["instruction"]: len(a["output"]) for a in untrained.rows("answers.jsonl")}
    return {(a["instruction"], ""): float(len(a["output_2"]) - old[a["instruction"]]) for a in row.annotations}


def _overlaps(longer: Values) -> bool:
    sides = [sum(d > 0 for d in longer.values()), sum(d < 0 for d in longer.values())]
    return bool(longer) and min(sides) >= LEAST_SHARE * len(longer)


def _within(pairs: Sequence[tuple[Values, Values]]) -> float:
    """The slope of values on places within runs, from (values, places) of each run; 0 where no place varies."""
    top = below = 0.0
    for run, places in pairs:
        y_mean, x_mean = fmean(run.values()), fmean(places.values())
        top += sum((places[k] - x_mean) * (run[k] - y_mean) for k in run)
        below += sum((d - x_mean) ** 2 for d in places.values())
    return top / below if below else 0.0


def sentences(rows: TableRows) -> list[str]:
    """The caption's lines: slope and gold's gain by each measure, as they are and at equal length."""
    arms = placed(rows)
    gold = gold_row(rows)
    if not arms or not gold:
        return []
    return [_sentence(measure, who, arms, at_equal_length(arms), gold.name) for measure, who in MEASURES.items()
            if any(measure in arm.gains for arm in arms)]  # fmt: skip


def _sentence(measure: str, who: str, arms: Sequence[Placed], matched: Sequence[Placed], gold: str) -> str:
    parts = [f"By {who}"]
    for what, some in (("", arms), ("; at equal length ", matched)):
        own = next((arm.gains[measure] for arm in some if arm.row.name == gold and measure in arm.gains), None)
        wins = "gold labels have no such number, because lengths do not overlap"
        if own:
            wins = f"gold labels win {sum(own.means) / own.count:.1f}%{_interval(against(own, 0))}"
        parts.append(f"{what or ' '}{wins}{_rise(line(some, measure), arms, some)}")
    return "".join(parts) + "."


def _rise(drawn: Line | None, arms: Sequence[Placed], some: Sequence[Placed]) -> str:
    """What ten points of agreement are worth; where `some` of the rows are left at one dose, why that is not known."""
    without = [arm.row.label for arm in arms if arm.dosed and arm.row.name not in {each.row.name for each in some}]
    if without and (drawn is None or drawn.slope().se is None):
        return f", and there is no line, because too few answers are longer, or too few shorter: {'; '.join(without)}"
    but = f" (without {'; '.join(without)}: too few answers are longer, or too few shorter)" if without else ""
    return f" and ten points of agreement with gold are worth {_points(drawn.slope())}{but}" if drawn else ""


def _interval(found: Estimate, scale: float = 1.0) -> str:
    if found.se is None:
        return " (one run, no interval)"
    low, high = found.interval()
    return f" [{scale * low:.1f}, {scale * high:.1f}]"


def _points(slope: Estimate) -> str:
    """Points of wins for ten points of agreement, with their interval and p-value."""
    if slope.se is None:
        return "an unknown number of points"
    p = min(1.0, 2 * min(slope.above(0), slope.below(0)))
    return f"{10 * slope.mean:+.1f} points of wins{_interval(slope, 10)}, {in_words(p)}"
