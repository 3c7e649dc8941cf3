"""Any OpenAI-compatible API, through the openai client: OPENAI_API_KEY and OPENAI_BASE_URL from the environment.

Every reply is written to the run's folder as it comes, and what is there is not asked again, so that a killed or
failed run continues call by call. The cap in dollars holds across restarts: what the replies cost, plus the most that
the calls still to make can cost, is checked before the first of them.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from sao_lib.engines import TOO_LONG, Completion, Conversation, not_asked
from sao_lib.errors import SaoError
from sao_lib.files import Record, append_rows, digest, resume_rows
from sao_lib.settings import PARAMS, read_yaml
from sao_lib.settings import Engine as EngineSettings

JOURNAL = "api_calls.jsonl"
CHARACTERS_PER_TOKEN = 3  # a cautious divisor for the estimate; English text has about 4
# The client waits 0.5, 1, 2, 4 and then 8 seconds, each less up to a quarter, or as long as Retry-After says, up to two
# minutes. Fourteen retries without that header wait 65 to 88 seconds: more than a rate limit's minute.
RETRIES = 14

Key = tuple[str, int]


def require_key(model: str) -> None:
    """Raise SaoError unless OPENAI_API_KEY is set."""
    if not os.environ.get("OPENAI_API_KEY"):
        raise SaoError(f"{model} needs OPENAI_API_KEY in the environment (and OPENAI_BASE_URL for another server).")


@cache
def _rates() -> dict[str, Any]:
    return dict(read_yaml(PARAMS / "rates.yaml")["api"])


def usd(model: str, tokens_in: float, tokens_out: float) -> float:
    """Dollars at the listed price; raises SaoError if the model has none."""
    rate = _rates().get(model)
    if rate is None:
        raise SaoError(f"params/rates.yaml lists no price for '{model}', so its cost cannot be capped; add a line.")
    return float((tokens_in * rate["input"] + tokens_out * rate["output"]) / 1e6)


def most_usd(model: str, conversations: Sequence[Conversation], max_tokens: int) -> float:
    """Upper estimate in dollars of one call per conversation; raises SaoError if the model has no listed price."""
    characters = sum(len(m["content"]) for c in conversations for m in c.messages)
    tokens_in = characters / CHARACTERS_PER_TOKEN + 20 * len(conversations)
    return usd(model, tokens_in, max_tokens * len(conversations))


class Journal:
    """The paid replies in one run's folder, by request and occurrence; one is on disk before it is used."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        try:
            rows = resume_rows(path, 1)
        except SaoError as error:
            line, damaged, _ = str(error).partition(" is not valid JSON")
            if not damaged:
                raise
            raise SaoError(
                f"{line}{damaged}; delete that line alone, the others are paid replies, and run the same command again."
            ) from None
        self.rows = {(str(row["request"]), int(row["occurrence"])): row for row in rows}

    @property
    def spent(self) -> float:
        """Dollars that all replies cost."""
        return math.fsum(row["usd"] for row in self.rows.values())

    def keep(self, key: Key, reply: Record) -> None:
        row = {"request": key[0], "occurrence": key[1], **reply}
        with self._lock:
            append_rows(self.path, [row])
            self.rows[key] = row


def keys_of(requests: Sequence[Record]) -> list[Key]:
    """A digest of each request and how often the same one stands before it: repeated samples stay distinct."""
    seen: Counter[str] = Counter()
    keys = []
    for name in map(digest, requests):
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


