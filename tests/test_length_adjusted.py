"""The length-adjusted win rate of several rows by one regression."""

from typing import Any

import numpy as np
import pytest

from sao_lib.report.length_adjusted import overlaps, rates


def row(strength: float, shift: int, slope: float, n: int = 400) -> list[dict[str, Any]]:
    """Invented verdicts: log-odds of a win are strength + slope x tanh(difference in length / its spread)."""
    rng = np.random.default_rng(shift + 100)
    lengths = rng.normal(shift, 100, n).round()
    p = 1 / (1 + np.exp(-(strength + slope * np.tanh(lengths / 100))))
    return [
        {
            "instruction": str(k),
            "output_1": "a" * 400,
            "output_2": "b" * int(400 + d),
            "preference": 1.0 + (rng.random() < q),
        }
        for k, (d, q) in enumerate(zip(lengths, p, strict=True))
    ]


def test_a_row_that_wins_by_length_alone_is_near_fifty_and_has_an_error() -> None:
    found = rates({"short": row(0, -20, 1.5), "long": row(0, 60, 1.5)})
    wins = 100 * np.mean([a["preference"] - 1 for a in row(0, 60, 1.5)])
    assert found["long"]
    assert found["short"]
    assert wins > 60
    for rate, se in (found["long"], found["short"]):
        assert abs(rate - 50) < 3 * se
        assert 1 < se < 5


def test_no_number_where_nearly_all_answers_are_longer() -> None:
    longer, around = row(0, 300, 1.0), row(0, 0, 1.0)
    assert not overlaps(longer)
    found = rates({"longer": longer, "around": around})
    assert found["longer"] is None
    assert found["around"] is not None


def test_without_any_difference_in_length_it_is_the_win_rate() -> None:
    same = [
        {"instruction": str(n), "output_1": "aa", "output_2": "bb", "preference": 2.0 - (n % 4 == 0)} for n in range(40)
    ]
    both = same + [
        {**same[0], "instruction": str(40 + n), "output_2": "b" * (1 + 2 * (n % 2)), "preference": 1.5}
        for n in range(40)
    ]
    found = rates({"row": both})["row"]
    assert found
    assert found[0] == pytest.approx(62.5, abs=0.5)
