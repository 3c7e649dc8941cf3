"""What a claim can be about, by the name an experiment file uses: where a row's runs keep it, unit by unit.

A new metric is one entry of METRICS. `Values` are keyed by (cluster, unit): units of one cluster hang together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sao_lib.evaluate.alpaca_eval import preference
from sao_lib.evaluate.arena_hard import VERDICTS
from sao_lib.evaluate.rating import METRICS as RATINGS
from sao_lib.files import Record
from sao_lib.method.labelled import question_of
from sao_lib.method.synthesize import normal
from sao_lib.report.inference import Arm, Values
from sao_lib.report.measured import before, echo
from sao_lib.report.rows import TableRow

BEFORE_TRAINING = ("synthesize", "judge", "rating")  # stages that a training does not decide, unless the row iterates


@dataclass(frozen=True)
class Metric:
    """`stage` whose run of a row holds it, and its `unit` as printed.

    `values` gives it unit by unit, `whole` as (value, standard error or None) where the files keep no more; either
    gives None where this run has no such thing. `printed` is the paper's column where it has another name.
    """

    stage: str
    unit: str
    values: Callable[[TableRow], Values | None] | None = None
    whole: Callable[[TableRow], tuple[float, float | None] | None] | None = None
    printed: str | None = None

    def trained(self, row: TableRow) -> bool:
        """Whether another training of this row would give another value."""
        if self.stage in BEFORE_TRAINING:
            return "policy" in row.run(self.stage).spec["inputs"]
        return row.has("train")

    def arm(self, row: TableRow) -> Arm | None:
        """The row's runs as one side of a comparison; None where its files do not hold this."""
        replicates = row.replicates
        if self.values and all(found := [self.values(one) for one in replicates]):
            values = [one for one in found if one]
            return Arm(runs=values, trained=True) if self.trained(row) else Arm(runs=[_mean(values)])
        if self.whole and all(wholes := [self.whole(one) for one in replicates]):
            kept = [one for one in wholes if one]
            return Arm(wholes=kept, trained=True) if self.trained(row) else Arm(wholes=kept[:1])
        return None


def _mean(runs: list[Values]) -> Values:
    """Runs that no training decides as one: a unit's value is its mean over those that have it."""
    keys = dict.fromkeys(key for run in runs for key in run)
    found = {key: [run[key] for run in runs if key in run] for key in keys}
    return {key: sum(values) / len(values) for key, values in found.items()}


def _annotated(value: Callable[[Record], float | None]) -> Callable[[TableRow], Values | None]:
    """Of each annotation of the evaluation that has such a value, by instruction; None where none has."""

    def values(row: TableRow) -> Values | None:
        found = {(a["instruction"], ""): value(a) for a in row.annotations}
        return {key: v for key, v in found.items() if v is not None} or None

    return values


def _wins(key: str) -> Callable[[Record], float | None]:
    """100 where the answer beats the untrained model's to the same instruction by this margin, 50 for a tie."""

    def value(annotation: Record) -> float | None:
        margin = annotation.get(key)
        return None if margin is None else 100 * (preference(margin, "discrete") - 1)

    return value


def _prefers(row: TableRow) -> Values | None:
    """Of each common pair, how much more than before training the policy prefers the good answer (nats a token)."""
    untrained = before(row)
    if untrained is None:
        return None
    old = {r["id"]: r["margin"] for r in untrained.rows("gold.jsonl")}
    now = row.run("evaluate").input("answers").rows("gold.jsonl")
    return {(question_of(r), r["id"]): r["margin"] - old[r["id"]] for r in now if r["id"] in old}


def _length_controlled(row: TableRow) -> tuple[float, float | None] | None:
    """AlpacaEval's own; what other instruction sets have in its place is another thing."""
    run = row.run("evaluate")
    scores = run.results["scores"]
    official = run.params["evaluate"]["length_term"] == "alpaca_eval"
    return (scores["lc"], scores["lc_se"]) if official and scores.get("lc") is not None else None


def _held_out(row: TableRow) -> Values | None:
    """Pairs of a run's own labels: no two runs share them, whatever their numbers."""
    margins = row.run("train").results.get("held_out_margins", []) if row.has("train") else []
    return {(f"{row.name}/{row.replicate}/{n}", ""): 100.0 * (m > 0) for n, m in enumerate(margins)}


def _audited(value: Callable[[Record], dict[str, float]]) -> Callable[[TableRow], Values | None]:
    """Of each labelled pair that measured the row's source (audit.jsonl), by question; `value` names its units."""

    def values(row: TableRow) -> Values | None:
        run = row.run("judge")
        rows = run.rows("audit.jsonl") if (run.folder / "audit.jsonl").is_file() else []
        return {(r["id"].partition("-")[0], f"{r['id']}/{unit}"): v for r in rows for unit, v in value(r).items()}

    return values


def _right(row: Record) -> dict[str, float]:
    return {"": 100.0 * (row["verdict"] == row["good"])}


def _flip(row: Record) -> dict[str, float]:
    if row["shown"] is None or row["swapped"] is None:
        return {}
    return {"": 100.0 * (row["shown"] != row["swapped"])}


def _first(row: Record) -> dict[str, float]:
    if row["shown"] is None or row["swapped"] is None:
        return {}
    return {"1": 100.0 * (row["shown"] == 1), "2": 100.0 * (row["swapped"] == 2)}


