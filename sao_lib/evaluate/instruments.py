"""Instruments that compare two answers, measured on pairs of known quality before one is trusted.

Every instrument gives a margin, positive where the second answer is better.

| name        | margin of an answer y to an instruction x                                      |
|-------------|--------------------------------------------------------------------------------|
| ranking     | log-odds in the ranking prompt, averaged over both orders                      |
| alpaca_eval | the official AlpacaEval 2 prompt, log-odds of its two labels, one seeded order |
| a reading   | difference of its scores, see `method.readings`                                |
| a+b         | sum of margins, each divided by its standard deviation on the labelled pairs   |
| fitted:a+b  | difference of a logistic combination of the readings and of what the text shows |

A fitted one is log-odds: it was fitted on labelled pairs, by `evaluate.calibration`, to the readings, distinct-2 and
whether the last sentence has its end. The number of words is left out: length would be a merit, and padding an answer.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sao_lib.engines import Conversation, Engine, give_back, open_engine, seed_for, was_asked
from sao_lib.engines.chat import Message, fill
from sao_lib.errors import SaoError
from sao_lib.files import Record, write_rows
from sao_lib.method.judge import llm_verdicts
from sao_lib.method.readings import (
    BY_EMBEDDINGS,
    BY_LANGUAGE_MODEL,
    by_embeddings,
    by_language_model,
    distinct_2,
    finished,
)
from sao_lib.method.rewards import RELEVANCE_MODEL, Relevance, open_relevance
from sao_lib.runs import Run
from sao_lib.settings import Engine as EngineSettings
from sao_lib.settings import Evaluate, Judge

Triple = tuple[str, str, str]  # instruction, first answer, second answer
READINGS = (*BY_LANGUAGE_MODEL, *BY_EMBEDDINGS)
FITTED = "fitted:"
TEXT_FEATURES = ("distinct-2", "finished")


class Instruments:
    """Margins by name, with pointwise scores remembered so that a shared answer is scored once.

    `model` is the evaluation judge's name; `opener` opens it when an instrument first asks a language model.
    """

    def __init__(self, model: str, opener: Callable[[], Engine], ranking: Judge, seed: int, log: Path) -> None:
        self.model, self.opener, self.ranking, self.seed, self.log = model, opener, ranking, seed, log
        self.scored: dict[tuple[str, str, str], float] = {}

    @cached_property
    def engine(self) -> Engine:
        """The judge itself."""
        return self.opener()

    @cached_property
    def embeddings(self) -> Relevance:
        """What reads relevance."""
        return open_relevance(self.log)

    def close(self) -> None:
        """Give the judge back, if it was opened."""
        if "engine" in self.__dict__:
            give_back(self.__dict__.pop("engine"))

    def margins(self, name: str, triples: Sequence[Triple]) -> list[float]:
        """Margins of one simple instrument (no `+`), one per triple; positive: the second answer is better.

        NaN where it could not be asked.
        """
        if name == "ranking":
            rows = llm_verdicts(self.engine, triples, self.ranking, True, self.seed)
            return [math.nan if row.get("reason") else -(row["margin"] or 0.0) for row in rows]
        if name == "alpaca_eval":
            return self._alpaca_eval(triples)
        if name in READINGS:
            first = self.scores(name, [(x, a) for x, a, _ in triples])
            second = self.scores(name, [(x, b) for x, _, b in triples])
            return [b - a for a, b in zip(first, second, strict=True)]
        raise SaoError(
            f"Unknown instrument '{name}' in evaluate.judges; there are: ranking, alpaca_eval, {', '.join(READINGS)}, "
            f"sums of them (a+b) and {FITTED}a+b of readings."
        )

    def judged(self, calibration: dict[str, Any], triples: Sequence[Triple]) -> list[float]:
        """Margins of the instrument that a calibration chose; one alone keeps its unit, a fitted one has log-odds."""
        name = calibration["chosen"]
        if name in ("ranking", "alpaca_eval"):
            return self.margins(name, triples)
        if is_pointwise(name):
            first = self.judged_scores(calibration, [(x, a) for x, a, _ in triples])
            second = self.judged_scores(calibration, [(x, b) for x, _, b in triples])
            return [b - a for a, b in zip(first, second, strict=True)]
        margins = {part: self.margins(part, triples) for part in simple_parts([name])}
        return combine(name, margins, calibration["scale"])

    def judged_scores(self, calibration: dict[str, Any], pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Scores of (instruction, answer) by the chosen instrument, whose differences are its margins.

        Raises SaoError where it compares answers and scores none.
        """
        name = calibration["chosen"]
        if not is_pointwise(name):
            raise SaoError(f"The instrument '{name}' compares two answers and has no score for one.")
        if name.startswith(FITTED):
            weights = calibration["weights"][name]
            return [sum(w * f for w, f in zip(weights, row, strict=True)) for row in self.features(name, pairs)]
        parts = simple_parts([name])
        scale = calibration["scale"] if len(parts) > 1 else dict.fromkeys(parts, 1.0)
        columns = [[score / scale[part] for score in self.scores(part, pairs)] for part in parts]
        return [sum(row) for row in zip(*columns, strict=True)]

    def features(self, name: str, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        """What a fitted instrument weighs of each (instruction, answer), in the order of `feature_names`."""
        readings = [self.scores(part, pairs) for part in simple_parts([name])]
        return [
            [*scores, distinct_2(y), float(finished(y))]
            for (_, y), scores in zip(pairs, zip(*readings, strict=True), strict=True)
        ]

    def scores(self, name: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Pointwise scores of (instruction, answer); the higher the better."""
        new = list(dict.fromkeys(p for p in pairs if (name, *p) not in self.scored))
        if new:
            for pair, score in zip(new, self._score(name, new), strict=True):
                self.scored[(name, *pair)] = score
        return [self.scored[(name, *pair)] for pair in pairs]

    def keep(self, file: Path, answers: Sequence[Record], chosen: str, second: str | None) -> None:
        """Write what the readings of two instruments say of `answers`, {instrument, instruction, output, score}.

        `answers` are rows {instruction, output}, the reference's and the untrained model's; the runs of other models
        read the scores instead of asking again. What a run that was killed has scored before is scored again, so that
        the file does not depend on that.
        """
        pairs = list(dict.fromkeys((row["instruction"], row["output"]) for row in answers))
        names = [part for part in simple_parts([chosen, *([second] if second else [])]) if part in READINGS]
        write_rows(
            file,
            [
                {"instrument": name, "instruction": x, "output": y, "score": score}
                for name in names
                for (x, y), score in zip(pairs, self.scores(name, pairs), strict=True)
                if was_asked(score)
            ],
        )

    def recall(self, rows: Sequence[Record]) -> None:
        """Know what `keep` wrote."""
        self.scored |= {(row["instrument"], row["instruction"], row["output"]): row["score"] for row in rows}

    def _score(self, name: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        if name in BY_LANGUAGE_MODEL:
            return by_language_model(self.engine, name, pairs)
        return by_embeddings(self.embeddings, name, pairs)

    def _alpaca_eval(self, triples: Sequence[Triple]) -> list[float]:
        template, labels = official_prompt(), ("m", "M")
        flips = [random.Random(seed_for(self.seed, x)).random() < 0.5 for x, _, _ in triples]
        requests = []
        for (x, a, b), flip in zip(triples, flips, strict=True):
            values = {"instruction": x, "output_1": b if flip else a, "output_2": a if flip else b}
            requests.append(Conversation(tuple({**m, "content": fill(m["content"], values)} for m in template)))  # type: ignore[misc]
        odds = [second - first for first, second in self.engine.label_logprobs(requests, labels)]
        return [-o if flip else o for o, flip in zip(odds, flips, strict=True)]


def open_judge(run: Run, settings: Evaluate) -> Instruments:
    """The evaluation judge of `settings`, else the untrained policy."""
    policy, log = run.params["policy"], run.folder / "engine.log"
    model = settings.judge_model or policy["model"]
    asked = settings.judge_engine or EngineSettings.model_validate(run.params["engine"])
    template = settings.judge_chat_template if settings.judge_model else policy["chat_template"]
    ranking = Judge(source="llm", template=settings.judge_template, reading="logprob", orders="both")
    return Instruments(model, lambda: open_engine(model, asked, log, template), ranking, run.params["seed"], log)


def official_prompt() -> list[Message]:
    """AlpacaEval 2's judge prompt as messages, read from the alpaca-eval package."""
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

    name = "weighted_alpaca_eval_gpt4_turbo"
    config = yaml.safe_load((EVALUATORS_CONFIG_DIR / name / "configs.yaml").read_text())[name]
    text = (EVALUATORS_CONFIG_DIR / config["prompt_template"]).read_text()
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)\n?<\|im_end\|>", text, re.DOTALL)
    return [{"role": role, "content": content} for role, content in turns if role != "assistant"]


def simple_parts(names: Sequence[str]) -> list[str]:
    """The simple instruments that a list of names needs, in order, once each."""
    return list(dict.fromkeys(part for name in names for part in name.removeprefix(FITTED).split("+")))


def is_pointwise(name: str) -> bool:
    """Whether an instrument scores one answer by itself, so that a score can be kept and used again."""
    return all(part in READINGS for part in simple_parts([name]))


def read_by(name: str, judge_model: str) -> list[str]:
    """The models that an instrument reads with, where `judge_model` is the language model."""
    parts = simple_parts([name])
    asked = [judge_model] if any(part not in BY_EMBEDDINGS for part in parts) else []
    return asked + ([RELEVANCE_MODEL] if any(part in BY_EMBEDDINGS for part in parts) else [])


def feature_names(name: str) -> list[str]:
    """The features of a fitted instrument, in order."""
    return [*simple_parts([name]), *TEXT_FEATURES]


def combine(name: str, margins: dict[str, list[float]], scale: dict[str, float]) -> list[float]:
    """Margins of a possibly composite instrument."""
    parts = name.split("+")
    return [sum(row) for row in zip(*([m / scale[p] for m in margins[p]] for p in parts), strict=True)]
