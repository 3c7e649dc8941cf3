"""Instruments that compare two answers, measured on pairs of known quality before one is trusted.

Every instrument gives a margin, positive where the second answer is better. A name like
`likelihood+reverse` adds margins, each divided by its standard deviation on the labelled pairs.

| name        | margin of an answer y to an instruction x                                      |
|-------------|--------------------------------------------------------------------------------|
| ranking     | log-odds in the ranking prompt, averaged over both orders                      |
| likelihood  | mean token log p(y given x)                                                    |
| reverse     | mean token log p(x given y)                                                    |
| relevance   | cosine similarity of sentence embeddings of x and y                            |
| alpaca_eval | the official AlpacaEval 2 prompt, log-odds of its two labels, one seeded order |
"""

import random
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sao_lib.engines import Conversation, Engine, open_engine, seed_for
from sao_lib.engines.chat import Message, fill
from sao_lib.errors import SaoError
from sao_lib.evaluate.grading import clustered_se
from sao_lib.files import Record, write_rows
from sao_lib.method.judge import llm_verdicts
from sao_lib.method.labelled import LabelledPair
from sao_lib.method.rewards import RELEVANCE_MODEL, RewardModel, open_reward_model
from sao_lib.runs import Run
from sao_lib.settings import Engine as EngineSettings
from sao_lib.settings import Evaluate, Judge

Triple = tuple[str, str, str]  # instruction, first answer, second answer
POINTWISE = ("likelihood", "reverse", "relevance")
REVERSE = "Write the question that this text answers.\n\n{answer}"


class Instruments:
    """Margins by name, with pointwise scores remembered so that a shared answer is scored once.

    `model` is the evaluation judge's name, `engine` the judge itself.
    """

    def __init__(self, model: str, engine: Engine, ranking: Judge, seed: int, log: Path) -> None:
        self.model, self.engine, self.ranking, self.seed, self.log = model, engine, ranking, seed, log
        self.scored: dict[tuple[str, str, str], float] = {}
        self._relevance: RewardModel | None = None

    def margins(self, name: str, triples: Sequence[Triple]) -> list[float]:
        """Margins of one simple instrument (no `+`), one per triple; positive: the second answer is better."""
        if name == "ranking":
            rows = llm_verdicts(self.engine, triples, self.ranking, True, self.seed)
            return [-(row["margin"] or 0.0) for row in rows]
        if name == "alpaca_eval":
            return self._alpaca_eval(triples)
        if name in POINTWISE:
            first = self.scores(name, [(x, a) for x, a, _ in triples])
            second = self.scores(name, [(x, b) for x, _, b in triples])
            return [b - a for a, b in zip(first, second, strict=True)]
        raise SaoError(
            f"Unknown instrument '{name}' in evaluate.judges; there are: ranking, alpaca_eval, {', '.join(POINTWISE)}."
        )

    def judged(self, calibration: dict[str, Any], triples: Sequence[Triple]) -> list[float]:
        """Margins of the instrument that a calibration chose; one alone keeps its own unit."""
        name = calibration["chosen"]
        if "+" not in name:
            return self.margins(name, triples)
        margins = {part: self.margins(part, triples) for part in simple_parts([name])}
        return combine(name, margins, calibration["scale"])

    def scores(self, name: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Pointwise scores of (instruction, answer); the higher the better."""
        new = list(dict.fromkeys(p for p in pairs if (name, *p) not in self.scored))
        if new:
            for pair, score in zip(new, self._score(name, new), strict=True):
                self.scored[(name, *pair)] = score
        return [self.scored[(name, *pair)] for pair in pairs]

    def keep(self, file: Path, references: Sequence[Record]) -> None:
        """Write what pointwise instruments said of the reference answers, {instrument, instruction, output, score}.

        `references` are rows {instruction, output}; the runs of other models read them instead of asking again.
        """
        wanted = {(row["instruction"], row["output"]) for row in references}
        rows = [
            {"instrument": name, "instruction": x, "output": y, "score": score}
            for (name, x, y), score in self.scored.items()
            if (x, y) in wanted
        ]
        write_rows(file, rows)

    def recall(self, rows: Sequence[Record]) -> None:
        """Know what `keep` wrote."""
        self.scored |= {(row["instrument"], row["instruction"], row["output"]): row["score"] for row in rows}

    def _score(self, name: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        if name == "relevance":
            if self._relevance is None:
                self._relevance = open_reward_model(RELEVANCE_MODEL, self.log)
            return self._relevance.scores([x for x, _ in pairs], [y for _, y in pairs])
        if name == "likelihood":
            given, text = [_turn(x) for x, _ in pairs], [y for _, y in pairs]
        else:
            given, text = [_turn(fill(REVERSE, {"answer": y})) for _, y in pairs], [x for x, _ in pairs]
        return [statistics.fmean(row) for row in self.engine.completion_logprobs(given, text)]

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
    opened = open_engine(model, asked, log, template)
    ranking = Judge(source="llm", template=settings.judge_template, reading="logprob", orders="both")
    return Instruments(model, opened, ranking, run.params["seed"], log)


def _turn(content: str) -> Conversation:
    return Conversation(({"role": "user", "content": content},))


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
    return list(dict.fromkeys(part for name in names for part in name.split("+")))


def combine(name: str, margins: dict[str, list[float]], scale: dict[str, float]) -> list[float]:
    """Margins of a possibly composite instrument."""
    parts = name.split("+")
    return [sum(row) for row in zip(*([m / scale[p] for m in margins[p]] for p in parts), strict=True)]


def calibrate(instruments: Instruments, names: Sequence[str], pairs: Sequence[LabelledPair]) -> dict[str, Any]:
    """Measure candidates on labelled pairs and choose: {chosen, scale, agreement, choice_agreement, pairs, se}.

    The choice uses every other question; `agreement` is measured on the rest, so choosing does not flatter it.
    A tie counts as wrong. `se` is the standard error of the chosen one's agreement, clustered by question, because the
    pairs of a question share its good answer; None where they are of fewer than two questions.
    """
    triples = [(p["prompt"], *p["responses"]) for p in pairs]
    margins = {part: instruments.margins(part, triples) for part in simple_parts(names)}
    scale = {part: statistics.pstdev(values) or 1.0 for part, values in margins.items()}
    question = [p["id"].partition("-")[0] for p in pairs]
    choosing = set(list(dict.fromkeys(question))[::2])
    in_choice = [q in choosing for q in question]
    right = {
        name: [m * (1 if p["good"] == 2 else -1) > 0 for m, p in zip(combine(name, margins, scale), pairs, strict=True)]
        for name in names
    }
    share = {
        name: {side: _share([r for r, c in zip(rows, in_choice, strict=True) if c == side]) for side in (True, False)}
        for name, rows in right.items()
    }
    chosen = max(names, key=lambda name: share[name][True])
    held = [(r, q) for r, q, c in zip(right[chosen], question, in_choice, strict=True) if not c]
    return {
        "chosen": chosen,
        "scale": scale,
        "choice_agreement": {name: s[True] for name, s in share.items()},
        "agreement": {name: s[False] for name, s in share.items()},
        "pairs": len(held),
        "se": clustered_se([r for r, _ in held], [q for _, q in held]),
    }


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")
