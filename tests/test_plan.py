"""The graph of runs: shared work happens once, identity follows content."""

from pathlib import Path

import pytest

from sao_lib import machine
from sao_lib.errors import SaoError
from sao_lib.plan import layers
from sao_lib.plan import planning as plan
from sao_lib.plan.experiment import experiments, read
from sao_lib.settings import NOTEBOOKS, PARAMS


def folders(*assignments: str) -> list[str]:
    return [run.folder for run in plan.make("cpu", "table6", list(assignments)).runs]


def stages(found: list[str]) -> dict[str, int]:
    return {stage: sum(f"/{stage}/" in f for f in found) for stage in NOTEBOOKS}


def test_table6_makes_prompts_once_and_trains_a_model_a_row() -> None:
    rows = len(read("table6").rows)
    wanted = {"synthesize": 1, "judge": rows, "train": rows, "answer": rows + 1, "evaluate": rows + 1}
    assert stages(folders()) == {stage: wanted.get(stage, 0) for stage in NOTEBOOKS}


def test_runs_come_after_what_they_read() -> None:
    made = plan.make("cpu", "table6").runs
    place = {run.folder: number for number, run in enumerate(made)}
    assert all(place[needed] < place[run.folder] for run in made for needed in run.inputs.values())


def test_a_training_parameter_changes_trainings_and_leaves_judging_alone() -> None:
    before, after = set(folders()), set(folders("train.beta=2"))
    changed = stages(sorted(before - after))
    assert changed["synthesize"] == changed["judge"] == 0
    assert changed["train"] == changed["answer"] == changed["evaluate"] == len(read("table6").rows)
    assert not any("untrained" in folder for folder in before - after)


def test_the_evaluation_judges_template_is_part_of_what_an_evaluation_is() -> None:
    before, after = folders(), folders("evaluate.judge_template=params/templates/ranking.yaml")
    changed = stages(sorted(set(before) - set(after)))
    assert changed["evaluate"] == stages(before)["evaluate"]
    assert changed["judge"] == changed["train"] == changed["answer"] == 0
    run = next(run for run in plan.make("cpu", "table6").runs if run.spec["stage"] == "evaluate")
    assert "params/templates/ranking_small.yaml" in run.spec["files"], "an edited template is another identity"


def test_identity_does_not_depend_on_how_the_machine_is_used() -> None:
    assert folders() == folders("machine.jobs=1")


def test_a_key_in_the_environment_replaces_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    labels = {row.name: row.label for row in plan.make("cpu", "table6").rows}
    assert labels["gpt4o"] == "GPT-4o feedback (gemma-3-270m by reverse_added for GPT-4o)"
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    row = next(r for r in plan.make("cpu", "table6").rows if r.name == "gpt4o")
    assert row.label == "GPT-4o feedback"
    assert row.settings.judge.model == "openai/gpt-4o-2024-08-06"


def test_a_missing_key_stops_only_the_rows_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    smol = "embedded/smollm2-135m-instruct"
    changes = [f"policy.model={smol}", f"evaluate.judge_model={smol}", "synthesize.personas=params/data/personas.jsonl",
               "synthesize.n=100", "train.held_out=20", "train.pairs=64", "train.global_batch=64", "evaluate.n=64",
               "evaluate.instructions=params/data/chat.json", "evaluate.reference=suite-reference"]  # fmt: skip
    made = plan.verified(plan.make("paper", "table6", changes))
    reasons = {row.name: row.skipped for row in made.rows if row.skipped}
    assert "OPENAI_API_KEY" in str(reasons["gpt4o"])
    assert "ArmoRM" in str(reasons["armorm"])
    assert set(reasons) == {"gpt4o", "gpt4o-mini", "armorm"}
    assert not any("gpt-4o" in run.folder for run in made.runs)
    assert {row["name"]: row["skipped"] for row in made.table.spec["params"]["rows"]} == {
        row.name: row.skipped for row in made.rows
    }


def test_without_vllm_the_cpu_profile_is_planned_with_transformers_as_other_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    with_vllm = plan.make("cpu", "table6")
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert layers.validate(layers.profile_layers("cpu-long")).engine.kind == "transformers"
    without, gpu = plan.make("cpu", "table6"), layers.validate(layers.profile_layers("gpu-small"))
    assert (with_vllm.base.engine.kind, without.base.engine.kind) == ("vllm", "transformers")
    assert not {run.folder for run in with_vllm.runs if run.spec["params"].get("engine")} & {
        run.folder for run in without.runs
    }
    assert gpu.engine.kind == "vllm", "a profile that extends cpu is for another machine"
    assert plan.make("cpu", "table6", ["engine.kind=vllm"]).base.engine.kind == "vllm"


