"""What a plan says it costs: by hand in small cases, against what the main path took, and the dollar cap."""

import json
from pathlib import Path
from typing import Any

import pytest

from sao_lib import machine as hardware
from sao_lib.engines.openai_api import most_usd
from sao_lib.errors import SaoError
from sao_lib.launch import reproduce
from sao_lib.plan import chain, cost, layers, summary
from sao_lib.plan import planning as plan
from sao_lib.plan.chain import Planned
from sao_lib.plan.experiment import experiments
from sao_lib.plan.workload import asks, rates
from sao_lib.settings import Machine

MEASURED = json.loads((Path(__file__).parents[1] / "benchmarks" / "main_path.json").read_text())
API_JUDGE = ["judge.model=openai/gpt-4o", "judge.engine=null", "judge.reading=text", "judge.orders=one"]
FAKE_MANIFEST = '{"spec": {"params": {}}, "files": {}}'  # of a run that has finished


@pytest.fixture(autouse=True)
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans for a CPU with bfloat16, whatever this one is."""
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: True)


def planned(profile: str, experiment: str, *assignments: str) -> dict[str, Planned]:
    return {run.folder: run for run in plan.make(profile, experiment, list(assignments)).runs}


def of_stage(runs: dict[str, Planned], stage: str, name: str = "") -> Planned:
    return next(run for run in runs.values() if run.spec["stage"] == stage and run.spec["name"].startswith(name))


def api_runs(monkeypatch: pytest.MonkeyPatch, outputs: Path, *assignments: str) -> list[Planned]:
    """Table 13's runs with GPT-4o as judge, none of them done."""
    monkeypatch.setattr(chain, "OUTPUTS", outputs)
    return list(planned("cpu", "table13", *API_JUDGE, *assignments).values())


def test_a_judge_by_hand() -> None:
    runs = planned("cpu", "table6")
    (ask,) = asks(of_stage(runs, "judge", "self"), runs)
    form = (Path(__file__).parents[1] / "params/templates/ranking_small.yaml").stat().st_size / 4.2 + 10
    calls = 2 * 88 + 2 * 3 * 20  # pairs, and three faults of each of the audit's questions, both in both orders
    assert ask.calls == calls
    assert ask.tokens_in == pytest.approx(calls * (form + 0.7 * 80 + 2 * 0.7 * 96))
    assert ask.tokens_out == calls
    assert asks(of_stage(runs, "judge", "random"), runs) == []


def test_a_training_by_hand_on_gpus() -> None:
    runs = planned("paper", "table6")
    run = of_stage(runs, "train", "simpo-self")
    assert 0.95 * 11_000 - 256 > 10_000  # what is expected to be left suffices
    trained = 10_000 * 2 * (20 + 90 + 450)
    (ask,) = asks(run, runs)
    assert ask.trained == pytest.approx(trained)
    assert ask.tokens_in == pytest.approx(256 * 2 * 560)  # held-out pairs are read once
    assert ask.steps == 3 * 256  # before, after 50 of 78 steps, and at the end
    per_token, peak = 9.24e9, 312e12
    busy = 4 / 3 * 6 * per_token * trained / (0.15 * peak)  # checkpointing goes forward twice
    busy += 2 * per_token * ask.tokens_in / (0.4 * peak)
    cards = 4 * (20 + 120 + 3 * 256 / 25)  # all four wait for the notebook, the launch and each step
    seconds = busy + cards + 4 * 2 * 9.24 / 2  # all four wait for 18 GB at 2 GB/s
    found = cost.estimate(run, runs)
    assert found.device_hours * 3600 == pytest.approx(seconds)
    assert found.disk_gib == pytest.approx(9.24e9 * 2 / 2**30, rel=0.01)  # the model alone stays
    assert cost.checkpoints_gib(run, runs) == pytest.approx(9.24e9 * 14 / 2**30)  # 78 steps: one, at the end


def test_an_api_judge_by_hand() -> None:
    runs = planned("paper", "table6")
    run = of_stage(runs, "judge", "gpt-4o-mini")
    found = cost.estimate(run, runs)
    assert found.calls == 11_000 + 2 * 3 * 40
    (ask,) = asks(run, runs)
    assert found.device_hours == 0  # no card waits for the API
    assert found.usd == pytest.approx((0.15 * ask.tokens_in + 0.60 * 10 * 11_240) / 1e6)


