"""What the paper's own printed numbers say of a claim: its differences against its standard errors.

The paper prints a standard error in tables 1 and 10. Elsewhere a share of n answers has the binomial one, which is
derived and said to be. How far two rows' answers go together is not printed: every claim is read at correlations of 0
and of 0.5, which is about what rows of one table have.
"""

import math
from collections.abc import Mapping
from typing import Any

from sao_lib.plan.claim import Claim
from sao_lib.report.metrics import METRICS
from sao_lib.report.paper import numbers

CORRELATIONS = (0.0, 0.5)
Z, Z_ONE_SIDED = 1.959964, 1.644854  # two-sided 95%; of each test of an equivalence
# Questions behind a share: AlpacaEval 2, MATH-500, Arena-Hard v0.1, table 5's prompts, and the leaderboard's test sets.
QUESTIONS = {"wr": 805, "math500": 500, "arena_hard": 500, "repetition": 10_000, "arc": 1172, "truthfulqa": 817,
             "winogrande": 1267, "gsm8k": 1319, "hellaswag": 10_042, "mmlu": 14_042}  # fmt: skip
TASKS = ("arc", "truthfulqa", "winogrande", "gsm8k", "hellaswag", "mmlu")
SUPPORTED, CONTRADICTED = "supported by its numbers", "contradicted by its numbers"
UNDECIDED, DEPENDS = "undecided in the paper", "depends on the correlation"
Printed = Mapping[str, float | None]


def side(claim: Claim, printed: Mapping[str, Printed]) -> dict[str, Any]:
    """{numbers, z, derived, verdict} of a claim by the paper's numbers, `printed` by row and column.

    `numbers` as text, `z` the range of the difference over its standard error in the claim's direction, None where it
    has none; `derived`: a standard error was not printed. verdict: supported by its numbers, contradicted by its
    numbers, undecided in the paper, depends on the correlation; without a standard error: for it, against it (no SE).
    """
    predicate = claim.predicate
    column = METRICS[predicate.metric].printed or predicate.metric
    own = _cells(claim, printed, column)
    if len(own) < 2 or any(row.get(column) is None for row in own.values()):
        return {"numbers": "-", "z": None, "derived": False, "verdict": "-"}
    first, *others = own.values()
    value, sign = _value(first, column), -1.0 if predicate.relation in ("<", "min") else 1.0
    rival = min(others, key=lambda row: sign * (value - _value(row, column)))
    other = _value(rival, column)
    difference = sign * (value - other)
    errors, derived = _errors(first, rival, column)
    text = f"{value:.2f} {'>' if value > other else '<' if value < other else '='} {other:.2f}"
    z = sorted(difference / se for se in errors) or None
    return {"numbers": text, "z": z, "derived": derived, "verdict": _verdict(difference, errors, claim.within)}


def _cells(claim: Claim, printed: Mapping[str, Printed], column: str) -> dict[str, Printed]:
    """The printed rows that the claim compares, its own first; of max and min those that have a number."""
    predicate = claim.predicate
    if claim.printed:
        return {cell: _moved(cell, column) for cell in claim.printed}
    names = list(predicate.rows)
    if predicate.relation in ("max", "min"):
        names += [name for name in claim.of or printed if printed.get(name, {}).get(column) is not None]
    return {name: printed.get(name, {}) for name in dict.fromkeys(names)}


def _moved(cell: str, column: str) -> Printed:
    """A row of one number: the paper's cell `table/row/column` under the name of ours, with its standard error."""
    table, _, rest = cell.partition("/")
    row, _, there = rest.rpartition("/")
    found = numbers(table)[row]
    return {column: found[there], "se": found.get(there.removesuffix("wr") + "se")}


def _value(row: Printed, column: str) -> float:
    value = row[column]
    assert value is not None
    return value


def _error(row: Printed, column: str) -> tuple[float | None, bool]:
    """(standard error, whether it is derived) of a printed number; None where nothing gives one."""
    if column == "wr" and row.get("se") is not None:
        return row["se"], False
    if column == "average" and all(row.get(task) is not None for task in TASKS):
        parts = [_error(row, task)[0] or 0.0 for task in TASKS]
        return math.hypot(*parts) / len(TASKS), True
    if column not in QUESTIONS:
        return None, False
    share = _value(row, column) / 100
    return 100 * math.sqrt(share * (1 - share) / QUESTIONS[column]), True


def _errors(first: Printed, second: Printed, column: str) -> tuple[list[float], bool]:
    """Standard errors of the difference at CORRELATIONS, none where they are not known; whether one is derived."""
    (one, derived), (two, also) = _error(first, column), _error(second, column)
    if one is None or two is None or not one + two:
        return [], False
    return [math.sqrt(one**2 + two**2 - 2 * rho * one * two) for rho in CORRELATIONS], derived or also


def _verdict(difference: float, errors: list[float], within: float | None) -> str:
    """`difference` in the claim's direction; of an equivalence in any."""
    if not errors:
        holds = abs(difference) <= within if within else difference > 0
        return "for it, no SE" if holds else "against it, no SE"
    said = {_at(difference, se, within) for se in errors}
    return said.pop() if len(said) == 1 else DEPENDS


def _at(difference: float, se: float, within: float | None) -> str:
    """The verdict at one standard error: by the 95% interval; of an equivalence by the 90% one."""
    if within:
        inside = abs(difference) + Z_ONE_SIDED * se <= within
        outside = abs(difference) - Z_ONE_SIDED * se >= within
    else:
        inside, outside = difference > Z * se, difference < -Z * se
    if inside or outside:
        return SUPPORTED if inside else CONTRADICTED
    return UNDECIDED


def text(found: Mapping[str, Any]) -> str:
    """The paper's side as a cell of a table."""
    if found["z"] is None:
        return f"{found['numbers']} ({found['verdict']})" if found["numbers"] != "-" else "-"
    low, high = found["z"]
    derived = ", SE derived" if found["derived"] else ""
    return f"{found['numbers']}, z {low:.1f} to {high:.1f}{derived}: {found['verdict']}"
