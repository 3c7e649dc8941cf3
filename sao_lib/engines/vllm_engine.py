"""vLLM: the engine of every profile. On CPU it runs in this process, on GPUs in processes of its own."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sao_lib.engines import Completion, Conversation, fits, label_ids, not_asked
from sao_lib.engines.chat import Chat
from sao_lib.errors import SaoError
from sao_lib.machine import has_gpu
from sao_lib.progress import TOKENS, bar, quiet
from sao_lib.settings import Engine as EngineSettings

CPU_BLOCK = 32  # tokens in a block of vLLM's cache on CPU, and so the grain at which beginnings are shared


def _environment(settings: EngineSettings, cuda: bool) -> None:
    """What vLLM reads from the environment; must be set before it is imported."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # nothing leaves the machine
    # Its logging set-up closes every other library's log handlers, and absl's takes the notebook's output with it.
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    if not cuda:
        # In this process, unless somebody wants GPUs' process model: no second interpreter to start.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB, its least; num_gpu_blocks_override says what is used
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


HEAD_IN_FP32 = {"head_dtype": "float32"}


def _on_gpus(settings: EngineSettings) -> dict[str, Any]:
    # The last layer adds up in fp32 at no cost there. In bf16 its logits lie on a grid of 1/16 nat.
    return {"tensor_parallel_size": settings.tensor_parallel, "hf_overrides": HEAD_IN_FP32}