def _share(key: str) -> Callable[[TableRow], tuple[float, float | None] | None]:
    """A share of the audit, as the judge's results have it, without its pairs."""

    def whole(row: TableRow) -> tuple[float, float | None] | None:
        found = row.run("judge").results["audit"].get(key)
        return None if found is None else (100 * found, None)

    return whole


def _repetition(row: TableRow) -> Values:
    """100 for each usable prompt that repeats an earlier one."""
    seen: set[str] = set()
    values: Values = {}
    for made in row.prompts:
        if made["reason"] is None:
            text = normal(made["prompt"])
            values[made["id"], ""] = 100.0 * (text in seen)
            seen.add(text)
    return values


def _near_duplicates(row: TableRow) -> tuple[float, None]:
    return 100 * row.run("synthesize").results["near_duplicates"], None


def _mt_bench(row: TableRow) -> Values:
    judged = row.run("chat_benchmarks").rows("mt_judgments.jsonl")
    return {(str(j["question_id"]), str(j["turn"])): j["score"] for j in judged if j["score"] is not None}


def _arena_hard(row: TableRow) -> Values:
    """Each question's part in the benchmark's score, a ratio of weighted wins: their mean is that score."""
    won, weight = {}, {}
    for played in row.run("chat_benchmarks").rows("arena_games.jsonl"):
        (first, w1), (second, w2) = (VERDICTS.get(verdict, (0.0, 0)) for verdict in played["games"])
        question = str(played["question_id"])
        won[question] = (1 - first) * w1 + second * w2  # the model is B in the first game and A in the second
        weight[question] = w1 + w2
    total = sum(weight.values())
    if not total:
        return {}
    score = sum(won.values()) / total
    return {(q, ""): 100 * (score + (won[q] - score * weight[q]) * len(won) / total) for q in won}


def _task(name: str) -> Callable[[TableRow], tuple[float, float | None]]:
    def whole(row: TableRow) -> tuple[float, float | None]:
        found = row.run("leaderboard").results
        if name == "average":
            return found["average"], found["average_se"]
        return found["columns"][name]["score"], found["columns"][name]["se"]

    return whole


def _math500(row: TableRow) -> tuple[float, float | None]:
    found = row.run("math500").results
    return found["score"], found["se"]


def _rating(row: TableRow) -> Values:
    rated = row.run("rating").rows("ratings.jsonl")
    whole = [r for r in rated if all(r[metric] is not None for metric in RATINGS)]
    return {(str(r["id"]), ""): sum(r[metric] for metric in RATINGS) / len(RATINGS) for r in whole}


def _skewness(row: TableRow) -> Values:
    """Of each response by itself (eq. 9)."""
    return {(f"{r['set']}/{r['id']}", ""): r["skewness"] for r in row.run("logits").rows("logits.jsonl")}


def _leaderboard(key: str, se: str) -> Callable[[TableRow], Any]:
    return lambda row: (
        (float(row.leaderboard[key]), float(row.leaderboard[se])) if row.leaderboard is not None else None
    )


METRICS: dict[str, Metric] = {
    "wr": Metric("evaluate", "points", _annotated(lambda a: (a["preference"] - 1) * 100)),
    "direct": Metric("evaluate", "points", _annotated(_wins("margin_untrained"))),
    "margin": Metric("evaluate", "", _annotated(lambda a: a.get("margin_untrained"))),
    "second": Metric("evaluate", "points", _annotated(_wins("second_untrained"))),
    "second_margin": Metric("evaluate", "", _annotated(lambda a: a.get("second_untrained"))),
    "gold_margin": Metric("evaluate", "nats a token", _prefers),
    "echo": Metric("evaluate", "points", _annotated(echo)),
    "lc": Metric("evaluate", "points", whole=_length_controlled),
    "length": Metric("evaluate", "characters", _annotated(lambda a: float(len(a["output_2"])))),
    "held_out": Metric("train", "points", _held_out),
    "agreement": Metric("judge", "points", _audited(_right), _share("agreement")),
    "flip": Metric("judge", "points", _audited(_flip), _share("flip")),
    "first_wins": Metric("judge", "points", _audited(_first), _share("first_wins")),
    "longer_wins": Metric("judge", "points", whole=_share("longer_wins")),
    "repetition": Metric("synthesize", "points", _repetition),
    "near_duplicates": Metric("synthesize", "points", whole=_near_duplicates),
    "mt_bench": Metric("chat_benchmarks", "", _mt_bench),
    "arena_hard": Metric("chat_benchmarks", "points", _arena_hard),
    "math500": Metric("math500", "points", whole=_math500),
    "rating": Metric("rating", "", _rating, printed="average"),
    "skewness": Metric("logits", "", _skewness),
    **{name: Metric("leaderboard", "points", whole=_task(name))
       for name in ("arc", "truthfulqa", "winogrande", "gsm8k", "hellaswag", "mmlu", "average")},
}  # fmt: skip
PUBLISHED: dict[str, Callable[[TableRow], Any]] = {  # what alpaca_eval's leaderboard has of a published model
    "wr": _leaderboard("win_rate", "standard_error"),
    "lc": _leaderboard("length_controlled_winrate", "lc_standard_error"),
}
