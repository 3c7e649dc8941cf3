"""transformers: the engine that needs no extra install. How much slower it is stands in benchmarks/README.md."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sao_lib.engines import Completion, Conversation, fits, label_ids, not_asked
from sao_lib.engines.chat import Chat
from sao_lib.engines.models import attention_for, end_ids
from sao_lib.machine import has_gpu
from sao_lib.progress import TOKENS, quiet
from sao_lib.settings import Engine as EngineSettings


class SeededSampler:
    """A logits processor that makes greedy search draw each row from softmax(logits / temperature) with its own seed.

    By the Gumbel-max trick: argmax of logits / temperature - log(E), E exponential, is such a draw.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: str) -> None:
        import torch

        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`scores`: [rows, vocabulary]."""
        import torch

        noise = torch.stack(
            [torch.empty_like(row).exponential_(generator=g) for row, g in zip(scores, self.generators, strict=True)]
        )
        return scores / self.temperature - noise.log()


class TransformersEngine:
    def __init__(self, folder: Path, settings: EngineSettings, log: Path, chat_template: str | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.chat, self.settings = Chat(folder, chat_template), settings
        self.chat.tokenizer.padding_side = "left"
        self.chat.tokenizer.pad_token = self.chat.tokenizer.pad_token or self.chat.tokenizer.eos_token  # Llama has none
        self.device = "cuda" if has_gpu() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(settings.threads)
        with quiet(log):
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, settings.dtype), attn_implementation=attention_for(folder, "sdpa")[0]
            )
        self.model: Any = model.to(self.device).eval()
        self.ends = end_ids(model)

    def generate(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Completion]:
        out: list[Completion] = []
        size = self.settings.max_num_seqs
        for at in range(0, len(conversations), size):
            ids = [self.chat.ids(c.messages, c.prefill) for c in conversations[at : at + size]]
            fit = [fits(len(i), max_tokens, self.settings) for i in ids]
            own = [seed for seed, fitting in zip(seeds[at : at + size], fit, strict=True) if fitting]
            asked = [i for i, fitting in zip(ids, fit, strict=True) if fitting]
            found = iter(self._batch(asked, max_tokens, temperature, own) if asked else [])
            out += [next(found) if fitting else not_asked(len(i)) for i, fitting in zip(ids, fit, strict=True)]
        return out

    def _batch(
        self, ids: list[list[int]], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Completion]:
        import torch

        batch = self.chat.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.device)
        sampler = [SeededSampler(seeds, temperature, self.device)] if temperature else []
        with torch.no_grad():
            answers = self.model.generate(
                **batch,
                max_new_tokens=max_tokens,
                do_sample=False,
                repetition_penalty=1.0,  # what a model's own generation_config.json may set, and vLLM is not told
                pad_token_id=self.chat.tokenizer.pad_token_id,
                logits_processor=sampler,
            )
        out = []
        for prompt, answer in zip(ids, answers[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            length = next((n for n, token in enumerate(answer, 1) if token in self.ends), len(answer))
            text = self.chat.tokenizer.decode(answer[:length], skip_special_tokens=True)
            out.append(Completion(text, answer[length - 1] in self.ends, len(prompt), length))
        TOKENS.update(read=sum(map(len, ids)), written=sum(c.tokens_out for c in out))
        return out

    def label_logprobs(self, conversations: Sequence[Conversation], labels: tuple[str, ...]) -> list[tuple[float, ...]]:
        wanted = label_ids(self.chat, labels)
        ids = [self.chat.ids(c.messages, c.prefill) for c in conversations]
        with self._exact_head():
            rows = [self._logprobs(i, 1)[-1] if fits(len(i), 1, self.settings) else None for i in ids]
        return [tuple(math.nan if row is None else float(row[i]) for i in wanted) for row in rows]

    @contextmanager
    def _exact_head(self) -> Iterator[None]:
        """The last layer in fp32: in bf16 its logits lie on a grid of 1/16 nat, on which labels tie."""
        from torch.nn.functional import linear

        head = self.model.get_output_embeddings()
        weight = head.weight.float()

        def exact(layer: Any, inputs: Any, output: Any) -> Any:
            return linear(inputs[0].float(), weight, None if layer.bias is None else layer.bias.float())

        handle = head.register_forward_hook(exact)
        try:
            yield
        finally:
            handle.remove()

    def completion_logprobs(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> list[list[float]]:
        out = []
        for conversation, text in zip(conversations, completions, strict=True):
            start = self.chat.ids(conversation.messages, conversation.prefill)
            end = self.chat.text_ids(self.chat.neutral(text)) or [self.chat.end_of_turn]
            if not fits(len(start + end), 1, self.settings):
                out.append([math.nan])
                continue
            rows = self._logprobs(start + end, len(end) + 1)[:-1]
            out.append([float(row[token]) for row, token in zip(rows, end, strict=True)])
        return out

    def _logprobs(self, ids: list[int], keep: int) -> Any:
        """[keep, vocabulary] log-probabilities after each of the last `keep` tokens."""
        import torch

        TOKENS["read"] += len(ids)
        with torch.no_grad():
            logits = self.model(torch.tensor([ids], device=self.device), logits_to_keep=keep).logits[0]
        return logits.float().log_softmax(-1)

    def close(self) -> None:
        import gc

        del self.model
        gc.collect()
