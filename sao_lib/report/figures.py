"""Figures of a table run, readable in print and in colour-blind palettes; the paper's points where it prints them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from sao_lib.plan.experiment import Figure
from sao_lib.report import dose, dose_figures
from sao_lib.report.rows import TableRow, TableRows, experiment_of
from sao_lib.report.style import style
from sao_lib.report.texts import template_texts, words
from sao_lib.runs import Run


def draw(run: Run, rows: TableRows, path: Path) -> Any:
    """The experiment's figure, saved to `path`; None for a table that has none."""
    asked = experiment_of(run).figure
    if not asked:
        return None
    picture = KINDS[asked.kind].draw(rows, asked)
    picture.savefig(path, dpi=150)
    return picture


Bar = tuple[float, float, float]  # a value and the lengths of its bar to the left and right


def _measured(row: TableRow, metric: str) -> Bar | None:
    """A row's value with its bar: one SE, or a 95% interval for Arena-Hard; None where the row did not measure it.

    Of several runs the mean of each. The bar is of the questions; how far runs lie apart is in the table.
    """
    measure = MEASURES[metric]
    if not any(map(row.has, measure.stages)):
        return None
    found = [measure.of(run) for run in row.replicates]
    if any(value is None for value, *_ in found):  # such as LC where AlpacaEval's own instructions are not asked
        return None
    value, left, right = (fmean(part) for part in zip(*found, strict=True))
    return value, left, right


def _win_rate(value: str, se: str) -> Callable[[TableRow], Bar]:
    def measured(row: TableRow) -> Bar:
        scores = row.run("evaluate").results["scores"]
        return scores.get(value), scores.get(se), scores.get(se)

    return measured


def _arena_hard(row: TableRow) -> Bar:
    found = row.run("chat_benchmarks").results["arena_hard"]
    return found["score"], found["score"] - found["low"], found["high"] - found["score"]


def _math500(row: TableRow) -> Bar:
    found = row.run("math500").results
    return found["score"], found["se"], found["se"]


def _average(row: TableRow) -> Bar:
    if row.has("rating"):
        return row.run("rating").results["average"], 0.0, 0.0
    found = row.run("leaderboard").results
    return found["average"], found["average_se"], found["average_se"]


@dataclass(frozen=True)
class Measure:
    """What a figure shows of a row: its axis, its value with its bar, and the stages of which a row needs one."""

    label: str
    of: Callable[[TableRow], Bar]
    stages: tuple[str, ...]


MEASURES: dict[str, Measure] = {
    "wr": Measure("Win rate (%)", _win_rate("wr", "se"), ("evaluate",)),
    "lc": Measure("Length-controlled win rate (%)", _win_rate("lc", "lc_se"), ("evaluate",)),
    "direct": Measure("Wins against untrained (%)", _win_rate("direct", "direct_se"), ("evaluate",)),
    "second": Measure("Wins, by the second reading (%)", _win_rate("second_direct", "second_direct_se"), ("evaluate",)),
    "arena_hard": Measure("Arena-Hard win rate (%)", _arena_hard, ("chat_benchmarks",)),
    "math500": Measure("MATH-500 (%)", _math500, ("math500",)),
    "average": Measure("Average", _average, ("rating", "leaderboard")),
}


def dots(rows: TableRows, asked: Figure) -> Any:
    """One dot a row with its bar, the paper's value beside it as an open diamond."""
    plt, _, colours = style()
    metric, names = str(asked.metric), asked.paper
    shown = [row for row in rows.values() if row.ours or any(row.printed.get(n) is not None for n in names)]
    picture, axes = plt.subplots(figsize=(9, 0.5 * len(shown) + 1.6), layout="constrained")
    at = list(range(len(shown)))[::-1]
    ours = [(y, m) for y, row in zip(at, shown, strict=True) if (m := _measured(row, metric))]
    bars = [[m[1] for _, m in ours], [m[2] for _, m in ours]]
    bar = "95% interval" if metric == "arena_hard" else "standard error"
    axes.errorbar([m[0] for _, m in ours], [y for y, _ in ours], xerr=bars, fmt="o", color=colours[0], capsize=3,
                  label="ours" if not any(bars[0]) else f"ours, with {bar}")  # fmt: skip
    for name, marker in zip(names, "Ds", strict=False):
        points = [(v, y) for y, row in zip(at, shown, strict=True) if (v := row.printed.get(name)) is not None]
        axes.plot([v for v, _ in points], [y for _, y in points], marker, color=colours[1], fillstyle="none",
                  label="paper")  # fmt: skip
    published = [(row.leaderboard["win_rate"], y) for y, row in zip(at, shown, strict=True) if row.leaderboard]
    if published:
        axes.plot([v for v, _ in published], [y for _, y in published], "x", color=colours[2], label="leaderboard")
    limits = (0, 10) if metric == "average" and any(r.has("rating") for r in shown) else (0, 100)
    if metric in ("wr", "arena_hard"):
        axes.axvline(50, color="0.4", lw=0.8, ls="--")
    labels = [row.label.replace(" (", "\n(", 1) for row in shown]
    axes.set(yticks=at, yticklabels=labels, ylim=(-0.6, len(shown) - 0.4), xlim=limits,
             xlabel=asked.xlabel or MEASURES[metric].label)  # fmt: skip
    axes.tick_params(axis="y", labelsize=9)
    picture.legend(loc="outside upper center", ncol=3, frameon=False)
    return picture


