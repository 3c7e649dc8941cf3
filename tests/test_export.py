"""`make export`: a model and a preference set as folders that a hub takes, with cards that say how they were made."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sao_lib import runs
from sao_lib.errors import SaoError
from sao_lib.files import write_rows
from sao_lib.report import export

SMOL = "embedded/smollm2-135m-instruct"
MESSAGES = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
ROW = {"id": "1", "prompt": [{"role": "user", "content": "Why?"}], **MESSAGES, "margin": 0.5}


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three finished runs: prompts, verdicts and a training."""
    for module in (runs, export):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path)
    policy = {"model": SMOL, "system": None, "chat_template": None}
    finish(
        tmp_path, "synthesize", {"seed": 7, "policy": policy, "synthesize": {"generator": None}}, {}, "prompts.jsonl"
    )
    finish(tmp_path, "judge", {"judge": {"source": "llm"}}, {"synthesize": "cpu/synthesize/a-1"}, "preferences.jsonl")
    train = {"policy": policy, "train": {"loss": "simpo", "beta": 10}}
    finish(tmp_path, "train", train, {"judge": "cpu/judge/a-1"}, "metrics.jsonl")
    return tmp_path


def finish(outputs: Path, stage: str, params: dict[str, Any], inputs: dict[str, str], rows: str) -> None:
    folder = outputs / "cpu" / stage / "a-1"
    folder.mkdir(parents=True)
    write_rows(folder / rows, [ROW, {**ROW, "id": "2"}])
    if stage == "train":
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_bytes(b"weights")
    spec = {"stage": stage, "name": "self", "profile": "cpu", "params": params, "inputs": inputs, "files": {}}
    runs.Run(spec, folder).finish({"agreement": 0.75})


def card(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_model_with_its_card(outputs: Path) -> None:
    folder = export.export(outputs / "cpu" / "train" / "a-1")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    head, text = card(folder)
    assert (head["library_name"], head["license_name"]) == ("transformers", "Apache-2.0")
    assert "base_model" not in head  # it is on no hub
    for name in ("cpu/train/a-1", "cpu/judge/a-1", "cpu/synthesize/a-1"):
        assert f"### {name}\n" in text
    assert '"beta": 10' in text
    assert "commit" in text


def test_a_preference_set_as_parquet_with_its_card(outputs: Path) -> None:
    folder = export.export(outputs / "cpu" / "judge" / "a-1")
    frame = pd.read_parquet(folder / "data" / "train-00000-of-00001.parquet")
    assert json.loads(frame.to_json(orient="records")) == [ROW, {**ROW, "id": "2"}]
    head, text = card(folder)
    assert head["size_categories"] == ["n<1K"]
    assert SMOL in text
    assert "(Apache-2.0)" in text
    from datasets import load_dataset

    loaded = load_dataset("parquet", data_dir=str(folder / "data"), cache_dir=str(outputs / "cache"))["train"]
    assert loaded[0]["chosen"] == MESSAGES["chosen"]


def test_a_second_export_replaces_the_first_and_leaves_the_run_as_it_is(outputs: Path) -> None:
    source = outputs / "cpu" / "train" / "a-1"
    folder = export.export(source)
    (folder / "left").touch()
    assert not (export.export(source) / "left").exists()
    assert runs.load(source) is not None


@pytest.mark.parametrize("folder", ["cpu/synthesize/a-1", "cpu/nothing", "", "../elsewhere"])
def test_what_cannot_be_exported_is_one_sentence(outputs: Path, folder: str) -> None:
    with pytest.raises(SaoError, match="which is no finished training or judgment"):
        export.export(outputs / folder)
