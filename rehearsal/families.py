"""Tiny random models of the families that the paper trains and judges with: real architectures, the special tokens and
chat templates of the model cards. Their words are SmolLM2's, their weights mean nothing."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    Gemma2Config,
    GenerationConfig,
    LlamaConfig,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from sao_lib.engines.models import resolve
from sao_lib.method import armorm

GEMMA2 = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""
LLAMA3 = """\
{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + \
'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
QWEN2 = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
WIDTH = 32  # of a head: the least that vLLM's attention on CPU knows
SIZE = {
    "hidden_size": 2 * WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@dataclass(frozen=True)
class Family:
    """`tokens`: bos, eos and pad of the tokenizer; `ends`: what ends an answer by the model's generation config."""

    config: Any  # a class of configurations
    template: str
    tokens: dict[str, str | None]
    ends: list[str]
    turn: str
    added: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "gemma2": Family(
        Gemma2Config,
        GEMMA2,
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        ["<eos>", "<end_of_turn>"],
        "<end_of_turn>",
        ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"],
        options={"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64},
    ),
    "llama3": Family(
        LlamaConfig,
        LLAMA3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": None},
        ["<|end_of_text|>", "<|eot_id|>"],
        "<|eot_id|>",
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    "qwen2": Family(
        Qwen2Config,
        QWEN2,
        {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        ["<|im_end|>", "<|endoftext|>"],
        "<|im_end|>",
    ),
}


def make(name: str, folder: Path, positions: int = 2048, spread: float = 0.2, end: float = 1, heads: int = 2) -> Path:
    """A model of the family in `folder`, as its publisher lays it out.

    `spread` is that of its weights: with 0.02 all words are about as likely, and texts differ. With a larger `end` some
    of its answers end by themselves.
    """
    family = FAMILIES[name]
    tokenizer: Any = AutoTokenizer.from_pretrained(resolve("embedded/smollm2-135m-instruct"))
    tokenizer.add_tokens(family.added, special_tokens=True)
    for kind, token in family.tokens.items():
        setattr(tokenizer, kind, token)
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids(family.ends)
    config: Any = family.config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        **{**SIZE, "hidden_size": WIDTH * heads, "num_attention_heads": heads},
        max_position_embeddings=positions,
        initializer_range=spread,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **family.options,
    )
    _save(config, GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=ends), folder, end)
    return folder


def _save(config: Any, generation: GenerationConfig, folder: Path, end: float) -> None:
    """`end`: how much longer than others' the vectors of the tokens that end an answer are."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.get_input_embeddings().weight.data[generation.eos_token_id] *= end
    model.generation_config = generation
    model.save_pretrained(folder)


def shrunk(name: str, folder: Path, positions: int = 2048, spread: float = 0.02, end: float = 1) -> Path:
    """A model that comes in a package, with its tokenizer and its kind of layers: two of them, narrow and random."""
    source = resolve(name)
    config: Any = AutoConfig.from_pretrained(source)
    given: dict[str, Any] = {
        **SIZE, "head_dim": WIDTH, "max_position_embeddings": positions, "initializer_range": spread
    }  # fmt: skip
    of_some = {"query_pre_attn_scalar": 32, "layer_types": ["sliding_attention", "full_attention"]}
    for key, value in (given | {key: value for key, value in of_some.items() if getattr(config, key, None)}).items():
        setattr(config, key, value)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    _save(config, GenerationConfig.from_pretrained(source), folder, end)
    return folder


def make_armorm(
    folder: Path, objectives: int = 19, hidden: int = 12, layers: int = 3, positions: int = 2048, spread: float = 0.2
) -> Path:
    """A tiny Llama-3 with ArmoRM's head, under the published names."""
    make("llama3", folder, positions, spread)
    weights = {f"model.{k}": v for k, v in AutoModel.from_pretrained(folder).state_dict().items()}
    width, generator = weights["model.norm.weight"].shape[0], torch.Generator().manual_seed(0)
    widths = [width, *[hidden] * layers, objectives]
    shapes: dict[str, tuple[int, ...]] = {
        "regression_layer.weight": (objectives, width),
        "reward_transform_matrix": (objectives, objectives),
        "gating.logit_scale": (1,),
    }
    for number, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        shapes |= {f"gating.layers.{number}.weight": (b, a), f"gating.layers.{number}.bias": (b,)}
    weights |= {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": [armorm.ARCHITECTURE], "num_objectives": objectives, "gating_temperature": 10,
               "gating_hidden_dim": hidden, "gating_n_hidden": layers}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder
