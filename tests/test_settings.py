"""A user's mistake in the parameters is one sentence naming file, key and expectation."""

import pytest

from sao_lib import settings, yaml_files
from sao_lib.errors import SaoError
from sao_lib.plan import planning as plan

PROFILE = "params/profiles/cpu.yaml"


def explained(*assignments: str) -> str:
    with pytest.raises(SaoError) as caught:
        plan.make("cpu", "table6", list(assignments))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_every_profile_is_valid() -> None:
    for file in sorted((settings.PARAMS / "profiles").glob("*.yaml")):
        assert plan.make(file.stem, "table6").rows


def test_every_profile_says_what_it_can_tell() -> None:
    said = yaml_files.read_yaml(settings.PARAMS / "shows.yaml")
    assert set(said) == {file.stem for file in (settings.PARAMS / "profiles").glob("*.yaml")}


def test_unknown_parameter_names_it_its_place_and_its_neighbours() -> None:
    text = explained("train.learning_rat=1e-5")
    assert "train.learning_rat" in text
    assert "the command line" in text
    assert "learning_rate" in text


def test_mistyped_parameter_says_what_was_expected() -> None:
    text = explained("synthesize.n=many")
    assert "synthesize.n" in text
    assert "many" in text
    assert "integer" in text


def test_impossible_batch_split_is_refused_before_anything_runs() -> None:
    text = explained("train.global_batch=6", "train.micro_batch=4")
    assert "global_batch 6" in text
    assert "multiple of 4" in text


@pytest.mark.parametrize("key", ["engine", "judge.engine", "evaluate.judge_engine", "rating.engine"])
def test_an_engine_that_needs_more_cards_than_there_are_is_refused(key: str) -> None:
    asked = [f"{key}={{kind: vllm, tensor_parallel: 64, data_parallel: 1}}"]
    with pytest.raises(SaoError) as caught:
        plan.make("paper", "smoke", asked)
    assert str(caught.value) == f"Impossible combination: {key} spreads over 64 GPUs, machine.gpus is 4."


def test_assignment_without_a_value() -> None:
    assert "key.subkey=value" in explained("train.beta")


@pytest.mark.parametrize(("profile", "experiment"), [("laptop", "table6"), ("cpu", "table66")])
def test_unknown_profile_and_experiment_list_what_there_is(profile: str, experiment: str) -> None:
    with pytest.raises(SaoError, match="there are: .*(cpu|table6)"):
        plan.make(profile, experiment)


def test_missing_data_file_is_named() -> None:
    assert "params/data/nobody.jsonl" in explained("synthesize.personas=params/data/nobody.jsonl")


def test_gradient_accumulation_follows_from_the_global_batch() -> None:
    paper = plan.make("paper", "table6").rows[0].settings.train
    assert paper.accumulation * paper.micro_batch * paper.processes == 128


def test_paper_profile_has_the_papers_values() -> None:
    train = plan.make("paper", "table6").rows[0].settings.train
    assert (train.beta, train.gamma, train.learning_rate, train.epochs, train.warmup) == (10, 3, 1e-6, 1, 0.1)


def test_every_constant_of_the_paper_profile_has_a_source_or_a_reason() -> None:
    silent = []
    for line in (settings.PARAMS / "profiles" / "paper.yaml").read_text().splitlines():
        key, _, rest = line.partition(":")
        if rest.strip() and not line.lstrip().startswith("#") and "#" not in rest and key.strip() != "":
            silent.append(line.strip())
    allowed = {"threads: 1", "threads: 4"}
    assert set(silent) <= allowed


def test_a_parameter_that_came_later_changes_no_identity_until_it_is_set() -> None:
    """Finished runs are known by what they were asked: at its default a new parameter is not written down."""

    def folders(*given: str) -> dict[str, str]:
        runs = plan.make("cpu", "smoke-benchmarks", list(given)).runs[:-1]  # the table is named after what was given
        return {run.spec["stage"]: run.folder for run in runs}

    plain = folders()
    assert "options" not in settings.Engine(kind="vllm").model_dump()
    assert "chunk" not in plan.make("cpu", "smoke-benchmarks").base.math500.model_dump()
    assert folders("math500.chunk=32", "engine.options={}", "engine.api_workers=16") == plain
    assert folders("math500.chunk=16")["math500"] != plain["math500"]
    other = folders("engine.options={kv_cache_dtype: fp8}")
    assert other["synthesize"] != plain["synthesize"]


def test_options_of_vllm_need_vllm() -> None:
    assert "options are vLLM's" in explained("engine.kind=transformers", "engine.options={quantization: fp8}")
