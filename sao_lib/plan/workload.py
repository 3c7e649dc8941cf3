"""What a planned run asks of models, in tokens, computed from its parameters and those of the runs it reads.

Expected lengths of texts are in params/rates.yaml. Nothing is loaded, counted or tokenised.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from sao_lib.errors import SaoError
from sao_lib.evaluate.gold import FAULTS_EACH, MOVED
from sao_lib.evaluate.grading import GRADED_QUESTIONS
from sao_lib.evaluate.instruments import READINGS, simple_parts
from sao_lib.method.feedback import SOURCES
from sao_lib.method.labelled import FAULTS
from sao_lib.method.losses import LOSSES
from sao_lib.method.readings import BY_EMBEDDINGS, BY_LANGUAGE_MODEL
from sao_lib.method.rewards import RELEVANCE_MODEL
from sao_lib.method.synthesize import PROMPT_SOURCES
from sao_lib.plan.chain import Planned
from sao_lib.settings import PARAMS, ROOT
from sao_lib.yaml_files import read_yaml

CHARACTERS_PER_TOKEN = 4.2  # English under the tokenizers used here
SECTIONS = ("dated", "api", "api_speed", "profiles", "devices", "parameters", "lengths", "rows", "leaderboard")
METRICS = 5  # ratings of a response
SHARED_ANSWERS = 0.55  # a question's labelled pairs share the good answer, which is scored once
LABELLED = 60  # tokens of a labelled answer
AUTO_BATCH = 32  # answers of GSM8K that lm-eval finds to fit one card of 80 GB; assumed, at most 64
SCORED = 0.5  # pointwise, the reference's answer has its score already

Params = dict[str, Any]
Runs = Mapping[str, Planned]


@dataclass(frozen=True)
class Ask:
    """Work for one model. Tokens are sums over `calls`; `cached` are those of tokens_in that a prefix cache saves.

    `trained` tokens go forward and backward, at `effort` times the plain operations; `steps` are tokens that
    transformers writes one batch at a time. `starts` names the overhead of getting the model ready, None where it is
    ready already. `cap` is the engine's limit in dollars.
    """

    model: str
    calls: float = 0
    tokens_in: float = 0
    tokens_out: float = 0
    cached: float = 0
    trained: float = 0
    effort: float = 1
    steps: float = 0
    starts: str | None = "engine"
    cap: float = 0


@cache
def rates() -> dict[str, Any]:
    """params/rates.yaml; SaoError where one of its sections is missing."""
    found = read_yaml(PARAMS / "rates.yaml")
    if lacks := [name for name in SECTIONS if name not in found]:
        raise SaoError(f"params/rates.yaml has no section '{lacks[0]}'; it has: {', '.join(SECTIONS)}.")
    return found


def expected(kind: str, limit: float) -> float:
    """Tokens of a text of this kind under a limit in tokens."""
    lengths = rates()["lengths"]
    return min(float(lengths[kind]), lengths["share"] * limit)


def asks(run: Planned, planned: Runs) -> list[Ask]:
    """What the run asks of models, none for a table. `planned` holds the runs that it reads, by folder."""
    make: Callable[[Params, Planned, Runs], list[Ask]] | None = STAGES.get(run.spec["stage"])
    return make(run.spec["params"], run, planned) if make else []


def _length(kind: str) -> float:
    return float(rates()["lengths"][kind])


def _form(template: str) -> float:
    """Tokens of a template file, texts to be filled in left out."""
    return (ROOT / template).stat().st_size / CHARACTERS_PER_TOKEN


def _turn(policy: Params) -> float:
    """Tokens that a policy's template and system message put round a prompt."""
    return 2 * _length("turn") + len(policy["system"] or "") / CHARACTERS_PER_TOKEN


def _source(run: Planned, planned: Runs) -> Params:
    """The synthesize parameters behind a judge's or a training's pairs."""
    while run.spec["stage"] != "synthesize":
        run = planned[run.inputs.get("judge") or run.inputs["synthesize"]]
    return dict(run.spec["params"]["synthesize"])


