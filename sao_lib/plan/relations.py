"""What valid parameters ask of each other and of the files they name, looked at before anything starts.

`layers` says what one parameter may be; here are the relations between several: a number of rows and the file that
holds them, a limit in tokens and the texts under it. Files elsewhere are not fetched for it.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sao_lib import hub, sources
from sao_lib.errors import SaoError
from sao_lib.evaluate.instruments import FITTED, READINGS, simple_parts
from sao_lib.method.readings import BY_LANGUAGE_MODEL
from sao_lib.method.synthesize import PROMPT_SOURCES
from sao_lib.plan.chain import Planned
from sao_lib.settings import ROOT
from sao_lib.yaml_files import read_yaml, shown

Params = dict[str, Any]
Runs = Mapping[str, Planned]
COMPARING = ("ranking", "alpaca_eval")  # instruments that compare two answers and score none
# What a template must hold: of a prompt, of a ranking.
PROMPT, RANKING = ("user", "examples", "prefill"), ("user", "criteria", "prefill", "labels")


def check(runs: Runs) -> None:
    """Raise SaoError for the first of these runs whose parameters contradict each other or the files they name."""
    for run in runs.values():
        for problem in PROBLEMS.get(run.spec["stage"], _none)(run.spec["params"], run, runs):
            raise SaoError(f"{problem} ({run.spec['stage']}/{run.spec['name']})")


def _none(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    yield from ()


def _synthesize(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    s = p["synthesize"]
    file = {"persona": "personas", "dataset": "dataset"}.get(s["source"])
    if file:
        yield from _enough("synthesize.n", s["n"], s[file], "persona" if file == "personas" else "prompt")
    if PROMPT_SOURCES[s["source"]].written:
        yield from _template("synthesize.template", s["template"], PROMPT)
    yield from _fits(p["engine"], "synthesize.max_response_tokens", s["max_response_tokens"], s["max_prompt_tokens"])


def _judge(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    j = p["judge"]
    if p["engine"] is None or j["reading"] in BY_LANGUAGE_MODEL:
        return
    yield from _template("judge.template", j["template"], RANKING)
    s = _source(run, runs)
    answer = j["max_tokens"] if j["reading"] == "text" else 1
    yield from _fits(p["engine"], "a pair under synthesize.max_response_tokens", answer, 2 * s["max_response_tokens"])


def _train(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    t = p["train"]
    if t["data"]:
        most = _count(t["data"], "prompt")
        where = t["data"]
    else:
        s = _source(run, runs)
        most = min(s["n"], s["pairs"] or s["n"])
        where = "synthesize.pairs" if s["pairs"] and s["pairs"] < s["n"] else "synthesize.n"
    if most is None:
        return
    for what, need in (("train.global_batch", t["global_batch"]), ("train.pairs", t["pairs"] or 0)):
        if t["held_out"] + need > most:
            yield (
                f"{where} gives {most} pairs at most, and train.held_out = {t['held_out']} with {what} = {need} needs "
                f"{t['held_out'] + need}; lower these or give more pairs."
            )


def _answer(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    e = p["evaluate"]
    yield from _instructions(e)
    yield from _fits(p["engine"], "evaluate.max_tokens", e["max_tokens"])


def _evaluate(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    e = p["evaluate"]
    yield from _instructions(e)
    yield from _judges(e["judges"])
    if "ranking" in simple_parts(e["judges"]):
        yield from _template("evaluate.judge_template", e["judge_template"], RANKING)


def _judges(names: list[str]) -> Iterator[str]:
    for name in names:
        allowed = READINGS if name.startswith(FITTED) else (*COMPARING, *READINGS)
        if unknown := [part for part in simple_parts([name]) if part not in allowed]:
            yield (
                f"evaluate.judges has '{name}', and there is no instrument '{unknown[0]}'; there are: "
                f"{', '.join(allowed)}, and sums of them (a+b); {FITTED}a+b of those but {' and '.join(COMPARING)}."
            )


def _instructions(e: Params) -> Iterator[str]:
    yield from _enough("evaluate.n", e["n"], e["instructions"], "instruction")
    names = _generators(e["instructions"])
    if names and e["reference"] not in names:
        yield (
            f"evaluate.reference is '{e['reference']}', who answers nothing in {e['instructions']}; there: "
            f"{', '.join(sorted(names))}."
        )


def _chat_benchmarks(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    b = p["chat_benchmarks"]
    for name in ("mt_bench", "arena_hard"):
        yield from _enough(f"chat_benchmarks.{name}_n", b[f"{name}_n"], b[name])
        yield from _fits(p["engine"], f"chat_benchmarks.{name}_tokens", b[f"{name}_tokens"])


def _math500(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    m = p["math500"]
    yield from _enough("math500.n", m["n"], m["problems"], "problem")
    yield from _template("math500.template", m["template"], ("user",))
    yield from _fits(p["engine"], "math500.max_tokens", m["max_tokens"])


def _rating(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    yield from _template("rating.template", p["rating"]["template"], ("metrics", "all", "one", "prefill"))


def _logits(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    g = p["logits"]
    yield from _enough("logits.prompts", g["prompts"], g["chat"], "instruction")
    yield from _enough("logits.prompts", g["prompts"], g["math"], "problem")
    yield from _fits(p["engine"], "logits.max_tokens", g["max_tokens"])
    if g["low"] >= g["high"]:
        yield f"logits.low = {g['low']:g} is not below logits.high = {g['high']:g}; give a range."


PROBLEMS: dict[str, Callable[[Params, Planned, Runs], Iterator[str]]] = {
    "synthesize": _synthesize,
    "judge": _judge,
    "train": _train,
    "answer": _answer,
    "evaluate": _evaluate,
    "chat_benchmarks": _chat_benchmarks,
    "math500": _math500,
    "rating": _rating,
    "logits": _logits,
}


def _source(run: Planned, runs: Runs) -> Params:
    """The synthesize parameters behind a judge's or a training's pairs."""
    while run.spec["stage"] != "synthesize":
        run = runs[run.inputs.get("judge") or run.inputs["synthesize"]]
    return dict(run.spec["params"]["synthesize"])


def _enough(what: str, n: int, source: str, key: str | None = None) -> Iterator[str]:
    """A problem if the file has fewer than `n` rows, those without the key `key` left out."""
    count = _count(source, key)
    if count is not None and count < n:
        yield f"{what} is {n} and {source} has {count} usable rows; lower it or add rows."


def _count(source: str, key: str | None = None) -> int | None:
    """Rows of a file of this machine, None for one elsewhere."""
    return sum(1 for row in _rows(source) if key is None or row.get(key)) if _here(source) else None


def _generators(source: str) -> set[str]:
    return {str(row["generator"]) for row in _rows(source) if row.get("generator")} if _here(source) else set()


def _here(source: str) -> bool:
    return not source.startswith(hub.ELSEWHERE)


def _rows(source: str) -> list[Params]:
    return _read(source, (ROOT / source).stat().st_mtime_ns)


@cache
def _read(source: str, _changed: int) -> list[Params]:
    return sources.load_rows(source)


def _template(what: str, file: str, keys: tuple[str, ...]) -> Iterator[str]:
    path = ROOT / file
    if missing := [key for key in keys if key not in _yaml(path, path.stat().st_mtime_ns)]:
        yield f"{what} is {shown(path)}, which has no '{missing[0]}'; such a template has: {', '.join(keys)}."


@cache
def _yaml(path: Path, _changed: int) -> Params:
    return read_yaml(path)


def _fits(engine: Params, what: str, answer: int, prompt: int = 0) -> Iterator[str]:
    """A problem if an answer of so many tokens and what stands before it cannot fit the engine's limit."""
    if engine["kind"] != "openai" and answer + prompt >= engine["max_model_len"]:
        under = f"{answer} tokens" + (f" after {prompt}" if prompt else "")
        yield f"{what} asks for {under}, more than engine.max_model_len = {engine['max_model_len']}; change one."
