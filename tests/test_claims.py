"""Claims on fake runs, controls, the paper's own numbers, and the status table made from them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sao_lib.plan.claim import Claim
from sao_lib.plan.experiment import Experiment, experiments, read
from sao_lib.report import claims, paper_side, status, table
from sao_lib.report.rows import TableRow, printed_rows
from sao_lib.runs import Run

FAILED = "**A control failed, so no verdict on this page is to be believed:** "
ONE = "(one run: not tested)."


def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: dict[str, list[float]], untrained: tuple[str, ...] = ()
) -> dict[str, TableRow]:
    """Rows whose runs won the given percentages of 50 instructions."""
    inputs: dict[str, str] = {}
    for name, runs in rates.items():
        for number, rate in enumerate(runs, 1):
            for role in ("evaluate",) if name in untrained else ("evaluate", "train"):
                key = f"{name}/{role}" + (f"#{number}" if number > 1 else "")
                inputs[key] = f"cpu/{role}/{name}-{number}"
                folder = tmp_path / inputs[key]
                folder.mkdir(parents=True)
                won = [
                    {
                        "instruction": f"i{n}",
                        "preference": 1.0 + (2 * ((n * 7) % 50) < rate),
                        "output_2": "x" * (n + number),
                    }
                    for n in range(50)
                ]
                (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in won))
                spec = {
                    "stage": role,
                    "inputs": {},
                    "params": {"evaluate": {"verdict": "discrete", "length_term": "length_only"}},
                }
                (folder / "run.json").write_text(
                    json.dumps({"spec": spec, "files": {}, "results": {"scores": {"wr": rate}}})
                )
    monkeypatch.setattr("sao_lib.runs.OUTPUTS", tmp_path)
    run = Run({"inputs": inputs, "params": {}}, tmp_path)
    return {name: TableRow(name, name, {}, run) for name in rates}


def experiment(
    rows: dict[str, TableRow], *holds: str, control: dict[str, str] | None = None, **more: Any
) -> Experiment:
    body = {name: {"label": name, "control": (control or {}).get(name)} for name in rows}
    made = [{"sentence": f"Claim {n}.", "holds": text, **more} for n, text in enumerate(holds)]
    return Experiment.model_validate({"title": "t", "question": "q", "columns": ["wr"], "rows": body, "claims": made})


def test_with_one_run_a_row_a_claim_about_training_is_not_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = world(tmp_path, monkeypatch, {"coin": [40.6], "mini": [59.4]})
    (found,) = claims.check(experiment(rows, "mini.wr > coin.wr"), rows)
    assert found["verdict"] == "one run: not tested"
    assert found["difference"] == pytest.approx(18, abs=3)
    assert found["p"] is found["low"] is None
    assert "one run: not tested" in claims.against(rows["mini"], rows["coin"])["verdict"]


def test_an_untrained_row_needs_no_second_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = world(tmp_path, monkeypatch, {"vanilla": [20], "tuned": [80, 82, 84]}, untrained=("vanilla",))
    better, worse = claims.check(experiment(rows, "tuned.wr > vanilla.wr", "vanilla.wr > 60"), rows)
    assert (better["verdict"], better["runs"]) == ("supported", [3, 1])
    assert worse["verdict"] == "not supported"
    assert better["low"] < better["difference"] < better["high"]


def test_a_claim_with_a_metric_its_runs_lack_or_two_rows_of_one_run_is_not_testable_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = world(tmp_path, monkeypatch, {"a": [20, 30], "b": [80, 82]})
    lc, direct = claims.check(experiment(rows, "a.lc > b.lc", "a.direct > 50"), rows)
    assert lc["verdict"] == "not testable here: no lc in its runs", "what stands for LC here is not AlpacaEval's"
    assert direct["verdict"] == "not testable here: no direct in its runs"
    rows["b"].table.spec["inputs"]["b/evaluate"] = rows["a"].table.spec["inputs"]["a/evaluate"]
    (same,) = claims.check(experiment(rows, "a.wr > b.wr"), rows)
    assert same["verdict"] == "not testable here: one run stands for two of its rows"
    (missing,) = claims.check(experiment(rows, "a.math500 > b.math500"), rows)
    assert missing["verdict"] == "not run"


def test_a_claim_is_corrected_for_the_others_of_its_table_and_controls_are_not_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = world(tmp_path, monkeypatch, {"a": [20, 22, 24], "b": [80, 84, 82], "c": [50, 56, 52]})
    alone = claims.check(experiment(rows, "b.wr > a.wr"), rows)
    among = claims.check(experiment(rows, "b.wr > a.wr", "c.wr > a.wr", "b.wr > c.wr"), rows)
    assert alone[0]["holm"] == alone[0]["p"] == among[0]["p"]
    assert among[0]["holm"] > among[0]["p"]
    beside = claims.check(experiment(rows, "b.wr > a.wr", "c.wr > b.wr", control={"c": "placebo"}), rows)
    assert beside[0]["holm"] == alone[0]["p"]
    assert beside[1]["holm"] is None


def test_a_rows_replicates_are_its_own_and_a_control_is_no_rival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = world(tmp_path, monkeypatch, {"a": [80, 82, 84], "a-2": [90, 92], "a/b": [20, 22, 24, 20]})
    assert [len(row.replicates) for row in rows.values()] == [3, 2, 4]
    made = experiment(rows, "a.wr is max", "a-2.wr > a/b.wr", control={"a-2": "positive"})
    assert claims.check(made, rows)[0]["rival"] == "a/b"


@pytest.mark.parametrize(
    ("kind", "rates", "line"),
    [
        ("placebo", {"a": [40, 60], "b": [61, 41]}, "Controls as they must be: 1 of 1."),
        ("placebo", {"a": [20, 22, 20], "b": [80, 82, 80]}, FAILED + "'Claim 0.' came out supported, not undecided."),
        ("positive", {"a": [20, 22, 20], "b": [80, 82, 80]}, "Controls as they must be: 1 of 1."),
        ("positive", {"a": [40, 60], "b": [61, 41]}, FAILED + "'Claim 0.' came out undecided, not supported."),
        ("placebo", {"a": [20], "b": [80]}, "Controls: 0 of 1 as they must be, the other not tested " + ONE),
    ],
)  # fmt: skip
def test_a_control_that_does_not_come_out_as_it_must_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rates: dict[str, list[float]], line: str
) -> None:
    rows = world(tmp_path, monkeypatch, rates)
    checked = claims.check(experiment(rows, "b.wr > a.wr", control={"a": kind}), rows)
    assert claims.controls(checked) == line
    assert claims.controls(claims.check(experiment(rows, "b.wr > a.wr"), rows)) is None


def test_a_sceptics_other_coin_changes_no_verdict_about_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any four of the coins' measured win rates on either side: one run is not tested, two are undecided."""
    measured = [40.6, 59.4, 40.6, 60.9]
    for number, rate in enumerate(measured):
        rows = world(tmp_path / str(number), monkeypatch, {"self": [50.0], "coin": [rate]})
        assert claims.check(experiment(rows, "self.wr > coin.wr"), rows)[0]["verdict"] == "one run: not tested"
    rows = world(tmp_path / "two", monkeypatch, {"a": measured[:2], "b": measured[2:]})
    assert claims.check(experiment(rows, "a.wr > b.wr"), rows)[0]["verdict"] == "undecided"


