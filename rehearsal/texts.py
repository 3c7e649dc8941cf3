"""Texts that only have to be counted: sentences of words from the suite's labelled answers, drawn by a seed."""

import random
from functools import cache

from sao_lib.method.labelled import FILE, words
from sao_lib.sources import load_rows

SENTENCE = 12  # words


@cache
def _words() -> list[str]:
    return sorted({word for row in load_rows(str(FILE)) for word in words(row["answer"])})


def text(draw: random.Random, length: int) -> str:
    """`length` words in sentences."""
    drawn = draw.choices(_words(), k=length)
    parts = [drawn[start : start + SENTENCE] for start in range(0, length, SENTENCE)]
    return " ".join(" ".join(part).capitalize() + "." for part in parts)
