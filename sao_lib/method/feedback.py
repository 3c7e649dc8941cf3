"""Feedback sources: whatever orders two responses. A class each, found by its name in SOURCES.

A new source is one class here: `key` is its name in parameters, `printed` its name in tables, `folder_name` its name in
folders, `reads` the parameters it depends on, `opens` what it needs.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from sao_lib import hub
from sao_lib.engines import Engine, give_back, open_engine, seed_for
from sao_lib.files import Record
from sao_lib.method.judge import Verdict, llm_verdicts, pairs_of, verdict_of
from sao_lib.method.labelled import LabelledPair
from sao_lib.method.readings import BY_LANGUAGE_MODEL, by_embeddings, by_language_model
from sao_lib.method.rewards import RewardModel, open_relevance, open_reward_model
from sao_lib.settings import Engine as EngineSettings
from sao_lib.settings import Judge, Policy


class Source:
    """A feedback source, opened. `opens`: an engine to ask, a reward model, or nothing but the responses."""

    key: ClassVar[str]
    opens: ClassVar[Literal["engine", "reward model"] | None] = None
    reads: ClassVar[tuple[str, ...]] = ("source", "audit_questions", "audit_faults", "chunk")  # of settings.Judge

    def __init__(
        self, judge: Judge, policy: Policy | None, engine: EngineSettings | None, seed: int, log: Path
    ) -> None:
        self.judge, self.seed = judge, seed

    @property
    def printed(self) -> str:
        """What is printed in a table."""
        raise NotImplementedError

    @classmethod
    def folder_name(cls, judge: Judge) -> str:
        """The readable part of a run's folder."""
        return cls.key

    @classmethod
    def problem(cls, judge: Judge) -> str | None:
        """What is impossible in the parameters, in words, if anything is."""
        return f"source: {cls.key} takes no model" if judge.model else None

    def verdicts(self, rows: Sequence[Record], both: bool | None = None) -> list[Verdict]:
        """A verdict for each row {id, prompt, responses}; `both` overrides the orders a language model is asked in."""
        return [verdict_of(self.margin(row)) for row in rows]

    def margin(self, row: Record) -> float:
        """Positive where response 1 is preferred, 0 for a tie."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what was opened."""


class Chance(Source):
    """A coin, seeded by the row (SAO 4.4). Another `salt` is another coin for the same pairs."""

    key = "random"
    printed = "a seeded coin"
    reads = (*Source.reads, "salt")

    @classmethod
    def folder_name(cls, judge: Judge) -> str:
        return f"{cls.key}-salt-{judge.salt}" if judge.salt else cls.key

    def margin(self, row: Record) -> float:
        return random.Random(seed_for(self.seed, row["id"], self.judge.salt)).choice((1.0, -1.0))


class Shorter(Source):
    """The response with fewer characters (SAO 4.4)."""

    key = "length"
    printed = "the shorter response"

    def margin(self, row: Record) -> float:
        return float(len(row["responses"][1]["text"]) - len(row["responses"][0]["text"]))


class Reward(Source):
    """The response with the higher score of a reward model."""

    key = "reward"
    opens = "reward model"
    reads = (*Source.reads, "model")

    def __init__(
        self, judge: Judge, policy: Policy | None, engine: EngineSettings | None, seed: int, log: Path
    ) -> None:
        super().__init__(judge, policy, engine, seed, log)
        self.model: RewardModel = open_reward_model(str(judge.model), log)

    @property
    def printed(self) -> str:
        return f"score of {self.judge.model}"

    @classmethod
    def folder_name(cls, judge: Judge) -> str:
        return hub.short(str(judge.model))

    @classmethod
    def problem(cls, judge: Judge) -> str | None:
        return None if judge.model else f"source: {cls.key} needs a model"

    def verdicts(self, rows: Sequence[Record], both: bool | None = None) -> list[Verdict]:
        prompts = [r["prompt"] for r in rows]
        one, two = (self.model.scores(prompts, [r["responses"][k]["text"] for r in rows]) for k in (0, 1))
        return [verdict_of(a - b) for a, b in zip(one, two, strict=True)]