def pairs_of(s: Params) -> float:
    """Pairs of responses that a synthesize section is expected to give."""
    filtered = PROMPT_SOURCES[s["source"]].written and s["filter"] == "drop"
    usable = _length("usable") * s["n"] if filtered else s["n"]
    return float(min(usable, s["pairs"] or math.inf))


def _prompt(s: Params) -> float:
    return expected("prompt", s["max_prompt_tokens"])


def _synthesize(p: Params, run: Planned, planned: Runs) -> list[Ask]:
    s = p["synthesize"]
    writer, answers = s["generator"] or p["policy"], 2 * pairs_of(s)
    calls, tokens_in, tokens_out, cached = answers, answers * (_turn(writer) + _prompt(s)), 0.0, 0.0
    tokens_out = answers * expected("response", s["max_response_tokens"])
    if PROMPT_SOURCES[s["source"]].written and "prompts" not in run.inputs:
        form = _form(s["template"])
        cached = s["n"] * form * 0.9  # the same for all; the cache keeps whole blocks
        calls, tokens_in = calls + s["n"], tokens_in + s["n"] * (form + _length("persona"))
        tokens_out += s["n"] * _prompt(s)
    return [Ask(writer["model"], calls, tokens_in, tokens_out, cached, cap=p["engine"]["max_usd"])]


def _judge(p: Params, run: Planned, planned: Runs) -> list[Ask]:
    j, s = p["judge"], _source(run, planned)
    prompt, response = _prompt(s), expected("response", s["max_response_tokens"])
    pairs, audit = pairs_of(s), min(j["audit_faults"], len(FAULTS)) * j["audit_questions"]
    opens = SOURCES[j["source"]].opens
    if opens == "reward model":
        calls = 2.0 * (pairs + audit)
        return [Ask(j["model"], calls, calls * (prompt + response), starts="transformers")]
    if opens is None:
        return []
    model = j["model"] or p["policy"]["model"]
    if j["reading"] in BY_LANGUAGE_MODEL:
        calls = 2 * pairs + 2 * audit * SHARED_ANSWERS
        return [Ask(model, calls, calls * (prompt + response + _length("turn")), calls)]
    calls = pairs * (2 if j["orders"] == "both" else 1) + 2 * audit
    form = _form(j["template"]) + _length("turn")
    out = _length("ranking") if j["reading"] == "text" else 1
    return [Ask(model, calls, calls * (form + prompt + 2 * response), calls * out, cap=p["engine"]["max_usd"])]


def trained_pairs(run: Planned, planned: Runs) -> float:
    """Pairs that a training is expected to see in an epoch."""
    t = run.spec["params"]["train"]
    pairs = float(_rows(t["data"])) if t["data"] else _length("decided") * pairs_of(_source(run, planned))
    return float(min(max(pairs - t["held_out"], t["global_batch"]), t["pairs"] or math.inf))


