"""The claims of a table on its finished runs: each tested, all corrected for their number, controls beside them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sao_lib.plan.claim import Claim
from sao_lib.plan.experiment import Experiment
from sao_lib.report import inference
from sao_lib.report.inference import Arm, Evidence
from sao_lib.report.metrics import METRICS, PUBLISHED
from sao_lib.report.paper_side import side
from sao_lib.report.rows import TableRow

ONE_RUN = "one run: not tested"
NOT_RUN = "not run"
NOT_HERE = "not testable here"
NO_INTERVAL = "no interval"
TESTED = ("supported", "not supported", "undecided")
MUST = {"placebo": "undecided", "positive": "supported"}


@dataclass(frozen=True)
class Finding:
    """What the runs say of a claim: `evidence` where it could be tested, else why it could not in `verdict`."""

    verdict: str
    evidence: Evidence | None = None
    difference: float | None = None
    runs: tuple[int, ...] = ()


def check(experiment: Experiment, rows: Mapping[str, TableRow]) -> list[dict[str, Any]]:
    """Each claim of the experiment with its verdict on our rows and on the paper's numbers, in the file's order.

    {sentence, holds, control, otherwise, unit, verdict, difference, low, high, level, p, holm, runs, rival, paper};
    None where there is no such number. `level` is the interval's, `holm` the p-value corrected for the table's tested
    claims. Controls are no hypotheses of the table: they are read at their own p-value, and are no part of its family.
    """
    found = [examine(claim, _compared(claim, experiment, rows)) for claim in experiment.claims]
    controls = [control_of(claim, experiment) for claim in experiment.claims]
    family = [n for n, f in enumerate(found) if f.evidence and not controls[n]]
    corrected = dict(zip(family, inference.holm([_p(found[n]) for n in family]), strict=True))
    printed = {name: row.printed for name, row in rows.items()}
    return [
        {
            "sentence": claim.sentence,
            "holds": claim.text,
            "control": control,
            "otherwise": claim.otherwise,
            "unit": METRICS[claim.predicate.metric].unit,
            **_numbers(finding, corrected.get(n)),
            "paper": side(claim, printed),
        }
        for n, (claim, control, finding) in enumerate(zip(experiment.claims, controls, found, strict=True))
    ]


def _compared(claim: Claim, experiment: Experiment, rows: Mapping[str, TableRow]) -> Mapping[str, TableRow]:
    """The rows that a claim may look at: those it names, and no control that it does not."""
    return {name: row for name, row in rows.items() if name in claim.rows or not experiment.rows[name].control}


def control_of(claim: Claim, experiment: Experiment) -> str | None:
    """Which control a claim reads, if any: that of a row it names."""
    return next((c for name in claim.rows if (c := experiment.rows[name].control)), None)


def _p(finding: Finding) -> float:
    assert finding.evidence
    return finding.evidence.p


def _numbers(finding: Finding, corrected: float | None) -> dict[str, Any]:
    evidence = finding.evidence
    if evidence is None:
        empty = dict.fromkeys(("low", "high", "level", "p", "holm", "rival"))
        return {"verdict": finding.verdict, "difference": finding.difference, **empty, "runs": list(finding.runs)}
    low, high = evidence.estimate.interval(evidence.level)
    used = evidence.p if corrected is None else corrected
    return {
        "verdict": inference.verdict(evidence, used), "difference": evidence.estimate.mean, "low": low, "high": high,
        "level": 1 - evidence.level, "p": evidence.p, "holm": corrected, "rival": evidence.rival,
        "runs": list(finding.runs),
    }  # fmt: skip


def examine(claim: Claim, rows: Mapping[str, TableRow]) -> Finding:
    """A claim on the rows' finished runs, not yet corrected for the others.

    An arm that was trained needs two runs: with one, nothing is known of how far another seed's would lie from it.
    """
    predicate = claim.predicate
    names = list(predicate.rows)
    if predicate.relation in ("max", "min"):
        names += [n for n in claim.of or rows if n not in names]
    if not all(n in rows for n in names):  # a profile may leave rows out
        return Finding(NOT_RUN)
    if any(rows[n].published for n in names) and (reason := _not_comparable([rows[n] for n in names])):
        return Finding(reason)
    if not all(_has_run(predicate.metric, rows[n]) for n in names):
        return Finding(NOT_RUN)
    known = {n: arm for n in names if (arm := _arm(predicate.metric, rows[n]))}
    if len(known) < len(names):
        return Finding(f"{NOT_HERE}: no {predicate.metric} in its runs")
    if _same_run(predicate.metric, [rows[n] for n in names]):
        return Finding(f"{NOT_HERE}: one run stands for two of its rows")
    return _tested(claim, known)


def _tested(claim: Claim, arms: dict[str, Arm]) -> Finding:
    predicate = claim.predicate
    own = next(iter(arms.values()))
    runs = tuple(arm.count for arm in arms.values())
    sign = -1.0 if predicate.relation in ("<", "min") else 1.0
    if predicate.constant is not None:
        estimates = {"": inference.against(own, predicate.constant)}
    else:
        estimates = {name: inference.difference(own, arms[name]) for name in list(arms)[1:]}
    nearest = min(estimates.values(), key=lambda e: sign * e.mean)
    if any(arm.one_run for arm in arms.values()):
        return Finding(ONE_RUN, difference=nearest.mean, runs=runs)
    if any(e.se is None for e in estimates.values()):
        return Finding(NO_INTERVAL, difference=nearest.mean, runs=runs)
    if predicate.relation in ("max", "min"):
        evidence = inference.extreme(estimates, sign)
    elif claim.within:
        evidence = inference.equivalent(nearest, claim.within)
    else:
        evidence = inference.ordered(nearest, sign)
    return Finding("", evidence, nearest.mean, runs)


def _has_run(metric: str, row: TableRow) -> bool:
    return bool(row.published) or (row.ours and row.has(METRICS[metric].stage))


def _arm(metric: str, row: TableRow) -> Arm | None:
    """The row as a side of a comparison; None where what ran does not hold the metric."""
    if row.published:
        found = PUBLISHED[metric](row) if metric in PUBLISHED else None
        return Arm(wholes=[found]) if found else None
    return METRICS[metric].arm(row)


def _not_comparable(rows: Sequence[TableRow]) -> str | None:
    """Why a published model's numbers cannot be set beside ours: another judge, or other instructions."""
    for row in rows:
        if row.ours and row.has("evaluate"):
            asked = row.run("evaluate").params["evaluate"]
            if asked["verdict"] != "weighted" or asked["length_term"] != "alpaca_eval":
                return f"{NOT_HERE}: another judge and other instructions than the leaderboard's"
    return None


