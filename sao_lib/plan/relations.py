"""What valid parameters ask of each other and of the files they name, looked at before anything starts.

`layers` says what one parameter may be; here are the relations between several: a number of rows and the file that
holds them, a limit in tokens and the texts under it. Files elsewhere are not fetched for it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sao_lib.engines import models
from sao_lib.errors import SaoError, short
from sao_lib.evaluate.instruments import FITTED, READINGS, simple_parts
from sao_lib.method.readings import BY_LANGUAGE_MODEL
from sao_lib.method.synthesize import PROMPT_SOURCES
from sao_lib.plan import own_files
from sao_lib.plan.chain import LABELLED, Planned
from sao_lib.plan.own_files import here, rows, template

Params = dict[str, Any]
Runs = Mapping[str, Planned]
API = "openai/"
COMPARING = ("ranking", "alpaca_eval")  # instruments that compare two answers and score none


def check(runs: Runs) -> None:
    """Raise SaoError for the first of these runs whose parameters contradict each other or the files they name."""
    for run in runs.values():
        for problem in _of_models(run.spec["params"], run.spec["stage"]):
            raise SaoError(f"{problem} ({run.spec['stage']}/{run.spec['name']})")
        for problem in PROBLEMS.get(run.spec["stage"], _none)(run.spec["params"], run, runs):
            raise SaoError(f"{problem} ({run.spec['stage']}/{run.spec['name']})")


def _none(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    yield from ()


def _of_models(p: Params, stage: str) -> Iterator[str]:
    """Models that cannot do what a run asks of them, and chat templates that lose what is said."""
    policy, engine = p.get("policy") or {}, p.get("engine") or {}
    name = policy.get("model", "")
    if name and models.entry_of(name).get("convert") == "none":
        yield f"policy.model is {name}, which compares texts and writes none; name a model that writes."
    if name.startswith(API) and stage in ("train", "logits", "leaderboard"):
        yield f"policy.model is {name}, which an API keeps; {stage} needs a model whose weights are here."
    asked = (p.get(stage) or {}).get("model") or name
    if engine.get("kind") == "openai" and asked and not asked.startswith(API):
        yield f"engine.kind is openai, whose models are named {API}..., and the model is {asked}; change one."
    given = [("policy", policy.get("chat_template"), policy.get("system"))]
    generator = (p.get("synthesize") or {}).get("generator") or {}
    given += [("synthesize.generator", generator.get("chat_template"), generator.get("system"))]
    given += [("judge", (p.get("judge") or {}).get("chat_template"), None)]
    given += [("evaluate.judge", (p.get("evaluate") or {}).get("judge_chat_template"), None)]
    for what, file, system in given:
        if file and (problem := own_files.chat_template(file, system, own_files.changed(file))):
            yield f"The chat template {short(file)} of {what} {problem}."


def _synthesize(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    s = p["synthesize"]
    file = {"persona": "personas", "dataset": "dataset"}.get(s["source"])
    if file and here(s[file]):
        yield from _enough("synthesize.n", s["n"], s[file], "persona" if file == "personas" else "prompt")
        own_files.prompts(s["source"], s[file], s["n"], own_files.changed(s[file]))
    if PROMPT_SOURCES[s["source"]].written:
        wanted = own_files.PROMPT if s["source"] == "persona" else own_files.WITHOUT_PERSONA
        yield from template("synthesize.template", s["template"], wanted)
    yield from _fits(p["engine"], "synthesize.max_response_tokens", s["max_response_tokens"], s["max_prompt_tokens"])


def _judge(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    j = p["judge"]
    yield from _enough("judge.audit_questions", j["audit_questions"], LABELLED)
    if p["engine"] is None:
        return
    if j["reading"] in BY_LANGUAGE_MODEL:
        if p["engine"]["kind"] == "openai" or (j["model"] or "").startswith(API):
            yield f"judge.reading is {j['reading']}, which needs log-probabilities of a given text; no API gives them."
        return
    wanted = own_files.WITHOUT_CRITERION if j["without_criterion"] else own_files.RANKING
    yield from template("judge.template", j["template"], wanted)
    s = _source(run, runs)
    answer = j["max_tokens"] if j["reading"] == "text" else 1
    yield from _fits(p["engine"], "a pair under synthesize.max_response_tokens", answer, 2 * s["max_response_tokens"])


def _train(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    t = p["train"]
    if t["data"]:
        most = _count(t["data"], "prompt")
        where = t["data"]
        if most:
            own_files.preferences(where, own_files.changed(where))
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
    yield from _enough("evaluate.gold_questions", e["gold_questions"], LABELLED)
    yield from _fits(p["engine"], "evaluate.max_tokens", e["max_tokens"])


def _evaluate(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    e = p["evaluate"]
    yield from _instructions(e)
    yield from _enough("evaluate.labelled_questions", e["labelled_questions"], LABELLED)
    yield from _judges(e["judges"])
    if "ranking" in simple_parts(e["judges"]):
        yield from template("evaluate.judge_template", e["judge_template"], own_files.RANKING)
    if here(e["instructions"]):
        asked = (e["instructions"], e["n"], e["reference"], e["answers"] if here(e["answers"]) else None)
        own_files.instructions(*asked, own_files.changed(e["instructions"]))


def _judges(names: list[str]) -> Iterator[str]:
    for name in names:
        allowed = READINGS if name.startswith(FITTED) else (*COMPARING, *READINGS)
        if unknown := [part for part in simple_parts([name]) if part not in allowed]:
            yield (
                f"evaluate.judges has '{name}', and there is no instrument '{unknown[0]}'; there are: "
                f"{', '.join(allowed)}, and sums of them (a+b); {FITTED}a+b of those but {' and '.join(COMPARING)}."
            )
        parts = name.removeprefix(FITTED).split("+")
        if len(set(parts)) < len(parts):
            yield f"evaluate.judges has '{name}', in which an instrument stands twice; leave it once."
        if names.count(name) > 1:
            yield f"evaluate.judges has '{name}' twice; leave one."


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
    own_files.benchmarks(b)
    yield from own_files.judgments(b)


def _math500(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    m = p["math500"]
    yield from _enough("math500.n", m["n"], m["problems"], "problem")
    yield from template("math500.template", m["template"], own_files.MATH)
    own_files.math(m["problems"], m["n"])
    yield from _fits(p["engine"], "math500.max_tokens", m["max_tokens"])


def _rating(p: Params, run: Planned, runs: Runs) -> Iterator[str]:
    yield from template("rating.template", p["rating"]["template"], own_files.RATING)


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
    return sum(1 for row in rows(source) if key is None or row.get(key)) if here(source) else None


def _generators(source: str) -> set[str]:
    return {str(row["generator"]) for row in rows(source) if row.get("generator")} if here(source) else set()


def _fits(engine: Params, what: str, answer: int, prompt: int = 0) -> Iterator[str]:
    """A problem if an answer of so many tokens and what stands before it cannot fit the engine's limit."""
    if engine["kind"] != "openai" and answer + prompt >= engine["max_model_len"]:
        under = f"{answer} tokens" + (f" after {prompt}" if prompt else "")
        yield f"{what} asks for {under}, more than engine.max_model_len = {engine['max_model_len']}; change one."
