"""Stage 2: order two responses (SAO 3.3, eq. 3) by whatever feedback source a row names.

A verdict is 1, 2 or None. None is a class of its own (unparsable, the two orders disagree, a tie): such
pairs are counted and left out, never given to a default side.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

from sao_lib.chunks import in_chunks
from sao_lib.engines import TOO_LONG, Conversation, Engine, was_asked
from sao_lib.engines.chat import Message, fill_apart
from sao_lib.errors import SaoError
from sao_lib.files import write_rows
from sao_lib.method.labelled import LabelledPair, question_of
from sao_lib.runs import Run
from sao_lib.settings import ROOT, Judge
from sao_lib.standard_errors import clustered_se
from sao_lib.yaml_files import read_yaml

MARKUP = r"[\s*_`#-]*+"  # possessive, so that a line of blanks is read once
VERDICT_LINE = re.compile(rf"{MARKUP}ranking{MARKUP}:?+{MARKUP}([12])\s*+>\s*+([12])[\s*_`.!]*+", re.IGNORECASE)
QUOTED = "\"'“”‘’"
TOLERANCE = 1e-4  # of a margin, in its unit: closer to zero than this, rounding would decide
Pair = tuple[str, str, str]  # prompt, response 1, response 2


class Verdict(TypedDict):
    """`shown` and `swapped` are an LLM's verdicts in the two orders, both in the names of the order given.

    `odds_shown` and `odds_swapped` are the log-odds (nats) that they were read from, positive for response 1; null for
    text and where there are no orders. `margin` is positive for response 1: nats, a score difference, characters, or
    null for text. `reason` says why nothing was asked, where nothing was.
    """

    reason: NotRequired[str]
    shown: int | None
    swapped: int | None
    odds_shown: float | None
    odds_swapped: float | None
    margin: float | None
    verdict: int | None


def parse_verdict(text: str) -> int | None:
    """1 or 2 from a judge's text: its last non-empty line must be `ranking: X > Y`; otherwise None.

    A line in quotation marks is a verdict where nothing else is said; after other lines it is what a response wrote.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    found = VERDICT_LINE.fullmatch(last.strip(QUOTED) if len(lines) == 1 else last)
    return int(found[1]) if found and found[1] != found[2] else None


def ranking_request(template: dict[str, Any], pair: Pair, without: int | None, answer: bool) -> Conversation:
    """The ranking prompt (SAO figure 5, bottom), optionally without one criterion, 1 to 4.

    `answer` adds the template's prefill, for verdicts read from log-probabilities.
    """
    kept = [text for number, text in enumerate(template["criteria"], 1) if number != without]
    criteria = "\n".join(f"({number}) {text}" for number, text in enumerate(kept, 1))
    values = {"prompt": pair[0], "first": pair[1], "second": pair[2]}
    message: Message = {"role": "user", "content": fill_apart(template["user"], {"criteria": criteria}, values)}
    return Conversation((message,), template["prefill"] if answer else "")


def swapped(pair: Pair) -> Pair:
    return pair[0], pair[2], pair[1]


def llm_verdicts(engine: Engine, pairs: Sequence[Pair], settings: Judge, both: bool, seed: int) -> list[Verdict]:
    """An LLM's verdict on each pair; `both` asks in both orders and averages the log-odds, or wants agreement."""
    template = read_yaml(ROOT / settings.template)
    asked = [p for pair in pairs for p in ((pair, swapped(pair)) if both else (pair,))]
    requests = [ranking_request(template, p, settings.without_criterion, settings.reading == "logprob") for p in asked]
    step = 2 if both else 1
    if settings.reading == "logprob":
        labels = (str(template["labels"][0]), str(template["labels"][1]))
        odds = [a - b for a, b in engine.label_logprobs(requests, labels)]
        return [_from_odds(odds[i], -odds[i + 1] if both else None) for i in range(0, len(odds), step)]
    texts = engine.generate(requests, settings.max_tokens, 0.0, [seed] * len(requests))
    said = [parse_verdict(c.text) if c.finished else None for c in texts]  # one that was cut might have gone on
    why = [next((c.reason for c in texts[i : i + step] if c.reason), None) for i in range(0, len(said), step)]
    found = [_from_text(said[i], said[i + 1] if both else None, both) for i in range(0, len(said), step)]
    return [undecided(reason) if reason else verdict for verdict, reason in zip(found, why, strict=True)]


