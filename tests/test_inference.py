"""Intervals across runs: coins are not told apart, plain differences are, and every verdict has its p-value."""

from collections.abc import Callable

import numpy as np
import pytest

from sao_lib.report import inference
from sao_lib.report.inference import Arm, Estimate

UNITS = [(f"instruction {n}", "") for n in range(64)]


def arm(rng: np.random.Generator, runs: int, sd: float, base: float = 0.5, trained: bool = True) -> Arm:
    """Discrete verdicts on 64 instructions; every run has a win rate of its own, `sd` off `base`."""
    rates = np.clip(base + rng.normal(0, sd, runs), 0, 1)
    wins = 100.0 * (rng.random((runs, len(UNITS))) < rates[:, None])
    return Arm(runs=[dict(zip(UNITS, run, strict=True)) for run in wins], trained=trained)


def fixed(*values: float, trained: bool = True) -> Arm:
    """One run for each value, whose units scatter round it."""
    return Arm(runs=[{u: v + (n % 5 - 2) for n, u in enumerate(UNITS[:60])} for v in values], trained=trained)


def decided(draw: Callable[[], tuple[Arm, Arm]], tables: int) -> float:
    """Share of simulated tables in which two arms are told apart."""
    found = [inference.ordered(inference.difference(*draw()), 1) for _ in range(tables)]
    return sum(inference.verdict(evidence, evidence.p) != "undecided" for evidence in found) / tables


@pytest.mark.parametrize("runs", [2, 3])
@pytest.mark.parametrize("sd", [0.0, 0.1])
def test_two_coins_are_told_apart_as_seldom_as_the_level_says(runs: int, sd: float) -> None:
    rng = np.random.default_rng(7)
    assert decided(lambda: (arm(rng, runs, sd), arm(rng, runs, sd)), 300) <= 0.07


def test_what_differs_plainly_is_told_apart_at_three_runs() -> None:
    rng = np.random.default_rng(7)
    assert decided(lambda: (arm(rng, 3, 0.1, 0.76), arm(rng, 3, 0.1, 0.24)), 100) >= 0.8


def test_the_interval_is_that_of_a_hierarchical_bootstrap_over_many_runs() -> None:
    rng = np.random.default_rng(7)
    one, other = arm(rng, 12, 0.1, 0.6), arm(rng, 12, 0.1, 0.4)
    found = inference.difference(one, other)
    a, b = (np.array([list(run.values()) for run in side.runs]) for side in (one, other))
    means = []
    for _ in range(2000):
        units = rng.integers(0, 64, 64)
        means.append(a[rng.integers(0, 12, 12)][:, units].mean() - b[rng.integers(0, 12, 12)][:, units].mean())
    assert found.se is not None
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert np.std(means) == pytest.approx(found.se, rel=0.15)


def test_an_interval_over_runs_is_wider_than_one_over_instructions() -> None:
    """The review's placebo: two coins, 18.8 points apart by instructions alone."""
    one, other = fixed(40.6, 59.4), fixed(60.9, 40.6)
    assert inference.ordered(inference.difference(one, other), 1).p > 0.5
    as_one = Arm(runs=[fixed(59.4).runs[0]]), Arm(runs=[fixed(40.6).runs[0]])
    assert inference.ordered(inference.difference(*as_one), 1).p < 0.001


def test_units_of_a_cluster_count_as_they_hang_together() -> None:
    apart: inference.Values = {(f"q{n}", "a"): 100.0 * (n % 3 > 0) for n in range(20)}
    copied = {(q, u): v for (q, _), v in apart.items() for u in ("a", "b", "c")}
    one, other = (inference.against(Arm(runs=[values]), 50) for values in (apart, copied))
    assert one.se == pytest.approx(other.se), "saying a thing three times makes it no surer"
    by_hand = np.std(list(apart.values()), ddof=1) / 20**0.5
    assert one.se == pytest.approx(by_hand)


def test_agreement_without_exception_is_as_sure_as_the_number_of_questions() -> None:
    def all_right(n: int) -> str:
        evidence = inference.ordered(inference.against(Arm(runs=[{(f"q{k}", ""): 100.0 for k in range(n)}]), 50), 1)
        return inference.verdict(evidence, evidence.p)

    assert [all_right(n) for n in (4, 20)] == ["undecided", "supported"]


def test_values_without_units_are_compared_by_their_own_standard_errors() -> None:
    found = inference.difference(Arm(wholes=[(50.0, 3.0)]), Arm(wholes=[(40.0, 4.0)]))
    assert (found.mean, found.se) == (10.0, 5.0)
    assert inference.difference(Arm(wholes=[(50.0, None)]), Arm(wholes=[(40.0, 4.0)])).se is None


@pytest.mark.parametrize(
    ("mean", "verdict"),
    [(0.3, "supported"), (-0.3, "supported"), (1.2, "undecided"), (4.0, "not supported"), (-4.0, "not supported")],
)
def test_equivalence_is_supported_undecided_or_not_supported_by_the_90_percent_interval(
    mean: float, verdict: str
) -> None:
    evidence = inference.equivalent(Estimate(mean, 0.5, 60), within=2)
    low, high = evidence.estimate.interval(evidence.level)
    assert inference.verdict(evidence, evidence.p) == verdict
    assert (verdict == "supported") == (low > -2 and high < 2)
    assert (verdict == "not supported") == (low > 2 or high < -2)


def test_the_largest_is_above_every_other_and_its_nearest_rival_decides() -> None:
    clear, close = Estimate(20, 2, 30), Estimate(1, 2, 30)
    best = inference.extreme({"b": clear, "c": clear}, 1)
    assert inference.verdict(best, best.p) == "supported"
    contested = inference.extreme({"b": clear, "c": close}, 1)
    assert (inference.verdict(contested, contested.p), contested.rival) == ("undecided", "c")
    beaten = inference.extreme({"b": clear, "c": Estimate(-20, 2, 30)}, 1)
    assert inference.verdict(beaten, beaten.p) == "not supported"
    lowest = inference.extreme({"b": Estimate(-20, 2, 30)}, -1)
    assert inference.verdict(lowest, lowest.p) == "supported"


def test_holm_asks_most_of_the_smallest_p_value_and_keeps_their_order() -> None:
    assert inference.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert inference.holm([]) == []