def _train(p: Params, run: Planned, planned: Runs) -> list[Ask]:
    t, policy, kept = p["train"], p["policy"], trained_pairs(run, planned)
    if t["data"]:
        sequence = expected("prompt", 100) + expected("response", t["max_length"] / 4)
    else:
        s = _source(run, planned)
        sequence = _prompt(s) + expected("response", s["max_response_tokens"])
    per_pair = 2 * (_turn(policy) + sequence)
    effort = 4 / 3 if t["gradient_checkpointing"] else 1  # the forward pass is done twice
    trained = kept * t["epochs"] * per_pair
    reference = kept * per_pair if LOSSES[t["loss"]].needs_reference else 0
    steps = kept * t["epochs"] / t["global_batch"]
    sampled = (2 + (steps // t["sample_every"] if t["sample_every"] else 0)) * t["sample_tokens"]
    read = t["held_out"] * per_pair + reference
    return [Ask(policy["model"], 0, read, trained=trained, effort=effort, steps=sampled, starts="launch")]


def _rows(source: str) -> int:
    """Rows of a preference set: counted where it is a file of the suite, from the rates where it is on the hub."""
    if source.startswith("hub:"):
        return int(rates()["rows"].get(source, max(rates()["rows"].values())))
    with (ROOT / source).open(encoding="utf-8") as file:
        return sum(1 for line in file if line.strip())


def _judging(p: Params) -> tuple[str, float]:
    """The evaluation judge's model and the cap of its engine, in dollars."""
    e = p["evaluate"]
    return e["judge_model"] or p["policy"]["model"], float((e["judge_engine"] or p["engine"])["max_usd"])


def _instrument(name: str, pairs: float, response: float, p: Params, share: float = 1) -> Ask:
    """What one instrument asks for `pairs` of answers of `response` tokens; `share` of pointwise scores are new."""
    model, cap = _judging(p)
    prompt = expected("prompt", 64)
    if name in READINGS:
        calls, embedded = 2 * pairs * share, name in BY_EMBEDDINGS
        ready = "transformers" if embedded else None
        model, said = (RELEVANCE_MODEL, 0.0) if embedded else (model, calls)
        return Ask(model, calls, calls * (prompt + response + _length("turn")), said, starts=ready)
    calls = pairs * (2 if name == "ranking" else 1)
    read = _length("form") + prompt + 2 * response
    return Ask(model, calls, calls * read, calls, starts=None, cap=cap)


def _judged(p: Params, pairs: float, response: float, share: float = 1) -> list[Ask]:
    """Asks of the chosen instrument, unknown before: an equal part of each candidate's, kept where there is one."""
    names = simple_parts(p["evaluate"]["judges"])
    return [_instrument(name, pairs / len(names), response, p, share) for name in names]


def _readings(p: Params) -> list[str]:
    """The simple instruments that may read the answers: the judge's candidates and a second opinion."""
    second = p["evaluate"].get("second")
    return simple_parts([*p["evaluate"]["judges"], *([second] if second else [])])


def _opened(p: Params, answering: bool = False) -> list[Ask]:
    """The evaluation judge's start; the same local model that has just answered is kept, embeddings ask none."""
    model, cap = _judging(p)
    if p.get("chat_benchmarks") is None and all(n in BY_EMBEDDINGS for n in _readings(p)):
        return []
    kept = answering and model == p["policy"]["model"]
    return [] if kept or model.startswith("openai/") else [Ask(model, cap=cap)]


def _answer(p: Params, run: Planned, planned: Runs) -> list[Ask]:
    e, policy = p["evaluate"], p["policy"]
    prompt, response = _turn(policy) + expected("prompt", 64), expected("response", e["max_tokens"])
    read = e["n"] * prompt + (1 + FAULTS_EACH) * e["gold_questions"] * (prompt + LABELLED)
    if "policy" in run.inputs:
        read += 2 * min(MOVED, e["n"]) * (prompt + response)  # by it and by the untrained model
    return [Ask(policy["model"], e["n"], read, e["n"] * response)]


def _evaluate(p: Params, run: Planned, planned: Runs) -> list[Ask]:
    e = p["evaluate"]
    response, out = expected("response", e["max_tokens"]), _opened(p)
    if "calibration" not in run.inputs:
        labelled = len(FAULTS) * e["labelled_questions"]
        out += [_instrument(name, labelled, LABELLED, p, SHARED_ANSWERS) for name in _readings(p)]
    new = 1 if "calibration" not in run.inputs else SCORED
    out += [_instrument(e["second"], e["n"], response, p, new)] if e.get("second") else []
    return out + _judged(p, e["n"], response, new)


def _chat_benchmarks(p: Params, run: Planned, planned: Runs) -> list[Ask]:
    b, policy = p["chat_benchmarks"], p["policy"]
    prompt, turn, mt, arena = expected("prompt", 120), _turn(policy), b["mt_bench_n"], b["arena_hard_n"]
    told, response = (expected("response", b[f"{name}_tokens"]) for name in ("mt_bench", "arena_hard"))
    read = mt * (3 * (turn + prompt) + told) + arena * (turn + prompt)
    out = [Ask(policy["model"], 2 * mt + arena, read, 2 * mt * told + arena * response), *_opened(p, answering=True)]
    model, cap = _judging(p)
    said = expected("verdict", b["mt_bench_judge_tokens"]) if b["reading"] == "text" else 1
    rated = mt * (2 * _length("form") + 3 * (prompt + told))  # turn 2 shows both
    rated += 2 * GRADED_QUESTIONS * (_length("form") + LABELLED)
    out.append(Ask(model, 2 * mt, rated, 2 * mt * said, starts=None, cap=cap))
    if b["reading"] != "text":
        return out + _judged(p, arena, response)
    games, said = 2 * arena, expected("response", b["arena_hard_judge_tokens"])
    read = games * (_length("form") + prompt + 2 * response)
    return [*out, Ask(model, games, read, games * said, starts=None, cap=cap)]


def _leaderboard(p: Params, run: Planned, planned: Runs) -> list[Ask]:
    settings, read, generated = p["leaderboard"], 0.0, 0.0
    for name, task in rates()["leaderboard"].items():
        n = task["questions"]
        if settings["data"]:
            files = [f for split in ("test", "validation") for f in (ROOT / settings["data"]).glob(f"{name}*_{split}*")]
            n = sum(_rows(str(f)) for f in files)
        n = min(n, (settings["limit"] or math.inf) * task.get("subjects", 1))
        read += n * task["tokens"]
        generated += n * expected("verdict", settings["max_gen_toks"]) if name == "gsm8k" else 0
    steps = generated / (AUTO_BATCH if settings["batch_size"] == "auto" else settings["batch_size"])
    return [Ask(p["policy"]["model"], 0, read, 0, steps=steps, starts="transformers")]


def _math500(p: Params, run: Planned, planned: Runs) -> list[Ask]:
    m, policy = p["math500"], p["policy"]
    read = m["n"] * (_turn(policy) + _form(m["template"]) + expected("prompt", 100))
    return [Ask(policy["model"], m["n"], read, m["n"] * expected("response", m["max_tokens"]))]


def _rating(p: Params, run: Planned, planned: Runs) -> list[Ask]:
    r, s = p["rating"], _source(run, planned)
    n, graded = min(r["n"], _length("decided") * pairs_of(s)), 2 * GRADED_QUESTIONS
    asked, out = (1, expected("verdict", 100)) if r["reading"] == "text" else (METRICS, 1.0)
    calls = asked * (n + graded)
    shown = n * (_prompt(s) + expected("response", s["max_response_tokens"])) + graded * LABELLED
    read = calls * _length("form") + asked * shown
    cached = (asked - 1) * shown  # requests about one response begin alike
    cap = float((r["engine"] or p["engine"])["max_usd"])
    return [Ask(r["model"] or p["policy"]["model"], calls, read, calls * out, cached, cap=cap)]


def _logits(p: Params, run: Planned, planned: Runs) -> list[Ask]:
    settings, policy = p["logits"], p["policy"]
    n, response = 2 * settings["prompts"], expected("response", settings["max_tokens"])
    read = n * (_turn(policy) + expected("prompt", 100))
    again = Ask(policy["model"], 0, read + n * response, starts="transformers")  # the logits themselves
    return [Ask(policy["model"], n, read, n * response), again]


STAGES: dict[str, Callable[[Params, Planned, Runs], list[Ask]]] = {
    "synthesize": _synthesize,
    "judge": _judge,
    "train": _train,
    "answer": _answer,
    "evaluate": _evaluate,
    "chat_benchmarks": _chat_benchmarks,
    "leaderboard": _leaderboard,
    "math500": _math500,
    "rating": _rating,
    "logits": _logits,
}