def sign(margin: float) -> int | None:
    """The verdict of a margin; None within TOLERANCE of zero, where rounding alone would decide, and for NaN."""
    return None if abs(margin) < TOLERANCE or not was_asked(margin) else 1 if margin > 0 else 2


def verdict_of(margin: float) -> Verdict:
    """The verdict of a source that has no orders: the sign of its margin."""
    if not was_asked(margin):
        return undecided(TOO_LONG)
    no_orders = {"shown": None, "swapped": None, "odds_shown": None, "odds_swapped": None}
    return {**no_orders, "margin": margin, "verdict": sign(margin)}  # type: ignore[typeddict-item]


def undecided(reason: str) -> Verdict:
    """The verdict on a pair about which nothing was asked."""
    nothing = dict.fromkeys(("shown", "swapped", "odds_shown", "odds_swapped", "margin", "verdict"))
    return {**nothing, "reason": reason}  # type: ignore[typeddict-item]


def _from_odds(shown: float, other: float | None) -> Verdict:
    """From log-odds for response 1, when it is shown first and, if asked in both orders, when it is second."""
    margin = shown if other is None else (shown + other) / 2
    if not was_asked(margin):
        return undecided(TOO_LONG)
    return {
        "shown": sign(shown),
        "swapped": None if other is None else sign(other),
        "odds_shown": shown,
        "odds_swapped": other,
        "margin": margin,
        "verdict": sign(margin),
    }


def _from_text(shown: int | None, other: int | None, both: bool) -> Verdict:
    """From what was said in the order given and, if asked in `both`, in the other, where 1 is response 2."""
    second = {1: 2, 2: 1}.get(other) if other else None
    verdict = shown if not both or shown == second else None
    return {"shown": shown, "swapped": second, "odds_shown": None, "odds_swapped": None, "margin": None,
            "verdict": verdict}  # fmt: skip


Ranker = Callable[[Sequence[dict[str, Any]]], list[Verdict]]


