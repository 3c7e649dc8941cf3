"""What finished runs let us conclude: differences with intervals that count the runs, and verdicts on them.

Two trainings that differ only in their seed differ, in the small profiles by ten points of win rate. An interval over
instructions leaves that out. Here a trained row is a sample of runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LEVEL = 0.05
LEAST_P = 0.001  # what is printed of smaller ones: tails of so few runs are not known better
MOST_SHARED = 0.9  # of the units of the run that has most: the others miss some, and are not of other units
Values = dict[tuple[str, str], float]  # (cluster, unit within it) -> value


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    `runs` hold what each run measured, by unit; `wholes` instead a value and its standard error for each run, where
    its files keep no more. `trained`: the runs are a sample of those that could be, each of another seed.
    """

    runs: Sequence[Values] = ()
    wholes: Sequence[tuple[float, float | None]] = ()
    trained: bool = False

    @property
    def means(self) -> list[float]:
        if self.wholes:
            return [value for value, _ in self.wholes]
        return [sum(run.values()) / len(run) for run in self.runs]

    @property
    def count(self) -> int:
        return len(self.runs) or len(self.wholes)

    @property
    def one_run(self) -> bool:
        """Whether this arm was trained, and once: nothing then says how far another training would lie from it."""
        return self.trained and self.count < 2


@dataclass(frozen=True)
class Estimate:
    """A difference, its standard error and degrees of freedom; `se` None: none can be had.

    `units` is the least number of things that had to agree, clusters or runs, where nothing varied at all.
    """

    mean: float
    se: float | None
    df: float = math.inf
    units: int = 0

    def above(self, x: float) -> float:
        """One-sided p-value of "no more than x": small where the difference is above x."""
        from scipy import stats

        if self.se is None:
            return math.nan
        if self.se == 0:  # a t-test would be sure; that all units agree by chance has probability 2^-units
            return 0.5**self.units if self.mean > x else 1.0
        return float(stats.t.sf((self.mean - x) / self.se, self.df))

    def below(self, x: float) -> float:
        return Estimate(-self.mean, self.se, self.df, self.units).above(-x)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The two-sided interval that misses with probability `level`."""
        from scipy import stats

        half = 0.0 if not self.se else float(stats.t.ppf(1 - level / 2, self.df)) * self.se
        return self.mean - half, self.mean + half


def difference(a: Arm, b: Arm) -> Estimate:
    """Mean of `a` less that of `b`, over the runs and units that there could be.

    Runs are nested in an arm, units (instructions, labelled pairs by question) are shared by all runs of both where
    their names are the same. The variance is what a hierarchical bootstrap, runs of each arm first and then the shared
    units, converges to for many runs, in closed form:

        s_a^2 / k_a + s_b^2 / k_b + v

    with s the standard deviation of an arm's run means (nothing for an arm that was not trained), and v the variance
    of the mean difference over units. As in that bootstrap, sampling noise stands in s and in v, which errs on the
    side of saying less. The bootstrap itself cannot be used for two or three runs: it puts the run variance at (k-1)/k
    of what it is, and put right, a normal quantile stays too small (with two degrees of freedom |t| passes 1.96 in 19%
    of cases). So the quantile is Student's, with Welch and Satterthwaite's degrees of freedom over the components.
    Variances are not pooled over arms, because a coin's runs vary more than others'.
    """
    parts = [*_runs_part(a), *_runs_part(b), *_units_part(a, b)]
    mean = sum(a.means) / a.count - (sum(b.means) / b.count if b.count else 0.0)
    return _estimate(mean, parts, [a, b])


def against(a: Arm, constant: float) -> Estimate:
    """As `difference`, of an arm and a number."""
    found = difference(a, Arm())
    return Estimate(found.mean - constant, found.se, found.df, found.units)


@dataclass(frozen=True)
class _Part:
    """A component of a variance with its degrees of freedom; `variance` None: it cannot be known."""

    variance: float | None
    df: float


def _estimate(mean: float, parts: list[_Part], arms: list[Arm]) -> Estimate:
    known = [(part.variance, part.df) for part in parts if part.variance is not None]
    if len(known) < len(parts):
        return Estimate(mean, None)
    total = sum(variance for variance, _ in known)
    counts = [_clusters(arm) for arm in arms if arm.runs] + [arm.count for arm in arms if arm.trained]
    if total <= 0:
        return Estimate(mean, 0.0, units=min(counts, default=0))
    uncertain = sum(variance**2 / df for variance, df in known)
    return Estimate(mean, math.sqrt(total), total**2 / uncertain if uncertain else math.inf)


def _clusters(arm: Arm) -> int:
    return len({cluster for cluster, _ in arm.runs[0]})


def _runs_part(arm: Arm) -> list[_Part]:
    import numpy as np

    if not arm.trained:
        return []
    return [_Part(float(np.var(arm.means, ddof=1)) / arm.count if arm.count > 1 else None, arm.count - 1)]


def _units_part(a: Arm, b: Arm) -> list[_Part]:
    """The units' share: of their mean differences where both arms have the same units, else of each arm alone."""
    arms = [arm for arm in (a, b) if arm.count]
    if any(arm.wholes for arm in arms):
        return [part for arm in arms for part in _wholes_part(arm)]
    if len(arms) == 2 and (common := _common([*a.runs, *b.runs])):
        return [_shared([(1.0, _by_cluster(a, common)), (-1.0, _by_cluster(b, common))])]
    return [_shared([(1.0, table)]) for table in map(_by_cluster, arms) if table is not None]


