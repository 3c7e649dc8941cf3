"""What can stand in a column, by the name an experiment file uses; `paper.x` is the paper's own column x.

A row that ran several times shows the mean over its runs, and column `runs` how many and how far apart they are.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sao_lib.errors import SaoError
from sao_lib.evaluate.instruments import read_by
from sao_lib.evaluate.rating import METRICS
from sao_lib.hub import short
from sao_lib.method.losses import LOSSES
from sao_lib.report import dose, measured
from sao_lib.report.claims import share_positive
from sao_lib.report.rows import TableRow

MISSING = "not run"
NOTHING = measured.NOTHING
PUBLISHED = ("lc", "lc_se", "wr", "se", "n", "judge", "model")
NOT_PUBLISHED = "not on the leaderboard"


MEASURED = ("evaluate", "chat_benchmarks", "leaderboard", "math500", "logits")  # stages that measure a policy


@dataclass(frozen=True)
class Column:
    """A header with its unit, the value of a row, decimals for numbers, and the stages of which a row needs one."""

    header: str
    value: Callable[[TableRow], Any]
    decimals: int = 2
    stages: tuple[str, ...] = ()
    whole: bool = False  # it reads all replicates of a row; else it reads each, and their mean is shown


LEADERBOARD = {"lc": "length_controlled_winrate", "lc_se": "lc_standard_error", "wr": "win_rate",
               "se": "standard_error", "n": "n_total"}  # fmt: skip


def _score(key: str) -> Callable[[TableRow], Any]:
    def value(row: TableRow) -> Any:
        if not row.published:
            return row.run("evaluate").results["scores"][key]
        if row.leaderboard is None:
            return NOT_PUBLISHED
        value = row.leaderboard[LEADERBOARD[key]]
        return "-" if value != value else int(value) if key == "n" else float(value)  # NaN: not published

    return value


def _judge(row: TableRow) -> str:
    if row.published:
        return "GPT-4-Turbo (published)"
    run = row.run("evaluate" if row.has("evaluate") else "chat_benchmarks")
    judge = run.results["judge"]
    models = read_by(judge["instrument"], judge["model"])
    return f"{' + '.join(map(short, models))}, {judge['instrument']}"


def policy_name(row: TableRow) -> str:
    """What ran: the policy's name and what trained it, from the runs themselves."""
    if row.published:
        return "-"
    run = next(row.run(role) for role in MEASURED if row.has(role))
    if run.params.get("evaluate", {}).get("answers"):
        return "published answers"
    run = run.input("answers") if "answers" in run.spec["inputs"] else run
    name = short(run.params["policy"]["model"])
    if "policy" not in run.spec["inputs"]:
        return f"{name}, untrained"
    trained = run.input("policy")
    loss, data = trained.params["train"]["loss"], trained.params["train"]["data"]
    return f"{name}, {LOSSES[loss].name} on {'external data' if data else trained.input('judge').results['source']}"


def _length(row: TableRow) -> float:
    return float(row.run("evaluate").results["mean_length"])


def _runs(row: TableRow) -> str:
    """How many runs of the row there are and the standard deviation of their win rates against the reference."""
    if len(row.replicates) == 1 or not row.has("evaluate"):
        return str(len(row.replicates))
    values = [one.run("evaluate").results["scores"]["wr"] for one in row.replicates]
    return f"{len(values)} (SD {statistics.stdev(values):.1f})"


def _shorter(row: TableRow) -> float:
    """Of the pool's preferred responses, those that are shorter than the other, over the row's runs."""
    return 100 * statistics.fmean(one.run("judge").results["shorter"] for one in row.replicates)


def _pairs(row: TableRow) -> str:
    if not row.has("train"):
        return "none"
    pairs = row.run("train").results["pairs"]
    return f"{pairs['train']} / {pairs['held_out']}"


def _held_out(row: TableRow) -> Any:
    return 100 * share_positive(row.run("train").results["held_out_margins"]) if row.has("train") else "untrained"


def _synthesized(key: str) -> Callable[[TableRow], Any]:
    return lambda row: 100 * row.run("synthesize").results[key]


def _of(stage: str, header: str, *keys: str, decimals: int = 2) -> Column:
    """The column of one result of a stage."""

    def value(row: TableRow) -> Any:
        found: Any = row.run(stage).results
        for key in keys:
            found = found[key]
        return found

    return Column(header, value, decimals, (stage,))


def _turns(row: TableRow) -> str:
    results = row.run("chat_benchmarks").results
    found = results["mt_bench"]
    return _signal(results["mt_bench_grader"], f"{found['turn1']:.2f} / {found['turn2']:.2f}")


