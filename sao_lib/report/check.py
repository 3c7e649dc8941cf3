"""An experiment file's names of columns, tables, figures and metrics, looked up before anything runs."""

from collections.abc import Iterable

from sao_lib.errors import SaoError
from sao_lib.plan import layers
from sao_lib.plan.claim import Claim
from sao_lib.plan.experiment import Experiment, Figure, read
from sao_lib.report.columns import column
from sao_lib.report.figures import KINDS, MEASURES
from sao_lib.report.metrics import METRICS
from sao_lib.report.paper import printed as paper
from sao_lib.report.rows import printed_rows
from sao_lib.report.texts import TABLES

Printed = dict[str, dict[str, float | None]]  # the paper's numbers by row


def check(name: str) -> None:
    """Raise SaoError in one sentence if the experiment asks for something that no table can show."""
    experiment, where = read(name), f"params/experiments/{name}.yaml"
    for profile in experiment.settings:  # also of profiles that are not planned now
        layers.validate([*layers.profile_layers(profile), (where, experiment.layer(profile))])
    printed = _printed(name, experiment, where)
    if experiment.table:
        _known("table", experiment.table, TABLES, where)
        _some_row_runs(TABLES[experiment.table].stages, f"table {experiment.table}", experiment, where)
    for wanted in experiment.columns:
        if wanted.startswith("paper."):
            _paper_has(wanted.removeprefix("paper."), f"column {wanted}", printed, where)
            continue
        try:
            stages = column(wanted).stages
        except SaoError as error:
            raise SaoError(f"{where}: {error}") from None
        _some_row_runs(stages, f"column {wanted}", experiment, where)
    if experiment.figure:
        _figure(experiment.figure, experiment, printed, where)
    for claim in experiment.claims:
        _claim(claim, experiment, where)


def _printed(name: str, experiment: Experiment, where: str) -> Printed:
    if experiment.printed_in:
        _known("table of the paper", experiment.printed_in, paper(), where)
    found = printed_rows(name, experiment)
    for key, row in experiment.rows.items():
        if (row.printed.row or row.printed.prefix) and not found[key]:
            raise SaoError(
                f"{where}, row {key}: params/paper.yaml has no numbers for printed row '{row.printed.row or key}'"
                + (f" with the prefix '{row.printed.prefix}'." if row.printed.prefix else ".")
            )
    return found


def _figure(figure: Figure, experiment: Experiment, printed: Printed, where: str) -> None:
    _known("figure kind", figure.kind, KINDS, where)
    kind = KINDS[figure.kind]
    if kind.asks and not getattr(figure, kind.asks):
        raise SaoError(f"{where}: a figure of kind {figure.kind} needs {kind.asks}; there are: {', '.join(MEASURES)}.")
    _some_row_runs(kind.stages, f"figure kind {figure.kind}", experiment, where)
    for metric in [*figure.metrics, *([figure.metric] if figure.metric else [])]:
        _known("figure metric", metric, MEASURES, where)
        _some_row_runs(MEASURES[metric].stages, f"figure metric {metric}", experiment, where)
    for key in figure.paper:
        _paper_has(key, f"figure's paper: {key}", printed, where)
    if figure.paper_x and len(figure.paper_x) != len(experiment.rows):
        raise SaoError(
            f"{where}: the figure's paper_x has {len(figure.paper_x)} places for {len(experiment.rows)} rows; give one "
            "for each row, null where the paper prints none."
        )


def _claim(claim: Claim, experiment: Experiment, where: str) -> None:
    """SaoError if a claim's metric is none, no row it names can have it, or the paper has no such cell."""
    metric, place = claim.predicate.metric, f"{where}, '{claim.holds}'"
    _known("claim metric", metric, METRICS, place)
    for name in claim.rows:
        if METRICS[metric].stage not in offers(experiment, name) and not experiment.rows[name].published:
            stage = METRICS[metric].stage
            raise SaoError(f"{place}: the row {name} does not run {stage}, which {metric} needs; add it to its runs.")
    for cell in claim.printed:
        table, _, rest = cell.partition("/")
        row, _, column = rest.rpartition("/")
        found = paper().get(table, {}).get("rows", {})
        if column not in found.get(row, {}):
            raise SaoError(f"{place}: params/paper.yaml has no cell {cell}.")


def _known(what: str, name: str, registry: Iterable[str], where: str) -> None:
    known = list(registry)
    if name not in known:
        raise SaoError(f"{where}: there is no {what} '{name}'; there are: {', '.join(known)}.")


def _paper_has(key: str, what: str, printed: Printed, where: str) -> None:
    if not any(key in numbers for numbers in printed.values()):
        raise SaoError(f"{where}: the {what} is empty, as params/paper.yaml has no {key} for its rows.")


def _some_row_runs(stages: tuple[str, ...], what: str, experiment: Experiment, where: str) -> None:
    """SaoError unless some row runs one of `stages`; a row without shows a dash."""
    if stages and not any(set(stages) & offers(experiment, row) for row in experiment.rows):
        raise SaoError(f"{where}: the {what} needs the stage {' or '.join(stages)}, which no row runs; add it to runs.")


def offers(experiment: Experiment, name: str) -> set[str]:
    """The stages whose results a row may show: those it names, and of training's own as many as these need."""
    row = experiment.rows[name]
    stages: set[str] = set(experiment.runs if row.runs is None else row.runs)
    if row.published or not stages:
        return set()
    if not row.trained:
        return stages
    needed = 1 if stages <= {"synthesize"} else 2 if stages <= {"synthesize", "judge", "rating"} else 3
    return stages | set(("synthesize", "judge", "train")[:needed])