def predicted(runs: dict[str, Planned]) -> dict[str, float]:
    """Core-seconds by stage, done in groups."""
    seconds: dict[str, float] = {}
    for folder, found in cost.estimates(list(runs.values()), machine("cpu")).items():
        stage = runs[folder].spec["stage"]
        seconds[stage] = seconds.get(stage, 0) + found.device_hours * 3600
    return seconds


def machine(profile: str) -> Machine:
    return layers.validate(layers.profile_layers(profile)).machine


@pytest.mark.parametrize("measured", MEASURED.values(), ids=MEASURED)
def test_the_prediction_on_cpu_is_near_what_it_took(measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: measured["bf16"])
    command = measured["of"]
    names = experiments() if command == "reproduce-all" else [command.removeprefix("reproduce-")]
    seconds = predicted({folder: run for name in names for folder, run in planned("cpu", name).items()})
    took = {stage: entry["seconds"] for stage, entry in measured["stages"].items()}
    assert 1 / 1.5 < sum(seconds.values()) / sum(took.values()) < 1.5
    for stage in took:
        assert 0.5 < seconds[stage] / took[stage] < 2, stage
    assert 1 / 1.5 < sum(seconds.values()) / 2 / measured["commands"][command]["seconds"] < 1.5  # two at once
    table6 = sum(predicted(planned("cpu", "table6")).values())
    assert 1 / 1.5 < table6 / measured["targets"]["table6"]["seconds"] < 1.5


def test_a_judge_is_loaded_once_for_all_answers_that_wait_for_it() -> None:
    """Table 6 on four cards: eleven readings by a judge of 72B, which starts with the first of each group."""
    runs = planned("paper", "table6")
    readings = [run for run in runs.values() if run.spec["stage"] == "evaluate"]
    in_groups, first = cost.estimates(list(runs.values()), machine("paper")), cost.estimate(readings[1], runs)
    cheaper = [in_groups[run.folder].device_hours < first.device_hours for run in readings[1:]]
    assert sum(cheaper) >= 8


def test_everything_can_be_priced_on_every_profile() -> None:
    for profile in ("cpu", "gpu", "paper"):
        for name in experiments():
            runs = planned(profile, name)
            for device in cost.devices_of(profile):
                total = sum((cost.estimate(run, runs, device) for run in runs.values()), cost.Cost())
                assert total.device_hours > 0, name


def test_runs_that_are_done_are_not_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chain, "OUTPUTS", tmp_path)
    runs = planned("cpu", "smoke")
    for run in runs.values():
        if run.spec["stage"] in ("synthesize", "judge"):
            run.path.mkdir(parents=True)
            (run.path / "run.json").write_text(FAKE_MANIFEST)
    summary.show_plan([plan.make("cpu", "smoke")])
    shown = capsys.readouterr().out
    rows = {line[:15].strip(): line[15:].split() for line in shown.splitlines() if line[:1].isalpha()}
    assert rows["synthesize"][:2] == ["1", "0"]
    left = [run for run in runs.values() if not run.done]
    assert rows["total"][:2] == [str(len(runs)), str(len(left))]
    each = cost.estimates(list(runs.values()), machine("cpu"))
    hours = sum(each[run.folder].device_hours for run in left)
    assert float(rows["to do"][4]) == pytest.approx(hours, abs=0.006)
    assert float(rows["to do"][4]) < float(rows["total"][4])
    assert f"The {len(runs) - len(left)} runs that are done: estimated" in shown
    assert f"Rates of {rates()['dated']}" in shown


def test_assumed_rates_are_said_to_be_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    summary.show_plan([plan.make("paper", "table6")])
    assert "never measured" in capsys.readouterr().out
    for name, device in rates()["devices"].items():
        assert "measured" in device or "assumed" in device, name


def test_a_cap_refuses_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = api_runs(monkeypatch, tmp_path)
    cost.check_cap(runs, runs)
    capped = api_runs(monkeypatch, tmp_path, "engine.max_usd=0")
    with pytest.raises(SaoError, match=r"^Nothing was started: .* more than .*engine\.max_usd = \$0\.00"):
        cost.check_cap(capped, capped)
    known = {run.folder: run for run in runs}
    total = sum(cost.estimate(run, known).usd for run in runs)
    largest = max(cost.estimate(run, known).usd for run in runs)
    if largest < total:  # each run within the cap, all together not
        between = api_runs(monkeypatch, tmp_path, f"engine.max_usd={(largest + total) / 2:.6f}")
        with pytest.raises(SaoError, match="of the runs to do"):
            cost.check_cap(between, between)


