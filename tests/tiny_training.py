"""A training small enough for a test: a random Llama of two layers, pairs of random token ids, a prepared run."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sao_lib.engines.models import resolve
from sao_lib.runs import Run
from sao_lib.settings import Train

SMOL = "embedded/smollm2-135m-instruct"


def tiny() -> LlamaForCausalLM:
    """The same weights every time, for SmolLM2's vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def saved(folder: Path) -> Path:
    """`tiny` in `folder`, with SmolLM2's tokenizer."""
    tiny().save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve(SMOL)).save_pretrained(folder)
    return folder


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs of random token ids of different lengths."""
    draw = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [draw.randrange(100, 2000) for _ in range(draw.randint(least, most))]

    return [
        {"id": str(n), "prompt_ids": ids(3, 9), "chosen_ids": [*ids(2, 12), 2], "rejected_ids": [*ids(2, 12), 2]}
        for n in range(count)
    ]


def a_run(folder: Path, model: Path, pairs: int = 32, **changes: Any) -> tuple[Run, Train]:
    """A prepared training run of `pairs` in `folder`: 8 steps unless `changes` to the settings say otherwise."""
    settings = Train.model_validate(
        {"loss": "simpo", "beta": 10, "gamma": 3, "learning_rate": 3e-3, "epochs": 2, "global_batch": 8,
         "micro_batch": 1, "warmup": 0, "max_length": 64, "min_completion": 1, "held_out": 5, "samples": 2,
         "sample_tokens": 8, "processes": 1, "save_dtype": "float32", **changes}
    )  # fmt: skip
    params = {"seed": 1, "policy": {"model": str(model)}, "train": settings.model_dump()}
    spec = {"stage": "train", "name": "t", "profile": "cpu", "params": params, "inputs": {}, "files": {}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(json.dumps(spec))
    for name, part in (("train", rows(pairs, 0)), ("held_out", rows(5, 1))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return Run(spec, folder), settings
