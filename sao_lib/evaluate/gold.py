"""What a policy itself prefers, on pairs that are the same for every row, and how far it has moved.

Both only read: the mean token log p that SimPO trains on, of a good and a spoilt answer, and of the policy's own
answers under it and under the model that it was before.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from sao_lib.chunks import in_chunks
from sao_lib.engines import TOO_LONG, Engine, user_turn, was_asked
from sao_lib.files import Record, write_rows
from sao_lib.method.labelled import LabelledPair, labelled_pairs, question_of
from sao_lib.runs import Run
from sao_lib.settings import Policy
from sao_lib.standard_errors import clustered_se

FAULTS_EACH = 2  # of a question's faults, in turn: 50 questions give 100 pairs
SEED = 0  # of the words that are shuffled: every policy reads the same
MOVED = 32  # answers on which the distance from the untrained model is measured


def gold_pairs(questions: int) -> list[LabelledPair]:
    """The labelled pairs on which every policy is scored."""
    return labelled_pairs(questions, SEED, FAULTS_EACH)


def mean_logprobs(engine: Engine, policy: Policy, texts: Sequence[tuple[str, str]]) -> list[float]:
    """Mean token log p (nats) of each answer to its instruction, as the policy is asked in training; NaN: not asked."""
    read = engine.completion_logprobs([user_turn(policy, x) for x, _ in texts], [y for _, y in texts])
    return [fmean(row) for row in read]


def preferred(run: Run, engine: Engine, policy: Policy, pairs: Sequence[LabelledPair], chunk: int = 60) -> list[Record]:
    """Write gold.jsonl, {id, fault, good, bad, margin}: mean token log p of both answers, their difference."""

    def make(part: Sequence[LabelledPair]) -> list[Record]:
        texts = [(p["prompt"], p["responses"][place - 1]) for p in part for place in (p["good"], 3 - p["good"])]
        new = list(dict.fromkeys(texts))  # the pairs of a question share its good answer
        read = dict(zip(new, mean_logprobs(engine, policy, new), strict=True))
        values = [read[t] for t in texts]
        return [
            {"id": p["id"], "fault": p["fault"], "good": good, "bad": bad, "margin": good - bad}
            if was_asked(good - bad)
            else {"id": p["id"], "fault": p["fault"], "good": None, "bad": None, "margin": None, "reason": TOO_LONG}
            for p, good, bad in zip(part, values[::2], values[1::2], strict=True)
        ]

    return in_chunks(run, "gold.jsonl", pairs, make, chunk)


def summary(rows: Sequence[Record]) -> dict[str, Any]:
    """{accuracy, accuracy_se, margin, margin_se, n} of gold.jsonl; SE clustered by question, null without pairs."""
    rows = [r for r in rows if r["margin"] is not None]
    if not rows:
        return {"accuracy": None, "accuracy_se": None, "margin": None, "margin_se": None, "n": 0}
    right, questions = [100.0 * (r["margin"] > 0) for r in rows], [question_of(r) for r in rows]
    margins = [r["margin"] for r in rows]
    return {
        "accuracy": fmean(right),
        "accuracy_se": clustered_se(right, questions),
        "margin": fmean(margins),
        "margin_se": clustered_se(margins, questions),
        "n": len(rows),
    }


def change(rows: Sequence[Record], before: Sequence[Record]) -> tuple[float, float | None] | None:
    """How much larger the margins are than `before`, pair by pair, and its SE clustered by question; None without."""
    old = {r["id"]: r["margin"] for r in before if r["margin"] is not None}
    both = [r for r in rows if r["id"] in old and r["margin"] is not None]
    if not both:
        return None
    gains = [r["margin"] - old[r["id"]] for r in both]
    return fmean(gains), clustered_se(gains, [question_of(r) for r in both])


def own_logprobs(engine: Engine, policy: Policy, answers: Sequence[Record]) -> list[float]:
    """Mean token log p of the first MOVED answers {instruction, output} that say anything."""
    return mean_logprobs(engine, policy, said(answers))


def said(answers: Sequence[Record]) -> list[tuple[str, str]]:
    """The answers that `own_logprobs` reads, as (instruction, answer)."""
    return [(a["instruction"], a["output"]) for a in answers if a["output"]][:MOVED]


def distance(run: Run, answers: Sequence[Record], now: Sequence[float], before: Sequence[float]) -> dict[str, Any]:
    """Write kl.jsonl, {instruction, kl}; returns {kl, se, n}.

    `kl` estimates KL(policy || untrained) per token from the policy's own answers: mean log p by it (`now`) less that
    by the untrained model (`before`), nats. Temperature is not taken into account.
    """
    both = zip(said(answers), now, before, strict=True)
    found = [(x, a - b) for (x, _), a, b in both if was_asked(a - b)]
    write_rows(run.folder / "kl.jsonl", [{"instruction": x, "kl": kl} for x, kl in found])
    values = [kl for _, kl in found]
    se = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"kl": fmean(values) if values else None, "se": se, "n": len(values)}
