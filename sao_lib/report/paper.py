"""What the paper prints (params/paper.yaml), and where its numbers disagree with one another.

Nothing here is typed in: averages and deltas are recomputed from the cells, numbers in the text are compared with the
cells they repeat, and cells that report one setting with each other. Numbers are read as decimals, so that 39.30 keeps
its zero: a printed number stands for everything that rounds to it.
"""

from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sao_lib.errors import SaoError
from sao_lib.settings import PARAMS
from sao_lib.yaml_files import Unique, read_yaml

PAPER = PARAMS / "paper.yaml"
Cell = list[str]  # [table, row, column]


class Disagreement(NamedTuple):
    """`what` is a key that stays the same, `values` the numbers as printed, `where` the place each stands in."""

    what: str
    values: tuple[str, ...]
    where: tuple[str, ...]


class _Exact(Unique):
    """Numbers as Decimal, with the decimals they are written with."""


for _kind in ("int", "float"):
    _Exact.add_constructor(f"tag:yaml.org,2002:{_kind}", lambda _, node: Decimal(node.value))


def printed() -> dict[str, Any]:
    """params/paper.yaml, read once as long as it does not change."""
    return _read(PAPER, PAPER.stat().st_mtime_ns)


@cache
def _read(path: Path, _changed: int) -> dict[str, Any]:
    return read_yaml(path)


def numbers(table: str) -> dict[str, dict[str, Any]]:
    """Rows of `table1` to `table11`, `figure1` or `figure2`: {row: {column: number or None}}."""
    paper = printed()
    if table not in paper or not isinstance(paper[table].get("rows"), dict):
        known = ", ".join(name for name, entry in paper.items() if "rows" in entry and isinstance(entry["rows"], dict))
        raise SaoError(f"params/paper.yaml holds no rows of '{table}'; there are: {known}.")
    return dict(paper[table]["rows"])


def facts() -> list[dict[str, Any]]:
    """Numbers in the running text: {value, where (section), of: [table, row, column], minus: the same, if any}."""
    return list(printed()["stated"])


def disagreements() -> list[Disagreement]:
    """Everything in the paper that does not fit the rest of it, in the order of the checks."""
    paper = yaml.load(PAPER.read_text(encoding="utf-8"), _Exact)
    checks = (_averages, _deltas, _stated, _same, _ordered, _half_wins)
    return [found for check in checks for found in check(paper)]


def rounds_to(value: Decimal, printed: Decimal) -> bool:
    """Whether `value` may be printed as `printed`; exactly half a unit may go up or down."""
    return abs(value - printed) <= Decimal(5).scaleb(_exponent(printed) - 1)


def agree(a: Decimal, b: Decimal) -> bool:
    """Whether two printed numbers can be one number: 39.3 and 39.25 can, 39.30 and 39.25 cannot."""
    return rounds_to(a, b) if _exponent(a) <= _exponent(b) else rounds_to(b, a)


def _exponent(printed: Decimal) -> int:
    return int(printed.as_tuple().exponent)


def _cell(paper: dict[str, Any], cell: Cell) -> Decimal | None:
    table, row, column = cell
    found: Decimal | None = paper[table]["rows"][row].get(column)
    return found


def _printed(paper: dict[str, Any], cell: Cell) -> Decimal:
    value = _cell(paper, cell)
    if value is None:
        raise SaoError(f"params/paper.yaml refers to {place(cell)}, which is null there.")
    return value


def place(cell: Cell) -> str:
    """A cell as text: `table6/self/wr`."""
    return "/".join(cell)


def _cells(paper: dict[str, Any], ending: str) -> Iterator[tuple[Cell, Decimal]]:
    """Printed cells in columns whose name ends so."""
    for table, entry in paper.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("rows"), dict):
            continue
        for row, columns in entry["rows"].items():
            for column, value in columns.items():
                if column.endswith(ending) and isinstance(value, Decimal):
                    yield [table, row, column], value


def _averages(paper: dict[str, Any]) -> Iterator[Disagreement]:
    """Every column `average` against the mean of the row's other columns."""
    for cell, printed in _cells(paper, "average"):
        row = paper[cell[0]]["rows"][cell[1]]
        parts = [value for column, value in row.items() if column != "average"]
        mean = sum(parts, Decimal()) / len(parts)
        if not rounds_to(mean, printed):
            yield Disagreement(
                f"average/{place(cell)}", (str(printed), f"{mean:.4f}"), (place(cell), "mean of the row")
            )


def _deltas(paper: dict[str, Any]) -> Iterator[Disagreement]:
    """Every printed delta against the difference of the two printed numbers."""
    for cell, printed in _cells(paper, "_delta"):
        table, row, column = cell
        baseline = [table, paper[table]["baseline"][row], column.removesuffix("_delta")]
        own = [table, row, column.removesuffix("_delta")]
        difference = _printed(paper, own) - _printed(paper, baseline)
        if not rounds_to(difference, printed):
            where = (place(cell), f"{place(own)} - {place(baseline)}")
            yield Disagreement(f"delta/{place(cell)}", (str(printed), str(difference)), where)


def _stated(paper: dict[str, Any]) -> Iterator[Disagreement]:
    """Every number in the text against the cell, or the difference of cells, that it repeats."""
    for fact in paper["stated"]:
        value, source = _printed(paper, fact["of"]), place(fact["of"])
        if "minus" in fact:
            value, source = value - _printed(paper, fact["minus"]), f"{source} - {place(fact['minus'])}"
        if not agree(fact["value"], value):
            where = (f"section {fact['where']}", source)
            yield Disagreement(f"stated/{fact['where']}/{place(fact['of'])}", (str(fact["value"]), str(value)), where)


def _same(paper: dict[str, Any]) -> Iterator[Disagreement]:
    """Cells that report one setting, where two of them cannot be roundings of one number."""
    for name, cells in paper["same"].items():
        values = [_printed(paper, cell) for cell in cells]
        if not all(agree(a, b) for a, b in combinations(values, 2)):
            yield Disagreement(f"same/{name}", tuple(map(str, values)), tuple(place(cell) for cell in cells))


def _ordered(paper: dict[str, Any]) -> Iterator[Disagreement]:
    """Comparisons the text makes, against the cells; a column that a row does not print is left out."""
    for name, claim in paper["ordered"].items():
        for column in claim["columns"]:
            for above, below in ((a, b) for a in claim["above"] for b in claim["below"]):
                high, low = _cell(paper, [*above, column]), _cell(paper, [*below, column])
                if high is not None and low is not None and high <= low:
                    key = f"ordered/{name}/{below[1]}/{column}"
                    where = (
                        place([*above, column]),
                        place([*below, column]),
                        f"section {claim['where']}: {claim['says']}",
                    )
                    yield Disagreement(key, (str(high), str(low)), where)


def _half_wins(paper: dict[str, Any]) -> Iterator[Disagreement]:
    """Win rates that are no number of half wins: with n comparisons, 100 k / 2n for no whole k."""
    grid = 2 * paper["half_wins"]["comparisons"]
    for table, column in paper["half_wins"]["cells"]:
        for row, columns in paper[table]["rows"].items():
            printed = columns[column]
            k = (printed * grid / 100).to_integral_value()
            nearest = 100 * k / grid
            if not rounds_to(nearest, printed):
                where = (place([table, row, column]), f"nearest number of half wins in {grid // 2} comparisons")
                yield Disagreement(f"half-wins/{where[0]}", (str(printed), f"{nearest:.4f}"), where)
