"""Statistics on finished runs: paired tests over shared instructions and verdicts on the paper's claims."""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sao_lib.errors import SaoError

CLAIM = re.compile(r"(\S+)\.(\w+) > (\S+)\.(\w+)")
RESAMPLES = 10_000
SEED = 0


def paired(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Mean of a - b over shared instructions, its 95% bootstrap interval and a paired t-test's p-value."""
    import numpy as np
    from scipy import stats

    if len(a) != len(b):
        raise SaoError(f"A paired test needs the same instructions on both sides: {len(a)} against {len(b)}.")
    difference = np.asarray(a, float) - np.asarray(b, float)
    rng = np.random.default_rng(SEED)
    means = difference[rng.integers(0, len(difference), (RESAMPLES, len(difference)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    p = 1.0 if not difference.any() else float(stats.ttest_rel(a, b).pvalue)
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high), "p": p}


def per_instruction(annotations: Sequence[dict[str, Any]], metric: str) -> list[float]:
    """`wr`: 100 where the model won, 50 for a tie; `length`: characters of the answer."""
    if metric == "wr":
        return [(a["preference"] - 1) * 100 for a in annotations]
    if metric == "length":
        return [float(len(a["output_2"])) for a in annotations]
    raise SaoError(f"A claim names the metric '{metric}'; there are: wr, length.")


def claim_verdict(holds: str, rows: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """{verdict, mean, low, high, p} of a predicate `a.metric > b.metric` over the rows' shared instructions.

    `rows` maps a row's name to its annotations; without any the verdict is "not run".

    supported: the whole interval is above zero; not supported: it is below; undecided: it holds zero.
    """
    found = CLAIM.fullmatch(holds)
    if not found or found[2] != found[4] or found[1] not in rows or found[3] not in rows:
        raise SaoError(f"The claim '{holds}' must read 'row.metric > row.metric' with rows of this table.")
    if not rows[found[1]] or not rows[found[3]]:
        return {"verdict": "not run", "mean": None, "low": None, "high": None, "p": None}
    test = paired(per_instruction(rows[found[1]], found[2]), per_instruction(rows[found[3]], found[4]))
    verdict = "supported" if test["low"] > 0 else "not supported" if test["high"] < 0 else "undecided"
    return {"verdict": verdict, **test}


def paper_verdict(holds: str, paper: dict[str, dict[str, Any]]) -> str:
    """What the paper's own two numbers say of the predicate; it prints no standard errors for this table."""
    found = CLAIM.fullmatch(holds)
    values = [paper.get(found[i], {}).get(found[i + 1]) for i in (1, 3)] if found else [None, None]
    if values[0] is None or values[1] is None:
        return "-"
    return f"{values[0]:.2f} > {values[1]:.2f}" if values[0] > values[1] else f"{values[0]:.2f} <= {values[1]:.2f}"


def share_positive(margins: Sequence[float]) -> float:
    """Share of held-out pairs whose chosen response has the higher reward."""
    return statistics.fmean(m > 0 for m in margins) if margins else float("nan")