# --- the paper's own side --------------------------------------------------------------------------------------------


def papers(name: str) -> dict[str, dict[str, Any]]:
    made = read(name)
    printed = printed_rows(name, made)
    return {claim.text: paper_side.side(claim, printed) for claim in made.claims}


def test_the_papers_criteria_are_undecided_by_its_own_numbers_and_its_judge_is_not() -> None:
    found = papers("table6")
    for number in (1, 2, 3, 4):
        side = found[f"without-{number}.wr < self.wr"]
        assert max(map(abs, side["z"])) <= 0.9
        assert side["verdict"] == "undecided in the paper"
    mini = found["self.wr > gpt4o-mini.wr"]
    assert [round(z, 1) for z in mini["z"]] == [2.5, 3.5]
    assert (mini["verdict"], mini["derived"]) == ("supported by its numbers", True)
    assert found["without-4.wr is min"]["verdict"] == "undecided in the paper"
    assert found["self.lc > gpt4o-mini.lc"]["verdict"] == "against it, no SE"


def test_saturation_and_small_models_are_undecided_by_the_papers_own_numbers() -> None:
    saturation = papers("figure1")["medium.wr ≈ large.wr within 2"]
    assert [round(z, 1) for z in saturation["z"]] == [1.1, 1.6]
    assert saturation["verdict"] == "undecided in the paper"
    small = papers("table10")["llama-3.2-3b-sao.wr < llama-3.2-3b.wr"]
    assert (small["derived"], small["verdict"]) == (False, "undecided in the paper")


