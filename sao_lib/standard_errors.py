"""Standard errors of means over observations that hang together."""

import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence


def clustered_se(values: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """Standard error of the mean of `values`, in their unit, of which those with equal `clusters` hang together.

    Equals that of the clusters' means where all are of one size. None with fewer than two clusters.
    """
    if not values:
        return None
    mean = statistics.fmean(values)
    sums: dict[Hashable, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    n = len(sums)
    return (n / (n - 1) * sum(s * s for s in sums.values())) ** 0.5 / len(values) if n > 1 else None
