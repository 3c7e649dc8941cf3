"""What runs measured of a row's feedback source, and of its policy against the model that it was."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

from sao_lib.evaluate.gold import change
from sao_lib.files import Record
from sao_lib.method.labelled import STOP, words
from sao_lib.method.readings import distinct_2, stem
from sao_lib.report.length_adjusted import of_table
from sao_lib.report.rows import TableRow
from sao_lib.runs import Run

NOTHING = "-"  # this row has no such thing
Value = Callable[[TableRow], Any]


def agreement(row: TableRow) -> str:
    """Of the row's source with labelled pairs, in percent, with SE and n."""
    audit = row.run("judge").results["audit"]
    if audit["agreement"] is None:
        return NOTHING
    se = "" if audit["se"] is None else f"SE {100 * audit['se']:.1f}, "
    return f"{100 * audit['agreement']:.1f} ({se}n {audit['pairs']})"


def audited(key: str) -> Value:
    """A share that the audit of the row's source measured on labelled pairs, in percent."""

    def value(row: TableRow) -> Any:
        found = row.run("judge").results["audit"][key]
        return NOTHING if found is None else 100 * found

    return value


def adjusted(part: int) -> Value:
    """The length-adjusted win rate (0) or its SE (1)."""

    def value(row: TableRow) -> Any:
        found = of_table(row.table).get(row.name)
        return "lengths do not overlap" if found is None else found[part]

    return value


def against_untrained(key: str) -> Value:
    """Of the comparison with the untrained model's answers, which the untrained row itself has not."""

    def value(row: TableRow) -> Any:
        found = row.run("evaluate").results["scores"].get(key)
        return NOTHING if found is None else found

    return value


def before(row: TableRow) -> Run | None:
    """The answers of the model that this row's was before it was trained; None if it is that model, or has none."""
    run = row.run("evaluate")
    if "answers" not in run.spec["inputs"] or "policy" not in run.input("answers").spec["inputs"]:
        return None
    untrained = run.input("calibration").input("answers")
    return untrained if untrained.params["policy"] == run.params["policy"] else None


def gold_margin(row: TableRow) -> str:
    """How much more than before the policy prefers good to spoilt answers, nats a token."""
    untrained = before(row)
    if untrained is None:
        return NOTHING
    found = change(row.run("evaluate").input("answers").rows("gold.jsonl"), untrained.rows("gold.jsonl"))
    if not found:
        return NOTHING
    return f"{found[0]:+.3f}" + ("" if found[1] is None else f" (SE {found[1]:.3f})")


def gold_accuracy(row: TableRow) -> str:
    """Share of the common pairs whose good answer has the higher mean log p, the untrained model's beside it."""
    found = _answered(row, "gold")
    if found is None or found["accuracy"] is None:
        return NOTHING
    untrained = before(row)
    beside = f"; untrained {untrained.results['gold']['accuracy']:.1f}" if untrained else ""
    return f"{found['accuracy']:.1f} (SE {found['accuracy_se'] or 0:.1f}, n {found['n']}{beside})"


def kl(row: TableRow) -> Any:
    """KL from the untrained model on the policy's own answers, nats a token."""
    found = _answered(row, "kl")
    return NOTHING if found is None or found["kl"] is None else found["kl"]


def _answered(row: TableRow, key: str) -> dict[str, Any] | None:
    """A result of the run that answered; None for answers that somebody published."""
    run = row.run("evaluate")
    return dict(run.input("answers").results[key]) if "answers" in run.spec["inputs"] else None


def echo(annotation: Record) -> float:
    """Percent of the answer's content words that are the instruction's, inflected forms included; 0 of no words."""
    asked = {stem(w) for w in words(annotation["instruction"]) if w not in STOP}
    said = [w for w in words(annotation["output_2"]) if w not in STOP]
    return 100 * fmean(stem(w) in asked for w in said) if said else 0.0


def question_words(row: TableRow) -> Any:
    """`echo`, mean over answers."""
    return fmean(map(echo, row.annotations)) if row.annotations else NOTHING


def distinct(row: TableRow) -> Any:
    """Percent of the pairs of words in an answer that are different, mean over answers (distinct-2)."""
    return 100 * fmean(distinct_2(a["output_2"]) for a in row.annotations) if row.annotations else NOTHING