def _interval(row: TableRow) -> str:
    found = row.run("chat_benchmarks").results["arena_hard"]
    return f"{found['low']:.1f} to {found['high']:.1f}"


def _task(name: str) -> Callable[[TableRow], str]:
    def value(row: TableRow) -> str:
        found = row.run("leaderboard").results["columns"][name]
        return f"{found['score']:.2f} (SE {found['se']:.1f}, n {found['n']})"

    return value


def _signal(grader: dict[str, Any], text: str) -> str:
    """`text`, unless its grader cannot tell good answers from bad ones."""
    if grader["signal"]:
        return text
    return f"no signal ({100 * (grader['agreement'] or 0):.0f}% right, SE {100 * (grader['se'] or 0):.0f})"


def _mt_bench(key: str) -> Callable[[TableRow], Any]:
    def value(row: TableRow) -> Any:
        results = row.run("chat_benchmarks").results
        return _signal(results["mt_bench_grader"], f"{results['mt_bench'][key]:.2f}")

    return value


def _average(row: TableRow) -> str:
    if row.has("rating"):
        results = row.run("rating").results
        return _signal(results["grader"]["average"], f"{results['average']:.2f}")
    found = row.run("leaderboard").results
    return f"{found['average']:.2f} (SE {found['average_se']:.1f})"


def _rating(metric: str) -> Callable[[TableRow], str]:
    def value(row: TableRow) -> str:
        results = row.run("rating").results
        found = results["metrics"][metric]
        return _signal(results["grader"][metric], f"{found['mean']:.2f} (SE {found['se']:.2f})")

    return value


TASKS = {"arc": "ARC", "truthfulqa": "TruthfulQA", "winogrande": "Winogrande", "gsm8k": "GSM8K",
         "hellaswag": "HellaSwag", "mmlu": "MMLU"}  # fmt: skip

