"""What a policy prefers on the common pairs, and how far it has moved."""

from pathlib import Path
from typing import Any

import pytest

from sao_lib.evaluate import gold
from sao_lib.evaluate.grading import graded_pairs, measured, sides
from sao_lib.settings import Policy


class FakeEngine:
    """A fake policy that finds every token of a text as likely as the text is long; it counts what it reads."""

    def __init__(self) -> None:
        self.read = 0

    def completion_logprobs(self, conversations: Any, completions: Any) -> list[list[float]]:
        self.read += len(completions)
        return [[-1.0 / len(text), -1.0 / len(text)] for text in completions]


def test_every_row_reads_the_same_hundred_pairs_and_a_shared_answer_once(make_run: Any) -> None:
    pairs, engine = gold.gold_pairs(50), FakeEngine()
    assert len(pairs) == 100
    assert pairs == gold.gold_pairs(50)
    rows = gold.preferred(make_run(), engine, Policy(model="m"), pairs)  # type: ignore[arg-type]
    assert engine.read == 150
    found = gold.summary(rows)
    longer = [len(p["responses"][p["good"] - 1]) > len(p["responses"][2 - p["good"]]) for p in pairs]
    assert found["accuracy"] == pytest.approx(100 * sum(longer) / 100)
    assert found["n"] == 100


def test_a_grader_has_a_signal_only_above_chance_by_two_standard_errors() -> None:
    pairs = graded_pairs()
    right = {name: float(number == 0) for p in pairs for number, (name, _) in enumerate(sides(p))}
    assert measured(pairs, right)["signal"]
    half = {n: (v if int(n[1:3]) % 2 else 1 - v) for n, v in right.items()}
    assert measured(pairs, half)["agreement"] == 0.5
    assert not measured(pairs, half)["signal"]
    assert measured(pairs, {})["agreement"] == 0


def test_the_change_is_paired_and_its_error_is_by_question() -> None:
    before = [{"id": f"q{n // 2}-{n}", "margin": float(n)} for n in range(8)]
    after = [{**row, "margin": row["margin"] + 1} for row in before]
    assert gold.change(after, before) == (1.0, 0.0)
    assert gold.change(after, []) is None


def test_the_distance_is_the_mean_difference_on_the_policys_own_answers(make_run: Any, tmp_path: Path) -> None:
    answers = [
        {"instruction": "a", "output": "x"},
        {"instruction": "b", "output": ""},
        {"instruction": "c", "output": "y"},
    ]
    assert gold.said(answers) == [("a", "x"), ("c", "y")]
    found = gold.distance(make_run(), answers, [-1.0, -2.0], [-1.5, -2.1])
    assert found["kl"] == pytest.approx(0.3)
    assert found["n"] == 2
    assert (tmp_path / "kl.jsonl").is_file()
