"""Tiny random models of the families that the paper trains and judges with: real architectures, the special tokens and
chat templates of the model cards. Their words are SmolLM2's, their weights mean nothing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Gemma2Config, GenerationConfig, LlamaConfig, PreTrainedConfig, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from sao_lib.engines.models import resolve

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


@dataclass(frozen=True)
class Family:
    """`tokens`: bos, eos and pad of the tokenizer; `ends`: what ends an answer by the model's generation config."""

    config: type[PreTrainedConfig]
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


def make(name: str, folder: Path) -> Path:
    """A model of the family in `folder`, as its publisher lays it out."""
    family = FAMILIES[name]
    tokenizer: Any = AutoTokenizer.from_pretrained(resolve("embedded/smollm2-135m-instruct"))
    tokenizer.add_tokens(family.added, special_tokens=True)
    for kind, token in family.tokens.items():
        setattr(tokenizer, kind, token)
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids(family.ends)
    torch.manual_seed(0)
    config: Any = family.config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **family.options,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=ends)
    model.save_pretrained(folder)
    return folder
