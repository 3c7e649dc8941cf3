"""A win rate at equal lengths, from one regression over all rows of a table that one judge read.

It is ours, not AlpacaEval's LC: a logistic regression of the verdicts on a row's own effect and one slope, common to
all rows, on tanh of the difference in length in its standard deviations. It is read off where that difference is zero,
for rows that have answers there: a row nearly all of whose answers are longer than the reference's has no such number.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sao_lib.report.rows import table_rows
from sao_lib.runs import Run

LEAST_SHARE = 0.15  # of answers that must lie on either side of the reference's length
RESAMPLES = 200
SEED = 0

Annotations = Sequence[Mapping[str, Any]]
Rate = tuple[float, float]  # percent, standard error


def difference(annotation: Mapping[str, Any]) -> int:
    """Characters by which the model's answer is longer than the reference's."""
    return len(annotation["output_2"]) - len(annotation["output_1"])


def overlaps(annotations: Annotations) -> bool:
    """Whether at least LEAST_SHARE of the answers are longer than the reference's, and as many shorter."""
    longer = [difference(a) > 0 for a in annotations]
    shorter = [difference(a) < 0 for a in annotations]
    return min(sum(longer), sum(shorter)) >= LEAST_SHARE * len(annotations)


def rates(rows: Mapping[str, Annotations]) -> dict[str, Rate | None]:
    """The length-adjusted win rate of each row and its SE, a bootstrap over instructions; None without overlap.

    Instructions are resampled for all rows at once, because the rows answer the same ones.
    """
    import numpy as np

    names = list(rows)
    instructions = {x: n for n, x in enumerate(dict.fromkeys(a["instruction"] for r in rows.values() for a in r))}
    pooled = [(k, a) for k, name in enumerate(names) for a in rows[name]]
    if not pooled:
        return {}
    row = np.array([k for k, _ in pooled])
    length = np.array([difference(a) for _, a in pooled], float)
    x = np.column_stack([row == k for k in range(len(names))] + [np.tanh(length / (length.std() or 1.0))]).astype(float)
    won = np.array([a["preference"] - 1 for _, a in pooled])
    group = np.array([instructions[a["instruction"]] for _, a in pooled])
    rng = np.random.default_rng(SEED)
    draws = [np.bincount(rng.integers(len(instructions), size=len(instructions)), minlength=len(instructions))[group]
             for _ in range(RESAMPLES)]  # fmt: skip
    here = 100 * _at_zero(x, won, np.ones(len(won)))
    spread = np.std([100 * _at_zero(x, won, weights) for weights in draws], axis=0, ddof=1)
    return {n: (float(here[k]), float(spread[k])) if overlaps(rows[n]) else None for k, n in enumerate(names)}


def _at_zero(x: Any, won: Any, weights: Any) -> Any:
    """Probability of a win at equal lengths for each row: Newton steps on the weighted likelihood, ridge 0.01."""
    import numpy as np

    beta, ridge = np.zeros(x.shape[1]), 0.01 * np.eye(x.shape[1])  # a row that wins all has no finite estimate
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        slope = x.T @ (weights * (won - p)) - ridge @ beta
        step = np.linalg.solve((x * (weights * p * (1 - p))[:, None]).T @ x + ridge, slope)
        beta = beta + step
        if np.abs(step).max() < 1e-8:
            break
    return 1 / (1 + np.exp(-beta[:-1]))


@cache
def of_table(table: Run) -> dict[str, Rate | None]:
    """`rates` of all rows of a table run by name; rows that different judges read have regressions of their own."""
    by_judge: dict[tuple[str, str], dict[str, Annotations]] = {}
    for name, row in table_rows(table).items():
        if row.ours and row.annotations:
            judge = row.run("evaluate").results["judge"]
            by_judge.setdefault((judge["model"], judge["instrument"]), {})[name] = row.annotations
    return {name: rate for rows in by_judge.values() for name, rate in rates(rows).items()}
