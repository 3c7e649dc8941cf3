"""An experiment file is checked before anything runs, and a mistake in it is one sentence."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sao_lib import settings, yaml_files
from sao_lib.errors import SaoError
from sao_lib.plan import experiment, planning
from sao_lib.report.check import check, offers

WHOLE: dict[str, Any] = {
    "title": "A table of one's own",
    "question": "Does it run?",
    "ours": True,
    "columns": ["wr", "se", "n"],
    "rows": {"length": {"label": "Length", "judge": {"source": "length", "model": None, "engine": None}},
             "self": {"label": "Self"}},
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write experiments/mine.yaml with changes; None takes a key out."""
    (tmp_path / "experiments").mkdir()
    for other in ("profiles", "paper.yaml", "shows.yaml", "rates.yaml"):
        (tmp_path / other).symlink_to(settings.PARAMS / other)
    for module in (yaml_files, experiment):
        monkeypatch.setattr(module, "PARAMS", tmp_path)

    def file(**changes: Any) -> None:
        body = {k: v for k, v in {**WHOLE, **changes}.items() if v is not None}
        (tmp_path / "experiments" / "mine.yaml").write_text(yaml.safe_dump(body))

    return file


def row(**changes: Any) -> dict[str, Any]:
    return {"rows": {"self": {"label": "Self", **changes}}}


def claim(holds: str, **more: Any) -> dict[str, Any]:
    return {"claims": [{"sentence": "So.", "holds": holds, **more}]}


def test_the_least_that_an_experiment_needs(write: Any) -> None:
    write()
    check("mine")
    assert experiment.read("mine").claims == []
    assert experiment.experiments() == []
    assert experiment.experiments(ours=True) == ["mine"]


MISTAKES = [
    ({"rows": None}, "Key 'rows' is missing in params/experiments/mine.yaml."),
    ({"rows": {}}, "Key 'rows'"),
    ({"rows": {"self": {}}}, "Key 'rows.self.label' is missing"),
    ({"title": None}, "Key 'title' is missing"),
    ({"claims": [{"sentence": "So it is."}]}, "Key 'claims.0.holds' is missing"),
    ({"runs": ["evalute"]}, "Key 'runs.0' in params/experiments/mine.yaml is 'evalute': input should be 'synthesize'"),
    ({"colums": ["wr"]}, "Unknown key 'colums'"),
    ({"columns": None}, "either columns or a table"),
    ({"table": "lengths"}, "either columns or a table"),
    ({"columns": ["wr", "win_rate"]}, "There is no column 'win_rate'; there are: lc, "),
    ({"columns": ["math500"]}, "the column math500 needs the stage math500, which no row runs"),
    ({"columns": ["paper.wr"]}, "the column paper.wr is empty"),
    ({"columns": None, "table": "length"}, "there is no table 'length'; there are: repeated_prompts"),
    ({"figure": {"kind": "pie"}}, "there is no figure kind 'pie'; there are: dots"),
    ({"figure": {"kind": "dots", "metric": "winrate"}}, "there is no figure metric 'winrate'; there are: wr"),
    ({"figure": {"kind": "dots"}}, "a figure of kind dots needs metric; there are: wr"),
    ({"figure": {"kind": "line", "metric": "wr"}}, "a figure of kind line needs metrics"),
    ({"figure": {"kind": "dots", "metric": "math500"}}, "the figure metric math500 needs the stage math500"),
    ({"figure": {"kind": "logits"}}, "the figure kind logits needs the stage logits, which no row runs"),
    ({"figure": {"kind": "dots", "metric": "wr", "paper": ["wr"]}}, "the figure's paper: wr is empty"),
    ({"figure": {"kind": "line", "metrics": ["wr"], "paper_x": [0, 1, 2]}}, "paper_x has 3 places for 2 rows"),
    ({"columns": None, "table": "skewness"}, "the table skewness needs the stage logits, which no row runs"),
    ({"columns": ["average"]}, "the column average needs the stage rating or leaderboard, which no row runs"),
    ({"columns": ["model"], "runs": ["judge"]}, "the column model needs the stage evaluate or "),
    ({"columns": ["source"], "runs": ["synthesize"]}, "the column source needs the stage judge, which no row runs"),
    ({"runs": ["ablate"]}, "runs.0: ablate makes the table itself, no row runs it"),
    ({"printed_in": "table60"}, "there is no table of the paper 'table60'; there are: table1"),
    ({"printed_in": "table6", **row(printed={"row": "myself"})}, "row self: params/paper.yaml has no numbers for "),
    ({"printed_in": "table1", **row(printed={"row": "gemma", "prefix": "gpt5_"})}, "with the prefix 'gpt5_'"),
    ({"columns": ["pairs"], "runs": ["judge"], "claims": [{"sentence": "So.", "holds": "self.wr > length.wr"}]},
     "the row self does not run evaluate"),
    ({"claims": [{"sentence": "So.", "holds": "self.wr > random.wr"}]}, "names the row 'random'; there are: length"),
    (claim("self.wr >= length.wr"), "must read 'row.metric > row.metric'"),
    (claim("self.wr > length.length"), "with one metric"),
    (claim("self.wr is most"), "must read 'row.metric > row.metric'"),
    (claim("self.wr ≈ length.wr"), "needs `within` for ≈"),
    (claim("self.wr > length.wr", within=2), "needs `within` for ≈, and for nothing else"),
    (claim("self.wr > length.wr", of=["self"]), "`of` is for max and min"),
    (claim("self.wr is max", of=["length", "random"]), "names the row 'random'; there are: length"),
    (claim("self.wr > length.wr", printed=["table6/self/wr"]), "printed needs a cell 'table/row/column' for each row"),
    (claim("self.wr > 50", printed=["table6/nobody/wr"]), "params/paper.yaml has no cell table6/nobody/wr"),
    (claim("self.f1 > length.f1"), "there is no claim metric 'f1'; there are: wr"),
    (claim("self.math500 > 50"), "the row self does not run math500, which math500 needs"),
    ({"rows": {**WHOLE["rows"], "coin": {"label": "Coin", "control": "placebo"}}}, "coin is a control, but no claim"),
    ({"notebook": "99_none"}, "its notebook '99_none' is none of notebooks/"),
    (claim("self.wr > length.wr", otherwise="So what."), "says `otherwise`, which is for claims that name a control"),
    (row(control="plaxebo"), "Key 'rows.self.control'"),
    ({"replicates": 0}, "Key 'replicates"),
    ({"replicates": {"laptop": 2}}, "replicates has 'laptop', which is no profile; there are: cpu"),
    ({"settings": {"laptop": {"seed": 1}}}, "settings has 'laptop', which is no profile; there are: cpu"),
    (row(trained="false"), "Key 'rows.self.trained'"),
    (row(profiles=["laptop"]), "self.profiles has 'laptop', which is no profile; there are: cpu"),
    (row(iterations=0), "Key 'rows.self.iterations'"),
    (row(trianed=False), "a row has no 'trianed'; it may have: label, use"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES, ids=[sentence[:40] for _, sentence in MISTAKES])
def test_a_mistake_is_one_sentence_before_anything_runs(write: Any, changes: dict[str, Any], sentence: str) -> None:
    write(**changes)
    with pytest.raises(SaoError) as found:
        check("mine")
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", experiment.experiments(ours=True))
def test_the_check_expects_of_rows_what_their_plan_runs(name: str) -> None:
    check(name)
    asked = experiment.read(name)
    for planned in planning.make("cpu", name).rows:
        if not planned.settings.train.data and not planned.skipped:
            assert {role.partition("#")[0] for role in planned.roles} == offers(asked, planned.name)


def test_a_rating_of_a_row_without_feedback_is_one_sentence(write: Any) -> None:
    write(runs=["rating"], columns=["clarity"], **row(trained=False))
    with pytest.raises(SaoError, match="responses that a feedback source chose, and this row has none"):
        planning.make("cpu", "mine")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (row(train={"gama": 1}), "Unknown parameter 'train.gama' in params/experiments/mine.yaml, row self"),
        (row(use=["gpt-9"]), "uses the preset 'gpt-9'"),
        (row(judge={"source": "nobody"}), "'judge.source' in params/experiments/mine.yaml, row self is 'nobody'"),
        (row(train={"loss": "none"}), "'train.loss' in params/experiments/mine.yaml, row self is 'none'; there are: "),
        (row(synthesize={"source": "web"}), "'synthesize.source' in params/experiments/mine.yaml, row self is 'web'"),
        (row(judge={"source": "reward"}), "judge: source: reward needs a model"),
        (row(judge={"source": "length", "model": "x/y"}), "judge: source: length takes no model"),
    ],
)  # fmt: skip
def test_names_in_parameters_are_looked_up_when_planning(write: Any, changes: dict[str, Any], sentence: str) -> None:
    write(**changes)
    with pytest.raises(SaoError) as found:
        planning.make("cpu", "mine")
    assert sentence in str(found.value)