def _position(row: TableRow, kind: str | None, number: int) -> float:
    if kind == "iteration":
        return float(number)
    return float(row.run("train").results["pairs"]["train"]) if row.has("train") else 0.0


def line(rows: TableRows, asked: Figure) -> Any:
    """Win rates along sizes or iterations, the paper's points at its own places; one panel for what there is."""
    plt, _, colours = style()
    metrics = [m for m in asked.metrics if any(r.printed.get(m) is not None or _measured(r, m) for r in rows.values())]
    metrics = metrics or asked.metrics
    count = len(metrics)
    picture, [panels] = plt.subplots(1, count, figsize=(10, 3.6), layout="constrained", sharey=True, squeeze=False)
    for axes, metric in zip(panels, metrics, strict=True):
        ours = [(_position(r, asked.x, n), m) for n, r in enumerate(rows.values()) if (m := _measured(r, metric))]
        axes.errorbar([x for x, _ in ours], [m[0] for _, m in ours], yerr=[m[1] for _, m in ours], fmt="o-",
                      color=colours[0], capsize=3, label="ours, with standard error")  # fmt: skip
        places = asked.paper_x or list(range(len(rows)))
        printed = [r.printed.get(metric) for r in rows.values()]
        points = [(x, value) for x, value in zip(places, printed, strict=True) if value is not None]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            "D--",
            color=colours[1],
            fillstyle="none",
            label="paper, as its text states",
        )
        if asked.paper_x:
            axes.set_xscale("symlog", linthresh=10)
        else:
            axes.set_xticks(range(len(rows)))
        axes.set(xlabel=asked.xlabel, ylabel=MEASURES[metric].label, ylim=(0, 100))
        axes.tick_params(labelleft=True)
    panels[0].legend(frameon=False, loc="lower right", fontsize=9)
    return picture


def lengths(rows: TableRows, asked: Figure) -> Any:
    """Distributions of words in prompts and responses, one line style a source."""
    plt, sns, colours = style()
    picture, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axes, kind in zip(panels, ("prompts", "responses"), strict=True):
        for (label, parts), colour, dashes in zip(words(rows).items(), colours, ("-", "--"), strict=False):
            sns.histplot(parts[kind], ax=axes, stat="density", element="step", fill=False, bins=15, color=colour,
                         linestyle=dashes, label=label.partition(" (")[0])  # fmt: skip
        n = " and ".join(str(len(parts[kind])) for parts in words(rows).values())
        axes.set(xlabel=f"Length of {kind} (words)", ylabel="Density", title=f"{kind}, n = {n}")
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncol=2, frameon=False)
    return picture


def logits(rows: TableRows, asked: Figure) -> Any:
    """Density of logits per model, one panel a prompt set."""
    plt, _, colours = style()
    found = {row.label: row.run("logits").results["totals"] for row in rows.values() if row.has("logits")}
    sets = list(next(iter(found.values())))
    picture, panels = plt.subplots(1, len(sets), figsize=(10, 3.8), layout="constrained", sharey=True)
    for axes, name in zip(panels, sets, strict=True):
        for (label, totals), colour, dashes in zip(found.items(), colours, ("-", "--", ":"), strict=False):
            t = totals[name]
            width = t["edges"][1] - t["edges"][0]
            middle = [a + width / 2 for a in t["edges"][:-1]]
            axes.plot(middle, [c / (t["n"] * width) for c in t["counts"]], ls=dashes, color=colour,
                      label=f"{label.partition(' (')[0]}: skewness {t['skewness']:.3f}")  # fmt: skip
        axes.set(xlabel="Logit", ylabel="Density", title=f"Prompts from {name}")
        axes.tick_params(labelleft=True)
        axes.legend(frameon=False, fontsize=8)
    return picture


def templates(rows: TableRows, asked: Figure) -> Any:
    """Both templates in boxes, filled with an example."""
    import textwrap

    plt, _, colours = style()
    texts = {
        name: "\n".join(textwrap.fill(part, 118, replace_whitespace=False) for part in text.splitlines())
        for name, text in template_texts(rows).items()
    }
    heights = [text.count("\n") + 3.5 for text in texts.values()]
    picture, panels = plt.subplots(
        2, 1, figsize=(10, 0.168 * sum(heights)), height_ratios=heights, layout="constrained"
    )
    for axes, (name, text), colour in zip(panels, texts.items(), colours, strict=False):
        axes.set(xticks=[], yticks=[], facecolor=(*colour, 0.08))
        axes.grid(visible=False)
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
        axes.text(
            0.01,
            0.97,
            text.replace("$", r"\$"),
            va="top",
            ha="left",
            fontsize=8.5,
            family="monospace",
            transform=axes.transAxes,
        )
    return picture


@dataclass(frozen=True)
class Kind:
    """A kind of figure: how it is drawn, the field of Figure it cannot do without, the stage that some row must run.

    `says`: lines of the caption with the numbers that it shows.
    """

    draw: Callable[[TableRows, Figure], Any]
    asks: Literal["metric", "metrics"] | None = None
    stages: tuple[str, ...] = ()
    says: Callable[[TableRows], list[str]] = lambda rows: []


KINDS: dict[str, Kind] = {
    "dots": Kind(dots, asks="metric"),
    "line": Kind(line, asks="metrics"),
    "dose": Kind(dose_figures.dose_and_gain, stages=("judge",), says=dose.sentences),
    "distance": Kind(dose_figures.distance_and_gain),
    "lengths": Kind(lengths, stages=("judge",)),
    "logits": Kind(logits, stages=("logits",)),
    "templates": Kind(templates, stages=("judge",)),
}