def test_every_claim_of_the_paper_has_a_predicate_where_it_makes_one() -> None:
    without = [name for name in experiments() if not read(name).claims]
    assert without == ["table12", "table13", "table14", "figure3", "figure5"]


# --- status ----------------------------------------------------------------------------------------------------------


def test_the_status_table_is_made_from_the_reference_results_and_nothing_in_it_is_typed() -> None:
    ours = status.reference()
    assert status.PAGE.read_text() == status.page(ours), "run `make status`"
    block = status.README.read_text().split(status.BEGIN)[1].split(status.END)[0].strip()
    assert block == status.summary(ours), "run `make status`"
    block = status.README.read_text().split(status.OURS)[1].split(status.OURS_END)[0].strip()
    assert block == status.own(ours), "run `make status`"


def test_a_table_of_our_own_says_in_the_readme_what_it_measured_and_that_a_control_failed(tmp_path: Path) -> None:
    assert status.own(status.reference(tmp_path)) == ""
    for profile, says in (("cpu", "Less."), ("cpu-long", "Gold labels win 70%; at equal length 60%.")):
        (tmp_path / profile / "dose").mkdir(parents=True)
        failed = {"sentence": "Labels teach.", "control": "positive", "verdict": "undecided", "otherwise": "So be it."}
        found = {"claims": [failed], "minutes": 1, "says": [says]}
        (tmp_path / profile / "dose" / "claims.json").write_text(json.dumps(found))
    said = status.own(status.reference(tmp_path))
    assert said.startswith("![What is gained against how right the labels are](outputs/reference/cpu-long/dose/")
    assert "`make reproduce-dose PROFILE=cpu-long`: **A control failed" in said
    assert said.endswith("So be it. Gold labels win 70%. [All of it](outputs/reference/cpu-long/dose/dose.md).")


def test_profiles_with_cards_and_no_result_are_said_to_be_rehearsed_alone(tmp_path: Path) -> None:
    (tmp_path / "gpu" / "table4").mkdir(parents=True)
    (tmp_path / "gpu" / "table4" / "claims.json").write_text(json.dumps({"minutes": 1, "claims": []}))
    page = status.page(status.reference(tmp_path))
    assert "Profiles gpu-small, paper: rehearsed on CPU, never run on a GPU." in page


def test_the_status_reads_our_verdicts_by_profile(tmp_path: Path) -> None:
    folder = tmp_path / "cpu" / "table4"
    folder.mkdir(parents=True)
    found = [{"holds": "dpo.wr > vanilla.wr", "verdict": "one run: not tested"}]
    (folder / "claims.json").write_text(json.dumps({"command": "make", "minutes": 6.4, "claims": found}))
    head, *body = status.lines(status.reference(tmp_path))
    line = next(row for row in body if row[1] == "DPO raises the win rate.")
    assert line[head.index("Ours, cpu")] == "one run: not tested"
    assert line[head.index("Ours, paper")] == "not run"
    assert line[head.index("Minutes")] == "cpu 6"
    assert line[head.index("Paper")].startswith("49.81 > 39.25, z 4.3 to 6.1, SE derived")
    assert re.search(r"Ours, cpu: \d+ not run, 1 one run: not tested\.", status.summary(status.reference(tmp_path)))


def test_a_finding_in_words_names_its_interval_its_runs_and_its_rival() -> None:
    found = {"difference": 4.0, "unit": "points", "low": 1.0, "high": 7.0, "level": 0.95, "p": 0.01, "holm": 0.03,
             "runs": [3, 2], "rival": None}  # fmt: skip
    assert table.tested(found) == "+4 points [+1, +7] at 95%, p = 0.01 (0.03); runs 3 and 2"
    alone = {**found, "p": None, "runs": [1, 1]}
    assert table.tested(alone) == "+4 points; runs 1 and 1"


def test_ascii_and_the_sign_itself_are_one_predicate() -> None:
    one, other = (Claim(sentence="So.", holds=f"a.wr {sign} b.wr", within=2) for sign in ("≈", "~="))
    assert one.predicate == other.predicate
    assert Claim(sentence="So.", holds="llama-3.3-70b/self.wr > 1.wr").predicate.rows == ("llama-3.3-70b/self", "1")
    assert Claim(sentence="So.", holds="self.agreement > 50.5").predicate.constant == 50.5
