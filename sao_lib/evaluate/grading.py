"""What the graded benchmarks share: answers found by id, ratings read from log-probabilities."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sao_lib.engines import Conversation, was_asked
from sao_lib.errors import SaoError
from sao_lib.evaluate.calibration import agreement
from sao_lib.files import Record
from sao_lib.method.labelled import LabelledPair, labelled_pairs

GRADED_QUESTIONS = 18  # labelled questions that a grader grades both answers of


def by_id(asked: Sequence[Record], answers: Sequence[Record], key: str, file: str) -> dict[Any, Record]:
    """Rows of `answers`, read from `file`, by their `key`; raises SaoError when one in `asked` has none."""
    found = {row[key]: row for row in answers}
    missing = next((row[key] for row in asked if row[key] not in found), None)
    if missing is not None:
        raise SaoError(
            f"Question {missing} has no answer in {file}; move that file elsewhere and run the same command again."
        )
    return found


def as_asked(system: str | None, text: str) -> Conversation:
    """A judge's request: `text`, after a system message where the template has one."""
    user = Conversation(({"role": "user", "content": text},))
    return Conversation(({"role": "system", "content": system}, *user.messages)) if system else user


def graded_pairs() -> list[LabelledPair]:
    """The labelled pairs on which a grader is measured, one to a question; both answers are graded by themselves."""
    return labelled_pairs(GRADED_QUESTIONS, 0, 1)


def sides(pair: LabelledPair) -> tuple[tuple[str, str], tuple[str, str]]:
    """(id, answer) of the good and of the bad answer of a pair, as a grader is given them."""
    good, bad = pair["responses"][pair["good"] - 1], pair["responses"][2 - pair["good"]]
    return (f"{pair['id']}/good", good), (f"{pair['id']}/bad", bad)


def measured(pairs: Sequence[LabelledPair], grades: Mapping[str, float | None]) -> Record:
    """{agreement, n, se, signal}: how often the good answer of a pair has the higher grade.

    `grades` are by the ids of `sides`; a tie or a missing grade is wrong. `signal` is whether agreement is above one
    half by more than two standard errors: without it a grader's means say nothing of the answers.
    """
    margins = []
    for pair in pairs:
        good, bad = (grades.get(name) for name, _ in sides(pair))
        margins.append(0.0 if good is None or bad is None else good - bad)
    found = agreement(pairs, margins)
    share, se = found["agreement"], found["se"]
    return {**found, "signal": share is not None and se is not None and share - 2 * se > 0.5}


def expected_digit(logprobs: Sequence[float], digits: Sequence[str]) -> float | None:
    """Mean of the digits under their probabilities as the next token; None if none has any or nothing was asked.

    A digit is one token, so a scale read like this ends at 9.
    """
    top = max(logprobs)
    if top == -math.inf or not all(map(was_asked, logprobs)):
        return None
    weights = [math.exp(value - top) for value in logprobs]
    return sum(w * int(d) for w, d in zip(weights, digits, strict=True)) / sum(weights)
