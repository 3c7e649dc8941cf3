"""Which evaluation judge is chosen, and which is refused."""

import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from sao_lib.errors import SaoError
from sao_lib.evaluate.calibration import calibrate
from sao_lib.evaluate.instruments import Instruments, Triple
from sao_lib.method import readings
from sao_lib.method.labelled import ECHOES, FAULTS, echo_pairs, labelled_pairs
from sao_lib.settings import Judge

PAIRS = labelled_pairs(20, 0)


class Fake(Instruments):
    """Fake instruments that know the good answers: each is wrong on its own faults, `blind` names the second."""

    WRONG: dict[str, Sequence[str]] = {
        "likelihood": (), "reverse": ECHOES, "relevance": ("padded", "filler", "sibling"), "ranking": ("wrong",),
    }  # fmt: skip

    def __init__(self, pairs: Sequence[Any] = PAIRS) -> None:
        super().__init__("fake", lambda: pytest.fail("a model was opened"), Judge(source="llm"), 0, None)  # type: ignore
        self.pairs = {(p["prompt"], *p["responses"]): p for p in [*pairs, *echo_pairs(0)]}

    def margins(self, name: str, triples: Sequence[Triple]) -> list[float]:
        pairs = [self.pairs[t] for t in triples]
        if name == "blind":
            return [1.0] * len(pairs)
        return [(1.0 if p["good"] == 2 else -1.0) * (-1 if p["fault"] in self.WRONG[name] else 1) for p in pairs]


def test_the_judge_with_the_least_bad_worst_fault_is_chosen_and_measured_on_other_questions() -> None:
    found = calibrate(Fake(), ["relevance", "likelihood"], PAIRS)
    assert found["chosen"] == "likelihood"
    assert (found["agreement"], found["pairs"], found["questions"]) == (1.0, 10 * len(FAULTS), 10)
    assert found["candidates"]["relevance"]["worst"] == 0
    assert all(share["n"] == 10 for share in found["by_fault"].values())


def test_a_judge_that_a_parrot_beats_is_refused_and_the_next_is_taken() -> None:
    found = calibrate(Fake(), ["reverse", "relevance"], PAIRS)
    assert found["chosen"] == "relevance"
    assert (
        "answers that only repeat their question beat the good one in 100% of 40 pairs" in found["refused"]["reverse"]
    )
    with pytest.raises(SaoError, match="No evaluation judge is left"):
        calibrate(Fake(), ["reverse"], PAIRS)


def test_too_few_echoes_refuse_nobody() -> None:
    pairs = labelled_pairs(4, 0)
    assert calibrate(Fake(pairs), ["reverse"], pairs)["chosen"] == "reverse"


def test_a_fault_that_no_judge_sees_chooses_none() -> None:
    found = calibrate(Fake(), ["ranking"], PAIRS)
    assert found["blind"] == ["wrong"]
    assert found["candidates"]["ranking"]["worst"] == 1


def test_all_pairs_of_one_question_are_one_observation() -> None:
    pairs = labelled_pairs(8, 0)

    class ByQuestion(Fake):
        """Right in all pairs of a question or in none; of the four questions held out, wrong in q08."""

        def margins(self, name: str, triples: Sequence[Triple]) -> list[float]:
            right = super().margins(name, triples)
            asked = [self.pairs[t]["id"] for t in triples]
            return [-m if i.startswith("q08-") else m for m, i in zip(right, asked, strict=True)]

    found = calibrate(ByQuestion(pairs), ["likelihood"], pairs)
    assert found["agreement"] == 0.75
    assert found["se"] == pytest.approx(statistics.stdev([1, 1, 1, 0]) / 4**0.5)
    few = labelled_pairs(2, 0)  # one question to choose by, one to measure on: nothing to estimate a spread from
    assert calibrate(Fake(few), ["likelihood"], few)["se"] is None


def test_what_an_answer_adds_is_without_the_questions_words_in_any_form() -> None:
    question = "Why does bread dough rise in a warm place?"
    assert readings.added(question, "Bread doughs are rising; yeast makes gas.") == "are ; yeast makes gas."
    assert not readings.content(readings.added(question, question))
    assert readings.distinct_2("to be to be to be") == 0.4
    assert [readings.finished(t) for t in ("It is done.", 'He said "yes."', "It was a", "")] == [
        True,
        True,
        False,
        False,
    ]


def test_no_echo_in_other_words_beats_the_cpu_profiles_judge_more_than_one_time_in_twenty(
    cpu: Any, tmp_path: Any
) -> None:
    """The judge itself, fitted to 30 questions; the echoes were written by hand and fit nothing."""
    names = ["relevance", "fitted:relevance_new+added_new"]
    assert set(names) <= set(cpu.evaluate.judges)
    real = Instruments("none", lambda: pytest.fail("a model was opened"), Judge(source="llm"), 0, tmp_path / "log")  # type: ignore
    found = calibrate(real, names, labelled_pairs(60, 42), echo_pairs(42))
    assert list(found["refused"]) == ["relevance"]
    own = found["candidates"][found["chosen"]]
    assert own["parrot"] <= 0.05
    assert own["by_hand"] <= 0.05
    assert found["agreement"] > 0.9
    assert all(found["by_fault"][fault]["agreement"] >= 0.9 for fault in ECHOES)