def rank(run: Run, rows: list[dict[str, Any]], ranker: Ranker, chunk: int) -> list[dict[str, Any]]:
    """Write verdicts.jsonl, {id} and a Verdict, for rows of responses.jsonl."""

    def make(part: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": row["id"], **verdict} for row, verdict in zip(part, ranker(part), strict=True)]

    return in_chunks(run, "verdicts.jsonl", rows, make, chunk)


def pairs_of(rows: Sequence[dict[str, Any]]) -> list[Pair]:
    """(prompt, response 1, response 2) of rows of responses.jsonl."""
    return [(r["prompt"], r["responses"][0]["text"], r["responses"][1]["text"]) for r in rows]


def write_preferences(run: Run, rows: list[dict[str, Any]]) -> None:
    """Write preferences.jsonl, whole; raises SaoError where no pair was decided."""
    if not rows:
        raise SaoError(
            f"{run.folder.name}: no pair has a verdict, so there is nothing to train on; {run.folder}/verdicts.jsonl "
            "says of each what was found. Choose another judge or ask it in another way."
        )
    write_rows(run.folder / "preferences.jsonl", rows)


def preferences(
    rows: list[dict[str, Any]], verdicts: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """TRL's conversational preference rows for decided pairs, and what was left out and why (SAO eq. 4)."""
    left_out = {"identical": 0, "undecided": 0, "empty": 0}
    kept = []
    for row, verdict in zip(rows, verdicts, strict=True):
        one, two = row["responses"]
        if why := verdict.get("reason") or one.get("reason") or two.get("reason"):
            left_out[why] = left_out.get(why, 0) + 1
        elif one["text"] == two["text"]:
            left_out["identical"] += 1
        elif not one["text"] or not two["text"]:
            left_out["empty"] += 1
        elif verdict["verdict"] is None:
            left_out["undecided"] += 1
        else:
            chosen, rejected = (one, two) if verdict["verdict"] == 1 else (two, one)
            kept.append(
                {
                    "id": row["id"],
                    "prompt": [{"role": "user", "content": row["prompt"]}],
                    "chosen": [{"role": "assistant", "content": chosen["text"]}],
                    "rejected": [{"role": "assistant", "content": rejected["text"]}],
                    "chosen_finished": chosen["finished"],
                    "rejected_finished": rejected["finished"],
                    "chosen_tokens": chosen["tokens"],
                    "rejected_tokens": rejected["tokens"],
                    "margin": verdict["margin"],
                }
            )
    return kept, left_out


def audit(pairs: Sequence[LabelledPair], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """How a judge does on pairs of known quality; every figure is a share of the pairs that it applies to.

    agreement: verdict is the good answer (undecided counts as wrong); `se` is its standard error, clustered by
    question. undecided: no verdict. flip: the two orders name different answers. first_wins: the answer shown first is
    named. longer_wins: the longer is. Null where there is nothing that it applies to.
    """
    decided = [(p["responses"], v["verdict"]) for p, v in zip(pairs, verdicts, strict=True) if v["verdict"]]
    ordered = [v for v in verdicts if v["shown"] is not None and v["swapped"] is not None]
    shown_first = [v["shown"] == 1 for v in ordered] + [v["swapped"] == 2 for v in ordered]
    longer = [len(texts[verdict - 1]) > len(texts[2 - verdict]) for texts, verdict in decided]
    right = [v["verdict"] == p["good"] for p, v in zip(pairs, verdicts, strict=True)]
    return {
        "pairs": len(pairs),
        "questions": len({question_of(p) for p in pairs}),
        "agreement": mean(right),
        "se": clustered_se([float(r) for r in right], [question_of(p) for p in pairs]),
        "undecided": 1 - len(decided) / len(pairs) if pairs else None,
        "flip": mean([v["shown"] != v["swapped"] for v in ordered]),
        "first_wins": mean(shown_first),
        "longer_wins": mean(longer),
        "agreement_by_fault": by_fault(pairs, right),
    }


def by_fault(pairs: Sequence[LabelledPair], right: Sequence[bool]) -> dict[str, float]:
    """Share right of the pairs of each fault, in the order in which the faults come."""
    found: dict[str, list[bool]] = {}
    for pair, value in zip(pairs, right, strict=True):
        found.setdefault(pair["fault"], []).append(value)
    return {fault: sum(values) / len(values) for fault, values in found.items()}


def write_audit(run: Run, pairs: Sequence[LabelledPair], verdicts: Sequence[Verdict]) -> None:
    """Write audit.jsonl, {id: question-fault, good, verdict, shown, swapped}: what tests of the source read."""
    rows = [
        {"id": p["id"], "good": p["good"], "verdict": v["verdict"], "shown": v["shown"], "swapped": v["swapped"]}
        for p, v in zip(pairs, verdicts, strict=True)
    ]
    write_rows(run.folder / "audit.jsonl", rows)


def as_asked(verdicts: Sequence[Verdict], orders: str) -> list[Verdict]:
    """Verdicts asked in both orders, as a judge that is asked in one would have given them."""
    if orders == "both":
        return list(verdicts)
    return [v if v["shown"] is None else {**v, "margin": v["odds_shown"], "verdict": v["shown"]} for v in verdicts]


def mean(values: Sequence[bool]) -> float | None:
    """The share that is true; None of nothing."""
    return sum(values) / len(values) if values else None