def test_set_has_a_folder_of_its_own_and_says_its_command() -> None:
    plain, changed = planning.make("cpu", "smoke"), planning.make("cpu", "smoke", ["train.beta=2", "seed=7"])
    assert plain.table.folder == "cpu/smoke"
    assert changed.table.folder == "cpu/smoke@seed=7,train.beta=2"
    assert changed.table.spec["params"]["command"] == "make reproduce-smoke PROFILE=cpu SET='train.beta=2 seed=7'"
    odd = planning.make("cpu", "smoke", ["policy.model=org/name@main"]).table.folder
    assert odd.startswith("cpu/smoke@policy.model=org-name-main-")
    assert planning.make("cpu", "smoke", ["machine.jobs=1", "engine.max_usd=9"]).table.folder == "cpu/smoke"


@pytest.mark.parametrize("given", ["judge.source=random", "judge.model=x/y", "judge={source: random}"])
def test_set_cannot_lie_over_what_the_rows_vary(write: Any, given: str) -> None:
    write()
    with pytest.raises(SaoError, match=r"SET cannot change judge.* in mine: .* row\(s\) length set themselves"):
        planning.make("cpu", "mine", [given])


def test_set_cannot_change_what_a_preset_gives_a_row() -> None:
    with pytest.raises(SaoError, match=r"train\.pairs in figure1: .* small, medium"):
        planning.make("cpu", "figure1", ["train.pairs=8"])
    with pytest.raises(SaoError, match=r"train\.beta in table4: .* dpo, orpo"):
        planning.make("cpu", "table4", ["train.beta=2"])


def test_replicates_are_the_experiments_by_profile_and_a_row_may_say_its_own(write: Any) -> None:
    rows = {**WHOLE["rows"], "length": {**WHOLE["rows"]["length"], "replicates": 2}}

    def replicates(**changes: Any) -> dict[str, int]:
        write(**changes)
        _, made = planning._rows("cpu", "mine", experiment.read("mine"), ())
        return {row.name: row.settings.replicates for row in made}

    assert replicates() == {"length": 1, "self": 1}
    assert replicates(replicates=3) == {"length": 3, "self": 3}
    assert replicates(replicates={"gpu": 3}) == {"length": 1, "self": 1}
    assert replicates(replicates={"cpu": 3}, rows=rows) == {"length": 2, "self": 3}
