"""Gain against agreement with gold, on made-up runs: the line, what is placed on it, and what length explains."""

import json
import random
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from sao_lib.method.feedback import SOURCES, Gold
from sao_lib.plan import planning
from sao_lib.plan.experiment import read
from sao_lib.report import claims, dose, figures
from sao_lib.report.columns import text_of
from sao_lib.report.inference import Arm, Line, difference, in_words
from sao_lib.report.rows import TableRow, TableRows
from sao_lib.runs import Run

PAIRS, ASKED = 40, 30
GOLD = [1 + n % 2 for n in range(PAIRS)]


def write(
    folder: Path, stage: str, inputs: dict[str, str], params: dict[str, Any], results: dict[str, Any], **rows: Any
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    spec = {"stage": stage, "name": folder.name, "inputs": inputs, "params": params}
    (folder / "run.json").write_text(json.dumps({"spec": spec, "files": {}, "results": results}))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make rows {name: (judge's parameters, share of labels that are gold's, wins and characters more, by run)}."""
    monkeypatch.setattr("sao_lib.runs.OUTPUTS", tmp_path)

    def make(arms: dict[str, tuple[dict[str, Any], float, list[tuple[float, int]]]]) -> TableRows:
        policy = {"policy": {"model": "m"}}
        write(tmp_path / "untrained", "answer", {}, policy, {},
              answers=[{"instruction": f"Why {n}?", "output": "b" * 100} for n in range(ASKED)], gold=[])  # fmt: skip
        write(tmp_path / "calibration", "evaluate", {"answers": "untrained"}, policy, {})
        inputs: dict[str, str] = {}
        for name, (judge, share, runs) in arms.items():
            for number, (wins, longer) in enumerate(runs, 1):
                where = f"{name}-{number}"
                inputs |= {f"{name}/{role}" + (f"#{number}" if number > 1 else ""): f"{where}/{role}"
                           for role in ("judge", "train", "evaluate")}  # fmt: skip
                said = [label if n < share * PAIRS else 3 - label for n, label in enumerate(GOLD)]
                verdicts = [{"id": str(n), "verdict": v} for n, v in enumerate(said)]
                write(tmp_path / where / "judge", "judge", {"synthesize": f"pool-{number}"}, {"judge": judge}, {},
                      verdicts=verdicts)  # fmt: skip
                write(tmp_path / where / "train", "train", {}, policy, {})
                write(tmp_path / where / "answer", "answer", {"policy": f"{where}/train"}, policy,
                      {"kl": {"kl": abs(wins - 50) / 1000}}, gold=[])  # fmt: skip
                write(tmp_path / where / "evaluate", "evaluate",
                      {"answers": f"{where}/answer", "calibration": "calibration"}, policy, {},
                      annotations=annotated(where, wins, longer))  # fmt: skip
        run = Run({"inputs": inputs, "params": {}}, tmp_path)
        return {name: TableRow(name, name, {}, run) for name in arms}

    return make


def annotated(where: str, wins: float, longer: int) -> list[dict[str, Any]]:
    """A share of wins by the judge; the second reading says even. Every third answer is shorter than before."""
    rng, rows = random.Random(where), []
    for n in range(ASKED):
        more = -20 if n % 3 == 0 else longer
        rows.append({"instruction": f"Why {n}?", "output_2": "b" * (100 + more), "preference": 1.0,
                     "margin_untrained": 1.0 if 100 * (n + 0.5) / ASKED < wins else -1.0,
                     "second_untrained": rng.choice([1.0, -1.0])})  # fmt: skip
    return rows


def gold(corrupted: float = 0) -> dict[str, Any]:
    return {"source": "gold", "corrupted": corrupted}


def spread(wins: float) -> list[tuple[float, int]]:
    return [(wins - 4, 20), (wins, 25), (wins + 4, 30)]


ARMS = {
    "gold": (gold(), 1.0, spread(70)),
    "half": (gold(0.5), 0.5, spread(50)),
    "flipped": (gold(1), 0.0, spread(30)),
    "self": ({"source": "llm"}, 0.75, spread(60)),
    "length": ({"source": "length"}, 0.75, spread(30)),
}


def test_agreement_is_measured_on_the_pool_and_the_line_is_through_gold_and_coins(world: Any) -> None:
    rows = world(ARMS)
    arms = {arm.row.name: arm for arm in dose.placed(rows)}
    assert [arms[name].at for name in ARMS] == [100, 50, 0, 75, 75]
    assert [name for name in arms if arms[name].dosed] == ["gold", "half", "flipped"]
    drawn = dose.line(list(arms.values()), "direct")
    assert drawn
    slope = drawn.slope()
    assert 10 * slope.mean == pytest.approx(4, abs=0.2)
    low, high = slope.interval()
    assert 0.2 < low * 10 < 4 < high * 10
    found = dose.line(list(arms.values()), "second")
    assert found
    assert found.slope().interval()[0] < 0 < found.slope().interval()[1], "the second reading saw nothing"
    on, off = (drawn.off(75, arms[name].gains["direct"]) for name in ("self", "length"))
    assert on.interval()[0] < 0 < on.interval()[1]
    assert off.interval()[1] < 0, "a rule that is wrong in one direction lies off the line"


def test_sources_that_labelled_another_pool_have_no_place(world: Any) -> None:
    rows = world(ARMS)
    folder = rows["self"].run("judge").folder
    manifest = json.loads((folder / "run.json").read_text())
    manifest["spec"]["inputs"]["synthesize"] = "another-pool"
    (folder / "run.json").write_text(json.dumps(manifest))
    assert "self" not in {arm.row.name for arm in dose.placed(rows)}
    assert dose.placed({k: v for k, v in rows.items() if k != "gold"}) == [], "nothing without gold"


def test_a_gain_that_is_length_alone_is_gone_at_equal_length(world: Any) -> None:
    rows = world(ARMS)
    for row in rows.values():
        for one in row.replicates:
            path = one.run("evaluate").folder / "annotations.jsonl"
            made = [json.loads(line) for line in path.read_text().splitlines()]
            for a in made:
                a["margin_untrained"] = 1.0 if len(a["output_2"]) > 100 else -1.0
            path.write_text("".join(json.dumps(a) + "\n" for a in made))
    arms = dose.placed({k: TableRow(k, k, {}, v.table) for k, v in rows.items()})
    before, after = arms[0], dose.at_equal_length(arms)[0]
    assert before.gains["direct"].means[0] == pytest.approx(100 * 2 / 3)
    assert after.gains["direct"].means[0] < 60
    assert after.agreement == before.agreement


def test_rows_whose_answers_are_all_longer_have_no_gain_at_equal_length(world: Any) -> None:
    rows = world({**ARMS, "self": ({"source": "llm"}, 0.75, [(60, -30), (64, -30)])})
    assert {arm.row.name for arm in dose.at_equal_length(dose.placed(rows))} == {"gold", "half", "flipped", "length"}


def test_the_caption_states_slope_interval_both_measures_and_the_gain_at_equal_length(world: Any) -> None:
    judge, second = dose.sentences(world(ARMS))
    assert judge.startswith("By the evaluation judge gold labels win 70.0% [")
    assert "ten points of agreement with gold are worth +4.0 points of wins [" in judge
    assert "; at equal length gold labels win " in judge
    assert second.startswith("By the second reading gold labels win ")


def test_where_only_one_dose_has_answers_of_like_length_the_caption_says_why_there_is_no_line(world: Any) -> None:
    shorter = [(30, -30), (34, -30), (26, -30)]
    judge, _ = dose.sentences(world({**ARMS, "half": (gold(0.5), 0.5, shorter), "flipped": (gold(1), 0.0, shorter)}))
    assert judge.endswith(
        "], and there is no line, because too few answers are longer, or too few shorter: half; flipped."
    )
    assert "+" in judge.split("; at equal length")[0], "before that there is one"


def test_with_one_run_a_row_nothing_has_an_interval_of_its_own(world: Any) -> None:
    rows = world({name: (judge, share, runs[:1]) for name, (judge, share, runs) in ARMS.items()})
    said = dose.sentences(rows)[0]
    assert "gold labels win 66.7% (one run, no interval)" in said
    assert dose.sentences({"self": rows["self"]}) == []


def test_the_figure_places_every_row_and_needs_no_second_measure(world: Any, tmp_path: Path) -> None:
    mpl.use("Agg")
    rows = world(ARMS)
    asked = read("dose").figure
    assert asked
    picture = figures.KINDS["dose"].draw(rows, asked)
    left, right = picture.axes
    assert [len(axes.containers) for axes in (left, right)] == [2 * len(ARMS)] * 2
    for axes in (left, right):
        low, high = axes.get_xlim()
        assert all(low <= x <= high for marks in axes.containers for x in marks[0].get_xdata()), "every mark is seen"
    assert "Agreement with gold" in left.get_xlabel()
    assert "KL" in right.get_xlabel()


def test_the_figure_of_distances_joins_rows_in_their_order_at_their_distance(world: Any) -> None:
    mpl.use("Agg")
    asked = read("overoptimisation").figure
    assert asked
    longer = {f"{n} epochs": (gold(), 1.0, [(50 + 4 * n, 40), (54 + 4 * n, 40)]) for n in (1, 2, 4)}
    (axes,) = figures.KINDS["distance"].draw(world(longer), asked).axes
    by_gold, by_the_second = [line for line in axes.lines if str(line.get_label()).startswith("by ")]
    assert len(axes.containers) == 2 * len(longer)
    assert [*by_gold.get_xdata()] == pytest.approx([((4 * n + 2) / 1000) ** 0.5 for n in (1, 2, 4)])
    assert [*by_gold.get_ydata()] == sorted(by_gold.get_ydata()), "gold's gain rises with the distance here"
    assert [*by_the_second.get_xdata()] == [*by_gold.get_xdata()]
    assert [text.get_text() for text in axes.texts] == [*longer]


def test_the_line_is_least_squares_and_its_error_counts_runs() -> None:
    runs = [{(str(n), ""): float(y) for n in range(10)} for y in (0, 10, 20, 31, 39)]
    drawn = Line([0, 1, 2, 3, 4], runs)
    assert drawn.slope().mean == pytest.approx(9.9)
    assert drawn.slope().se == pytest.approx((1.9 / 3 / 10) ** 0.5)
    assert drawn.slope().df == pytest.approx(3)
    assert drawn.off(2, Arm(runs=[runs[2], runs[2]])).mean == pytest.approx(0)
    assert Line([1, 1, 1], runs[:3]).slope().se is None, "no line through one place"
    assert Line([0, 1], runs[:2]).slope().se is None


def test_of_several_pools_the_slopes_error_is_that_of_their_own_slopes() -> None:
    x, pools = [0.0, 1.0, 2.0] * 3, [0, 0, 0, 1, 1, 1, 2, 2, 2]
    own = [[0.0, 1.0, 2.0], [0.0, 2.0, 4.0], [1.0, 4.0, 7.0]]  # slopes 1, 2 and 3, no noise about them
    runs = [{(str(n), ""): y for n in range(10)} for ys in own for y in ys]
    found = Line(x, runs, pools).slope()
    assert (found.mean, found.se, found.df) == (pytest.approx(2), pytest.approx(1 / 3**0.5), pytest.approx(2))
    alike = Line(x, [{(str(n), ""): y + 5 * k for n in range(10)} for k in range(3) for y in own[0]], pools).slope()
    assert alike.se == pytest.approx(0, abs=1e-9), "how high a pool lies is no part of its slope"
    arm = Arm(runs=[{(str(n), ""): 5 + (k + 1) for n in range(10)} for k in range(3)])
    lifted = [{(str(n), ""): y + k for n in range(10)} for k in range(3) for y in own[0]]
    on_the_line = Line([0.0, 1.0, 2.0] * 3, lifted, pools)
    above = on_the_line.off(1, arm)
    assert above.mean == pytest.approx(5)
    assert above.se == pytest.approx(0, abs=1e-9), "a pool that lifts the line lifts the arm's run of it"


def test_an_answer_that_one_run_lacks_does_not_hide_what_instructions_vary() -> None:
    noise = {(str(n), ""): float(n % 7) for n in range(40)}
    runs = [{unit: v + y for unit, v in noise.items()} for y in (0, 10, 20, 31, 39)]
    whole, lacking = Line([0, 1, 2, 3, 4], runs), Line([0, 1, 2, 3, 4], [dict(list(runs[0].items())[1:]), *runs[1:]])
    assert lacking.off(9, Arm(runs=runs[:2])).se == pytest.approx(whole.off(9, Arm(runs=runs[:2])).se, rel=0.05)
    a, b = Arm(runs=runs[:2], trained=True), Arm(runs=[dict(list(runs[2].items())[1:]), runs[3]], trained=True)
    full = difference(a, Arm(runs=runs[2:4], trained=True))
    assert difference(a, b).se == pytest.approx(full.se, rel=0.05)


def test_no_tail_is_printed_that_so_few_runs_do_not_know() -> None:
    assert [in_words(p) for p in (1.5e-5, 0.00099, 0.001, 0.0123)] == [
        "p < 0.001",
        "p < 0.001",
        "p = 0.001",
        "p = 0.012",
    ]


def test_a_failed_control_says_what_that_means_above_everything() -> None:
    made = read("dose")
    said = next(claim for claim in made.claims if claim.rows == ["gold", "flipped"])
    wrong = {"control": "positive", "sentence": said.sentence, "verdict": "undecided", "otherwise": said.otherwise}
    assert "This set-up cannot learn" in str(claims.controls([wrong]))
    assert "This set-up" not in str(claims.controls([{**wrong, "verdict": "supported"}]))


# --- what is planned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "rows"),
    [
        ("cpu", {"gold", "coin", "flipped", "self"}),
        ("cpu-long", {"gold", "gold-10", "gold-25", "gold-40", "gold-50", "coin", "flipped", "self", "length",
                      "embeddings", "gemma"}),
    ],
)  # fmt: skip
def test_all_rows_label_one_pool_and_gold_is_no_other_rows_source(profile: str, rows: set[str]) -> None:
    made = planning.make(profile, "dose")
    assert {row.name for row in made.rows} == rows
    pools = {run.folder for run in made.runs if run.spec["stage"] == "synthesize"}
    assert len(pools) == 3, "one for each replicate"
    for row in made.rows:
        evaluate, judge = row.settings.evaluate, row.settings.judge
        assert evaluate.judges == [Gold.READING], "the evaluation judge is gold itself"
        assert evaluate.second not in (Gold.READING, judge.reading), "the second reading labelled nothing"
        assert judge.source in SOURCES
    assert made.table.spec["params"]["notebook"] == "11_dose"
    assert "notebook" not in planning.make(profile, "table4").table.spec["params"]


def test_a_second_opinion_changes_no_run_that_asks_none() -> None:
    made = {run.folder: run for run in planning.make("cpu", "smoke").runs}
    asked = [run.spec["params"]["evaluate"] for run in made.values() if run.spec["stage"] == "evaluate"]
    assert all("second" not in evaluate for evaluate in asked)
    long = [run.spec["params"]["evaluate"] for run in planning.make("cpu-long", "table6").runs
            if run.spec["stage"] == "evaluate"]  # fmt: skip
    assert {evaluate["second"] for evaluate in long} == {"reverse_added"}


def test_the_columns_of_a_row_that_was_not_labelled_by_gold_show_a_dash(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = world(ARMS)
    monkeypatch.setattr(dose, "table_rows", lambda _: rows)
    assert text_of("with_gold", rows["half"]) == "50.0"
    monkeypatch.setattr(dose, "table_rows", lambda _: {"self": rows["self"]})
    assert text_of("with_gold", rows["self"]) == "-"