def test_on_a_cpu_without_bf16_the_cpu_profiles_compute_in_float32_as_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "milan").write_text("model name : x\nflags : fpu avx2 vaes\n\nflags : fpu avx2 vaes\n")
    (tmp_path / "genoa").write_text("flags\t\t: fpu avx512f avx512_bf16 vaes\n")
    (tmp_path / "graviton3").write_text("Features : fp asimd bf16 sve\n")
    has = {name: machine.multiplies_bf16(tmp_path / name) for name in ("milan", "genoa", "graviton3", "macOS")}
    assert has == {"milan": False, "genoa": True, "graviton3": True, "macOS": False}
    found = {}
    for bf16 in (True, False):
        monkeypatch.setattr(machine, "multiplies_bf16", lambda answer=bf16: answer)
        found[bf16] = plan.make("cpu", "smoke")
        base = found[bf16].base
        dtypes = {base.engine.dtype, base.train.dtype, base.leaderboard.dtype, base.logits.dtype}
        assert dtypes == {"bfloat16" if bf16 else "float32"}
    ours, other = ({run.folder for run in found[bf16].runs if run.spec["stage"] == "train"} for bf16 in found)
    assert ours
    assert not ours & other
    assert layers.validate(layers.profile_layers("gpu-small")).engine.dtype == "bfloat16", "it has a card"


@pytest.mark.parametrize(
    ("package", "changes"),
    [
        ("vllm", ["engine.kind=vllm"]),
        ("deepspeed", ["engine.kind=transformers", "train.deepspeed=params/deepspeed_zero3.json"]),
    ],
)
def test_a_package_that_is_not_here_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, package: str, changes: list[str]
) -> None:
    made = plan.make("cpu", "smoke", changes)
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(SaoError, match=f"The package {package} is not installed here"):
        plan.verified(made)


def test_a_model_that_cannot_be_had_is_said_before_anything_runs() -> None:
    with pytest.raises(SaoError, match="nobody/nothing@main cannot be had"):
        plan.verified(plan.make("cpu", "table6", ["policy.model=nobody/nothing@main"]))
    with pytest.raises(SaoError, match="no embedded model 'embedded/smol'.*smollm2-135m"):
        plan.verified(plan.make("cpu", "table6", ["policy.model=embedded/smol"]))


def test_a_failed_run_takes_only_its_rows_out_of_the_table() -> None:
    made = plan.make("cpu", "table6")
    failed = next(run.folder for run in made.runs if "/judge/length-" in run.folder)
    rest = plan.without(made, {failed: "no disk"})
    assert {row.name: row.skipped for row in rest.rows if row.skipped} == {"length": "no disk"}
    assert "length/evaluate" not in rest.table.inputs


def test_every_experiment_is_planned_on_every_profile() -> None:
    names = experiments()
    of_the_paper = [f"table{n}" for n in range(1, 15)] + [f"figure{n}" for n in range(1, 6)]
    assert [name for name in names if name in of_the_paper] == of_the_paper
    for profile in sorted(path.stem for path in (PARAMS / "profiles").glob("*.yaml")):
        for name in experiments(ours=True):
            made = plan.make(profile, name)
            assert [row.name for row in made.rows if row.skipped] == [], (profile, name)


@pytest.mark.parametrize("profile", ["gpu-small", "gpu", "paper"])
def test_every_model_is_trained_whole_at_its_profiles_rate(profile: str) -> None:
    rate = layers.validate(layers.profile_layers(profile)).train.learning_rate
    trainings = [
        run.spec["params"]["train"] for run in plan.make(profile, "table10").runs if run.spec["stage"] == "train"
    ]
    assert {(train["learning_rate"], train["lora_rank"]) for train in trainings} == {(rate, None)}


def test_tables_share_runs() -> None:
    def runs(name: str, row: str) -> dict[str, str]:
        return {k: v for k, v in plan.make("cpu", name).table.inputs.items() if k.startswith(f"{row}/")}

    simpo = runs("table4", "self")["self/evaluate"]
    assert runs("table6", "self")["self/evaluate"] == simpo
    assert runs("table8", "gemma+gemma")["gemma+gemma/evaluate"] == simpo
    assert runs("figure1", "large")["large/evaluate"] == simpo
    # Figure 2 is read by a second judge too, of the same training.
    assert runs("figure2", "1")["1/train"] == runs("table4", "self")["self/train"]
    assert runs("table6", "gpt4o-mini")["gpt4o-mini/train"] == runs("table8", "gemma+llama")["gemma+llama/train"]