class Gold(Source):
    """A judge that a controlled experiment calls right, with a stated share of its verdicts turned (ours).

    It reads how much an answer adds that is to the point, by embeddings: no policy, no other source, and no parrot's
    friend. With every verdict turned it is a positive control, which must teach the opposite.
    """

    key = "gold"
    reads = (*Source.reads, "corrupted")
    READING = "added_new"

    def __init__(
        self, judge: Judge, policy: Policy | None, engine: EngineSettings | None, seed: int, log: Path
    ) -> None:
        super().__init__(judge, policy, engine, seed, log)
        self.model = open_relevance(log)

    @property
    def printed(self) -> str:
        turned = f", {100 * self.judge.corrupted:.0f}% of its verdicts turned" if self.judge.corrupted else ""
        return f"gold: embeddings, {self.READING}{turned}"

    @classmethod
    def folder_name(cls, judge: Judge) -> str:
        return f"{cls.key}-{100 * judge.corrupted:.0f}-corrupted" if judge.corrupted else cls.key

    def verdicts(self, rows: Sequence[Record], both: bool | None = None) -> list[Verdict]:
        pairs = [(r["prompt"], r["responses"][k]["text"]) for r in rows for k in (0, 1)]
        scores = by_embeddings(self.model, self.READING, pairs)
        margins = [one - two for one, two in zip(scores[::2], scores[1::2], strict=True)]
        return [verdict_of(-m if self._turned(r) else m) for r, m in zip(rows, margins, strict=True)]

    def _turned(self, row: Record) -> bool:
        """By a chance of each share's own: doses are independent, and not parts of one another."""
        chance = random.Random(f"{seed_for(self.seed, row['id'], -1)} {self.judge.corrupted}").random()
        return chance < self.judge.corrupted


class LanguageModel(Source):
    """A language model's ranking (SAO 3.3, eq. 3): the policy's own, or that of the model which `judge` names.

    With a pointwise reading it scores each response by itself, so there are no orders.
    """

    key = "llm"
    opens = "engine"
    reads = tuple(name for name in Judge.model_fields if name not in ("salt", "corrupted"))

    def __init__(
        self, judge: Judge, policy: Policy | None, engine: EngineSettings | None, seed: int, log: Path
    ) -> None:
        super().__init__(judge, policy, engine, seed, log)
        assert policy
        assert engine
        template = judge.chat_template if judge.model else policy.chat_template
        self.engine: Engine = open_engine(judge.model or policy.model, engine, log, template)

    @property
    def printed(self) -> str:
        model, how = self.judge.model or "the policy", "log-odds" if self.judge.reading == "logprob" else "text"
        if self.judge.reading in BY_LANGUAGE_MODEL:
            return f"{model}, {self.judge.reading}"
        orders = "both orders" if self.judge.orders == "both" else "one order"
        without = f", without criterion {self.judge.without_criterion}" if self.judge.without_criterion else ""
        return f"{model}, {how}, {orders}{without}"

    @classmethod
    def folder_name(cls, judge: Judge) -> str:
        name = hub.short(judge.model) if judge.model else "self"
        if judge.reading in BY_LANGUAGE_MODEL:
            return f"{name}-{judge.reading.replace('_', '-')}"
        without = f"-without-criterion-{judge.without_criterion}" if judge.without_criterion else ""
        order = "-one-order" if judge.reading == "logprob" and judge.orders == "one" else ""
        return f"{name}{without}{order}"

    @classmethod
    def problem(cls, judge: Judge) -> str | None:
        if judge.reading in BY_LANGUAGE_MODEL and judge.without_criterion:
            return f"reading: {judge.reading} asks for no ranking, so there is no criterion to leave out"
        if judge.reading in BY_LANGUAGE_MODEL and str(judge.model).startswith("openai/"):
            return f"reading: {judge.reading} needs log-probabilities of given texts, which no API returns"
        return None

    def verdicts(self, rows: Sequence[Record], both: bool | None = None) -> list[Verdict]:
        if self.judge.reading in BY_LANGUAGE_MODEL:
            one, two = (self._scores([(r["prompt"], r["responses"][k]["text"]) for r in rows]) for k in (0, 1))
            return [verdict_of(a - b) for a, b in zip(one, two, strict=True)]
        asked_both = self.judge.orders == "both" if both is None else both
        return llm_verdicts(self.engine, pairs_of(rows), self.judge, asked_both, self.seed)

    def _scores(self, pairs: list[tuple[str, str]]) -> list[float]:
        """Scores of (prompt, response); what stands there twice is read once."""
        new = list(dict.fromkeys(pairs))
        read = dict(zip(new, by_language_model(self.engine, self.judge.reading, new), strict=True))
        return [read[pair] for pair in pairs]

    def close(self) -> None:
        give_back(self.engine)


SOURCES: dict[str, type[Source]] = {source.key: source for source in (LanguageModel, Reward, Shorter, Chance, Gold)}


def open_source(judge: Judge, policy: Policy | None, engine: EngineSettings | None, seed: int, log: Path) -> Source:
    """The source that `judge` names, opened; `policy` is the model being aligned, `engine` how a model is asked."""
    return SOURCES[judge.source](judge, policy, engine, seed, log)


def as_rows(pairs: Sequence[LabelledPair]) -> list[Record]:
    """Labelled pairs in the schema of responses.jsonl."""
    return [{"id": p["id"], "prompt": p["prompt"], "responses": [{"text": t} for t in p["responses"]]} for p in pairs]