def _wholes_part(arm: Arm) -> list[_Part]:
    """Units that the files do not keep: the mean of the runs' own squared errors, as if all runs shared them."""
    if arm.runs:
        return [_shared([(1.0, table)])] if (table := _by_cluster(arm)) is not None else []
    errors = [se for _, se in arm.wholes if se is not None]
    known = len(errors) == arm.count
    return [_Part(sum(e * e for e in errors) / len(errors) if known and errors else None, math.inf)]


def _by_cluster(arm: Arm, common: list[tuple[str, str]] | None = None) -> Any:
    """An array [runs, clusters] whose rows' means are the runs' means; None where the runs' units are not the same.

    A cluster's value is the run's mean and what its units lie off it, weighted so that the variance of a row's mean is
    the clustered one. Runs with units of their own (held-out pairs) are independent: their run means hold it all.
    `common` are the units to count, else those that all of the arm's runs have.
    """
    import numpy as np

    common = common or _common(arm.runs)
    if not common:
        return None
    names = list(dict.fromkeys(cluster for cluster, _ in common))
    place = {name: number for number, name in enumerate(names)}
    table = np.zeros((arm.count, len(names)))
    for number, (run, mean) in enumerate(zip(arm.runs, arm.means, strict=True)):
        middle = sum(run[unit] for unit in common) / len(common)
        for unit in common:
            table[number, place[unit[0]]] += (run[unit] - middle) * len(names) / len(common)
        table[number] += mean
    return table


def _common(runs: Sequence[Values]) -> list[tuple[str, str]] | None:
    """The units that all runs have, where few lack one (an answer that could not be read); None where they differ."""
    shared = [unit for unit in runs[0] if all(unit in run for run in runs)]
    return shared if len(shared) >= MOST_SHARED * max(map(len, runs)) else None


def _shared(sides: list[tuple[float, Any]]) -> _Part:
    """The variance of a mean over the clusters that the sides share."""
    import numpy as np

    n = sides[0][1].shape[1]
    mean = sum(sign * table.mean(0) for sign, table in sides)
    return _Part(float(np.var(mean, ddof=1)) / n if n > 1 else None, n - 1)


