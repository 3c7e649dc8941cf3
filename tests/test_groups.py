"""Runs that one process does in turn: which they are, and that it makes no difference to any of them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sao_lib import runs
from sao_lib.errors import SaoError
from sao_lib.launch import cluster, graph
from sao_lib.plan import chain, layers
from sao_lib.plan import planning as plan
from sao_lib.plan.chain import Planned
from sao_lib.plan.groups import Group, groups
from sao_lib.settings import ROOT, Machine

SMALLEST = ["synthesize.n=6", "synthesize.pairs=6", "synthesize.max_response_tokens=16", "judge.audit_questions=1",
            "train.held_out=1"]  # fmt: skip


def machine(profile: str) -> Machine:
    return layers.validate(layers.profile_layers(profile)).machine


def of_table(name: str, profile: str = "cpu", at_once: int | None = 2) -> list[Group]:
    return groups(plan.make(profile, name).runs, machine(profile), at_once)


def stage(group: Group) -> str:
    return str(group[0].spec["stage"])


@pytest.mark.parametrize("at_once", [1, 2, 4, None])
@pytest.mark.parametrize("name", ["table6", "table9", "table10", "figure2"])
def test_every_run_is_in_one_group_after_the_groups_of_what_it_reads(name: str, at_once: int | None) -> None:
    made = of_table(name, at_once=at_once)
    place = {run.folder: number for number, group in enumerate(made) for run in group}
    assert len(place) == sum(map(len, made)) == len(plan.make("cpu", name).runs)
    assert all(place[i] < place[run.folder] for group in made for run in group for i in run.inputs.values())
    assert max(map(len, made)) <= machine("cpu").group


def test_runs_of_a_group_are_of_one_stage_and_one_model() -> None:
    for group in of_table("table8"):
        assert len({run.spec["stage"] for run in group}) == 1
    judges = [{(run.spec["params"]["judge"].get("model"), bool(run.spec["params"]["engine"])) for run in group}
              for group in of_table("table6") if stage(group) == "judge"]  # fmt: skip
    assert sorted(len(models) for models in judges if any(engine for _, engine in models)) == [1, 1]


def test_both_cores_are_kept_busy_and_no_engine_is_started_twice_without_need() -> None:
    made = of_table("table6")
    sizes = {name: sorted(len(g) for g in made if stage(g) == name) for name in ("train", "answer", "evaluate")}
    assert len(sizes["train"]) == 2
    assert sizes["train"][1] - sizes["train"][0] <= 1
    assert sizes["answer"] == sizes["evaluate"] == [1, *sizes["train"]]  # the untrained model's come first


def test_runs_stay_with_those_they_read() -> None:
    """So that a group need not wait for two others."""
    made = of_table("table6")
    place = {run.folder: number for number, group in enumerate(made) for run in group}
    for group in made:
        if stage(group) == "answer":
            assert len({place[i] for run in group for i in run.inputs.values()}) <= 1


def test_trainings_with_processes_of_their_own_are_alone() -> None:
    assert {len(group) for group in of_table("table6", "paper", None) if stage(group) == "train"} == {1}


def test_the_profile_caps_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan.make("cpu", "table6", ["machine.group=2"])
    assert max(map(len, groups(made.runs, made.base.machine, None))) == 2


def sao(outputs: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SAO_OUTPUTS": str(outputs), "OPENAI_API_KEY": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "sao_lib", *words]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr[-2000:] + done.stdout[-2000:]
    return done


@pytest.fixture
def in_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Planned]]:
    """Plans the judges of table 6 with their specs written, in a folder of outputs of their own."""

    def make(name: str, *changes: str) -> list[Planned]:
        for module in (runs, chain, graph):
            monkeypatch.setattr(module, "OUTPUTS", tmp_path / name)
        made = plan.make("cpu", "table6", [*SMALLEST, *changes])
        plan.write_specs(made)
        return made.runs

    return make


def rows_of(folder: Path) -> dict[str, str]:
    """What a run gave: its rows, and the results in its manifest."""
    files = {path.name: path.read_text() for path in folder.glob("*.jsonl") if path.name != "api_calls.jsonl"}
    return files | {"results": json.dumps(json.loads((folder / "run.json").read_text())["results"])}


def test_a_grouped_and_a_single_run_give_the_same_bytes(
    tmp_path: Path, in_outputs: Callable[..., list[Planned]]
) -> None:
    """Three judges in one process, the last of them with another's engine, and the last alone in its own."""
    names = ("self-", "self-without-criterion-1-", "self-without-criterion-2-")
    found = {}
    for how in ("together", "alone"):
        planned = in_outputs(how)
        first = next(run for run in planned if run.spec["stage"] == "synthesize")
        judges = [next(run for run in planned if run.path.name.startswith(name)) for name in names]
        sao(tmp_path / how, "run", str(first.path))
        for part in [judges] if how == "together" else [[judges[-1]]]:
            sao(tmp_path / how, "run", *(str(run.path) for run in part))
        found[how] = rows_of(judges[-1].path), rows_of(first.path), judges[-1].path
    assert found["together"][:2] == found["alone"][:2]
    engine_log = (found["together"][2] / "engine.log").read_text()
    assert "Initializing a V1 LLM engine" not in engine_log, "the third judge took the first one's engine"
    cells = json.loads((found["together"][2] / "notebook.ipynb").read_text())["cells"]
    assert next(c["execution_count"] for c in cells if c.get("execution_count")) == 1


