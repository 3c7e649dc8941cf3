"""Data parallel: copies of a model, each a vLLM engine in a process with GPUs of its own, sharing out the requests.

vLLM's `LLM` refuses data_parallel_size > 1 and asks for one process a copy, which is what this is. A model that fits
one card is served faster by four copies than by one spread over four cards: nothing is exchanged between them.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sao_lib.engines import Completion, Conversation, Engine
from sao_lib.engines.chat import Chat
from sao_lib.errors import SaoError
from sao_lib.machine import visible_gpus
from sao_lib.progress import TOKENS
from sao_lib.settings import Engine as EngineSettings
from sao_lib.writers import STARTED_BY, die_with_parent

_engine: Engine | None = None  # in a copy's process: the copy


class Replicas:
    """An Engine of `settings.data_parallel` copies; neighbours stay together, so they share what they begin with.

    Raises SaoError when there are fewer GPUs than the copies need, or a copy's process is gone.
    """

    def __init__(self, folder: Path, settings: EngineSettings, log: Path, chat_template: str | None) -> None:
        devices, self.log, self.chat = devices_of_copies(settings), log, Chat(folder, chat_template)
        context = get_context("spawn")  # a forked process cannot use CUDA
        self.pools = [ProcessPoolExecutor(1, mp_context=context) for _ in devices]
        self.settings, alone = settings, settings.model_copy(update={"data_parallel": 1})
        try:
            self._each(_start, [(os.getpid(), cards, folder, alone, log, chat_template) for cards in devices])
        except BaseException:  # the copies that did start would keep their cards
            self.close()
            raise

    def _each(self, call: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What `call` gives in each copy's process, all at once, each with its own arguments."""
        jobs = [pool.submit(call, *given) for pool, given in zip(self.pools, arguments, strict=True)]
        try:
            return [job.result() for job in jobs]
        except BrokenProcessPool:
            raise SaoError(
                f"A copy of the engine was ended from outside, perhaps for memory; see {self.log}."
            ) from None

    def _dealt(self, method: str, lists: dict[str, Sequence[Any]], **same: Any) -> list[Any]:
        """`method` of every copy on its equal share of the parallel `lists`; results in the order of the lists."""
        count, copies = len(next(iter(lists.values()))), len(self.pools)
        cuts = [count * number // copies for number in range(copies + 1)]
        shares = [{k: v[a:b] for k, v in lists.items()} for a, b in zip(cuts, cuts[1:], strict=False)]
        done = self._each(_counted, [(method, {**share, **same}) for share in shares])
        for _, tokens in done:
            TOKENS.update(tokens)
        return [result for part, _ in done for result in part]

    def generate(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Completion]:
        lists = {"conversations": conversations, "seeds": seeds}
        return self._dealt("generate", lists, max_tokens=max_tokens, temperature=temperature)

    def label_logprobs(self, conversations: Sequence[Conversation], labels: tuple[str, ...]) -> list[tuple[float, ...]]:
        return self._dealt("label_logprobs", {"conversations": conversations}, labels=labels)

    def completion_logprobs(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> list[list[float]]:
        return self._dealt("completion_logprobs", {"conversations": conversations, "completions": completions})

    def reload(self, folder: Path, settings: EngineSettings, log: Path, chat_template: str | None) -> bool:
        """As VLLMEngine.reload, in every copy."""
        if settings != self.settings:
            return False
        alone = settings.model_copy(update={"data_parallel": 1})
        given = {"folder": folder, "settings": alone, "log": log, "chat_template": chat_template}
        if not all(self._each(_call, [("reload", given)] * len(self.pools))):
            return False
        self.log, self.chat = log, Chat(folder, chat_template)
        return True

    def close(self) -> None:
        """Close every copy's engine, then its process, which would wait for the engine's own processes for ever."""
        for pool in self.pools:
            with suppress(BrokenProcessPool):  # its process is gone, and with it what there was to close
                pool.submit(_close)
        for pool in self.pools:
            pool.shutdown()


def devices_of_copies(settings: EngineSettings) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each copy, None without CUDA; raises SaoError when there are too few GPUs."""
    copies, cards, visible = settings.data_parallel, settings.tensor_parallel, visible_gpus()
    if not visible:
        return [None] * copies
    if len(visible) < copies * cards:
        raise SaoError(
            f"engine.data_parallel {copies} x tensor_parallel {cards} needs {copies * cards} GPUs, "
            f"here are {len(visible)}; lower one of them."
        )
    return [",".join(visible[copy * cards : (copy + 1) * cards]) for copy in range(copies)]


def _start(
    parent: int, cards: str | None, folder: Path, settings: EngineSettings, log: Path, chat_template: str | None
) -> None:
    """Open this process's copy; it ends with the process that asked for it."""
    global _engine
    os.environ[STARTED_BY] = str(parent)
    die_with_parent()
    if cards is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards  # before CUDA is looked at
    from sao_lib.engines.vllm_engine import VLLMEngine

    _engine = VLLMEngine(folder, settings, log, chat_template)


def _counted(method: str, arguments: dict[str, Any]) -> tuple[Any, Counter[str]]:
    """What the copy's method gives, and the tokens that this took."""
    before = TOKENS.copy()
    return _call(method, arguments), TOKENS - before


def _close() -> None:
    """Close this process's copy, if it was opened."""
    global _engine
    engine, _engine = _engine, None
    if engine:
        engine.close()


def _call(method: str, arguments: dict[str, Any]) -> Any:
    return getattr(_engine, method)(**arguments)
