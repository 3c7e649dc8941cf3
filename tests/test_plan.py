"""The graph of runs: shared work happens once, identity follows content."""

import pytest

from sao_lib import plan
from sao_lib.errors import SaoError


def folders(*assignments: str) -> list[str]:
    return [run.folder for run in plan.make("cpu", "table6", list(assignments)).runs]


def stages(found: list[str]) -> dict[str, int]:
    return {stage: sum(f"/{stage}/" in f for f in found) for stage in plan.NOTEBOOKS}


def test_table6_makes_prompts_once_and_trains_ten_models() -> None:
    assert stages(folders()) == {"synthesize": 1, "judge": 10, "train": 10, "evaluate": 11, "ablate": 0}


def test_runs_come_after_what_they_read() -> None:
    made = plan.make("cpu", "table6").runs
    place = {run.folder: number for number, run in enumerate(made)}
    assert all(place[needed] < place[run.folder] for run in made for needed in run.inputs.values())


def test_a_training_parameter_changes_trainings_and_leaves_judging_alone() -> None:
    before, after = set(folders()), set(folders("train.beta=2"))
    changed = stages(sorted(before - after))
    assert changed["synthesize"] == changed["judge"] == 0
    assert changed["train"] == changed["evaluate"] == 10
    assert not any("untrained" in folder for folder in before - after)


def test_identity_does_not_depend_on_how_the_machine_is_used() -> None:
    assert folders() == folders("machine.jobs=1")


def test_a_key_in_the_environment_replaces_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    labels = {row.name: row.label for row in plan.make("cpu", "table6").rows}
    assert labels["gpt4o"] == "GPT-4o feedback (gemma-3-270m for GPT-4o)"
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    row = next(r for r in plan.make("cpu", "table6").rows if r.name == "gpt4o")
    assert row.label == "GPT-4o feedback"
    assert row.settings.judge.model == "openai/gpt-4o"


def test_a_missing_key_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    paper = plan.make("paper", "table6", ["policy.model=embedded/smollm2-135m-instruct", "evaluate.judge_model=null"])
    rows = [r for r in paper.rows if r.name == "gpt4o"]
    with pytest.raises(SaoError, match="gpt4o.*OPENAI_API_KEY"):
        plan.check(plan.Plan("paper", "table6", rows, paper.runs))


def test_a_model_that_cannot_be_had_is_said_before_anything_runs() -> None:
    with pytest.raises(SaoError, match="nobody/nothing@main cannot be had"):
        plan.check(plan.make("cpu", "table6", ["policy.model=nobody/nothing@main"]))
    with pytest.raises(SaoError, match="no embedded model 'embedded/smol'.*smollm2-135m"):
        plan.check(plan.make("cpu", "table6", ["policy.model=embedded/smol"]))
