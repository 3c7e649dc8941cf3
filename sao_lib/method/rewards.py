"""Reward models as feedback sources: a score for one response, the higher is preferred."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from sao_lib.engines.models import resolve
from sao_lib.machine import has_gpu
from sao_lib.progress import quiet

RELEVANCE_MODEL = "embedded/all-minilm-l6-v2"


class RewardModel(Protocol):
    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One score per (prompt, response)."""


_embeddings: dict[Path, "Relevance"] = {}  # opened once in a process, whichever runs it does in turn: 90 MB


def open_reward_model(model: str, log: Path) -> RewardModel:
    """ArmoRM, a sequence classifier, or a sentence-embedding model scored by relevance."""
    folder = resolve(model)
    if (folder / "modules.json").is_file():
        if folder not in _embeddings:
            _embeddings[folder] = Relevance(folder, log)
        return _embeddings[folder]
    from sao_lib.method.armorm import ArmoRM, is_armorm

    return ArmoRM(folder, log) if is_armorm(folder) else SequenceClassifier(folder, log)


def open_relevance(log: Path) -> "Relevance":
    """The embedding model of the readings by relevance."""
    found = open_reward_model(RELEVANCE_MODEL, log)
    assert isinstance(found, Relevance)
    return found


class Relevance:
    """Cosine similarity of prompt and response embeddings, in [-1, 1]."""

    def __init__(self, folder: Path, log: Path) -> None:
        with quiet(log):
            from sentence_transformers import SentenceTransformer

            self.model: Any = SentenceTransformer(str(folder), device="cpu")
        # 1.5 kB a text; questions, good answers and words come again and again.
        self.texts: dict[str, Any] = {}
        self.words: dict[str, Any] = {}

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        x, y = self.vectors(prompts), self.vectors(responses)
        return [float(s) for s in (x * y).sum(axis=1)]

    def vectors(self, texts: Sequence[str]) -> Any:
        """[texts, dimensions], each row of length one.

        Each text is read by itself: in a batch its last digits would depend on the others, and so on what this process
        has read before.
        """
        return self._known(self.texts, texts, batch=1)

    def of_words(self, words: Sequence[str]) -> Any:
        """[words, dimensions], each row of length one; read in batches, for what a last digit does not change."""
        return self._known(self.words, words, batch=32)

    def _known(self, known: dict[str, Any], texts: Sequence[str], batch: int) -> Any:
        import numpy as np

        new = [t for t in dict.fromkeys(texts) if t not in known]
        if new:
            made = self.model.encode(new, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
            known |= dict(zip(new, made, strict=True))
        return np.array([known[t] for t in texts])


class SequenceClassifier:
    """A reward model of transformers' own with a one-logit head, one row at a time."""

    def __init__(self, folder: Path, log: Path) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.device = "cuda" if has_gpu() else "cpu"
        with quiet(log):
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
        self.model = self.model.to(self.device).eval()

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        import torch

        out = []
        for prompt, response in zip(prompts, responses, strict=True):
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            ids: Any = self.tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                out.append(float(self.model(**ids.to(self.device)).logits.flatten()[0]))
        return out
