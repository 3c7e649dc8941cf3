"""MATH-500 (SAO table 11), zero-shot in chat form; answers are compared by math-verify."""

import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

from sao_lib.chunks import in_chunks
from sao_lib.engines import Engine, seed_for, user_turn
from sao_lib.engines.chat import fill
from sao_lib.evaluate.grading import by_id
from sao_lib.files import Record
from sao_lib.runs import Run
from sao_lib.settings import ROOT, Policy
from sao_lib.yaml_files import read_yaml

TEMPLATE = "params/templates/math.yaml"
SECONDS = 5  # math-verify's own limit for parsing an answer and for comparing it
LONGEST = 400  # characters of an answer that is parsed; the longest in MATH-500 has 53
BOX = re.compile(r"\\boxed\s*\{")
NUMBER = r"(-?(?:\d+(?:,\d{3})*(?:\.\d+)?(?:\s*/\s*\d+)?|\.\d+))"
OPENING, CLOSING = r"[\s:*$\\(\[{]*", r"[\s.*$\\)\]}]*$"
STATED = re.compile(rf"answer\s+is{OPENING}{NUMBER}", re.IGNORECASE)
LAST_EQUALITY = re.compile(rf"={OPENING}{NUMBER}{CLOSING}")


def answer(
    run: Run,
    engine: Engine,
    policy: Policy,
    problems: Sequence[Record],
    max_tokens: int,
    temperature: float,
    seed: int,
    template_file: str = TEMPLATE,
    chunk: int = 32,
) -> list[Record]:
    """Write math_answers.jsonl, {unique_id, output, finished, tokens}, for rows {unique_id, problem, ...}."""
    template = read_yaml(ROOT / template_file)

    def make(part: Sequence[Record]) -> list[Record]:
        requests = [user_turn(policy, fill(template["user"], {"problem": p["problem"]})) for p in part]
        seeds = [seed_for(seed, p["unique_id"]) for p in part]
        out = engine.generate(requests, max_tokens, temperature, seeds)
        return [
            {
                "unique_id": p["unique_id"],
                "output": c.text.strip(),
                "finished": c.finished,
                "tokens": c.tokens_out,
                **({"reason": c.reason} if c.reason else {}),
            }
            for p, c in zip(part, out, strict=True)
        ]

    return in_chunks(run, "math_answers.jsonl", problems, make, chunk)


def extract(text: str) -> str | None:
    r"""The final answer in a model's text, or None.

    In this order: what stands in the last \boxed{} whose braces are balanced; the number after the last "answer
    is"; the number after a "=" with which the text ends.
    """
    for box in reversed(list(BOX.finditer(text))):
        inside = _balanced(text, box.end())
        if inside is not None:
            return inside.strip() or None
    stated = STATED.findall(text)
    if stated:
        return str(stated[-1])
    found = LAST_EQUALITY.search(text)
    return found[1] if found else None


def _balanced(text: str, start: int) -> str | None:
    r"""The text from `start`, just after a brace, to the brace that closes it; `\{` and `\}` are no braces."""
    depth = 1
    for token in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return text[start : start + token.start()]
    return None


def is_correct(gold: str, given: str | None) -> bool:
    """Whether `given` is mathematically the LaTeX answer `gold`; never raises, and gives up after some seconds.

    math-verify's time limit is an alarm signal, which only the main thread may set: elsewhere there is no limit.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    if not given:
        return False
    if given.strip() == gold.strip():
        return True
    if len(given) > LONGEST:
        return False
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every answer that it cannot read
    seconds: Any = SECONDS if threading.current_thread() is threading.main_thread() else None
    one, other = (
        parse(f"${_bare(text)}$", [LatexExtractionConfig()], parsing_timeout=seconds) for text in (gold, given)
    )
    return bool(verify(one, other, timeout_seconds=seconds))


def _bare(text: str) -> str:
    """`text` without dollar signs round it."""
    text = text.strip()
    return text.strip("$") if len(text) > 1 and text[0] == text[-1] == "$" else text


def grade(problems: Sequence[Record], answers: Sequence[Record]) -> list[Record]:
    """Rows {unique_id, given, correct}, in the order of `problems`; `given` is the extracted answer or null.

    `correct` is null where the model could not be asked.
    """
    found = by_id(problems, answers, "unique_id", "math_answers.jsonl")
    given = [(p, extract(found[p["unique_id"]]["output"])) for p in problems]
    return [
        {"unique_id": p["unique_id"], "given": g,
         "correct": None if found[p["unique_id"]].get("reason") else is_correct(p["answer"], g)}
        for p, g in given
    ]  # fmt: skip


def score(rows: Sequence[Record]) -> dict[str, float | None]:
    """{score, se, n, no_answer} of graded rows: percent correct with its binomial standard error; null without rows.

    Problems that the model could not be asked are left out, and counted as `left_out` where there are any.
    """
    asked = [row for row in rows if row["correct"] is not None]
    left_out, rows = len(rows) - len(asked), asked
    n = len(rows)
    share = sum(row["correct"] for row in rows) / n if n else None
    return {
        "score": None if share is None else 100 * share,
        "se": None if share is None else 100 * (share * (1 - share) / n) ** 0.5,
        "n": n,
        "no_answer": sum(row["given"] is None for row in rows),
        **({"left_out": left_out} if left_out else {}),
    }
