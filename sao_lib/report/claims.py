"""Statistics on finished runs: paired tests over shared instructions and verdicts on the paper's claims."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sao_lib.errors import SaoError
from sao_lib.plan.experiment import Claim

METRICS = ("wr", "length")
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
    raise SaoError(f"A claim names the metric '{metric}'; there are: {', '.join(METRICS)}.")


def claim_verdict(claim: Claim, rows: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """{verdict, mean, low, high, p} of a claim over the rows' shared instructions.

    `rows` maps a row's name to its annotations; without any the verdict is "not run".

    supported: the whole interval is above zero; not supported: it is below; undecided: it holds zero.
    """
    one, other, metric = claim.parts
    if not rows[one] or not rows[other]:
        return {"verdict": "not run", "mean": None, "low": None, "high": None, "p": None}
    test = paired(per_instruction(rows[one], metric), per_instruction(rows[other], metric))
    verdict = "supported" if test["low"] > 0 else "not supported" if test["high"] < 0 else "undecided"
    return {"verdict": verdict, **test}


def paper_verdict(claim: Claim, printed: dict[str, dict[str, Any]]) -> str:
    """What the paper's own two numbers say of the predicate; it prints no standard errors for this table."""
    one, other, metric = claim.parts
    first, second = printed.get(one, {}).get(metric), printed.get(other, {}).get(metric)
    if first is None or second is None:
        return "-"
    return f"{first:.2f} {'>' if first > second else '<='} {second:.2f}"


def share_positive(margins: Sequence[float]) -> float:
    """Share of held-out pairs whose chosen response has the higher reward."""
    return statistics.fmean(m > 0 for m in margins) if margins else float("nan")
