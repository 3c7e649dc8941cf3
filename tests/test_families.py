"""What the paper's model families ask of the suite: no pad token, no begin token, no system role, own end of a turn."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import a_run
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    Qwen2Config,
)
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from rehearsal import families
from sao_lib.engines.chat import Chat
from sao_lib.engines.models import resolve
from sao_lib.errors import SaoError
from sao_lib.files import read_rows
from sao_lib.method import logps, train
from sao_lib.settings import ROOT

NAMES = [*families.FAMILIES]
SMALLEST = ["machine.jobs=1", "policy.system=null", "synthesize.source=dataset", "synthesize.n=6", "synthesize.pairs=6",
            "synthesize.max_response_tokens=12", "judge.source=length", "judge.audit_questions=1", "train.held_out=2",
            "train.lora_rank=null", "train.samples=1", "evaluate.n=4", "evaluate.max_tokens=12",
            "evaluate.labelled_questions=4", "evaluate.gold_questions=4"]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: families.make(name, tmp_path_factory.mktemp(name)) for name in NAMES}


def reproduce(table: str, model: Path, outputs: Path, *changes: str) -> None:
    given = [f"policy.model={model}", *SMALLEST, *changes]
    command = [sys.executable, "-m", "sao_lib", "reproduce", table, "--set", *given]
    environment = {**os.environ, "SAO_OUTPUTS": str(outputs), "OPENAI_API_KEY": ""}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]


@pytest.mark.parametrize("name", [*NAMES, "smollm2"])
def test_a_trained_completion_ends_as_the_models_own_answers_do(name: str, models: dict[str, Path]) -> None:
    chat = Chat(models[name] if name in models else resolve("embedded/smollm2-135m-instruct"))
    question, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
    ids = chat.ids([question]) + chat.completion_ids("Because.", finished=True)  # type: ignore[list-item]
    rendered = chat.tokenizer.apply_chat_template([question, answer], tokenize=False)
    assert rendered.startswith(chat.tokenizer.decode(ids))
    turn = families.FAMILIES[name].turn if name in models else "<|im_end|>"
    assert chat.tokenizer.convert_ids_to_tokens(ids[-1]) == turn


def test_a_template_that_ends_answers_by_words_gets_the_end_of_the_sequence() -> None:
    chat = Chat(resolve("embedded/gemma-3-270m"), "params/templates/plain.jinja")
    assert chat.end_of_turn == chat.tokenizer.eos_token_id


def test_a_template_that_prints_the_date_gives_the_same_ids_tomorrow(models: dict[str, Path]) -> None:
    chat = Chat(models["llama3"])
    ask = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    chat.tokenizer.chat_template = ask + "Today Date: {{ date_string }}\n" + families.LLAMA3
    assert "Today Date: 26 Jul 2024" in chat.tokenizer.decode(chat.ids([{"role": "user", "content": "Why?"}]))


def test_a_model_without_a_system_role_is_one_sentence(models: dict[str, Path]) -> None:
    with pytest.raises(SaoError, match="refuses messages by system, user: System role not supported; choose") as caught:
        Chat(models["gemma2"]).ids([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    assert "\n" not in str(caught.value)


ROWS = [{"prompt_ids": [3, 4, 5, 21, 22, 23, 24], "chosen_ids": [6, 7, 8, 9, 30], "rejected_ids": [10, 11]},
        {"prompt_ids": [12], "chosen_ids": [13], "rejected_ids": [14, 15, 16]}]  # fmt: skip


def same(model: Any, one: Any, other: Any, rows: list[dict[str, Any]] = ROWS) -> None:
    """Both ways give the log p, token counts and gradients that the other gives."""
    batch = DataCollatorForPreference(pad_token_id=0)(rows)
    found = []
    for way in (one, other):
        model.zero_grad()
        logp, tokens = way(model, batch)
        logp.sum().backward()
        found.append((logp.detach(), tokens, *(p.grad.clone() for p in model.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_used_on_gpus_gives_the_same_log_probabilities_and_gradients(
    name: str, models: dict[str, Path]
) -> None:
    """Gemma-2 caps its logits; what a head without the cap would give is far off."""
    model = AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32, attn_implementation="eager")
    add_fused_lm_head(model)
    same(model, logps.prompt_twice, logps.fused)
    if model.config.model_type == "gemma2":
        batch = DataCollatorForPreference(pad_token_id=0)(ROWS)
        capped = logps.fused(model, batch)[0]
        model.config.final_logit_softcapping = None
        assert not torch.allclose(logps.prompt_twice(model, batch)[0], capped, atol=0.01)


SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2}  # fmt: skip
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}  # shorter than the pairs
WINDOWED = {
    "gemma2, windowed": Gemma2Config(**SMALL, **WINDOW, head_dim=32, query_pre_attn_scalar=32),
    "gemma3, windowed": Gemma3TextConfig(**SMALL, **WINDOW, head_dim=32, query_pre_attn_scalar=32),
    "qwen2, windowed": Qwen2Config(**SMALL, **WINDOW, use_sliding_window=True),
}


def of(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, attn_implementation="eager")


# Gemma-2 never gets SDPA, which drops its soft-cap on scores
@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize(
    ("name", "attention"), [*((name, "eager") for name in NAMES), ("llama3", "sdpa"), ("qwen2", "sdpa")]
)
def test_a_prompt_read_once_for_both_completions_gives_the_same(
    name: str, attention: str, pairs: int, models: dict[str, Path]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32, attn_implementation=attention)
    assert logps.shares_prompts(model)
    same(model, logps.prompt_once, logps.prompt_twice, ROWS[:pairs])


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_prompt_read_once_keeps_the_layers_windows(name: str, pairs: int) -> None:
    model = of(WINDOWED[name])
    assert logps.shares_prompts(model)
    same(model, logps.prompt_once, logps.prompt_twice, ROWS[:pairs])
    batch = DataCollatorForPreference(pad_token_id=0)(ROWS)
    narrow = logps.prompt_once(model, batch)[0]
    model.config.sliding_window = 64
    assert not torch.allclose(logps.prompt_once(model, batch)[0], narrow, atol=0.01), "the window must be felt"


def test_a_family_whose_masks_are_not_known_reads_each_prompt_twice() -> None:
    model = of(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2))
    same(model.eval(), logps.completion_logps, logps.prompt_twice)
    assert not logps.shares_prompts(model)


def check_ends(trained: Path, name: str) -> None:
    """The model in `trained` ends its turns and its texts as its family does."""
    family, tokenizer = families.FAMILIES[name], AutoTokenizer.from_pretrained(trained)
    ends = GenerationConfig.from_pretrained(trained).eos_token_id
    assert set(tokenizer.convert_ids_to_tokens(ends)) == set(family.ends)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (family.tokens["bos_token"], family.tokens["eos_token"])
    assert tokenizer.chat_template == family.template


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_model_ends_its_turns_as_before(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    run, settings = a_run(tmp_path, models[name], pairs=8, epochs=1, attention="eager")
    train.launch(run, settings)
    check_ends(run.folder / "model", name)


@pytest.mark.parametrize(
    ("name", "judge", "engine"), [("gemma2", "likelihood", "vllm"), ("llama3", "relevance", "transformers")]
)
def test_the_main_path_runs_and_the_trained_model_ends_its_turns_as_before(
    name: str, judge: str, engine: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """Judge and engine are no matter of the family's: one judge reads with SmolLM2, the other with embeddings."""
    reproduce("table14", models[name], tmp_path, f"evaluate.judges=[{judge}]", f"engine.kind={engine}")
    trained = next(tmp_path.glob("cpu/train/*length*/model"))
    check_ends(trained, name)
    attention = json.loads((trained.parent / "attention.json").read_text())
    assert attention["used"] == "eager"
    assert len({row["step"] for row in read_rows(trained.parent / "samples.jsonl")}) == 2


def test_a_model_without_a_begin_token_passes_the_lesson_on_begin_tokens(
    models: dict[str, Path], tmp_path: Path
) -> None:
    reproduce("table13", models["qwen2"], tmp_path)