def test_an_iteration_starts_from_the_model_before() -> None:
    made = {run.folder: run for run in plan.make("cpu", "figure2").runs}
    table = next(run for folder, run in made.items() if folder == "cpu/figure2")
    first, second = table.inputs["1/train"], table.inputs["2/train"]
    assert made[second].inputs["policy"] == first
    judged = made[made[second].inputs["judge"]]
    assert judged.inputs["policy"] == first
    made_anew = made[judged.inputs["synthesize"]]
    assert made_anew.inputs["policy"] == first
    assert made_anew.spec["params"]["seed"] != made[table.inputs["1/synthesize"]].spec["params"]["seed"]


def test_another_judge_reads_the_same_answers() -> None:
    made = {run.folder: run for run in plan.make("cpu", "table9").runs}
    readings = [made[f] for role, f in made["cpu/table9"].inputs.items() if role.endswith("self/evaluate")]
    answers = {run.inputs["answers"] for run in readings}
    assert len(readings) == 3
    assert len(answers) == 1


def test_a_replicate_is_the_row_again_with_another_seed_and_the_same_evaluation() -> None:
    once, twice = plan.make("cpu", "smoke"), plan.make("cpu", "smoke", ["replicates=2"])
    first = {run.folder for run in once.runs[:-1]}
    assert first < {run.folder for run in twice.runs}, "the first replicate is the run of a row without replicates"
    more = [run for run in twice.runs[:-1] if run.folder not in first]
    assert all("-seed-142-" in run.folder for run in more)
    assert stages([run.folder for run in more]) == {
        **dict.fromkeys(NOTEBOOKS, 0),
        "synthesize": 1,
        "judge": 4,
        "train": 4,
        "answer": 4,
        "evaluate": 4,
    }
    made = {run.spec["params"]["seed"] for run in more if run.spec["stage"] in ("synthesize", "judge", "train")}
    assert made == {142}
    judged = [run for run in twice.runs if run.spec["stage"] in ("answer", "evaluate")]
    assert {run.spec["params"]["seed"] for run in judged} == {42}, "answers are sampled with common random numbers"
    assert len({run.inputs["calibration"] for run in judged if "calibration" in run.inputs}) == 1
    assert twice.table.inputs["self/evaluate"] == once.table.inputs["self/evaluate"]
    assert twice.table.inputs["self/evaluate#2"] in {run.folder for run in more}


def test_an_untrained_row_has_one_run_however_often_others_are_trained() -> None:
    made = plan.make("cpu", "table8", ["replicates=3"])
    assert {role.rpartition("/")[2] for role in made.table.inputs if role.startswith("vanilla/")} == {"evaluate"}
    assert "gemma+gemma/evaluate#3" in made.table.inputs


def test_two_coins_order_the_same_pairs_differently() -> None:
    made = {row.name: row for row in plan.make("cpu", "smoke").rows}
    one, other = made["random"].roles, made["random-2"].roles
    assert one["synthesize"] == other["synthesize"]
    assert one["judge"].folder != other["judge"].folder
    assert "salt" not in made["self"].roles["judge"].spec["params"]["judge"], "a salt is the coin's alone"


def test_an_unknown_preset_lists_what_there_is() -> None:
    base = plan.make("cpu", "table6").base
    with pytest.raises(SaoError, match="preset 'gpt-5'.*there are: .*gpt-4o"):
        plan._preset(base, "gpt-5", "params/experiments/table6.yaml, row gpt5")


def test_a_policys_own_reading_is_one_judge_for_all_rows() -> None:
    """Where no judge is named it is the untrained policy of the table, which the calibration measured."""
    made = plan.make("cpu", "table10", ["evaluate.judge_model=null", "evaluate.judges=[reverse]"]).runs
    judges = {run.spec["params"]["policy"]["model"]: run.spec["params"]["evaluate"]["judge_model"]
              for run in made if run.spec["stage"] == "evaluate"}  # fmt: skip
    assert judges == {
        "embedded/smollm2-135m-instruct": None, "embedded/gemma-3-270m": "embedded/smollm2-135m-instruct"
    }  # fmt: skip
