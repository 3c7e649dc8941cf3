"""Five ratings of a response, 0 to 10 (SAO table 7)."""

import json
import re
import statistics
from collections.abc import Sequence
from typing import Any

from sao_lib.chunks import in_chunks
from sao_lib.engines import Conversation, Engine, seed_for
from sao_lib.engines.chat import fill_apart
from sao_lib.evaluate.grading import expected_digit, graded_pairs, measured, sides
from sao_lib.files import Record
from sao_lib.runs import Run
from sao_lib.settings import ROOT
from sao_lib.yaml_files import read_yaml

METRICS = ("correctness", "completeness", "clarity", "usefulness", "relevance")  # SAO table 7, in its order
DIGITS = tuple("0123456789")
MAX_TOKENS = 512  # of a judge's text; not in the paper
OBJECT = re.compile(r"\{[^{}]*\}")


def metric_request(template: Record, row: Record, metric: str) -> Conversation:
    """A request for one metric's rating, its answer begun; the scale ends at 9 because one token is read."""
    values = {"metric": metric, "question": template["metrics"][metric], "most": "9"}
    return _request(template["one"], row, values, template["prefill"])


def all_request(template: Record, row: Record) -> Conversation:
    """A request for all five ratings, 0 to 10, as one JSON object."""
    metrics = "\n".join(f"- {metric}: {template['metrics'][metric]}" for metric in METRICS)
    return _request(template["all"], row, {"metrics": metrics, "most": "10"}, "")


def _request(text: str, row: Record, values: dict[str, str], prefill: str) -> Conversation:
    content = fill_apart(text, values, {"prompt": row["prompt"], "response": row["response"]})
    return Conversation(({"role": "user", "content": content},), prefill)


def parse_ratings(text: str) -> dict[str, float | None]:
    """The five ratings in the last {...} of a judge's text; null where it is no JSON, or no number from 0 to 10."""
    found = OBJECT.findall(text)
    try:
        loaded = json.loads(found[-1]) if found else {}
    except (ValueError, RecursionError):
        loaded = {}
    given = {str(key).strip().lower(): value for key, value in loaded.items()}
    return {metric: _rating(given.get(metric)) for metric in METRICS}


def _rating(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= 10 else None


def rate(
    run: Run,
    engine: Engine,
    template_file: str,
    rows: Sequence[Record],
    reading: str,
    seed: int,
    chunk: int = 32,
    file: str = "ratings.jsonl",
) -> list[Record]:
    """Write `file`, {id, correctness, ..., relevance}, for rows {id, prompt, response}.

    Reading "text" asks once for a JSON object, each value 0 to 10 or null. Reading "logprob", for judges too small
    to write one, asks once a metric and takes the expected digit; the scale then ends at 9.
    """
    template = read_yaml(ROOT / template_file)

    def in_text(part: Sequence[Record]) -> list[Record]:
        seeds = [seed_for(seed, str(row["id"])) for row in part]
        out = engine.generate([all_request(template, row) for row in part], MAX_TOKENS, 0.0, seeds)
        return [
            {
                "id": row["id"],
                **parse_ratings(c.text if c.finished else ""),  # one that was cut rates nothing
                **({"reason": c.reason} if c.reason else {}),
            }
            for row, c in zip(part, out, strict=True)
        ]

    def in_logprobs(part: Sequence[Record]) -> list[Record]:
        read = engine.label_logprobs([metric_request(template, row, m) for row in part for m in METRICS], DIGITS)
        found = iter([expected_digit(logprobs, DIGITS) for logprobs in read])
        return [{"id": row["id"], **{metric: next(found) for metric in METRICS}} for row in part]

    return in_chunks(run, file, rows, in_logprobs if reading == "logprob" else in_text, chunk)


def grader(run: Run, engine: Engine, template_file: str, reading: str, seed: int) -> dict[str, Record]:
    """How each metric's ratings and their average do on labelled pairs, see `grading.measured`; writes graded.jsonl."""
    pairs = graded_pairs()
    rows = [{"id": name, "prompt": p["prompt"], "response": text} for p in pairs for name, text in sides(p)]
    rated = rate(run, engine, template_file, rows, reading, seed, file="graded.jsonl")
    by_metric = {m: {row["id"]: row[m] for row in rated} for m in METRICS}
    whole = {row["id"]: [row[m] for m in METRICS] for row in rated}
    average = {name: None if None in values else statistics.fmean(values) for name, values in whole.items()}
    return {name: measured(pairs, grades) for name, grades in {**by_metric, "average": average}.items()}


def summary(rows: Sequence[Record]) -> dict[str, Any]:
    """{metric: {mean, se, n, failed}} and `average`, the mean of the five means; null where nothing was rated.

    `se` is the standard error of the mean over responses; `failed` counts ratings that could not be read.
    """
    out: dict[str, Any] = {}
    for metric in METRICS:
        values = [row[metric] for row in rows if row[metric] is not None]
        out[metric] = {
            "mean": statistics.fmean(values) if values else None,
            "se": statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None,
            "n": len(values),
            "failed": len(rows) - len(values),
        }
    means = [out[metric]["mean"] for metric in METRICS]
    return {**out, "average": None if None in means else statistics.fmean(means)}
