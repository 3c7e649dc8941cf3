"""Where we differ from the paper: said for every table, under it, and true of what the paper profile plans."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sao_lib.errors import SaoError
from sao_lib.plan import planning as plan
from sao_lib.plan.experiment import experiments
from sao_lib.report import fidelity
from sao_lib.settings import PARAMS
from sao_lib.yaml_files import read_yaml

PROFILES = {path.stem for path in (PARAMS / "profiles").glob("*.yaml")}


def test_every_table_of_the_paper_says_what_the_paper_did_and_no_other_does() -> None:
    assert list(fidelity.read().tables) == experiments()


def test_every_profile_says_how_it_differs() -> None:
    known = fidelity.read()
    assert set(known.common) == PROFILES
    assert all(set(entry.differs) <= PROFILES for entry in known.tables.values())


def test_a_captions_lines_say_what_the_paper_did_left_open_and_what_differs() -> None:
    paper, unsaid, differs = fidelity.sentences("table10", "paper")
    assert paper.startswith("Paper: ")
    assert "appendix B" in paper
    assert unsaid.startswith("Not in the paper: the size of the data set")
    assert differs.startswith("Differs from the paper: ")
    assert fidelity.sentences("mine", "paper") == []


def test_no_profile_calls_itself_the_papers_own_setting() -> None:
    assert "own setting" not in str(read_yaml(PARAMS / "shows.yaml"))


def test_a_mistake_in_the_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fidelity.yaml").write_text(yaml.safe_dump({"common": {}, "tables": {"table1": {"differs": {}}}}))
    monkeypatch.setattr(fidelity, "FILE", tmp_path / "fidelity.yaml")
    with pytest.raises(SaoError, match=r"^Key 'tables.table1.did' is missing in params/fidelity.yaml\.$"):
        fidelity.read()


def rows_of(profile: str, name: str) -> dict[str, plan.Row]:
    return {row.name: row for row in plan.make(profile, name).rows}


@pytest.mark.parametrize(
    ("name", "row", "model"),
    [
        ("table3", "gemma-simpo", "princeton-nlp/gemma-2-9b-it-SimPO"),
        ("table3", "llama-simpo", "princeton-nlp/Llama-3-Instruct-8B-SimPO-v0.2"),
        ("table11", "gemma-simpo", "princeton-nlp/gemma-2-9b-it-SimPO"),
        ("figure4", "simpo", "princeton-nlp/gemma-2-9b-it-SimPO"),
        ("table1", "gemma-simpo/qwen", "princeton-nlp/gemma-2-9b-it-SimPO"),
    ],
)
def test_simpo_is_the_released_checkpoint_in_the_paper_profile_and_trained_elsewhere(
    name: str, row: str, model: str
) -> None:
    released = rows_of("paper", name)[row]
    assert released.settings.policy.model == model
    assert not any(run.spec["stage"] == "train" for run in released.runs.values())
    for profile in PROFILES - {"paper"}:
        here = rows_of(profile, name)[row]
        assert "for the released" in here.label
        assert any(run.spec["stage"] == "train" for run in here.runs.values())


def test_qwen_judges_every_model_whose_numbers_the_paper_prints() -> None:
    rows, printed = rows_of("paper", "table1"), read_yaml(PARAMS / "paper.yaml")["table1"]["rows"]
    qwen = {name.removesuffix("/qwen") for name in rows if name.endswith("/qwen")}
    assert qwen == {name for name, numbers in printed.items() if numbers["qwen_wr"] is not None}
    (run,) = (r for r in rows["yi-34b/qwen"].runs.values() if r.folder.split("/")[2].startswith("answers-of"))
    assert run.inputs.keys() == {"calibration"}  # nothing answers here
    assert run.spec["params"]["evaluate"]["judge_model"] == "Qwen/Qwen2-72B-Instruct"
    assert plan.models_of(run) == ["Qwen/Qwen2-72B-Instruct"]


@pytest.mark.parametrize("name", [n for n in experiments() if n not in ("figure3", "table12")])
def test_ten_and_sixty_thousand_are_decided_pairs_in_the_paper_profile(name: str) -> None:
    made = plan.make("paper", name)
    trainings: list[dict[str, Any]] = [r.spec["params"] for r in made.runs if r.spec["stage"] == "train"]
    sizes = {t["train"]["pairs"] for t in trainings if not t["train"]["data"]}
    assert sizes <= {1_000, 10_000, 60_000}
    for run in made.runs:
        if run.spec["stage"] == "synthesize" and sizes & {10_000, 60_000}:
            drawn = run.spec["params"]["synthesize"]
            assert drawn["n"] > min(sizes & {10_000, 60_000}) + 256
            assert (drawn["filter"], drawn["max_words"]) == ("log", 200)
