"""A request that does not fit the model ends no run: in every stage it is counted and left out, and the rest is as
without it."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError

from sao_lib.engines import TOO_LONG, Completion, Conversation, not_asked
from sao_lib.engines.openai_api import OpenAIEngine
from sao_lib.evaluate import alpaca_eval, arena_hard, gold, math500, mt_bench, rating
from sao_lib.evaluate.instruments import Instruments
from sao_lib.method import judge, readings, synthesize
from sao_lib.method.feedback import open_source
from sao_lib.runs import Run
from sao_lib.settings import Engine, Judge, Policy, Settings

POLICY = Policy(model="fake")
LONG = "a very long text"


class NarrowEngine:
    """Fake engine that cannot be asked about `LONG`."""

    def __init__(self, text: str = "It is said.") -> None:
        self.text, self.asked = text, 0

    def _fits(self, conversation: Conversation) -> bool:
        self.asked += 1
        return not any(LONG in m["content"] for m in conversation.messages)

    def generate(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Completion]:
        return [Completion(self.text, True, 1, 3) if self._fits(c) else not_asked(99) for c in conversations]

    def label_logprobs(self, conversations: Sequence[Conversation], labels: tuple[str, ...]) -> list[tuple[float, ...]]:
        return [tuple(-float(n + 1) if self._fits(c) else math.nan for n in range(len(labels))) for c in conversations]

    def completion_logprobs(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> list[list[float]]:
        both = zip(conversations, completions, strict=True)
        return [
            [-1.0, -float(len(y)) - len(c.messages[-1]["content"])] if self._fits(c) and LONG not in y else [math.nan]
            for c, y in both
        ]

    def close(self) -> None: ...


def rows(*prompts: str) -> list[dict[str, Any]]:
    texts = ({"text": "one", "finished": True, "tokens": 1}, {"text": "another", "finished": True, "tokens": 1})
    return [{"id": str(n), "prompt": p, "responses": list(texts)} for n, p in enumerate(prompts)]


def written(run: Run, name: str) -> list[dict[str, Any]]:
    """Rows as JSON that any program reads: no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {name}")

    return [json.loads(line, parse_constant=refuse) for line in (run.folder / name).read_text().splitlines()]


def test_synthesis(make_run: Callable[..., Run], cpu: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"template": "params/templates/persona.yaml", "filter": "log", "pairs": None, "sentences": None}
    settings = cpu.synthesize.model_copy(update=plain)
    personas = [{"id": "0", "persona": "a baker", "prompt": None}, {"id": "1", "persona": LONG, "prompt": None}]
    monkeypatch.setattr(synthesize, "asked", lambda *_: personas)
    run = make_run()
    prompts = synthesize.make_prompts(run, NarrowEngine("User prompt: How do I bake good bread?"), settings, 1)
    assert [(p["prompt"], p["reason"]) for p in prompts] == [("How do I bake good bread?", None), ("", TOO_LONG)]
    assert synthesize.usable(prompts, settings) == prompts[:1]
    given = [{"id": str(n), "prompt": p, "reason": None} for n, p in enumerate(("short", LONG))]
    made = synthesize.make_responses(run, NarrowEngine(), settings, POLICY, given, 1)
    assert made[0]["responses"][0] == {"text": "It is said.", "finished": True, "tokens": 3}
    assert {r["reason"] for r in made[1]["responses"]} == {TOO_LONG}
    decided = [judge.verdict_of(1.0)] * 2
    made[0]["responses"][1]["text"] = "Another."
    kept, left_out = judge.preferences(made, decided)  # type: ignore[arg-type]
    assert (len(kept), left_out) == (1, {"identical": 0, "undecided": 0, "empty": 0, TOO_LONG: 1})


