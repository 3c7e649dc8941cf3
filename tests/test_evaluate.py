"""Win rates by alpaca-eval, against hand-computed values and against real annotations where they are at hand."""

import csv
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from sao_lib import analyze
from sao_lib.errors import SaoError
from sao_lib.evaluate import alpaca_eval
from sao_lib.evaluate.instruments import calibrate, combine, official_prompt, simple_parts
from sao_lib.labelled import labelled_pairs
from sao_lib.settings import ROOT, Settings

SHARED = Path(os.environ.get("SAO_SHARED_DATA", ROOT.parent / "shared" / "data")) / "alpaca_eval"


def annotation(preference: float, first: str = "aaaa", second: str = "bb", number: int = 0) -> dict[str, Any]:
    return {
        "instruction": f"q{number}", "output_1": first, "generator_1": "reference", "output_2": second,
        "generator_2": "model", "annotator": "test", "preference": preference,
    }  # fmt: skip


def test_win_rate_counts_ties_as_half() -> None:
    rows = [annotation(p, second="b" * (n + 1), number=n) for n, p in enumerate((2, 2, 1, 1.5))]
    scores = alpaca_eval.win_rates(rows, "length_only")
    assert scores["wr"] == pytest.approx(62.5)
    assert scores["n"] == 4


def test_a_model_against_its_own_answers_is_at_fifty() -> None:
    rows = [annotation(1.5, "same", "same", n) for n in range(8)]
    scores = alpaca_eval.win_rates(rows, "length_only")
    assert (scores["wr"], scores["lc"], scores["se"]) == (50, 50, 0)


def test_length_control_takes_a_pure_length_preference_back_towards_fifty() -> None:
    rows = [annotation(2 if n % 4 else 1, "a" * 100, "b" * (200 if n % 4 else 50), n) for n in range(64)]
    scores = alpaca_eval.win_rates(rows, "length_only")
    assert scores["wr"] == 75
    assert abs(scores["lc"] - 50) < abs(scores["wr"] - 50)


def test_win_rates_leave_no_file_in_site_packages() -> None:
    from alpaca_eval.metrics import glm_winrate

    folder = Path(glm_winrate.__file__).parent
    before = sorted(p.name for p in folder.rglob("*.csv"))
    alpaca_eval.win_rates([annotation(1 + n % 2, "a", "b" * (1 + n), n) for n in range(8)], "length_only")
    assert sorted(p.name for p in folder.rglob("*.csv")) == before


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real AlpacaEval annotations are not at hand")
def test_win_rate_and_se_of_real_annotations_are_the_published_ones() -> None:
    from alpaca_eval.metrics import get_winrate

    with next(SHARED.glob("leaderboard*.csv")).open() as file:
        published = {row[""]: row for row in csv.DictReader(file)}
    preferences: dict[str, list[float]] = defaultdict(list)
    with (SHARED / "annotations_compact.csv").open() as file:
        for row in csv.DictReader(file):
            if row["preference"]:
                preferences[row["model"]].append(float(row["preference"]))
    both = sorted(set(preferences) & set(published))
    assert len(both) >= 25
    for model in both:
        values = preferences[model]
        rows = [{"preference": value} for value in values]
        scores = get_winrate(rows)
        assert scores["win_rate"] == pytest.approx(float(published[model]["win_rate"]), abs=1e-6)
        assert scores["standard_error"] == pytest.approx(float(published[model]["standard_error"]), abs=1e-6)


def test_the_official_prompt_has_its_places_to_fill() -> None:
    text = "".join(m["content"] for m in official_prompt())
    assert all(place in text for place in ("{instruction}", "{output_1}", "{output_2}"))


class FakeInstruments:
    """Fake instruments: `perfect` always right, `blind` always names the second answer."""

    def __init__(self, pairs: list[Any]) -> None:
        self.good = [p["good"] for p in pairs]

    def margins(self, name: str, triples: Any) -> list[float]:
        return [1.0] * len(self.good) if name == "blind" else [1.0 if g == 2 else -1.0 for g in self.good]


def test_the_judge_that_agrees_most_is_chosen_and_measured_on_other_pairs() -> None:
    pairs = labelled_pairs(8, 0)
    found = calibrate(FakeInstruments(pairs), ["blind", "perfect"], pairs)  # type: ignore[arg-type]
    assert found["chosen"] == "perfect"
    assert found["agreement"]["perfect"] == 1
    assert 0.2 < found["agreement"]["blind"] < 0.8
    assert found["pairs"] == 20


def test_composite_instruments_add_scaled_margins() -> None:
    assert simple_parts(["a", "a+b"]) == ["a", "b"]
    assert combine("a+b", {"a": [2.0], "b": [-3.0]}, {"a": 2.0, "b": 1.0}) == [-2.0]


def test_chat_set_is_in_alpaca_evals_format() -> None:
    rows = json.loads((ROOT / "params" / "data" / "chat.json").read_text())
    assert len(rows) >= 64
    assert all(set(row) == {"instruction", "dataset"} for row in rows)
    assert len({row["instruction"] for row in rows}) == len(rows)


def test_a_reference_the_file_does_not_hold_is_refused(cpu: Settings, make_run: Any) -> None:
    other = cpu.evaluate.model_copy(update={"reference": "gpt4_1106_preview"})
    with pytest.raises(SaoError, match="no output by 'gpt4_1106_preview'"):
        alpaca_eval.reference_answers(make_run(), other, [{"instruction": "q"}], [])


def row_with(lengths: list[int], preferences: list[float]) -> dict[str, Any]:
    rows = zip(lengths, preferences, strict=True)
    return {"annotations": [annotation(p, second="b" * n, number=k) for k, (n, p) in enumerate(rows)]}


def test_claims_are_supported_not_supported_or_undecided() -> None:
    rows = {
        "a": row_with([10] * 20, [2.0] * 20),
        "b": row_with([50] * 20, [1.0] * 20),
        "c": row_with([10, 50] * 10, [1.0, 2.0] * 10),
    }
    assert analyze.claim_verdict("a.wr > b.wr", rows)["verdict"] == "supported"
    assert analyze.claim_verdict("b.wr > a.wr", rows)["verdict"] == "not supported"
    assert analyze.claim_verdict("c.wr > c.wr", rows)["verdict"] == "undecided"
    assert analyze.claim_verdict("b.length > a.length", rows)["mean"] == 40
    with pytest.raises(SaoError, match=r"row\.metric > row\.metric"):
        analyze.claim_verdict("a.wr < d.wr", rows)
