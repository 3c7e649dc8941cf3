"""Win rates by alpaca-eval against hand-computed values; test_length_control.py holds the real annotations."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from sao_lib.errors import SaoError
from sao_lib.evaluate import alpaca_eval
from sao_lib.evaluate.instruments import combine, is_pointwise, official_prompt, read_by, simple_parts
from sao_lib.settings import ROOT, Settings


def annotation(preference: float, first: str = "aaaa", second: str = "bb", number: int = 0) -> dict[str, Any]:
    return {
        "instruction": f"q{number}", "output_1": first, "generator_1": "reference", "output_2": second,
        "generator_2": "model", "annotator": "test", "preference": preference,
    }  # fmt: skip


def test_win_rate_counts_ties_as_half() -> None:
    rows = [annotation(p, second="b" * (n + 1), number=n) for n, p in enumerate((2, 2, 1, 1.5))]
    scores = alpaca_eval.win_rates(rows, None)
    assert scores["wr"] == pytest.approx(62.5)
    assert scores["n"] == 4


def test_a_model_against_its_own_answers_is_at_fifty() -> None:
    rows = [annotation(1.5, "same", "same", n) for n in range(8)]
    scores = alpaca_eval.win_rates(rows, None)
    assert (scores["wr"], scores["lc"], scores["se"]) == (50, None, 0)


def test_win_rates_leave_no_file_in_site_packages() -> None:
    from alpaca_eval.metrics import glm_winrate

    folder = Path(glm_winrate.__file__).parent
    before = sorted(p.name for p in folder.rglob("*.csv"))
    alpaca_eval.win_rates([annotation(1 + n % 2, "a", "b" * (1 + n), n) for n in range(8)], None)
    assert sorted(p.name for p in folder.rglob("*.csv")) == before


def test_the_official_prompt_has_its_places_to_fill() -> None:
    text = "".join(m["content"] for m in official_prompt())
    assert all(place in text for place in ("{instruction}", "{output_1}", "{output_2}"))


def test_composite_instruments_add_scaled_margins() -> None:
    assert simple_parts(["a", "a+b"]) == ["a", "b"]
    assert combine("a+b", {"a": [2.0], "b": [-3.0]}, {"a": 2.0, "b": 1.0}) == [-2.0]


def test_an_instrument_names_the_models_that_it_reads_with() -> None:
    assert read_by("fitted:reverse_added+relevance_new", "m") == ["m", "embedded/all-minilm-l6-v2"]
    assert read_by("relevance", "m") == ["embedded/all-minilm-l6-v2"]
    assert (is_pointwise("fitted:reverse+relevance"), is_pointwise("ranking")) == (True, False)


def test_wins_and_margins_against_the_untrained_model_come_from_the_same_annotations() -> None:
    rows = [{**annotation(1.0, number=n), "margin_untrained": m} for n, m in enumerate((0.5, -0.1, 0.3, 0.0))]
    found = alpaca_eval.against_untrained(rows)
    assert found["direct"] == 62.5
    assert found["margin"] == pytest.approx(0.175)
    assert found["margin_se"] == pytest.approx(statistics.stdev([0.5, -0.1, 0.3, 0.0]) / 2)
    assert set(alpaca_eval.against_untrained([annotation(2.0)] * 4).values()) == {None}


class FakeInstruments:
    """Fake: the judge likes longer answers, every other reading shorter ones."""

    def judged(self, calibration: Any, triples: Any) -> list[float]:
        return [float(len(b) - len(a)) for _, a, b in triples]

    def margins(self, name: str, triples: Any) -> list[float]:
        assert name == "reverse_added"
        return [float(len(a) - len(b)) for _, a, b in triples]


def test_a_second_reading_reads_the_same_answers_beside_the_judge(make_run: Any, cpu: Settings) -> None:
    answers = [{"instruction": f"q{n}", "output": "b" * (n + 2), "generator": "model"} for n in range(4)]
    before = [{**a, "output": "bb"} for a in answers]
    reference = [{**a, "output": "aaa", "generator": "reference"} for a in answers]
    settings = cpu.evaluate.model_copy(update={"second": "reverse_added"})
    rows = alpaca_eval.annotate(
        make_run(),
        FakeInstruments(),
        {"chosen": "x"},
        answers,
        reference,
        settings,
        before,  # type: ignore[arg-type]
    )
    assert [r["margin_untrained"] for r in rows] == [0, 1, 2, 3]
    assert [r["second_untrained"] for r in rows] == [0, -1, -2, -3]
    assert [r["second"] for r in rows] == [1, 0, -1, -2]
    assert alpaca_eval.against_untrained(rows, "second_untrained")["direct"] == 12.5
    assert alpaca_eval.against_untrained(rows)["direct"] == 87.5


def test_without_a_second_reading_none_is_asked(make_run: Any, cpu: Settings) -> None:
    answers = [{"instruction": f"q{n}", "output": "b" * n, "generator": "model"} for n in range(2, 5)]
    rows = alpaca_eval.annotate(make_run(), FakeInstruments(), {"chosen": "x"}, answers, answers, cpu.evaluate)  # type: ignore[arg-type]
    assert {r["second"] for r in rows} == {r["second_untrained"] for r in rows} == {None}
    assert set(alpaca_eval.against_untrained(rows, "second_untrained").values()) == {None}


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
    assert [alpaca_eval.preference(m, "discrete") for m in (-0.1, 0.0, 3e-8, 3.0)] == [1.0, 1.5, 1.5, 2.0]
    assert alpaca_eval.preference(0.0, "weighted") == 1.5
    assert alpaca_eval.preference(1.0, "weighted") == pytest.approx(1 + 0.7310586)
    assert alpaca_eval.preference(-1000.0, "weighted") == pytest.approx(1)
