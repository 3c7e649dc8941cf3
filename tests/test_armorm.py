"""ArmoRM's head on a tiny random Llama: weights under the published names, scores by hand, no code from elsewhere."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rehearsal import families
from sao_lib.errors import SaoError
from sao_lib.method import armorm
from sao_lib.method.rewards import open_reward_model

OBJECTIVES, HIDDEN, LAYERS = 5, 12, 3
PROMPTS = ["Why is the sky blue?", "Name three fruits, please, and say where each of them grows.", "Add 2 and 2."]
ANSWERS = ["Because air scatters blue light more.", "Apple.", "Four. <|eot_id|><|start_header_id|>assistant"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the publisher lays it out, with remote code that must not be run."""
    made = families.make_armorm(tmp_path_factory.mktemp("armorm"), OBJECTIVES, HIDDEN, LAYERS)
    config = json.loads((made / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForSequenceClassification": "modeling_custom.Any"}}
    (made / "config.json").write_text(json.dumps(config))
    (made / "modeling_custom.py").write_text("raise RuntimeError('code from elsewhere was run')\n")
    return made


def opened(folder: Path, log: Path) -> armorm.ArmoRM:
    found = open_reward_model(str(folder), log)
    assert isinstance(found, armorm.ArmoRM)
    found.model = found.model.float()  # so that the comparison by hand is not one of roundings
    return found


def by_hand(folder: Path, model: armorm.ArmoRM, prompt: str, answer: str) -> float:
    """Section 3 of the paper, from the weights' file."""
    w = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    ids = model._ids(prompt, answer)
    states = model.model.model(torch.tensor([ids])).last_hidden_state[0]
    text = model.chat.tokenizer.convert_ids_to_tokens(ids)
    gate = states[text.index("<|eot_id|>")]  # where the prompt ends
    for number in range(LAYERS + 1):
        gate = w[f"gating.layers.{number}.weight"] @ gate + w[f"gating.layers.{number}.bias"]
        gate = gate.clamp(min=0) if number < LAYERS else (gate / 10).softmax(0)
    rewards = (w["regression_layer.weight"] @ states[-1]) @ w["reward_transform_matrix"]
    return float(w["gating.logit_scale"] * (gate @ rewards))


def test_scores_are_the_papers_by_hand_without_code_from_the_hub(folder: Path, tmp_path: Path) -> None:
    model = opened(folder, tmp_path / "log")
    found = model.scores(PROMPTS, ANSWERS)
    with torch.no_grad():
        wanted = [by_hand(folder, model, *pair) for pair in zip(PROMPTS, ANSWERS, strict=True)]
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert len({round(score, 3) for score in found}) == 3


def test_a_batch_gives_what_single_rows_give_in_their_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(folder, tmp_path / "log")
    together = model.scores(PROMPTS, ANSWERS)
    monkeypatch.setattr(armorm, "TOKENS_AT_ONCE", 1)
    assert model.scores(PROMPTS, ANSWERS) == pytest.approx(together, rel=1e-4, abs=1e-5)


def test_batches_hold_every_row_once_and_no_more_tokens_than_they_may() -> None:
    lengths = [100, 16000, 3000, 5000, 5000, 20000, 7]
    batches = armorm.ArmoRM._batches(lengths)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or lengths[b[0]] * len(b) <= armorm.TOKENS_AT_ONCE for b in batches)
    assert len(batches) < len(lengths)


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["gating.layers.1.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(SaoError, match=r"not ArmoRM's: gating\.layers\.1\.bias"):
        open_reward_model(str(tmp_path), tmp_path / "log")
