"""Pointwise readings of an answer y to an instruction x, the higher the better; no order of two answers enters.

| name            | score                                                   | read with        |
|-----------------|---------------------------------------------------------|------------------|
| likelihood      | mean token log p(y given x)                             | a language model |
| reverse         | mean token log p(x given y)                             | a language model |
| reverse_added   | mean token log p(x given what y adds)                   | a language model |
| relevance       | cosine of the sentence embeddings of x and y            | embeddings       |
| relevance_added | cosine of those of x and what y adds                    | embeddings       |

What an answer *adds* is the answer without the instruction's content words, inflected forms included: an echo of the
instruction adds nothing, whatever a reading of the whole answer makes of it.
"""

import re
import statistics
from collections.abc import Sequence

from sao_lib.engines import Conversation, Engine
from sao_lib.engines.chat import fill
from sao_lib.method.labelled import STOP, words
from sao_lib.method.rewards import RewardModel

BY_LANGUAGE_MODEL = ("likelihood", "reverse", "reverse_added")
BY_EMBEDDINGS = ("relevance", "relevance_added")
REVERSE = "Write the question that this text answers.\n\n{answer}"
ENDINGS = ("ings", "ing", "ers", "er", "ied", "ies", "ed", "es", "ly", "s", "e")
LEAST = 3  # letters that are left of a word without its ending
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

Pairs = Sequence[tuple[str, str]]  # (instruction, answer)


def stem(word: str) -> str:
    """A word without its ending, roughly: enough to find `rises` in `rise`."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= LEAST:
            return word[: -len(ending)]
    return word


def added(instruction: str, answer: str) -> str:
    """`answer` without the content words of `instruction`; everything else stands as it stood."""
    known = {stem(w) for w in words(instruction) if w not in STOP}
    kept = WORD.sub(lambda m: "" if stem(m[0].lower()) in known else m[0], answer)
    return " ".join(kept.split())


def new_words(instruction: str, answer: str) -> int:
    """Content words of the answer that are not the instruction's, each counted once."""
    return len({stem(w) for w in words(added(instruction, answer)) if w not in STOP})


def distinct_2(text: str) -> float:
    """Share of word pairs that are different, in [0, 1]; 1 for a text of fewer than two words."""
    parts = words(text)
    pairs = list(zip(parts, parts[1:], strict=False))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def finished(text: str) -> bool:
    """Whether the last sentence has its end."""
    return text.rstrip(" \n\"')]*_”’").endswith((".", "!", "?", "…", ":"))


def by_language_model(engine: Engine, name: str, pairs: Pairs) -> list[float]:
    """Nats a token, one for each of `pairs`; `name` is of BY_LANGUAGE_MODEL."""
    if name == "likelihood":
        given, text = [_turn(x) for x, _ in pairs], [y for _, y in pairs]
    else:
        shown = [added(x, y) if name == "reverse_added" else y for x, y in pairs]
        given, text = [_turn(fill(REVERSE, {"answer": y})) for y in shown], [x for x, _ in pairs]
    return [statistics.fmean(row) for row in engine.completion_logprobs(given, text)]


def by_embeddings(model: RewardModel, name: str, pairs: Pairs) -> list[float]:
    """Cosine similarities in [-1, 1], one for each of `pairs`; `name` is of BY_EMBEDDINGS."""
    answers = [added(x, y) if name == "relevance_added" else y for x, y in pairs]
    return model.scores([x for x, _ in pairs], answers)


def _turn(content: str) -> Conversation:
    return Conversation(({"role": "user", "content": content},))
