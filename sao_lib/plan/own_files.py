"""What a user's own files must be: files at all, rows as their readers want them, templates with what is filled in.

A sentence here comes before anything starts; the readers themselves say it again in a run, of files from elsewhere too.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from sao_lib import hub, sources
from sao_lib.engines.chat import DATE
from sao_lib.errors import in_one_line, short
from sao_lib.evaluate import alpaca_eval, arena_hard, mt_bench
from sao_lib.evaluate.rating import METRICS
from sao_lib.files import Record
from sao_lib.method import synthesize, train
from sao_lib.settings import ROOT, Evaluate
from sao_lib.yaml_files import read_yaml, shown

Wrong = Callable[[Any], str | None]  # of a value in a template: what is wrong with it
BOM = "\ufeff"  # which editors of Windows write first


def no_file(name: str, stage: str) -> str | None:
    """What is wrong with the name of a file that a parameter gives, for the leaderboard's data a folder; else None."""
    if name.startswith(hub.ELSEWHERE):
        return hub.misnamed(name)
    path = ROOT / name
    try:
        if path.is_file() or (path.is_dir() and stage == "leaderboard"):
            return None if os.access(path, os.R_OK) else "cannot be read: permission denied"
        if path.is_dir():
            return "is a folder and not a file"
        return "is no ordinary file" if path.exists() else "does not exist"
    except OSError as error:
        return f"can be no file: {error.strerror}"


# Templates


