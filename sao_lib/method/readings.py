"""Pointwise readings of an answer y to an instruction x, the higher the better; no order of two answers enters.

| name            | score                                                                  | read with        |
|-----------------|------------------------------------------------------------------------|------------------|
| likelihood      | mean token log p(y given x)                                            | a language model |
| reverse         | mean token log p(x given y)                                            | a language model |
| reverse_added   | mean token log p(x given what y adds)                                  | a language model |
| relevance       | cosine of the sentence embeddings of x and y                           | embeddings       |
| relevance_added | cosine of those of x and what y adds                                   | embeddings       |
| relevance_new   | `relevance` times the share of y's content words that are new          | embeddings       |
| added_new       | `relevance_added` times that share                                     | embeddings       |

What an answer *adds* is the answer without the instruction's content words, inflected forms included. A word is *new*
if it is none of them, none like one of them in meaning, and no word of asking. An echo adds nothing, and one in other
words has little that is new, whatever a reading of the whole answer makes of it.
"""

import re
import statistics
from collections.abc import Sequence

from sao_lib.engines import Conversation, Engine
from sao_lib.engines.chat import fill
from sao_lib.method.labelled import STOP, words
from sao_lib.method.rewards import Relevance

BY_LANGUAGE_MODEL = ("likelihood", "reverse", "reverse_added")
BY_EMBEDDINGS = ("relevance", "relevance_added", "relevance_new", "added_new")
REVERSE = "Write the question that this text answers.\n\n{answer}"
ENDINGS = ("ings", "ing", "ers", "er", "ied", "ies", "ed", "es", "ly", "s", "e")
NEAR = 0.5  # cosine from which two words count as alike: synonyms mostly have more, words of one subject less
WORDS_OF_ASKING = """answer answers ask asked asking asks case cause concerns curious desired explain explained
explanation find found hear how information interest interested issue know known knows learn like manner matter mind
means people person possible question questions reason reasons request requested said say somebody someone something
subject task tell thing things told topic understand want wanted wants way ways whether wish wishes wonder wondering"""
ASKING = frozenset(WORDS_OF_ASKING.split())
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


def content(text: str) -> list[str]:
    """Content words of a text, each stem once."""
    return list({stem(w): w for w in words(text) if w not in STOP}.values())


def new_shares(model: Relevance, pairs: Pairs) -> list[float]:
    """Share of an answer's content words that are new, in [0, 1], for each of `pairs`; 0 for an answer without any."""
    model.of_words(list(dict.fromkeys(w for x, y in pairs for w in (*content(x), *content(y)))))  # all at once
    return [_new_share(model, content(x), content(y)) for x, y in pairs]


def _new_share(model: Relevance, asked: list[str], said: list[str]) -> float:
    known = {stem(w) for w in (*asked, *ASKING)}
    other = [w for w in said if stem(w) not in known]
    if not other:
        return 0.0
    new = len(other)
    if asked:
        new = int(((model.of_words(other) @ model.of_words(asked).T).max(axis=1) < NEAR).sum())
    return new / len(said)


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


def by_embeddings(model: Relevance, name: str, pairs: Pairs) -> list[float]:
    """Cosine similarities in [-1, 1], one for each of `pairs`; `name` is of BY_EMBEDDINGS."""
    answers = [added(x, y) if name in ("relevance_added", "added_new") else y for x, y in pairs]
    cosines = model.scores([x for x, _ in pairs], answers)
    if name in ("relevance", "relevance_added"):
        return cosines
    return [cosine * share for cosine, share in zip(cosines, new_shares(model, pairs), strict=True)]


def _turn(content: str) -> Conversation:
    return Conversation(({"role": "user", "content": content},))
