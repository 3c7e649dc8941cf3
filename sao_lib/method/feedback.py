"""Feedback sources by name: whatever a row of an experiment lets order two responses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sao_lib.engines import Engine, open_engine
from sao_lib.method.judge import Verdict, heuristic_verdict, llm_verdicts, pairs_of, verdict_of
from sao_lib.method.labelled import LabelledPair
from sao_lib.method.rewards import RewardModel, open_reward_model
from sao_lib.settings import Engine as EngineSettings
from sao_lib.settings import Judge, Policy


class Feedback:
    """The source that `judge` names, opened; an LLM judge without a model of its own is the policy itself."""

    def __init__(
        self, judge: Judge, policy: Policy | None, engine: EngineSettings | None, seed: int, log: Path
    ) -> None:
        self.judge, self.seed = judge, seed
        self.engine: Engine | None = None
        self.reward: RewardModel | None = None
        if judge.source == "llm" and engine and policy:
            template = judge.chat_template if judge.model else policy.chat_template
            self.engine = open_engine(judge.model or policy.model, engine, log, template)
        elif judge.source == "reward" and judge.model:
            self.reward = open_reward_model(judge.model, log)

    @property
    def name(self) -> str:
        """What is printed in the table: the model and how it was asked."""
        if self.judge.source == "random":
            return "a seeded coin"
        if self.judge.source == "length":
            return "the shorter response"
        if self.judge.source == "reward":
            return f"score of {self.judge.model}"
        how = "log-odds" if self.judge.reading == "logprob" else "text"
        orders = "both orders" if self.judge.orders == "both" else "one order"
        without = f", without criterion {self.judge.without_criterion}" if self.judge.without_criterion else ""
        return f"{self.judge.model or 'the policy'}, {how}, {orders}{without}"

    def verdicts(self, rows: Sequence[dict[str, Any]], both: bool | None = None) -> list[Verdict]:
        """One verdict per row {id, prompt, responses}; `both` overrides the orders an LLM judge is asked in."""
        if self.engine:
            asked_both = self.judge.orders == "both" if both is None else both
            return llm_verdicts(self.engine, pairs_of(rows), self.judge, asked_both, self.seed)
        if self.reward:
            scores = [
                self.reward.scores([r["prompt"] for r in rows], [r["responses"][k]["text"] for r in rows])
                for k in (0, 1)
            ]
            return [verdict_of(a - b) for a, b in zip(*scores, strict=True)]
        return [heuristic_verdict(self.judge.source, row, self.seed) for row in rows]

    def close(self) -> None:
        if self.engine:
            self.engine.close()


def as_rows(pairs: Sequence[LabelledPair]) -> list[dict[str, Any]]:
    """Labelled pairs in the schema of responses.jsonl."""
    return [{"id": p["id"], "prompt": p["prompt"], "responses": [{"text": t} for t in p["responses"]]} for p in pairs]
