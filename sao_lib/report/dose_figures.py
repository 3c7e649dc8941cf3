"""Figures of what is gained against how right the labels are, and against how far training went."""

import math
from typing import Any

from sao_lib.plan.experiment import Figure
from sao_lib.report import dose
from sao_lib.report.inference import Arm, against
from sao_lib.report.metrics import METRICS
from sao_lib.report.rows import TableRows
from sao_lib.report.style import style

OTHERS = "s^Dvp*X"  # marks of rows that are not of the line


def dose_and_gain(rows: TableRows, asked: Figure) -> Any:
    """Gain against measured agreement with gold, and against the distance from the untrained model, by two measures.

    Circles are labels whose agreement was set, the line is through their runs; other rows are placed on it.
    """
    from matplotlib.transforms import ScaledTranslation

    plt, _, colours = style()
    arms = dose.placed(rows)
    marks = dict(zip((arm.row.name for arm in arms if not arm.dosed), OTHERS, strict=False))
    picture, panels = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained", sharey=True)
    for colour, measure, aside in zip(colours, dose.MEASURES, (-3, 3), strict=False):
        for arm in (arm for arm in arms if measure in arm.gains):
            moved = None if arm.kl is None else math.sqrt(max(arm.kl, 0.0))
            for axes, x in zip(panels, (arm.at, moved), strict=True):
                if x is not None:
                    value, bar = _with_interval(arm.gains[measure])
                    beside = axes.transData + ScaledTranslation(aside / 72, 0, picture.dpi_scale_trans)
                    axes.errorbar([x], [value], yerr=bar, fmt=marks.get(arm.row.name, "o"), color=colour, capsize=2,
                                  fillstyle="full" if arm.dosed else "none", transform=beside)  # fmt: skip
        if drawn := dose.line(arms, measure):
            panels[0].axline((drawn.middle, drawn.height), slope=drawn.slope().mean, color=colour, lw=1.5,
                             label=f"by {dose.MEASURES[measure]}")  # fmt: skip
    for name, mark in marks.items():
        panels[0].plot([], [], mark, color="0.3", fillstyle="none", label=rows[name].label.partition(" (")[0])
    panels[0].plot([], [], "o", color="0.3", label="gold's labels, some turned; coins")
    went = sorted((math.sqrt(max(arm.kl, 0.0)), f"{arm.at:.0f}%") for arm in arms if arm.kl is not None)
    for n, (x, agreement) in enumerate(went):  # neighbours at two heights
        panels[1].annotate(agreement, (x, 2 + 4 * (n % 2)), ha="center", fontsize=9, color="0.3")
    if went:  # marks that stand aside count for no limits
        room = 0.08 * (went[-1][0] - went[0][0]) or 0.01
        panels[1].set_xlim(went[0][0] - room, went[-1][0] + room)
    below = "Square root of KL from untrained (beneath: agreement)"
    for axes, label in zip(panels, ("Agreement with gold (%)", below), strict=True):
        axes.axhline(dose.EVEN, color="0.4", lw=0.8, ls="--")
        axes.set(xlabel=label, ylabel="Wins against untrained (%), 95% interval", ylim=(0, 100))
        axes.tick_params(labelleft=True)
    panels[0].set_xlim(-3, 103)
    panels[1].locator_params(axis="x", nbins=6)
    picture.legend(loc="outside upper center", ncol=4, frameon=False, fontsize=9)
    return picture


def _with_interval(arm: Arm) -> tuple[float, list[list[float]] | None]:
    """An arm's mean and the bars to its 95% interval; no bars where it ran once."""
    found = against(arm, 0)
    if found.se is None:
        return found.mean, None
    low, high = found.interval()
    return found.mean, [[found.mean - low], [high - found.mean]]


def distance_and_gain(rows: TableRows, asked: Figure) -> Any:
    """Gain by two measures against the distance from the untrained model; rows in their order are joined.

    The measure that labelled rises with the distance, and another, after a while, may turn (Gao et al. 2022).
    """
    plt, _, colours = style()
    picture, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    places = {name: math.sqrt(max(kl, 0.0)) for name, row in rows.items()
              if row.ours and row.has("evaluate") and (kl := dose.distance(row)) is not None}  # fmt: skip
    for colour, (measure, who) in zip(colours, dose.MEASURES.items(), strict=False):
        arms = {name: arm for name in places if (arm := METRICS[measure].arm(rows[name])) and arm.runs}
        found = [(places[name], *_with_interval(arm)) for name, arm in arms.items()]
        for x, value, bar in found:
            axes.errorbar([x], [value], yerr=bar, fmt="o", color=colour, capsize=3)
        axes.plot([x for x, *_ in found], [value for _, value, _ in found], color=colour, label=f"by {who}")
    for n, (name, x) in enumerate(places.items()):
        axes.annotate(rows[name].label.partition(" (")[0], (x, 2 + 4 * (n % 2)), ha="center", fontsize=9, color="0.3")
    axes.axhline(dose.EVEN, color="0.4", lw=0.8, ls="--")
    axes.set(
        xlabel="Square root of KL from untrained", ylabel="Wins against untrained (%), 95% interval", ylim=(0, 100)
    )
    picture.legend(loc="outside upper center", ncol=2, frameon=False, fontsize=9)
    return picture