COLUMNS: dict[str, Column] = {
    "lc": Column("Our LC (%)", _score("lc"), stages=("evaluate",)),
    "lc_se": Column("LC SE", _score("lc_se"), 1, stages=("evaluate",)),
    "wr": Column("Our WR (%)", _score("wr"), stages=("evaluate",)),
    "se": Column("WR SE", _score("se"), 1, stages=("evaluate",)),
    "n": Column("n", _score("n"), 0, stages=("evaluate",)),
    "adjusted": Column("Length-adjusted WR (%)", measured.adjusted(0), 1, stages=("evaluate",)),
    "adjusted_se": Column("its SE", measured.adjusted(1), 1, stages=("evaluate",)),
    "direct": Column("Wins against untrained (%)", measured.against_untrained("direct"), 1, stages=("evaluate",)),
    "direct_se": Column("SE of these", measured.against_untrained("direct_se"), 1, stages=("evaluate",)),
    "margin": Column("Mean margin against untrained", measured.against_untrained("margin"), 3, stages=("evaluate",)),
    "margin_se": Column("SE of the margin", measured.against_untrained("margin_se"), 3, stages=("evaluate",)),
    "second": Column("Wins by the second reading (%)", measured.against_untrained("second_direct"), 1, ("evaluate",)),
    "second_se": Column("SE of these", measured.against_untrained("second_direct_se"), 1, ("evaluate",)),
    "second_margin": Column("Mean margin by it", measured.against_untrained("second_margin"), 3, ("evaluate",)),
    "second_margin_se": Column("SE of that", measured.against_untrained("second_margin_se"), 3, ("evaluate",)),
    "echo": Column("Words of the question (%)", measured.question_words, 1, ("evaluate",)),
    "distinct": Column("Distinct-2 (%)", measured.distinct, 1, ("evaluate",)),
    "gold_accuracy": Column("Good above bad by log p (%)", measured.gold_accuracy, stages=("evaluate",)),
    "gold_margin": Column("Change of log p, good less bad (nats a token)", measured.gold_margin, stages=("evaluate",)),
    "kl": Column("KL from untrained (nats a token)", measured.kl, 3, stages=("evaluate",)),
    "judge": Column("Evaluation judge", _judge, stages=("evaluate", "chat_benchmarks")),
    "model": Column("What ran", policy_name, stages=MEASURED),
    "length": Column("Mean answer (characters)", _length, 0, stages=("evaluate",)),
    "held_out": Column("Held-out preference accuracy (%)", _held_out, 1),
    "runs": Column("Runs (SD of wins against the reference)", _runs, whole=True),
    "pairs": Column("Pairs trained / held out", _pairs),
    "source": _of("judge", "Feedback from", "source"),
    "agreement": Column("Source right on labelled pairs (%)", measured.agreement, stages=("judge",)),
    "with_gold": Column("Agrees with gold on the pool (%)", dose.with_gold, 1, ("judge",), whole=True),
    "flip": Column("Flips with the order (%)", measured.audited("flip"), 0, stages=("judge",)),
    "longer_wins": Column("Prefers the longer (%)", measured.audited("longer_wins"), 0, stages=("judge",)),
    "shorter": Column("Chooses the shorter response (%)", _shorter, 0, ("judge",), whole=True),
    "repetition": Column("Our exact repetition (%)", _synthesized("repetition"), 1, stages=("synthesize",)),
    "near_duplicates": Column("Near-duplicates (%)", _synthesized("near_duplicates"), 1, stages=("synthesize",)),
    "diversity": Column(
        "Embedding diversity", lambda row: row.run("synthesize").results["diversity"], stages=("synthesize",)
    ),
    "prompts": _of("synthesize", "Prompts", "usable", decimals=0),
    "mt_bench": Column("Our MT-Bench", _mt_bench("score"), stages=("chat_benchmarks",)),
    "mt_bench_se": Column("SE", _mt_bench("se"), stages=("chat_benchmarks",)),
    "mt_bench_turns": Column("Turn 1 / 2", _turns, stages=("chat_benchmarks",)),
    "mt_bench_n": _of("chat_benchmarks", "n (ratings)", "mt_bench", "n", decimals=0),
    "arena_hard": _of("chat_benchmarks", "Our Arena-Hard (%)", "arena_hard", "score", decimals=1),
    "arena_hard_interval": Column("95% interval", _interval, stages=("chat_benchmarks",)),
    "arena_hard_n": _of("chat_benchmarks", "n (questions)", "arena_hard", "n", decimals=0),
    "average": Column("Our average", _average, stages=("rating", "leaderboard")),
    "rated": _of("rating", "Responses rated", "n", decimals=0),
    "rater": _of("rating", "Rater", "rater"),
    "math500": _of("math500", "Our MATH-500 (%)", "score"),
    "math500_se": _of("math500", "SE", "se", decimals=1),
    "math500_n": _of("math500", "n", "n", decimals=0),
    "no_answer": _of("math500", "No answer found", "no_answer", decimals=0),
    **{name: Column(f"Our {label} (%)", _task(name), stages=("leaderboard",)) for name, label in TASKS.items()},
    **{name: Column(f"Our {name}", _rating(name), stages=("rating",)) for name in METRICS},
}
PAPER = {"lc": "LC (%)", "wr": "WR (%)", "se": "SE", "repetition": "repetition (%)", "mt_bench": "MT-Bench",
         "arena_hard": "Arena-Hard (%)", "average": "average", "math500": "MATH-500 (%)",
         **{name: f"{label} (%)" for name, label in TASKS.items()}}  # fmt: skip


def column(name: str) -> Column:
    """A column by name; raises SaoError listing what there is."""
    if name.startswith("paper."):
        key = name.removeprefix("paper.")
        return Column(f"Paper {PAPER.get(key, key)}", lambda row: row.printed.get(key))
    if name not in COLUMNS:
        raise SaoError(f"There is no column '{name}'; there are: {', '.join(COLUMNS)} and paper.<column>.")
    return COLUMNS[name]


def value_of(name: str, row: TableRow) -> Any:
    """A row's value in a column; a row that did not run says so in ours, and keeps the paper's."""
    if name.startswith("paper."):
        return column(name).value(row)
    if row.skipped:
        return MISSING
    if row.published and name not in PUBLISHED:
        return NOTHING
    wanted = column(name)
    if wanted.stages and not row.published and not any(map(row.has, wanted.stages)):
        return NOTHING
    return wanted.value(row) if wanted.whole else _together([wanted.value(one) for one in row.replicates])


def _together(values: list[Any]) -> Any:
    """What replicates show in one cell: the mean of numbers, what all say, or each."""
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, int | float) for value in values):
        return statistics.fmean(values)
    return "; ".join(map(str, dict.fromkeys(values)))


def text_of(name: str, row: TableRow) -> str:
    """The value as it is printed: numbers with as many decimals as the paper prints, `-` for none in the paper."""
    value = value_of(name, row)
    if value is None:
        return "-"
    if isinstance(value, float):
        decimals = 2 if name.startswith("paper.") else column(name).decimals
        shown = f"{value:.{decimals}f}"
        return json.dumps(value) if name.startswith("paper.") and len(json.dumps(value)) < len(shown) else shown
    return str(value)