def test_a_run_that_fails_leaves_its_sentence_and_the_next_is_done(
    tmp_path: Path, in_outputs: Callable[..., list[Planned]]
) -> None:
    planned = in_outputs("failing", "engine.kind=transformers")
    first = next(run for run in planned if run.spec["stage"] == "synthesize")
    coin, shorter = (next(run for run in planned if run.path.name.startswith(n)) for n in ("random-", "length-"))
    reader = next(run for run in planned if coin.folder in run.inputs.values())
    sao(tmp_path / "failing", "run", str(first.path))
    spec = json.loads((coin.path / "spec.yaml").read_text())
    spec["params"]["judge"]["source"] = "nobody"
    (coin.path / "spec.yaml").write_text(json.dumps(spec))
    sao(tmp_path / "failing", "run", str(coin.path), str(reader.path), str(shorter.path))
    assert "nobody" in (coin.path / "error.txt").read_text()
    assert not (reader.path / "error.txt").exists(), "what reads a failed run has not failed itself"
    assert shorter.done
    assert not coin.done
    assert not reader.done
    said = sao(tmp_path / "failing", "run", str(coin.path), str(reader.path), code=1).stderr
    assert "nobody" in said
    assert "Traceback" not in said


def test_a_killed_commands_plan_is_cleared_by_the_next_and_a_living_ones_is_left(tmp_path: Path) -> None:
    left = tmp_path / f"{graph.PREFIX}killed"
    left.mkdir()
    (left / "1.done").touch()
    with graph._folder(tmp_path) as living, graph._folder(tmp_path) as own:
        assert not left.exists()
        assert living.exists()
        assert own.exists()
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SaoError, match="no run's spec.yaml"):
        graph.do_group([tmp_path / "nothing"], None)


def test_a_reward_model_and_lm_eval_hold_one_card_of_four() -> None:
    runs = [*plan.make("paper", "table6").runs, *plan.make("paper", "table3").runs]
    one = [run for run in runs if stage([run]) == "leaderboard" or run.spec["name"].startswith("armorm")]
    assert {stage([run]) for run in one} == {"leaderboard", "judge"}
    assert {cluster.resources([run], machine("paper"))["gpu"] for run in one} == {1}
    judge = next(run for run in runs if run.spec["name"].startswith("self"))
    assert cluster.resources([judge], machine("paper"))["gpu"] == 4


def test_a_run_that_needs_no_card_shares_no_group_with_one_that_holds_one() -> None:
    made = [group for group in of_table("table6", "paper", None) if stage(group) == "judge"]
    held = {
        run.spec["name"]: cluster.resources(group, machine("paper")).get("gpu", 0) for group in made for run in group
    }
    assert held["random"] == held["length"] == 0
    assert held["armorm-llama3-8b-v0.1"] == 1


def test_the_papers_judge_starts_once_for_all_answers_that_wait_for_it() -> None:
    sizes = [len(group) for group in of_table("table6", "paper", None) if stage(group) == "evaluate"]
    assert sizes[0] == 1, "the untrained model's, by which the judge is chosen"
    assert len(sizes) == 2
    assert sizes[1] > machine("paper").group
