"""An experiment file, typed: the rows, columns, figure and claims of one table or figure."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    model_validator,
)

from sao_lib.errors import SaoError, short
from sao_lib.plan import layers
from sao_lib.plan.claim import Claim
from sao_lib.settings import MOST, NOTEBOOKS, PARAMS, ROOT, Settings, Stage, Strict
from sao_lib.yaml_files import experiment_file, read_yaml

Control = Literal["placebo", "positive"]  # a row whose claims are known: undecided, supported


def _of_a_row(stage: Stage) -> Stage:
    if stage == "ablate":
        raise ValueError("ablate makes the table itself, no row runs it")
    if stage == "answer":
        raise ValueError("answer has no result of its own, name evaluate, which reads the answers")
    return stage


def _plain(name: str) -> str:
    if not ROW_NAME.fullmatch(name):
        raise ValueError(f"'{short(name)}' can be no row's name: at most 60 letters, digits and . + - / and no blanks")
    return name


RowStage = Annotated[Stage, AfterValidator(_of_a_row)]
# What claims, figures and the roles of a table's inputs can hold.
ROW_NAME = re.compile(r"\w[\w.+/-]{0,59}")
RowName = Annotated[str, AfterValidator(_plain)]
Replicates = Annotated[int, Field(ge=1, le=MOST)]


class Printed(Strict):
    """Where the paper prints this row's numbers: under another row's name, in columns with a prefix."""

    row: str | None = None
    prefix: str = ""


class RowSpec(Strict):
    """A row of an experiment; every further key is a section of parameters that the row changes.

    `use` names presets of the profile. `runs` are the stages that this row needs where they differ from the
    experiment's. `trained: false` is the policy as it comes. `published` names a model of a published leaderboard, for
    rows that run nothing. `profiles` are those that have the row, where it is not all. `control`: what the claims that
    name this row must come to, whatever the table is about.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    label: str = Field(min_length=1)
    use: list[str] = []
    runs: tuple[RowStage, ...] | None = None
    trained: StrictBool = True
    iterations: int = Field(default=1, ge=1, le=MOST)
    published: str | None = None
    profiles: tuple[str, ...] | None = Field(default=None, min_length=1)
    control: Control | None = None
    printed: Printed = Printed()

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that the row changes."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known(self) -> "RowSpec":
        if unknown := sorted(set(self.parameters) - set(Settings.model_fields)):
            known = ", ".join([*type(self).model_fields, *Settings.model_fields])
            raise ValueError(f"a row has no '{unknown[0]}'; it may have: {known}")
        return self


class Figure(Strict):
    """`kind` is one of report.figures; what it draws: `metric` or `metrics`, beside the paper's columns `paper`."""

    kind: str
    metric: str | None = None
    metrics: list[str] = []
    paper: list[str] = []
    x: Literal["train_pairs", "iteration"] | None = None
    xlabel: str | None = None
    paper_x: list[float | None] | None = None


class Experiment(Strict):
    """One table or figure. `ours`: it is not in the paper, and `reproduce-all` leaves it out.

    `columns` are names of report.columns; or `table` names a table of texts in report.texts. `notebook` makes the table
    where that is not 05_ablate. `settings` are parameters by profile. `replicates` are the runs of each trained row,
    for every profile or by profile (else as `settings` and the profile say); a row may say its own. `printed_in` names
    the paper's table whose numbers stand beside ours where it is not this one.
    """

    title: str
    question: str
    where: str = "not in the paper"
    ours: StrictBool = False
    paper_setting: str | None = None
    printed_in: str | None = None
    columns: list[str] = []
    table: str | None = None
    figure: Figure | None = None
    notebook: str | None = None
    runs: tuple[RowStage, ...] = ("evaluate",)
    settings: dict[str, dict[str, Any]] = {}
    replicates: Replicates | dict[str, Replicates] = {}
    rows: dict[RowName, RowSpec] = Field(min_length=1)
    claims: list[Claim] = []
    note: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Experiment":
        if bool(self.columns) == bool(self.table):
            raise ValueError("it needs either columns or a table")
        profiles = {path.stem for path in (PARAMS / "profiles").glob("*.yaml")}
        named = {name: row.profiles or () for name, row in self.rows.items()}
        if wrong := next((f"{row}.profiles has '{p}'" for row in named for p in named[row] if p not in profiles), None):
            raise ValueError(f"{wrong}, which is no profile; there are: {', '.join(sorted(profiles))}")
        for key, given in (("settings", self.settings), ("replicates", self.replicates)):
            if isinstance(given, dict) and (unknown := sorted(set(given) - profiles)):
                known = ", ".join(sorted(profiles))
                raise ValueError(f"{key} has '{unknown[0]}', which is no profile; there are: {known}")
        own = {path.stem for path in (ROOT / "notebooks").glob("[!0]*.ipynb")}  # after the stages'
        tables = own - set(NOTEBOOKS.values())
        if self.notebook and self.notebook not in (there := sorted(tables | {NOTEBOOKS["ablate"]})):
            raise ValueError(
                f"its notebook '{self.notebook}' is none of notebooks/ that makes a table: {', '.join(there)}"
            )
        labels = [row.label for row in self.rows.values()]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"two rows have the label '{short(twice)}', and a table could not tell them apart")
        for claim in self.claims:
            if claim.otherwise and not any(self.rows[name].control for name in claim.rows if name in self.rows):
                raise ValueError(f"the claim '{claim.holds}' says `otherwise`, which is for claims that name a control")
            if unknown := sorted(set(claim.rows) - set(self.rows)):
                known = ", ".join(self.rows)
                raise ValueError(f"the claim '{claim.holds}' names the row '{unknown[0]}'; there are: {known}")
        for name, row in self.rows.items():
            if row.control and not any(name in claim.rows for claim in self.claims):
                raise ValueError(f"the row {name} is a control, but no claim names it")
        return self

    def layer(self, profile: str) -> dict[str, Any]:
        """The parameters that this experiment sets on a profile."""
        own = self.replicates.get(profile) if isinstance(self.replicates, dict) else self.replicates
        return {**self.settings.get(profile, {}), **({"replicates": own} if own else {})}


def read(name: str) -> Experiment:
    """The experiment of this name; SaoError in one sentence for whatever its file gets wrong."""
    body = read_yaml(experiment_file(name))
    try:
        return Experiment.model_validate(body)
    except ValidationError as error:
        raise SaoError(layers.explain(error, [(f"params/experiments/{name}.yaml", body)], Experiment, "key")) from None


def experiments(ours: bool = False) -> list[str]:
    """Every table and figure of the paper in its order, tables first; then, if asked for, the suite's own.

    Files that cannot be read at all are left out: `unreadable` names them.
    """
    own = {name: bool(body.get("ours")) for name, body in _bodies().items() if body is not None}

    def order(name: str) -> tuple[bool, bool, int, str]:
        return own[name], not name.startswith("table"), int("".join(filter(str.isdigit, name)) or 0), name

    return sorted((name for name in own if ours or not own[name]), key=order)


def unreadable() -> list[str]:
    """The experiment files that are no YAML mapping, so that nobody knows what they are."""
    return sorted(name for name, body in _bodies().items() if body is None)


def _bodies() -> dict[str, dict[str, Any] | None]:
    found: dict[str, dict[str, Any] | None] = {}
    for path in (PARAMS / "experiments").glob("*.yaml"):
        try:
            found[path.stem] = read_yaml(path)
        except SaoError:
            found[path.stem] = None
    return found
