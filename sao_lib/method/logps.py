"""Log-probabilities of the completions of a batch of pairs: all that losses and held-out margins read of a model.

Batches are TRL's: input_ids, attention_mask and completion_mask of shape [2 x pairs, tokens], first each prompt with
its chosen completion, then each with its rejected one, padded on the right. Every function here that takes a batch
returns the summed log p of each completion (nats, fp32) and its token count, both [2 x pairs], chosen first.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Their attention is causal, within a window or not, their positions are given: tests/test_families.py holds each to
# `prompt_twice`. The masks of another family (chunks, ALiBi, recurrence) may not be what `_mask` makes.
SHARE_A_PROMPT = ("gemma2", "gemma3_text", "llama", "qwen2")


def completion_logps(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """In the fastest way that there is for the device and the model."""
    if batch["input_ids"].device.type == "cuda":
        return fused(model, batch)
    return prompt_once(model, batch) if shares_prompts(model) else prompt_twice(model, batch)


def shares_prompts(model: Any) -> bool:
    """Whether `prompt_once` knows the model's masks."""
    config = _bare(model).config
    return config.model_type in SHARE_A_PROMPT and config._attn_implementation in ("eager", "sdpa")


def fused(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """With TRL's head, which never builds [batch, tokens, vocabulary]; it has no fast kernel on CPU."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    found = model(**inputs, labels=labels, fused_lm_head=True).log_probs.sum(1)
    return found, batch["completion_mask"][:, 1:].sum(1)


def prompt_twice(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """As the batch stands, with the logits of the completions' positions alone."""
    mask = batch["completion_mask"][:, 1:].bool()
    first = int(mask.any(0).nonzero()[0])  # the first position that predicts a completion token
    keep = mask.shape[1] - first + 1
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    logits = model(**inputs, logits_to_keep=keep).logits[:, :-1]
    return (_taken(logits, batch["input_ids"][:, first + 1 :]) * mask[:, first:]).sum(1), mask.sum(1)


def prompt_once(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Each pair in one row, [prompt, chosen, rejected]; both completions follow the prompt and neither sees the other.

    Prompts are padded on the left and completions on the right, so that in every row the same columns predict
    completions: their logits alone are made, those of the prompt's last column for both.
    """
    ids, mask = batch["input_ids"], batch["completion_mask"].bool()
    pairs, counts = len(ids) // 2, mask.sum(1)
    lengths = mask[:pairs].int().argmax(1)  # of the prompts
    completions = [row[own] for row, own in zip(ids, mask, strict=True)]
    parts = [[row[:n] for row, n in zip(ids[:pairs], lengths, strict=True)], completions[:pairs], completions[pairs:]]
    padded, real = zip(*(_padded(part, "right" if n else "left") for n, part in enumerate(parts)), strict=True)
    p, c, r = (part.shape[1] for part in padded)

    def columns(first: int, count: int) -> Tensor:
        return torch.arange(first, first + count, device=ids.device)

    before = lengths[:, None] - p  # the prompt's padding, negative
    after = lengths[:, None]
    positions = torch.cat([(columns(0, p) + before).clamp(min=0), columns(0, c) + after, columns(0, r) + after], 1)
    part_of = torch.cat([torch.full((n,), number, device=ids.device) for number, n in enumerate((p, c, r))])
    logits = model(
        input_ids=torch.cat(padded, 1),
        attention_mask=_masks(_bare(model), positions, part_of, torch.cat(real, 1)),
        position_ids=positions,
        use_cache=False,
        logits_to_keep=torch.cat([columns(p - 1, c), columns(p - 1, 1), columns(p + c, r - 1)]),
    ).logits
    logp = _taken(logits, torch.cat(padded[1:], 1)) * torch.cat(real[1:], 1)
    return torch.cat([logp[:, :c].sum(1), logp[:, c:].sum(1)]), counts


def _padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """[rows, tokens] padded on `side`, and where it is not padding."""
    ids, real = rows, [torch.ones_like(row, dtype=torch.bool) for row in rows]
    return tuple(pad_sequence(x, batch_first=True, padding_side=side) for x in (ids, real))  # type: ignore[return-value]


def _masks(model: Any, positions: Tensor, part_of: Tensor, real: Tensor) -> Tensor | dict[str, Tensor]:
    """What is added to attention scores, [pairs, 1, tokens, tokens], or one such for each kind of layer that there is.

    A token sees what is at its position or before it in its own part or in the prompt (part 0), and in a layer with a
    sliding window what is less than that far back.
    """
    back = positions[:, :, None] - positions[:, None, :]
    seen = (back >= 0) & real[:, None, :] & ((part_of == 0) | (part_of[:, None] == part_of))

    def added(seen: Tensor) -> Tensor:
        zeros = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device)
        return zeros.masked_fill(~seen, torch.finfo(model.dtype).min)[:, None]

    kinds = getattr(model.config, "layer_types", None)
    if not kinds:
        return added(seen)
    known = {"full_attention": seen}
    if "sliding_attention" in kinds:
        known["sliding_attention"] = seen & (back < model.config.sliding_window)
    return {kind: added(known[kind]) for kind in set(kinds)}


def _taken(logits: Tensor, target: Tensor) -> Tensor:
    """log p of the target tokens in fp32, [rows, tokens]."""
    logits = logits.float()
    return torch.gather(logits, 2, target.unsqueeze(2)).squeeze(2) - logits.logsumexp(2)


def _bare(model: Any) -> Any:
    """The model itself where DistributedDataParallel or DeepSpeed has wrapped it."""
    return getattr(model, "module", model)
