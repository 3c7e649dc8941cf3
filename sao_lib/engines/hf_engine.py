"""transformers: the engine that needs no extra install; about a third of vLLM's speed on CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sao_lib.chat import Chat
from sao_lib.engines import Completion, Conversation, label_ids
from sao_lib.models import attention_for
from sao_lib.progress import quiet
from sao_lib.settings import Engine as EngineSettings


class TransformersEngine:
    def __init__(self, folder: Path, settings: EngineSettings, log: Path, chat_template: str | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.chat, self.settings = Chat(folder, chat_template), settings
        self.chat.tokenizer.padding_side = "left"
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(settings.threads)
        with quiet(log):
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, settings.dtype), attn_implementation=attention_for(folder, "sdpa")[0]
            )
        self.model: Any = model.to(self.device).eval()

    def generate(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Completion]:
        import torch

        out = []
        for conversation, seed in zip(conversations, seeds, strict=True):  # one at a time: a seed per request
            torch.manual_seed(seed)
            ids = torch.tensor([self.chat.ids(conversation.messages, conversation.prefill)], device=self.device)
            sampling = (
                {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
            )
            with torch.no_grad():
                new = self.model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, **sampling
                )[0, ids.shape[1] :].tolist()
            finished = bool(new) and new[-1] == self.chat.tokenizer.eos_token_id
            text = self.chat.tokenizer.decode(new, skip_special_tokens=True)
            out.append(Completion(text, finished, ids.shape[1], len(new)))
        return out

    def label_logprobs(self, conversations: Sequence[Conversation], labels: tuple[str, ...]) -> list[tuple[float, ...]]:
        wanted = label_ids(self.chat, labels)
        rows = [self._logprobs(self.chat.ids(c.messages, c.prefill), 1)[-1] for c in conversations]
        return [tuple(float(row[i]) for i in wanted) for row in rows]

    def completion_logprobs(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> list[list[float]]:
        out = []
        for conversation, text in zip(conversations, completions, strict=True):
            start = self.chat.ids(conversation.messages, conversation.prefill)
            end = self.chat.text_ids(self.chat.neutral(text)) or [self.chat.tokenizer.eos_token_id]
            rows = self._logprobs(start + end, len(end) + 1)[:-1]
            out.append([float(row[token]) for row, token in zip(rows, end, strict=True)])
        return out

    def _logprobs(self, ids: list[int], keep: int) -> Any:
        """[keep, vocabulary] log-probabilities after each of the last `keep` tokens."""
        import torch

        with torch.no_grad():
            logits = self.model(torch.tensor([ids], device=self.device), logits_to_keep=keep).logits[0]
        return logits.float().log_softmax(-1)

    def close(self) -> None:
        import gc

        del self.model
        gc.collect()
