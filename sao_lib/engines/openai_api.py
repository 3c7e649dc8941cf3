"""Any OpenAI-compatible API, through the openai client: OPENAI_API_KEY and OPENAI_BASE_URL from the environment.

The cap in dollars is checked before the first call against the most that the calls can cost. Rate limits
and dropped connections are retried by the client with back-off.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sao_lib.engines import Completion, Conversation
from sao_lib.errors import SaoError
from sao_lib.settings import PARAMS, read_yaml
from sao_lib.settings import Engine as EngineSettings

CHARACTERS_PER_TOKEN = 3  # a cautious divisor for the estimate; English text has about 4
WORKERS = 8
RETRIES = 6


def require_key(model: str) -> None:
    """Raise SaoError unless OPENAI_API_KEY is set."""
    if not os.environ.get("OPENAI_API_KEY"):
        raise SaoError(f"{model} needs OPENAI_API_KEY in the environment (and OPENAI_BASE_URL for another server).")


def most_usd(model: str, conversations: Sequence[Conversation], max_tokens: int) -> float:
    """Upper estimate in dollars of one call per conversation; raises SaoError if the model has no listed rate."""
    rates = read_yaml(PARAMS / "rates.yaml")["api"]
    if model not in rates:
        raise SaoError(f"params/rates.yaml lists no price for '{model}', so its cost cannot be capped; add a line.")
    characters = sum(len(m["content"]) for c in conversations for m in c.messages)
    tokens_in = characters / CHARACTERS_PER_TOKEN + 20 * len(conversations)
    rate = rates[model]
    return float((tokens_in * rate["input"] + max_tokens * len(conversations) * rate["output"]) / 1e6)


class OpenAIEngine:
    def __init__(self, model: str, settings: EngineSettings, log: Path) -> None:
        from openai import OpenAI

        require_key(f"openai/{model}")
        self.model, self.settings, self.log = model, settings, log
        self.spent = 0.0
        self.client = OpenAI(max_retries=RETRIES, timeout=120)

    def _all(self, conversations: Sequence[Conversation], max_tokens: int, extra: list[dict[str, Any]]) -> list[Any]:
        cost = most_usd(self.model, conversations, max_tokens)
        if self.spent + cost > self.settings.max_usd:
            raise SaoError(
                f"These {len(conversations)} calls to {self.model} may cost ${cost:.2f}, with ${self.spent:.2f} spent "
                f"before: more than the cap engine.max_usd = ${self.settings.max_usd:.2f}. Raise the cap or lower n."
            )
        self.spent += cost
        with ThreadPoolExecutor(WORKERS) as pool:
            return list(
                pool.map(lambda job: self._call(job[0], max_tokens, job[1]), zip(conversations, extra, strict=True))
            )

    def _call(self, conversation: Conversation, max_tokens: int, extra: dict[str, Any]) -> Any:
        from openai import APIConnectionError, APIStatusError, AuthenticationError

        messages: Any = list(conversation.messages)
        try:
            return self.client.chat.completions.create(
                model=self.model, messages=messages, max_completion_tokens=max_tokens, **extra
            )
        except AuthenticationError:
            raise SaoError(f"The API refused OPENAI_API_KEY for {self.model}; check the key.") from None
        except APIConnectionError:
            raise SaoError(f"The API at {self.client.base_url} cannot be reached; check OPENAI_BASE_URL.") from None
        except APIStatusError as error:
            raise SaoError(f"The API answered {error.status_code} for {self.model}: {error.message[:160]}") from None

    def generate(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Completion]:
        extra = [{"temperature": temperature, "seed": seed % 2**31} for seed in seeds]
        out = []
        for reply in self._all(conversations, max_tokens, extra):
            choice, usage = reply.choices[0], reply.usage
            tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
            out.append(Completion(choice.message.content or "", choice.finish_reason == "stop", *tokens))
        return out

    def label_logprobs(self, conversations: Sequence[Conversation], labels: tuple[str, ...]) -> list[tuple[float, ...]]:
        extra: list[dict[str, Any]] = [{"temperature": 0, "logprobs": True, "top_logprobs": 20}] * len(conversations)
        out = []
        for reply in self._all(conversations, 1, extra):
            found = reply.choices[0].logprobs
            top = found.content[0].top_logprobs if found and found.content else []
            mass = {
                label: math.fsum(math.exp(t.logprob) for t in top if t.token.strip() == label.strip())
                for label in labels
            }
            out.append(tuple(_log(mass[label]) for label in labels))
        return out

    def completion_logprobs(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> list[list[float]]:
        raise SaoError("An OpenAI-compatible API does not give log-probabilities of a given answer; use engine vllm.")

    def close(self) -> None:
        self.client.close()


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -100.0
