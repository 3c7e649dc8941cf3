"""A model's name is resolved from three sources, or one sentence says why not."""

from pathlib import Path

import pytest

from sao_lib.engines import models
from sao_lib.errors import SaoError


def test_embedded_models_become_folders_that_transformers_reads() -> None:
    from transformers import AutoConfig

    for name, kind in (("smollm2-135m-instruct", "llama"), ("gemma-3-270m", "gemma3_text")):
        assert AutoConfig.from_pretrained(models.resolve(f"embedded/{name}")).model_type == kind


def test_a_local_folder_is_used_as_it_is() -> None:
    folder = models.resolve("embedded/smollm2-135m-instruct")
    assert models.resolve(str(folder)) == folder


def test_a_relative_folder_is_the_repositorys_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("repository/trained/mine", "elsewhere/trained/mine"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text('{"model_type": "llama"}')
        (tmp_path / folder / "model.safetensors").touch()
    monkeypatch.setattr(models, "ROOT", tmp_path / "repository")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("trained/mine", "./trained/mine"):
        assert models.resolve(name) == tmp_path / "repository" / "trained" / "mine"
        models.check(name)
    (tmp_path / "elsewhere" / "here").mkdir()
    with pytest.raises(SaoError, match=r"The model folder \./here does not exist"):
        models.check("./here")


def test_a_check_fetches_a_hub_models_config_and_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object]] = []

    def fake_download(repo: str, **options: object) -> str:
        asked.append((repo, options["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake_download)
    models.check("org/name@main")
    assert asked == [("org/name", ["config.json"])]


def test_what_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("embedded/none", "no embedded model"),
        (str(tmp_path / "none"), "does not exist"),
        (str(tmp_path / "empty"), "has no config.json"),
        ("nobody/nothing@main", "cannot be had"),
    ):
        with pytest.raises(SaoError, match=said) as caught:
            models.resolve(name)
        with pytest.raises(SaoError, match=said):
            models.check(name)
        assert "\n" not in str(caught.value)


def test_wrong_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {**models.entry_of("embedded/smollm2-135m-instruct"), "sha256": "0" * 64}
    monkeypatch.setattr(models, "entry_of", lambda _: entry)
    monkeypatch.setattr(models, "CACHE", tmp_path)
    with pytest.raises(SaoError, match="sha256 differs"):
        models.resolve("embedded/smollm2-135m-instruct")
    assert not (tmp_path / "smollm2-135m-instruct").exists()


@pytest.mark.parametrize(
    ("config", "weights", "sentence"),
    [
        (None, True, "it has no config.json"), ("{", True, "its config.json is not JSON"),
        ("[]", True, "its config.json says no model_type"), ("{}", True, "its config.json says no model_type"),
        ('{"model_type": "llama"}', False, "it has no weights"),
    ],
)  # fmt: skip
def test_a_folder_that_holds_no_whole_model(tmp_path: Path, config: str | None, weights: bool, sentence: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    if weights:
        (tmp_path / "model.safetensors").touch()
    with pytest.raises(SaoError, match=f"The folder {tmp_path} holds no model: {sentence}"):
        models.check(str(tmp_path))


def test_what_can_be_no_models_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaoError, match="is a file; name the folder of a model"):
        models.check(str(tmp_path / "file"))
    for name in ("https://huggingface.co/google/gemma-2-9b-it", "~/models/mine", "org/name/more", 300 * "a"):
        with pytest.raises(SaoError, match="names no model|cannot be had"):
            models.check(name)