def test_what_is_done_is_not_held_against_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = api_runs(monkeypatch, tmp_path, "engine.max_usd=0")
    for run in runs:
        run.path.mkdir(parents=True)
        (run.path / "run.json").write_text(FAKE_MANIFEST)
    cost.check_cap([run for run in runs if not run.done], runs)


def test_reproduce_asks_the_cap_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr("sao_lib.engines.openai_api._listed", lambda url, key: frozenset({"gpt-4o"}))
    monkeypatch.setattr(chain, "OUTPUTS", tmp_path)
    started: list[object] = []
    monkeypatch.setattr(reproduce, "run_graph", lambda *given: started.append(given))
    with pytest.raises(SaoError, match="Nothing was started"):
        reproduce.reproduce("cpu", ["table13"], [*API_JUDGE, "engine.max_usd=0"])
    assert not started


def test_what_is_to_be_made_again_is_held_against_the_cap_before_it_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr("sao_lib.engines.openai_api._listed", lambda url, key: frozenset({"gpt-4o"}))
    runs = api_runs(monkeypatch, tmp_path, "engine.max_usd=0")
    for run in runs:
        run.path.mkdir(parents=True)
        (run.path / "run.json").write_text(FAKE_MANIFEST)
    with pytest.raises(SaoError, match="Nothing was started"):
        reproduce.reproduce("cpu", ["table13"], [*API_JUDGE, "engine.max_usd=0"], fresh="all")
    assert all(run.done for run in runs)


def test_a_model_without_a_rate_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    runs = planned("paper", "smoke", "policy.model=some/model@main")
    for run in (of_stage(runs, "synthesize"), of_stage(runs, "train")):
        with pytest.raises(SaoError, match=r"^params/rates\.yaml does not know the size of some/model"):
            cost.estimate(run, runs)
    summary.show_plan([plan.make("cpu", "smoke", ["policy.model=some/model@main"])])
    shown = capsys.readouterr().out
    assert "No estimate: params/rates.yaml has no speed of some/model on cpu-core" in shown
    assert "to do" in shown
    runs = planned("cpu", "table13", *API_JUDGE[1:], "judge.model=openai/gpt-9")
    with pytest.raises(SaoError, match="lists no price for openai/gpt-9"):
        cost.check_cap(list(runs.values()), list(runs.values()))
    with pytest.raises(SaoError, match="lists no price for 'gpt-9'"):
        most_usd("gpt-9", [], 1)
    with pytest.raises(SaoError, match="names no device for the profile laptop"):
        cost.devices_of("laptop")


def test_costs_add_up() -> None:
    one = cost.Cost(1, 2, 3, 4, 5, 6)
    assert one + one == cost.Cost(2, 4, 6, 8, 10, 12)
    assert one + cost.Cost() == one


def test_disk_is_counted_and_a_model_of_unknown_size_does_not_stand_in_the_way() -> None:
    runs = plan.make("cpu", "table6").runs
    assert 2 < cost.disk_needed(runs, runs) < 10
    other = plan.make("cpu", "table6", ["policy.model=org/unknown"]).runs
    assert cost.disk_needed(other, other) < 1


def test_disk_is_what_stays_and_the_checkpoints_of_the_trainings_that_run_at_once() -> None:
    runs = plan.make("paper", "figure1").runs
    planned = {run.folder: run for run in runs}
    stays = sum(cost.estimate(run, planned).disk_gib for run in runs)
    passing = sorted(cost.checkpoints_gib(run, planned) for run in runs)
    assert passing[-1] == pytest.approx(3 * 9.24e9 * 14 / 2**30)  # 469 steps, saved every 100: two and the next
    assert cost.disk_needed(runs, runs) == pytest.approx(stays + passing[-1])
    assert cost.disk_needed(runs, runs, 2) == pytest.approx(stays + sum(passing[-2:]))


def test_a_cpu_without_bf16_has_rates_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {}
    for bf16 in (True, False):
        monkeypatch.setattr(hardware, "multiplies_bf16", lambda answer=bf16: answer)
        seconds[bf16] = sum(predicted(planned("cpu", "table6")).values())
        assert cost.devices_of("gpu-small")[0].name == "a100-80gb"
    assert seconds[False] > 2 * seconds[True]
