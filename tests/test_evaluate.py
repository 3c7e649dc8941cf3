"""Win rates by alpaca-eval against hand-computed values; test_length_control.py holds the real annotations."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from sao_lib.errors import SaoError
from sao_lib.evaluate import alpaca_eval
from sao_lib.evaluate.instruments import calibrate, combine, official_prompt, simple_parts
from sao_lib.method.labelled import labelled_pairs
from sao_lib.settings import ROOT, Settings


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


def test_five_spoilings_of_one_question_are_no_five_questions() -> None:
    pairs = labelled_pairs(8, 0)

    class FakeByQuestion(FakeInstruments):
        """Right in all pairs of a question or in none; of the four questions held out, wrong in q08."""

        def margins(self, name: str, triples: Any) -> list[float]:
            right = super().margins("", triples)
            return [-m if p["id"].startswith("q08") else m for m, p in zip(right, pairs, strict=True)]

    found = calibrate(FakeByQuestion(pairs), ["perfect"], pairs)  # type: ignore[arg-type]
    assert (found["agreement"]["perfect"], found["pairs"]) == (0.75, 20)
    assert found["se"] == pytest.approx(statistics.stdev([1, 1, 1, 0]) / 4**0.5)
    few = labelled_pairs(2, 0)  # one question to choose by, one to measure on: nothing to estimate a spread from
    assert calibrate(FakeInstruments(few), ["perfect"], few)["se"] is None  # type: ignore[arg-type]


def test_composite_instruments_add_scaled_margins() -> None:
    assert simple_parts(["a", "a+b"]) == ["a", "b"]
    assert combine("a+b", {"a": [2.0], "b": [-3.0]}, {"a": 2.0, "b": 1.0}) == [-2.0]


def test_chat_set_is_in_alpaca_evals_format() -> None:
    rows = json.loads((ROOT / "params" / "data" / "chat.json").read_text())
    assert len(rows) >= 64
    assert all(list(row) == ["instruction", "output", "generator", "dataset"] for row in rows)
    assert all(15 <= len(row["output"].split()) <= 60 for row in rows)
    assert len({row["instruction"] for row in rows}) == len(rows)


def test_a_reference_the_file_does_not_hold_is_refused(cpu: Settings) -> None:
    other = cpu.evaluate.model_copy(update={"reference": "gpt4_1106_preview"})
    with pytest.raises(SaoError, match="no output by 'gpt4_1106_preview'"):
        alpaca_eval.load_instructions(other)


def test_verdicts_are_discrete_or_weighted_by_the_judges_probability() -> None:
    assert [alpaca_eval.preference(m, "discrete") for m in (-0.1, 0.0, 3.0)] == [1.0, 1.5, 2.0]
    assert alpaca_eval.preference(0.0, "weighted") == 1.5
    assert alpaca_eval.preference(1.0, "weighted") == pytest.approx(1 + 0.7310586)
    assert alpaca_eval.preference(-1000.0, "weighted") == pytest.approx(1)


def test_length_control_says_how_uncertain_it_is_where_all_answers_are_longer() -> None:
    won = [1 + int(n % 4 > 0) if n > 16 else 1 + int(n % 4 == 0) for n in range(32)]
    longer = [annotation(w, "a" * 100, "b" * (130 + 5 * n), n) for n, w in enumerate(won)]
    around = [annotation(w, "a" * 100, "b" * (20 + 5 * n), n) for n, w in enumerate(won)]
    far, near = (alpaca_eval.win_rates(rows, "length_only") for rows in (longer, around))
    assert far["wr"] == near["wr"]
    assert far["lc_se"] > 1
    assert far["lc"] < near["lc"]  # extrapolated to where no answer is