def text(*filled: str) -> Wrong:
    """A text in which each of `filled` stands in braces."""

    def wrong(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"is {short(repr(value))} and must be a text"
        lacking = next((name for name in filled if f"{{{name}}}" not in value), None)
        return f"lacks {{{lacking}}}, where a {lacking} is put in" if lacking else None

    return wrong


def _texts(value: Any) -> str | None:
    right = isinstance(value, list) and value and all(isinstance(one, str) and one.strip() for one in value)
    return None if right else f"is {short(repr(value))} and must be a list of texts"


def _two(value: Any) -> str | None:
    right = isinstance(value, list) and len({str(one) for one in value}) == len(value) == 2
    return None if right else f"is {short(repr(value))} and must be a list of two different labels"


def _examples(value: Any) -> str | None:
    rows = value if isinstance(value, list) else [None]
    right = all(
        isinstance(row, dict) and all(isinstance(row.get(k), str) for k in ("persona", "prompt")) for row in rows
    )
    return None if right else f"is {short(repr(value))} and must be a list of {{persona, prompt}}"


def _ratings(value: Any) -> str | None:
    right = isinstance(value, dict) and all(isinstance(value.get(metric), str) for metric in METRICS)
    return None if right else f"must have a text for each of {', '.join(METRICS)}"


def _no_persona(value: Any) -> str | None:
    persona = isinstance(value, str) and "{persona}" in value
    return "has {persona}, and synthesize.source random has none" if persona else text()(value)


PROMPT: Mapping[str, Wrong] = {"user": text("persona"), "examples": _examples, "prefill": text()}
WITHOUT_PERSONA = {"user": _no_persona, "examples": _examples, "prefill": _no_persona}
RANKING = {"user": text("prompt", "first", "second"), "criteria": _texts, "prefill": text(), "labels": _two}
WITHOUT_CRITERION = {**RANKING, "user": text("prompt", "first", "second", "criteria")}
MATH = {"user": text("problem")}
RATING = {"metrics": _ratings, "all": text("prompt", "response"), "one": text("prompt", "response"), "prefill": text()}
ARENA = {"user": text("prompt", "answer_a", "answer_b"), "again": text()}
MT_BENCH = {
    "user_1": text("question_1", "answer_1"),
    "user_2": text("question_2", "answer_2"),
    "user_1_reference": text("question_1", "reference_1", "answer_1"),
    "user_2_reference": text("question_2", "reference_2", "answer_2"),
}
OPTIONAL = {"stop": text()}


def template(what: str, file: str, keys: Mapping[str, Wrong]) -> Iterator[str]:
    """Problems of one of our templates, the file of the parameter `what`."""
    yield from _problems(what, file, _yaml(ROOT / file, changed(file)), keys)


def _problems(what: str, file: str, body: Record, keys: Mapping[str, Wrong]) -> Iterator[str]:
    said = f"{what} is {shown(ROOT / file)}"
    if missing := [key for key in keys if key not in body]:
        yield f"{said}, which has no '{missing[0]}'; such a template has: {', '.join(keys)}."
        return
    for key, wrong in {**keys, **{key: wrong for key, wrong in OPTIONAL.items() if key in body}}.items():
        if problem := wrong(body[key]):
            yield f"{said}, whose '{key}' {problem}."


def judgments(p: Record) -> Iterator[str]:
    """Problems of the two benchmarks' templates, ours or in the benchmark's own format."""
    begun = {"prefill": text()} if p["reading"] == "logprob" else {}
    forms = (("mt_bench_template", mt_bench.load_template, {**MT_BENCH, **begun}),
             ("arena_hard_template", arena_hard.load_template, ARENA))  # fmt: skip
    for name, load, keys in forms:
        if here(p[name]):
            try:
                body = load(p[name])
            except (AttributeError, IndexError, KeyError, TypeError):
                yield f"chat_benchmarks.{name} is {p[name]}, which is neither in our form nor in the benchmark's."
                continue
            yield from _problems(f"chat_benchmarks.{name}", p[name], body, keys)


SAID = ("a first question", "an answer", "a second question")
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # transformers' own tag, which writes nothing
CHAT = [{"role": role, "content": said} for role, said in zip(("user", "assistant", "user"), SAID, strict=True)]


@cache
def chat_template(file: str, system: str | None, _changed: int) -> str | None:
    """What is wrong with a chat template, tried on a dialogue as transformers would fill it; None if nothing is."""
    messages = [*([{"role": "system", "content": system}] if system else []), *CHAT]
    try:
        source = (ROOT / file).read_text(encoding="utf-8")
        made = (
            _jinja()
            .from_string(GENERATION.sub("", source))
            .render(messages=messages, add_generation_prompt=True, bos_token="", eos_token="", date_string=DATE)
        )
    except UnicodeDecodeError as error:
        return f"is not UTF-8 at byte {error.start}; save it as UTF-8"
    except Exception as error:  # jinja's own, or of what an expression does
        return f"cannot be filled in: {in_one_line(error)}"
    if source.startswith(BOM):
        return "begins with a byte order mark, which would begin each prompt; save it without"
    lost = next((m for m in messages if m["content"].strip() not in made), None)
    return f"leaves out the {lost['role']}'s message {short(lost['content'])!r}" if lost else None


def _jinja() -> ImmutableSandboxedEnvironment:
    """jinja as transformers sets it up for chat templates."""

    def refuse(message: str) -> None:
        raise ValueError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.globals |= {"raise_exception": refuse, "strftime_now": lambda form: DATE}
    return made


def changed(file: str) -> int:
    """When a file was changed last."""
    return (ROOT / file).stat().st_mtime_ns


@cache
def _yaml(path: Path, _changed: int) -> Record:
    return read_yaml(path)


# Rows


def here(source: str | None) -> bool:
    """Whether a file is of this machine: others are not fetched for a plan."""
    return bool(source) and not str(source).startswith(hub.ELSEWHERE)


def rows(source: str) -> list[Record]:
    """A file's rows; SaoError for one that is broken."""
    return _rows(source, changed(source))


@cache
def _rows(source: str, _changed: int) -> list[Record]:
    return sources.load_rows(source)


@cache
def prompts(kind: str, source: str, n: int, _changed: int) -> None:
    """SaoError unless the file of a synthesis has `n` personas or prompts, and no broken row."""
    load = synthesize.load_personas if kind == "persona" else synthesize.load_dataset_prompts
    load(source, n, 0)


@cache
def instructions(source: str, n: int, reference: str, answers: str | None, _changed: int) -> None:
    """SaoError unless the first `n` rows are instructions that the reference answered, and `answers` answers them."""
    settings = Evaluate.model_construct(instructions=source, n=n, reference=reference, answers=answers)
    asked = alpaca_eval.load_instructions(settings)
    if answers:
        alpaca_eval.load_answers(settings, asked)


@cache
def preferences(source: str, _changed: int) -> None:
    """SaoError unless every row is a pair."""
    train.external_preferences(source)


def math(source: str, n: int) -> None:
    """SaoError unless the first `n` rows are problems in MATH-500's form."""
    if here(source):
        for row in sources.load_rows(source, ["problem", "answer"], ["unique_id"])[:n]:
            _identified(source, row, "unique_id")
            if "level" not in row:
                raise sources.refused(source, row, "it has no level")


def benchmarks(b: Record) -> None:
    """SaoError unless the first rows of the two benchmarks' files are questions in their form."""
    if here(b["mt_bench"]):
        mt_bench.load_questions(b["mt_bench"], b["mt_bench_n"])
        for row in rows(b["mt_bench"])[: b["mt_bench_n"]]:
            _identified(b["mt_bench"], row, "question_id", "prompt_id")
            reference = row.get("reference") or ["", ""]
            if not isinstance(reference, list) or len(reference) < 2:
                raise sources.refused(b["mt_bench"], row, "reference must be a list of two texts")
    if here(b["arena_hard"]) and (b["arena_baseline"] is None or here(b["arena_baseline"])):
        arena_hard.load_questions(b["arena_hard"], b["arena_baseline"], b["arena_hard_n"])
        for row in rows(b["arena_hard"])[: b["arena_hard_n"]]:
            _identified(b["arena_hard"], row, "question_id", "uid")


def _identified(source: str, row: Record, *keys: str) -> None:
    found = next((row[key] for key in keys if row.get(key) is not None), None)
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise sources.refused(source, row, f"{keys[0]} must be a text or a number of its own")
