"""Pairs of known quality, to measure a judge before trusting it: a good answer against a spoilt one."""

import random
from typing import TypedDict

from sao_lib.files import read_rows
from sao_lib.settings import PARAMS

FILE = PARAMS / "data" / "labelled_answers.jsonl"
REFUSAL = "I'm sorry, but I can't help with that request. Please ask me something else."
FAULTS = ("shuffled", "off-topic", "refusing", "repeating", "truncated")


class LabelledPair(TypedDict):
    """`good` says at which place, 1 or 2, the good answer stands."""

    id: str
    prompt: str
    responses: tuple[str, str]
    good: int
    fault: str


def spoil(answer: str, other: str, fault: str, rng: random.Random) -> str:
    """`answer` with one fault; `other` is the answer to another question."""
    words = answer.split()
    if fault == "shuffled":
        return " ".join(rng.sample(words, len(words)))
    if fault == "off-topic":
        return other
    if fault == "refusing":
        return REFUSAL
    first = answer.split(". ")[0].rstrip(".") + "."
    if fault == "repeating":
        return " ".join([first] * max(2, round(len(words) / len(first.split()))))
    return " ".join(words[: len(words) // 3])


def labelled_pairs(questions: int, seed: int) -> list[LabelledPair]:
    """Five pairs, one per fault, for each of the first `questions` questions; places drawn by `seed`."""
    rows = read_rows(FILE)[:questions]
    rng = random.Random(seed)
    pairs: list[LabelledPair] = []
    for number, row in enumerate(rows):
        other = rows[(number + 1) % len(rows)]["answer"]
        for fault in FAULTS:
            bad, good = spoil(row["answer"], other, fault, rng), rng.choice((1, 2))
            texts = (row["answer"], bad) if good == 1 else (bad, row["answer"])
            pairs.append(
                {
                    "id": f"{row['id']}-{fault}",
                    "prompt": row["instruction"],
                    "responses": texts,
                    "good": good,
                    "fault": fault,
                }
            )
    return pairs