def _on_cpu(settings: EngineSettings) -> dict[str, Any]:
    return {
        "enforce_eager": True,  # compiling takes a minute and gains a tenth
        "enable_chunked_prefill": False,  # with it per-request seeds fail: "CPU Generator does not use offset"
        "max_num_batched_tokens": settings.max_model_len,
        "block_size": CPU_BLOCK,
        "num_gpu_blocks_override": settings.kv_cache_tokens // CPU_BLOCK,
        # A model in another process cannot be reached for as long as labels are read.
        **({"hf_overrides": HEAD_IN_FP32} if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1" else {}),
    }


def options_of(settings: EngineSettings, cuda: bool) -> dict[str, Any]:
    """What vLLM is opened with: ours, and over it `engine.options`; fp32 in the last layer stays unless they say."""
    ours: dict[str, Any] = {
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "enable_prefix_caching": settings.prefix_caching,
        "disable_log_stats": True,
        "seed": 0,
        **(_on_gpus(settings) if cuda else _on_cpu(settings)),
    }
    overrides = {**ours.get("hf_overrides", {}), **settings.options.get("hf_overrides", {})}
    return {**ours, **settings.options, **({"hf_overrides": overrides} if overrides else {})}


def _head(dtype: str) -> Callable[[Any], None]:
    """What sets the type of a model's last layer."""

    def change(model: Any) -> None:
        import torch

        model.logits_processor.head_dtype = getattr(torch, dtype)

    return change


def _completion(prompt: int, output: Any) -> Completion:
    said = output.outputs[0]
    return Completion(said.text, said.finish_reason == "stop", prompt, len(said.token_ids))


def _but_for_weights(folder: Path) -> dict[str, Any]:
    """What vLLM read of a model when it started and does not read again with other weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).to_dict()
    file = folder / "generation_config.json"  # with what ends a text
    generation = json.loads(file.read_text()) if file.is_file() else {}
    elsewhere = ("_name_or_path", "use_cache", "dtype", "transformers_version")  # of the file, not of the model
    return {k: v for k, v in {**generation, **config}.items() if k not in elsewhere}


class VLLMEngine:
    def __init__(self, folder: Path, settings: EngineSettings, log: Path, chat_template: str | None) -> None:
        self.folder, self.chat, self.settings, self.log = folder, Chat(folder, chat_template), settings, log
        cuda = has_gpu()
        _environment(settings, cuda)
        options = options_of(settings, cuda)
        self.head_in_fp32 = options.get("hf_overrides", {}).get("head_dtype") == "float32"
        with quiet(log):
            try:
                from vllm import LLM
            except ModuleNotFoundError as missing:
                raise SaoError(f'vLLM cannot be used here ({missing}); SET="engine.kind=transformers".') from None

            try:
                self.llm = LLM(str(folder), **options)
            except TypeError as error:
                if not settings.options:
                    raise
                raise SaoError(f"vLLM does not take engine.options {settings.options}: {error}.") from None

    def reload(self, folder: Path, settings: EngineSettings, log: Path, chat_template: str | None) -> bool:
        """Put `folder`'s weights in place (a second instead of a new engine's 15); False if shapes or settings differ.

        From then on chatter goes to `log`.
        """
        if settings != self.settings:
            return False
        if folder == self.folder:
            self.chat, self.log = Chat(folder, chat_template), log
            return True
        if _but_for_weights(folder) != _but_for_weights(self.folder):
            return False
        with quiet(log):
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self.folder, self.chat, self.log = folder, Chat(folder, chat_template), log
        return True

    def _run(self, ids: list[list[int]], params: list[Any]) -> list[Any]:
        """vLLM's output of each request, None of one that does not fit."""
        from vllm import TokensPrompt

        fit = [n for n, (i, p) in enumerate(zip(ids, params, strict=True)) if fits(len(i), p.max_tokens, self.settings)]
        if len(fit) < len(ids):
            self._say_too_long(ids, len(ids) - len(fit))
            found = dict(
                zip(fit, self._run([ids[n] for n in fit], [params[n] for n in fit]) if fit else [], strict=True)
            )
            return [found.get(n) for n in range(len(ids))]
        with quiet(self.log):
            # Each call starts from an empty prefix cache, so a resumed run computes what an uninterrupted one does.
            self.llm.reset_prefix_cache()
            order = sorted(range(len(ids)), key=ids.__getitem__)  # neighbours share the longest beginnings
            prompts = [TokensPrompt(prompt_token_ids=ids[i]) for i in order]
            out = self.llm.generate(prompts, [params[i] for i in order], use_tqdm=bar())
        TOKENS["read"] += sum(map(len, ids)) - sum(o.num_cached_tokens or 0 for o in out)
        TOKENS["written"] += sum(len(o.outputs[0].token_ids) for o in out)
        return [o for _, o in sorted(zip(order, out, strict=True), key=lambda pair: pair[0])]

    def _say_too_long(self, ids: list[list[int]], count: int) -> None:
        longest, most = max(map(len, ids)), self.settings.max_model_len
        with quiet(self.log):
            print(f"{count} of {len(ids)} requests are too long, up to {longest} tokens; max_model_len is {most}")

    def generate(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Completion]:
        from vllm import SamplingParams

        ids = [self.chat.ids(c.messages, c.prefill) for c in conversations]
        params = [SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=s) for s in seeds]
        out = self._run(ids, params)
        return [_completion(len(i), o) if o else not_asked(len(i)) for i, o in zip(ids, out, strict=True)]

    def label_logprobs(self, conversations: Sequence[Conversation], labels: tuple[str, ...]) -> list[tuple[float, ...]]:
        from vllm import SamplingParams

        wanted = label_ids(self.chat, labels)
        ids = [self.chat.ids(c.messages, c.prefill) for c in conversations]
        params = [SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=wanted)] * len(ids)
        with self._exact_head():
            first = [o and o.outputs[0].logprobs[0] for o in self._run(ids, params)]
        return [tuple(f[i].logprob if f else math.nan for i in wanted) for f in first]

    @contextmanager
    def _exact_head(self) -> Iterator[None]:
        """The last layer in fp32, for as long as labels are read: on CPU every step copies its weights for that."""
        if not self.head_in_fp32:
            self.llm.apply_model(_head("float32"))
        try:
            yield
        finally:
            if not self.head_in_fp32:
                self.llm.apply_model(_head(self.settings.dtype))

    def completion_logprobs(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> list[list[float]]:
        from vllm import SamplingParams

        starts = [self.chat.ids(c.messages, c.prefill) for c in conversations]
        ends = [self.chat.text_ids(self.chat.neutral(text)) or [self.chat.end_of_turn] for text in completions]
        ids = [s + e for s, e in zip(starts, ends, strict=True)]
        params = [SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)] * len(ids)
        out = self._run(ids, params)
        return [
            [o.prompt_logprobs[at][i[at]].logprob for at in range(len(s), len(i))] if o else [math.nan]
            for s, i, o in zip(starts, ids, out, strict=True)
        ]

    def close(self) -> None:
        import gc

        if hasattr(self.llm, "llm_engine"):
            with quiet(self.log):
                self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