@pytest.mark.parametrize("reading", ["text", "logprob", "likelihood", "reverse"])
def test_feedback(reading: str, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = NarrowEngine("ranking: 1 > 2")
    monkeypatch.setattr("sao_lib.method.feedback.open_engine", lambda *_: engine)
    settings = Judge(source="llm", reading=reading, template="params/templates/ranking_small.yaml", orders="one")  # type: ignore[arg-type]
    source = open_source(settings, POLICY, Engine(kind="vllm"), 1, tmp_path / "log")
    run, asked = make_run(), rows("short", LONG)
    judge.rank(run, asked, source.verdicts, 2)
    short, long = written(run, "verdicts.jsonl")
    assert short["verdict"] in (1, 2)
    assert "reason" not in short
    assert (long["verdict"], long["margin"], long["reason"]) == (None, None, TOO_LONG)
    kept, left_out = judge.preferences(asked, [short, long])
    assert (len(kept), left_out[TOO_LONG]) == (1, 1)


def instruments(tmp_path: Path) -> Instruments:
    ranking = Judge(source="llm", template="params/templates/ranking_small.yaml", reading="logprob", orders="both")
    return Instruments("fake", NarrowEngine, ranking, 1, tmp_path / "log")


@pytest.mark.parametrize("name", ["ranking", "alpaca_eval", "reverse"])
def test_win_rates(name: str, make_run: Callable[..., Run], tmp_path: Path, cpu: Settings) -> None:
    run, asked = make_run(), [f"question {n}" for n in range(4)]
    reference = [{"instruction": x, "output": "theirs", "generator": "r"} for x in [*asked, LONG]]
    answers = alpaca_eval.answer(run, NarrowEngine("ours"), cpu.evaluate, POLICY, reference, 1)
    assert [a.get("reason") for a in answers] == [None] * 4 + [TOO_LONG]
    answers[-1] = {**answers[-1], "output": "an answer that its judge cannot read", "reason": None}
    judging, calibration = instruments(tmp_path), {"chosen": name, "scale": {name: 1.0}}
    found = alpaca_eval.annotate(run, judging, calibration, answers, reference, cpu.evaluate, answers)
    assert [a["preference"] is None for a in written(run, "annotations.jsonl")] == [False] * 4 + [True]
    scores = alpaca_eval.win_rates(found, None)
    assert (scores["n"], scores["left_out"]) == (4, 1)
    assert scores == {**alpaca_eval.win_rates(found[:4], None), "left_out": 1}
    kept = run.folder / "known_scores.jsonl"
    judging.keep(kept, [*reference, *answers], name, None)
    written(run, "known_scores.jsonl")
    whole = kept.read_bytes()
    instruments(tmp_path).keep(kept, [*reference, *answers], name, None)  # one that was killed after `annotate`
    assert kept.read_bytes() == whole


def test_an_answer_that_could_not_be_asked_for_does_not_lose(
    make_run: Callable[..., Run], tmp_path: Path, cpu: Settings
) -> None:
    run = make_run()
    reference = [{"instruction": x, "output": "theirs", "generator": "r"} for x in ("short", LONG)]
    answers = alpaca_eval.answer(run, NarrowEngine("ours"), cpu.evaluate, POLICY, reference, 1)
    calibration = {"chosen": "reverse", "scale": {"reverse": 1.0}}
    found = alpaca_eval.annotate(run, instruments(tmp_path), calibration, answers, reference, cpu.evaluate)
    assert found[1]["preference"] is None


def test_mt_bench(make_run: Callable[..., Run]) -> None:
    questions = [
        {"question_id": n, "category": "stem", "turns": list(turns), "reference": []}
        for n, turns in enumerate((("a", "b"), ("a", LONG), ("c", "d")))
    ]
    run, grader = make_run(), NarrowEngine("[[7]]")
    answers = mt_bench.answer(run, NarrowEngine(), POLICY, questions, 32, 7)
    assert [a.get("reason") for a in answers] == [None, TOO_LONG, None]
    answers[2]["turns"] = ["fine", LONG]
    found = mt_bench.rate(run, grader, "params/templates/mt_bench.yaml", questions, answers, "text", 7)
    assert [j["score"] for j in found] == [7, 7, None, None, 7, None]
    assert grader.asked == 4
    assert mt_bench.scores(found)["failed"] == 3


@pytest.mark.parametrize("reading", ["text", "logprob"])
def test_arena_hard(reading: str, make_run: Callable[..., Run]) -> None:
    questions = [{"question_id": n, "prompt": p, "baseline": "theirs"} for n, p in enumerate(("a", LONG, "c"))]
    run, grader = make_run(), NarrowEngine("[[A>B]]")
    answers = arena_hard.answer(run, NarrowEngine("ours"), POLICY, questions, 32, 7)
    assert [a.get("reason") for a in answers] == [None, TOO_LONG, None]
    answers[2]["answer"] = LONG
    games = arena_hard.play(
        run, grader, "params/templates/arena_hard.yaml", questions, answers, reading, 7,
        margins=lambda triples: [math.nan if LONG in own else 1.0 for _, _, own in triples],
    )  # fmt: skip
    assert [g["games"] for g in games[1:]] == [[None, None]] * 2
    assert None not in games[0]["games"]
    assert arena_hard.score(games)["unparsed"] == 4


def test_math_and_ratings(make_run: Callable[..., Run]) -> None:
    run = make_run()
    problems = [{"unique_id": str(n), "problem": p, "answer": "4"} for n, p in enumerate(("2 + 2", LONG))]
    graded = math500.grade(
        problems, math500.answer(run, NarrowEngine("The answer is 4."), POLICY, problems, 32, 0.0, 1)
    )
    assert math500.score(graded) == {"score": 100.0, "se": 0.0, "n": 1, "no_answer": 0, "left_out": 1}
    asked = [{"id": str(n), "prompt": p, "response": "yes"} for n, p in enumerate(("short", LONG))]
    for reading, text in (("logprob", ""), ("text", json.dumps(dict.fromkeys(rating.METRICS, 7)))):
        file = f"{reading}.jsonl"
        rating.rate(run, NarrowEngine(text), "params/templates/rating.yaml", asked, reading, 1, file=file)
        found = rating.summary(written(run, file))
        assert (found["clarity"]["n"], found["clarity"]["failed"]) == (1, 1)


def test_a_policys_own_taste_and_its_distance(make_run: Callable[..., Run]) -> None:
    run, pairs = make_run(), gold.gold_pairs(2)
    pairs[0] = {**pairs[0], "prompt": LONG}
    found = gold.summary(gold.preferred(run, NarrowEngine(), POLICY, pairs))
    assert found["n"] == len(pairs) - 1
    assert written(run, "gold.jsonl")[0]["reason"] == TOO_LONG
    answers = [{"instruction": x, "output": "said"} for x in ("short", LONG)]
    now, before = (gold.own_logprobs(NarrowEngine(), POLICY, answers) for _ in range(2))
    assert gold.distance(run, answers, now, before)["n"] == 1
    assert readings.by_language_model(NarrowEngine(), "reverse", [("short", "y")])[0] < 0


def test_an_apis_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import httpx

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    engine = OpenAIEngine("gpt-4o", Engine(kind="openai", max_usd=5), tmp_path / "log")

    def refuse(*_: Any) -> bytes:
        response = httpx.Response(400, request=httpx.Request("POST", "http://127.0.0.1"))
        raise BadRequestError("too many tokens", response=response, body={"code": "context_length_exceeded"})

    monkeypatch.setattr(engine, "_body", refuse)
    request = Conversation(({"role": "user", "content": LONG},))
    assert engine.generate([request], 8, 0.0, [0])[0].reason == TOO_LONG
    assert all(map(math.isnan, engine.label_logprobs([request], ("a", "b"))[0]))
    assert engine.journal.spent == 0


def test_a_rating_of_what_could_not_be_asked_says_so(make_run: Callable[..., Run]) -> None:
    rows = [{"id": str(n), "prompt": "a", "response": text} for n, text in enumerate(("fine", LONG))]
    found = rating.rate(make_run(), NarrowEngine("{}"), "params/templates/rating.yaml", rows, "text", 7)
    assert [row.get("reason") for row in found] == [None, TOO_LONG]
    assert rating.summary(found)["clarity"]["failed"] == 2
