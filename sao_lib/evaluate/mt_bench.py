"""MT-Bench: answers over two turns, each graded by itself on a scale of 1 to 10 (Zheng et al. 2023).

The protocol is FastChat's: sampling temperature by category, reference answers for the judge in math, reasoning
and coding, and the mean over all judgments of both turns. The judge prompts are ours, or FastChat's where its file is
named.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from sao_lib.chunks import in_chunks
from sao_lib.engines import Conversation, Engine, seed_for, user_turn
from sao_lib.engines.chat import fill_apart
from sao_lib.errors import SaoError
from sao_lib.evaluate.grading import as_asked, by_id, expected_digit, graded_pairs, measured, sides
from sao_lib.files import Record
from sao_lib.runs import Run
from sao_lib.settings import ROOT, Policy
from sao_lib.sources import load_rows, refused, text_of
from sao_lib.standard_errors import clustered_se
from sao_lib.yaml_files import read_yaml

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}  # FastChat; every other category: 0
WITH_REFERENCE = ("math", "reasoning", "coding")  # FastChat
# The grading prompts of FastChat's judge_prompts.jsonl and what fills them, by the names in ours.
FASTCHAT = {"1": "single-v1", "2": "single-v1-multi-turn", "1_reference": "single-math-v1",
            "2_reference": "single-math-v1-multi-turn"}  # fmt: skip
FASTCHAT_WORDS = {"{question}": "{question_1}", "{answer}": "{answer_1}", "{ref_answer_1}": "{reference_1}",
                  "{ref_answer_2}": "{reference_2}"}  # fmt: skip
DIGITS = tuple("123456789")
RATING = re.compile(r"\[\[(\d++\.?+\d*+)\]\]")
RATING_BACKUP = re.compile(r"\[(\d++\.?+\d*+)\]")


def load_questions(source: str, n: int) -> list[Record]:
    """The first n rows {question_id, category, turns, reference?} of question.jsonl, FastChat's or the hub's copy.

    The hub's older copy calls the turns `prompt` and the id `prompt_id`; an empty reference is none.
    """
    rows = load_rows(source, texts=["category"], unique=["question_id", "prompt_id"])
    if len(rows) < n:
        raise SaoError(f"{source} has {len(rows)} questions, fewer than chat_benchmarks.mt_bench_n = {n}.")
    for row in rows[:n]:
        turns = row.get("turns") or row.get("prompt")
        if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(t, str) and t.strip() for t in turns):
            raise refused(source, row, "turns must be a list of two texts")
        text_of(source, row, "category")
    return [
        {
            "question_id": row.get("question_id", row.get("prompt_id")),
            "category": row["category"],
            "turns": list(row.get("turns") or row["prompt"]),
            "reference": list(row.get("reference") or []),
        }
        for row in rows[:n]
    ]


def answer(
    run: Run, engine: Engine, policy: Policy, questions: Sequence[Record], max_tokens: int, seed: int, chunk: int = 32
) -> list[Record]:
    """Write mt_answers.jsonl, {question_id, category, turns: [answer 1, answer 2]}, for rows of question.jsonl.

    A dialogue of which a turn could not be asked has a `reason` and is not graded.
    """

    def make(part: Sequence[Record]) -> list[Record]:
        asked = [user_turn(policy, q["turns"][0]) for q in part]
        first, refused = _turn(engine, part, asked, max_tokens, seed, 1)
        requests = [
            Conversation(
                (
                    *user_turn(policy, q["turns"][0]).messages,
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": q["turns"][1]},
                )
            )
            for q, text in zip(part, first, strict=True)
        ]
        second, also = _turn(engine, part, requests, max_tokens, seed, 2)
        return [
            {"question_id": q["question_id"], "category": q["category"], "turns": [a, b],
             **({"reason": why} if why else {})}
            for q, a, b, why in zip(part, first, second, map(_either, refused, also), strict=True)
        ]  # fmt: skip

    return in_chunks(run, "mt_answers.jsonl", questions, make, chunk)


def _turn(
    engine: Engine, questions: Sequence[Record], requests: list[Conversation], max_tokens: int, seed: int, turn: int
) -> tuple[list[str], list[str | None]]:
    """One answer a question, in one call of the engine for each temperature; and why there is none."""
    places = defaultdict(list)
    for place, question in enumerate(questions):
        places[TEMPERATURES.get(question["category"], 0.0)].append(place)
    texts, reasons = [""] * len(questions), cast(list[str | None], [None] * len(questions))
    for temperature, group in places.items():
        seeds = [seed_for(seed, str(questions[i]["question_id"]), turn) for i in group]
        out = engine.generate([requests[i] for i in group], max_tokens, temperature, seeds)
        for i, completion in zip(group, out, strict=True):
            texts[i], reasons[i] = completion.text.strip(), completion.reason
    return texts, reasons


def _either(one: str | None, other: str | None) -> str | None:
    return one or other


def load_template(source: str) -> Record:
    """The four grading prompts: {user_1, user_2, user_1_reference, user_2_reference}, system_... where there is one.

    `source` is a YAML file of this form or FastChat's judge_prompts.jsonl, whose wording it then is. SaoError if a
    prompt is missing.
    """
    if not source.endswith(".jsonl"):
        return read_yaml(ROOT / source)
    found = {row.get("name"): row for row in load_rows(source)}
    lacking = next((name for name in FASTCHAT.values() if name not in found), None)
    if lacking:
        raise SaoError(f"{source} has no prompt named '{lacking}'; FastChat's judge_prompts.jsonl has.")
    template: Record = {}
    for key, name in FASTCHAT.items():
        text = found[name]["prompt_template"]
        for theirs, ours in FASTCHAT_WORDS.items():
            text = text.replace(theirs, ours)
        template |= {f"user_{key}": text, f"system_{key}": found[name]["system_prompt"]}
    return template


def rating_request(
    template: Record, question: Record, answers: Sequence[str], turn: int, most: int = 10
) -> Conversation:
    """The grading prompt for turn 1 or 2 of a question, given the answers to both; ratings go from 1 to `most`.

    Turn 2 shows the whole conversation. A question with references is graded against them in WITH_REFERENCE only,
    as in FastChat, although its question file has references in other categories too.
    """
    references = question.get("reference") if question["category"] in WITH_REFERENCE else None
    values: dict[str, str] = {}
    for place in range(turn):
        values |= {f"question_{place + 1}": question["turns"][place], f"answer_{place + 1}": answers[place]}
        values |= {f"reference_{place + 1}": str(references[place])} if references else {}
    key = f"{turn}_reference" if references else str(turn)
    return as_asked(template.get(f"system_{key}"), fill_apart(template[f"user_{key}"], {"most": str(most)}, values))


def parse_rating(text: str) -> float | None:
    """The last [[number]] of a judge's text, else the last [number]; None where it is not from 1 to 10.

    FastChat takes the first, of any size: a judge that quotes the answer's own "[[10]]" then grants it.
    """
    found = RATING.findall(text) or RATING_BACKUP.findall(text)
    rating = float(found[-1]) if found else 0.0
    return rating if 1 <= rating <= 10 else None


def rate(
    run: Run,
    engine: Engine,
    template_file: str,
    questions: Sequence[Record],
    answers: Sequence[Record],
    reading: str,
    seed: int,
    max_tokens: int = 2048,
    chunk: int = 32,
    file: str = "mt_judgments.jsonl",
    turns: Sequence[int] = (1, 2),
) -> list[Record]:
    """Write `file`, {question_id, category, turn, score, text}, a row for each of `turns`; a failure is null.

    `chunk` counts questions, of two turns each.
    Reading "text" parses what the judge writes at temperature 0, cut at `max_tokens` (FastChat: 2048); a text that was
    cut rates nothing. Reading "logprob", for judges too small to write a verdict, is the expected digit after the
    template's prefill, with text null; the scale then ends at 9.
    """
    template, own = load_template(template_file), by_id(questions, answers, "question_id", "mt_answers.jsonl")
    most = 9 if reading == "logprob" else 10

    def make(part: Sequence[tuple[Record, int]]) -> list[Record]:
        there = [(q, turn) for q, turn in part if not own[q["question_id"]].get("reason")]
        read = iter(graded(there) if there else [])
        found = [(None, None) if own[q["question_id"]].get("reason") else next(read) for q, _ in part]
        return [
            {"question_id": q["question_id"], "category": q["category"], "turn": turn, "score": score, "text": text}
            for (q, turn), (score, text) in zip(part, found, strict=True)
        ]

    def graded(part: Sequence[tuple[Record, int]]) -> list[tuple[float | None, str | None]]:
        requests = [rating_request(template, q, own[q["question_id"]]["turns"], turn, most) for q, turn in part]
        if reading == "logprob":
            requests = [replace(request, prefill=template["prefill"]) for request in requests]
            read = engine.label_logprobs(requests, DIGITS)
            return [(expected_digit(r, DIGITS), None) for r in read]
        seeds = [seed_for(seed, str(q["question_id"]), turn) for q, turn in part]
        out = engine.generate(requests, max_tokens, 0.0, seeds)
        return [(parse_rating(c.text) if c.finished else None, c.text) for c in out]

    return in_chunks(run, file, [(q, turn) for q in questions for turn in turns], make, 2 * chunk)


def grader(run: Run, engine: Engine, template_file: str, reading: str, seed: int, max_tokens: int = 2048) -> Record:
    """How the grader of turn 1 does on labelled pairs, see `grading.measured`; writes mt_graded.jsonl."""
    pairs = graded_pairs()
    asked = [(name, p["prompt"], text) for p in pairs for name, text in sides(p)]
    questions = [{"question_id": n, "category": "labelled", "turns": [x, ""], "reference": []} for n, x, _ in asked]
    answers = [{"question_id": n, "turns": [text, ""]} for n, _, text in asked]
    rows = rate(
        run, engine, template_file, questions, answers, reading, seed, max_tokens, file="mt_graded.jsonl", turns=(1,)
    )
    return measured(pairs, {row["question_id"]: row["score"] for row in rows})


def scores(judgments: Sequence[Record]) -> Record:
    """{score, turn1, turn2, se, n, failed, by_category}, on the judge's scale; null where nothing was rated.

    `score` is FastChat's average: the mean over all `n` judgments of both turns. `failed` counts those without a
    rating, which are left out. `se` is clustered by question: the turns of one question are not independent.
    """
    rated = [row for row in judgments if row["score"] is not None]
    categories = dict.fromkeys(row["category"] for row in judgments)
    return {
        "score": _mean(rated),
        "turn1": _mean([row for row in rated if row["turn"] == 1]),
        "turn2": _mean([row for row in rated if row["turn"] == 2]),
        "se": clustered_se([row["score"] for row in rated], [row["question_id"] for row in rated]),
        "n": len(rated),
        "failed": len(judgments) - len(rated),
        "by_category": {c: _mean([row for row in rated if row["category"] == c]) for c in categories},
    }


def _mean(rows: Sequence[Record]) -> float | None:
    return statistics.fmean(row["score"] for row in rows) if rows else None