@dataclass(frozen=True)
class Line:
    """A straight line through runs at places `x`, by least squares on the runs' means; all have the same units.

    Its variances are as in `difference`: of the runs about the line, and of the units, which the runs share. `blocks`
    name the pool of pairs that each run's labels are of. What a pool does to its runs at one end of the line it may do
    to those at the other, so where there are several it is pools that vary: the sums of their runs' residuals in the
    estimate (clustered, B / (B - 1)), with B - 1 degrees of freedom. Where all runs are of one pool they vary by
    themselves, with n - 2, and the estimate speaks of this pool. `x` is taken as known.
    """

    x: Sequence[float]
    runs: Sequence[Values]
    blocks: Sequence[int] = ()

    def slope(self) -> Estimate:
        """The change of the mean for one unit of x."""
        return self._estimate([d / self._spread for d in self._off] if self._spread else None)

    def off(self, x: float, arm: Arm) -> Estimate:
        """How far an arm at `x` lies above the line."""
        on = [1 / len(self.x) + (x - self.middle) * d / self._spread for d in self._off] if self._spread else None
        return self._estimate(on, arm)

    @property
    def middle(self) -> float:
        """The mean of x, where the line is at `height`."""
        return sum(self.x) / len(self.x)

    @property
    def height(self) -> float:
        return sum(Arm(runs=self.runs).means) / len(self.x)

    @property
    def _off(self) -> list[float]:
        return [x - self.middle for x in self.x]

    @property
    def _spread(self) -> float:
        return sum(d * d for d in self._off)

    def _estimate(self, weights: list[float] | None, arm: Arm | None = None) -> Estimate:
        """The runs' means summed with `weights`; if there is an arm, its mean less that."""
        means, n, sign = Arm(runs=self.runs).means, len(self.x), -1.0 if arm else 1.0
        if weights is None or n < 3:
            return Estimate(math.nan, None)
        mean = sign * sum(w * m for w, m in zip(weights, means, strict=True))
        mean += sum(arm.means) / arm.count if arm else 0.0
        steep = sum(d * m for d, m in zip(self._off, means, strict=True)) / self._spread
        about = [m - self.height - steep * d for d, m in zip(self._off, means, strict=True)]
        if len(set(self.blocks)) > 1:
            varying = [_Part(_clustered(self._pools(weights, about, arm, sign)), len(set(self.blocks)) - 1)]
        else:
            alone = _Part(sum(r * r for r in about) / (n - 2) * sum(w * w for w in weights), n - 2)
            varying = [alone, *(_runs_part(arm) if arm else [])]
        every = [*self.runs, *(arm.runs if arm else ())]
        table, shares = _by_cluster(Arm(runs=every)), [sign * w for w in weights]
        shares += [1 / arm.count] * arm.count if arm else []
        units = [] if table is None else [_shared([(w, table[[k]]) for k, w in enumerate(shares)])]
        return _estimate(mean, [*varying, *units], [Arm(runs=every)])

    def _pools(self, weights: list[float], about: list[float], arm: Arm | None, sign: float) -> list[float]:
        """What the runs of each pool add to the estimate by lying off the line, or off the arm's mean.

        An arm's runs are of the pools in their order, one each.
        """
        sums = dict.fromkeys(self.blocks, 0.0)
        for weight, off, block in zip(weights, about, self.blocks, strict=True):
            sums[block] += sign * weight * off
        means = arm.means if arm else []
        for block, mean in zip(sums, means, strict=False):
            sums[block] += (mean - sum(means) / len(means)) / len(means)
        return [*sums.values()]


def _clustered(sums: list[float]) -> float:
    return sum(s * s for s in sums) * len(sums) / (len(sums) - 1)


def in_words(p: float) -> str:
    """`p = 0.012`, or that it is less than what so few runs can tell."""
    return f"p < {LEAST_P}" if p < LEAST_P else f"p = {p:.2g}"


@dataclass(frozen=True)
class Evidence:
    """p-values for and against a predicate, and of the two together (`p`), with what to print of the difference."""

    p: float
    supports: float
    opposes: float
    estimate: Estimate
    level: float = LEVEL  # of the interval that is printed
    rival: str | None = field(default=None)  # the row that comes nearest, of max and min


def ordered(estimate: Estimate, sign: float) -> Evidence:
    """Of `>` (sign 1) or `<` (sign -1): two-sided."""
    supports, opposes = estimate.above(0), estimate.below(0)
    if sign < 0:
        supports, opposes = opposes, supports
    return Evidence(min(1.0, 2 * min(supports, opposes)), supports, opposes, estimate)


def equivalent(estimate: Estimate, within: float) -> Evidence:
    """Of `≈`: two one-sided tests. For it: the whole 90% interval lies within the margin; against: it lies outside.

    One of the two is true, so the smaller p-value needs no doubling.
    """
    supports = max(estimate.above(-within), estimate.below(within))
    opposes = min(estimate.above(within), estimate.below(-within))
    return Evidence(min(supports, opposes), supports, opposes, estimate, level=2 * LEVEL)


def extreme(estimates: dict[str, Estimate], sign: float) -> Evidence:
    """Of `is max` (sign 1) or `is min`, from the row's differences to every other.

    It is the largest if it is above each other one, so the weakest of these decides (an intersection-union test); it
    is not if any is above it, by Bonferroni over them.
    """
    each = {name: ordered(estimate, sign) for name, estimate in estimates.items()}
    supports = max(found.supports for found in each.values())
    opposes = min(1.0, len(each) * min(found.opposes for found in each.values()))
    rival = min(estimates, key=lambda name: sign * estimates[name].mean)
    return Evidence(min(1.0, 2 * min(supports, opposes)), supports, opposes, estimates[rival], rival=rival)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, number in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[number]))
        adjusted[number] = highest
    return adjusted


def verdict(evidence: Evidence, p: float) -> str:
    """supported, not supported or undecided, at a p-value that has been adjusted or not."""
    if p >= LEVEL:
        return "undecided"
    return "supported" if evidence.supports <= evidence.opposes else "not supported"