class OpenAIEngine:
    def __init__(self, model: str, settings: EngineSettings, log: Path) -> None:
        from openai import OpenAI

        require_key(f"openai/{model}")
        self.model, self.settings, self.log = model, settings, log
        self.journal = Journal(log.parent / JOURNAL)
        self.client = OpenAI(max_retries=RETRIES, timeout=120)

    def _all(self, conversations: Sequence[Conversation], max_tokens: int, extra: Sequence[Record]) -> list[Record]:
        """One reply per conversation: those of the journal, and the rest asked now."""
        requests = [
            {"model": self.model, "messages": list(c.messages), "max_completion_tokens": max_tokens, **more}
            for c, more in zip(conversations, extra, strict=True)
        ]
        keys = keys_of(requests)
        most = {
            i: most_usd(self.model, [conversations[i]], max_tokens)
            for i, key in enumerate(keys)
            if key not in self.journal.rows
        }
        self._check_cap(math.fsum(most.values()), len(most))
        failures: list[SaoError] = []

        def ask(i: int) -> None:
            if failures:
                return
            try:
                self.journal.keep(keys[i], self._call(requests[i], most[i]))
            except SaoError as error:
                failures.append(error)

        with ThreadPoolExecutor(self.settings.api_workers) as pool:
            list(pool.map(ask, most))
        if failures:
            kept = sum(key in self.journal.rows for key in keys)
            raise SaoError(
                f"{str(failures[0]).rstrip('.')}; {kept} of these {len(keys)} replies are kept in {self.journal.path}, "
                "and the same command continues after them."
            )
        return [self.journal.rows[key] for key in keys]

    def _check_cap(self, most: float, calls: int) -> None:
        spent = self.journal.spent
        if calls and spent + most > self.settings.max_usd:
            raise SaoError(
                f"These {calls} calls to {self.model} may cost ${most:.2f}, with ${spent:.2f} spent before: more than "
                f"the cap engine.max_usd = ${self.settings.max_usd:.2f}. Raise the cap or lower n."
            )

    def _call(self, request: Record, most: float) -> Record:
        """What is kept of one reply; one that does not say its tokens counts as `most` dollars."""
        from openai import APIConnectionError, APIStatusError, AuthenticationError, BadRequestError

        where = f"The API at {self.client.base_url}"
        try:
            reply: Any = self.client.chat.completions.create(**request)
        except AuthenticationError:
            raise SaoError(f"The API refused OPENAI_API_KEY for {self.model}; check the key.") from None
        except APIConnectionError:
            raise SaoError(f"{where} cannot be reached; check OPENAI_BASE_URL.") from None
        except BadRequestError as error:
            if error.code != "context_length_exceeded":
                raise SaoError(f"The API answered 400 for {self.model}: {error.message[:160]}") from None
            return {"model": self.model, "text": "", "finish_reason": TOO_LONG, "tokens_in": 0, "tokens_out": 0,
                    "top_logprobs": [], "usd": 0.0}  # fmt: skip
        except APIStatusError as error:
            raise SaoError(f"The API answered {error.status_code} for {self.model}: {error.message[:160]}") from None
        if not getattr(reply, "choices", None):
            raise SaoError(f"{where} gave no completion; check OPENAI_BASE_URL.")
        choice, usage = reply.choices[0], reply.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        first = choice.logprobs.content[0] if choice.logprobs and choice.logprobs.content else None
        return {
            "model": self.model,
            "text": choice.message.content or "",
            "finish_reason": choice.finish_reason,
            "tokens_in": tokens[0],
            "tokens_out": tokens[1],
            "top_logprobs": [[t.token, t.logprob] for t in first.top_logprobs] if first else [],
            "usd": usd(self.model, *tokens) if usage else most,
        }

    def generate(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Completion]:
        extra = [{"temperature": temperature, "seed": seed % 2**31} for seed in seeds]
        return [
            not_asked()
            if row["finish_reason"] == TOO_LONG
            else Completion(row["text"], row["finish_reason"] == "stop", row["tokens_in"], row["tokens_out"])
            for row in self._all(conversations, max_tokens, extra)
        ]

    def label_logprobs(self, conversations: Sequence[Conversation], labels: tuple[str, ...]) -> list[tuple[float, ...]]:
        extra: list[Record] = [{"temperature": 0, "logprobs": True, "top_logprobs": 20}] * len(conversations)
        out = []
        for row in self._all(conversations, 1, extra):
            if row["finish_reason"] == TOO_LONG:
                out.append((math.nan,) * len(labels))
                continue
            top = row["top_logprobs"]
            mass = [math.fsum(math.exp(p) for token, p in top if token.strip() == label.strip()) for label in labels]
            out.append(tuple(_log(p) for p in mass))
        return out

    def completion_logprobs(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> list[list[float]]:
        raise SaoError("An OpenAI-compatible API does not give log-probabilities of a given answer; use engine vllm.")

    def close(self) -> None:
        self.client.close()


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -100.0
