"""A claim of an experiment file: a sentence, and the predicate over rows that it comes to."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import Field, StrictBool, model_validator

from sao_lib.settings import Strict

Relation = Literal[">", "<", "≈", "max", "min"]
SIDE = r"(?P<{0}>\S+)\.(?P<{0}_metric>[a-z]\w*)"
OWN, OTHER, CONSTANT = SIDE.format("row"), SIDE.format("other"), r"(?P<constant>-?\d{1,9}(?:\.\d{1,9})?)"
COMPARED = re.compile(rf"{OWN} (?P<sign>>|<|≈|~=) (?:{CONSTANT}|{OTHER})")
EXTREME = re.compile(rf"{OWN} is (?P<sign>max|min)")
RELATIONS: dict[str, Relation] = {">": ">", "<": "<", "≈": "≈", "~=": "≈", "max": "max", "min": "min"}
FORM = "'row.metric > row.metric' (or <, or ≈ with `within`), 'row.metric > 50', or 'row.metric is max' (or min)"


@dataclass(frozen=True)
class Predicate:
    """`row`'s metric compared with that of `other`, with a `constant`, or, for max and min, with other rows'."""

    row: str
    metric: str
    relation: Relation
    other: str | None = None
    constant: float | None = None

    @property
    def rows(self) -> tuple[str, ...]:
        return (self.row, self.other) if self.other else (self.row,)


class Claim(Strict):
    """A sentence and what it comes to: `holds`. `ours`: it is not the paper's.

    `within`: what counts as equal for ≈, in the metric's unit. `of`: the rows that max and min look at; none: all of
    the table. `printed`: the paper's cells `table/row/column` for the two sides, where they are not the rows' own.
    `otherwise`: of a control, what its failure means, said above everything.
    """

    sentence: str
    holds: str
    ours: StrictBool = False
    within: float | None = Field(default=None, gt=0)
    of: list[str] = []
    printed: list[str] = []
    otherwise: str | None = None

    @model_validator(mode="after")
    def _form(self) -> "Claim":
        found = self._found
        if not found or found.groupdict().get("other_metric") not in (None, found["row_metric"]):
            raise ValueError(f"'{self.holds}' must read {FORM}, with one metric")
        if (self.predicate.relation == "≈") != (self.within is not None):
            raise ValueError(f"'{self.holds}' needs `within` for ≈, and for nothing else")
        if self.predicate.other == self.predicate.row:
            raise ValueError(f"'{self.holds}' compares a row with itself")
        if self.of and self.predicate.relation not in ("max", "min"):
            raise ValueError(f"'{self.holds}' compares no list of rows: `of` is for max and min")
        if len(self.printed) not in (0, len(self.predicate.rows)) or any(p.count("/") < 2 for p in self.printed):
            raise ValueError(f"'{self.holds}': printed needs a cell 'table/row/column' for each row it names")
        return self

    @property
    def _found(self) -> re.Match[str] | None:
        return COMPARED.fullmatch(self.holds) or EXTREME.fullmatch(self.holds)

    @cached_property
    def predicate(self) -> Predicate:
        """`holds`, taken apart."""
        found = self._found
        assert found
        parts = found.groupdict()
        constant = float(parts["constant"]) if parts.get("constant") else None
        return Predicate(parts["row"], parts["row_metric"], RELATIONS[parts["sign"]], parts.get("other"), constant)

    @property
    def text(self) -> str:
        """The predicate as it is printed."""
        return self.holds + (f" within {self.within:g}" if self.within else "")

    @property
    def rows(self) -> list[str]:
        """Every row that the claim names."""
        return list(dict.fromkeys([*self.predicate.rows, *self.of]))
