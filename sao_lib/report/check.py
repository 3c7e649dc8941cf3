"""An experiment file's names of columns, tables, figures and metrics, looked up before anything runs."""

from sao_lib.errors import SaoError
from sao_lib.plan.claim import Claim
from sao_lib.plan.experiment import Experiment, read
from sao_lib.report.columns import column
from sao_lib.report.figures import KINDS, MEASURES
from sao_lib.report.metrics import METRICS
from sao_lib.report.paper import printed as paper
from sao_lib.report.rows import printed_rows
from sao_lib.report.texts import TABLES


def check(name: str) -> None:
    """Raise SaoError in one sentence if the experiment asks for something that no table can show."""
    experiment, where = read(name), f"params/experiments/{name}.yaml"
    if experiment.table:
        _known("table", experiment.table, TABLES, where)
    if figure := experiment.figure:
        _known("figure kind", figure.kind, KINDS, where)
        for metric in [*figure.metrics, *([figure.metric] if figure.metric else [])]:
            _known("figure metric", metric, MEASURES, where)
    for claim in experiment.claims:
        _check_claim(claim, experiment, where)
    printed = printed_rows(name, experiment)
    for wanted in experiment.columns:
        if wanted.startswith("paper."):
            key = wanted.removeprefix("paper.")
            if not any(key in numbers for numbers in printed.values()):
                raise SaoError(
                    f"{where}: the column {wanted} is empty, as params/paper.yaml has no {key} for its rows."
                )
            continue
        try:
            stage = column(wanted).stage
        except SaoError as error:
            raise SaoError(f"{where}: {error}") from None
        if stage and not any(stage in _offers(experiment, row) for row in experiment.rows):
            raise SaoError(f"{where}: the column {wanted} needs the stage {stage}, which no row runs; add it to runs.")


def _check_claim(claim: Claim, experiment: Experiment, where: str) -> None:
    """SaoError if a claim's metric is none, no row it names can have it, or the paper has no such cell."""
    metric, place = claim.predicate.metric, f"{where}, '{claim.holds}'"
    _known("claim metric", metric, METRICS, place)
    for name in claim.rows:
        if METRICS[metric].stage not in _offers(experiment, name) and not experiment.rows[name].published:
            raise SaoError(
                f"{place}: {metric} needs the stage {METRICS[metric].stage}, which the row {name} does not run."
            )
    for cell in claim.printed:
        table, _, rest = cell.partition("/")
        row, _, column = rest.rpartition("/")
        found = paper().get(table, {}).get("rows", {})
        if column not in found.get(row, {}):
            raise SaoError(f"{place}: params/paper.yaml has no cell {cell}.")


def _known(what: str, name: str, registry: object, where: str) -> None:
    known = list(registry)  # type: ignore[call-overload]
    if name not in known:
        raise SaoError(f"{where}: there is no {what} '{name}'; there are: {', '.join(known)}.")


def _offers(experiment: Experiment, name: str) -> set[str]:
    """The stages whose results a row may show."""
    row = experiment.rows[name]
    stages = set(experiment.runs if row.runs is None else row.runs)
    return set() if row.published else stages | ({"synthesize", "judge", "train"} if row.trained else set())