def _same_run(metric: str, rows: Sequence[TableRow]) -> bool:
    """Whether a stand-in makes two of the rows one: they have the same run here."""
    folders = [row.run(METRICS[metric].stage).folder for row in rows if not row.published]
    return len(set(folders)) < len(folders)


def controls(checked: Sequence[Mapping[str, Any]]) -> str | None:
    """One line on the table's controls; None where it has none. It stands above everything else."""
    own = [c for c in checked if c["control"]]
    if not own:
        return None
    wrong = [c for c in own if c["verdict"] in TESTED and c["verdict"] != MUST[c["control"]]]
    if wrong:
        said = "; ".join(f"'{c['sentence']}' came out {c['verdict']}, not {MUST[c['control']]}" for c in wrong)
        means = "".join(f" {text}" for text in dict.fromkeys(c.get("otherwise") for c in wrong) if text)
        return f"**A control failed, so no verdict on this page is to be believed:** {said}.{means}"
    tested = [c for c in own if c["verdict"] in TESTED]
    if len(tested) == len(own):
        return f"Controls as they must be: {len(own)} of {len(own)}."
    why = "; ".join(dict.fromkeys(c["verdict"] for c in own if c not in tested))
    rest = "the other" if len(own) - len(tested) == 1 else "the others"
    return f"Controls: {len(tested)} of {len(own)} as they must be, {rest} not tested ({why})."


def against(row: TableRow, default: TableRow, metric: str = "wr") -> dict[str, Any]:
    """{unit, verdict, difference, low, high, p, runs} of a row less the default, uncorrected; None: not known."""
    claim = Claim(sentence="", holds=f"a.{metric} > b.{metric}")
    return {"unit": METRICS[metric].unit, **_numbers(examine(claim, {"a": row, "b": default}), None)}


def share_positive(margins: Sequence[float]) -> float:
    """Share of held-out pairs whose chosen response has the higher reward."""
    return statistics.fmean(m > 0 for m in margins) if margins else float("nan")
