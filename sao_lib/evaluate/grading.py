"""What the graded benchmarks share: answers found by id, ratings read from log-probabilities."""

import math
from collections.abc import Sequence
from typing import Any

from sao_lib.engines import Conversation
from sao_lib.errors import SaoError
from sao_lib.files import Record


def by_id(asked: Sequence[Record], answers: Sequence[Record], key: str, file: str) -> dict[Any, Record]:
    """Rows of `answers`, read from `file`, by their `key`; raises SaoError when one in `asked` has none."""
    found = {row[key]: row for row in answers}
    missing = next((row[key] for row in asked if row[key] not in found), None)
    if missing is not None:
        raise SaoError(f"Question {missing} has no answer in {file}; delete that file and run the same command again.")
    return found


def as_asked(system: str | None, text: str) -> Conversation:
    """A judge's request: `text`, after a system message where the template has one."""
    user = Conversation(({"role": "user", "content": text},))
    return Conversation(({"role": "system", "content": system}, *user.messages)) if system else user


def expected_digit(logprobs: Sequence[float], digits: Sequence[str]) -> float | None:
    """Mean of the digits under their probabilities as the next token; None if none has any.

    A digit is one token, so a scale read like this ends at 9.
    """
    top = max(logprobs)
    if top == -math.inf:
        return None
    weights = [math.exp(value - top) for value in logprobs]
    return sum(w * int(d) for w, d in zip(weights, digits, strict=True)) / sum(weights)
