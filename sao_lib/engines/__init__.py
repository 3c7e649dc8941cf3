"""One interface, three engines: vLLM, transformers, and any OpenAI-compatible API.

Local engines render every request with `sao_lib.engines.chat`, so the same request gives the same token ids in
vLLM, in transformers and in training. Which operations an engine offers:

| operation                 | vllm | transformers | openai                  |
|---------------------------|------|--------------|-------------------------|
| generate                  | yes  | yes          | yes                     |
| label_logprobs            | yes  | yes          | where the API gives top_logprobs |
| completion_logprobs       | yes  | yes          | no                      |

A request that does not fit the model's context ends no run: it is not asked, its completion has the reason, its
log-probabilities are NaN, and the stages count it and leave it out.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from sao_lib.engines.chat import Chat, Message
from sao_lib.engines.models import resolve
from sao_lib.errors import SaoError
from sao_lib.settings import Engine as EngineSettings
from sao_lib.settings import Policy


@dataclass(frozen=True)
class Conversation:
    """A request: messages, and the text the assistant's answer begins with."""

    messages: tuple[Message, ...]
    prefill: str = ""


def user_turn(policy: Policy, prompt: str) -> Conversation:
    """A prompt as the policy sees it, with its system message if it has one."""
    system: list[Message] = [{"role": "system", "content": policy.system}] if policy.system else []
    return Conversation((*system, {"role": "user", "content": prompt}))


def seed_for(run_seed: int, row: str, sample: int = 0) -> int:
    """A sampling seed that depends on the row and not on its place in a batch."""
    return int(hashlib.sha256(f"{run_seed}/{row}/{sample}".encode(errors="replace")).hexdigest()[:8], 16) % 2**31


@dataclass(frozen=True)
class Completion:
    """What came back: the text without the prefill, whether the model ended it, tokens in and out.

    `reason` says why nothing was asked, where nothing was.
    """

    text: str
    finished: bool
    tokens_in: int
    tokens_out: int
    reason: str | None = None


class Engine(Protocol):
    def generate(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion per conversation, each sampled with its own seed."""

    def label_logprobs(self, conversations: Sequence[Conversation], labels: tuple[str, ...]) -> list[tuple[float, ...]]:
        """log p of each label as the next token (nats), the last layer in fp32; NaN where nothing was asked."""

    def completion_logprobs(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> list[list[float]]:
        """log p of every token of each completion, given its conversation (nats); one NaN where nothing was asked."""

    def close(self) -> None:
        """Give memory back."""


TOO_LONG = "too long"  # the reason of a request that does not fit


def fits(prompt: int, answer: int, settings: EngineSettings) -> bool:
    """Whether a request of `prompt` tokens can be asked for `answer` more: what every engine of ours asks first."""
    return prompt + answer <= settings.max_model_len


def not_asked(prompt: int = 0) -> Completion:
    """What stands for the completion of a request that does not fit."""
    return Completion("", False, prompt, 0, TOO_LONG)


def was_asked(value: float) -> bool:
    """Whether a log-probability, or what was computed from some, is of requests that were asked."""
    return not math.isnan(value)


_kept: Engine | None = None  # given back by a notebook, for the next that this process executes
_opened: "WeakSet[Engine]" = WeakSet()  # all that this process has opened and something still holds


def open_engine(model: str, settings: EngineSettings, log: Path, chat_template: str | None = None) -> Engine:
    """An engine for `model`; library chatter goes to the file `log`. Raises SaoError if it cannot be had.

    One that was given back is taken again, with other weights, where its settings and the model's shapes are the same.
    """
    global _kept
    engine, _kept = _kept, None
    reload = getattr(engine, "reload", None)
    try:
        if reload and not model.startswith("openai/") and reload(resolve(model), settings, log, chat_template):
            assert engine
            return engine
    except BaseException:  # with half of its weights in place it serves nobody
        _close(engine)
        raise
    _close(engine)
    started = _start(model, settings, log, chat_template)
    _opened.add(started)
    return started


def give_back(engine: Engine) -> None:
    """A notebook is done with `engine`: it is kept, one at a time, where it could serve another model, else closed."""
    global _kept
    close_kept()
    if hasattr(engine, "reload"):
        _kept = engine
    else:
        _close(engine)


def close_kept() -> None:
    """Close the engine that this process keeps, if any, because something else needs its place."""
    global _kept
    engine, _kept = _kept, None
    _close(engine)


def close_left() -> None:
    """Close what a notebook that failed has opened and not given back."""
    for engine in [engine for engine in _opened if engine is not _kept]:
        _close(engine)


def _close(engine: Engine | None) -> None:
    if engine:
        _opened.discard(engine)
        engine.close()


def _start(model: str, settings: EngineSettings, log: Path, chat_template: str | None) -> Engine:
    if model.startswith("openai/"):
        from sao_lib.engines.openai_api import OpenAIEngine

        return OpenAIEngine(model.removeprefix("openai/"), settings, log)
    if settings.kind == "openai":
        raise SaoError(f"Engine kind openai needs a model named openai/..., not {model}.")
    folder = resolve(model)
    if settings.data_parallel > 1:
        from sao_lib.engines.replicas import Replicas

        return Replicas(folder, settings, log, chat_template)
    if settings.kind == "vllm":
        from sao_lib.engines.vllm_engine import VLLMEngine

        return VLLMEngine(folder, settings, log, chat_template)
    from sao_lib.engines.hf_engine import TransformersEngine

    return TransformersEngine(folder, settings, log, chat_template)


def label_ids(chat: Chat, labels: tuple[str, ...]) -> list[int]:
    """Token ids of one-token labels; raises SaoError if a label is longer or two are the same."""
    ids = [chat.text_ids(label) for label in labels]
    if any(len(i) != 1 for i in ids) or len({i[0] for i in ids}) < len(ids):
        raise SaoError(f"The labels {labels} are not different single tokens for this model; choose others.")
    return [i[0] for i in ids]
