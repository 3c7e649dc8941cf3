"""What a rehearsal found, in the words that its user wants: hung, leaked, quadratic, failed, out of time, or ready."""

from collections.abc import Iterable, Mapping, Sequence

from rehearsal.watch import Outcome, Stage

FACTOR = 1.5  # times as much as in proportion to the rows is still no more than that
NOISE_SECONDS, NOISE_GIB = 3.0, 0.1  # differences as small as these are chance
READY = "ready"
Grown = Mapping[int, float]  # rows -> seconds or GiB


def is_quadratic(found: Grown, noise: float) -> bool:
    """Whether the most rows took more than `FACTOR` times what the step before them says in proportion.

    What the fewest rows took is taken as what a stage needs for any; three sizes are needed.
    """
    if len(found) < 3:
        return False
    fewest, *_, before, most = sorted(found)
    steps = (most - fewest) / (before - fewest)
    return found[most] - found[fewest] > FACTOR * steps * max(found[before] - found[fewest], noise)


def quadratic(counts: Mapping[int, Outcome]) -> list[str]:
    """A phrase for every stage whose seconds or memory grow faster than its rows."""
    phrases = []
    for stage in stages(counts.values()):
        taken = {rows: outcome.stages[stage] for rows, outcome in counts.items() if stage in outcome.stages}
        for what, noise, unit in (("seconds", NOISE_SECONDS, "s"), ("peak_gib", NOISE_GIB, "GiB")):
            found = {rows: float(getattr(of, what)) for rows, of in taken.items()}
            if is_quadratic(found, noise):
                said = ", ".join(f"{found[rows]:.1f} {unit} at {rows:,}" for rows in sorted(found))
                phrases.append(f"quadratic: {stage} takes {said} rows")
    return phrases


def stages(outcomes: Iterable[Outcome]) -> list[str]:
    """Stages in the order in which they were first done."""
    return list(dict.fromkeys(stage for outcome in outcomes for stage in outcome.stages))


def problems(name: str, outcome: Outcome) -> list[str]:
    """A phrase for everything that went wrong with one command."""
    found = [f"leaked by {name}: {process}" for process in outcome.leaked]
    if outcome.hung:
        found.append(f"hung in {name}: {outcome.hung}")
    elif outcome.out_of_memory:
        held = max((stage.peak_gib for stage in outcome.stages.values()), default=0.0)
        found.append(f"out of memory in {name}, whose processes held up to {held:.1f} GiB")
    elif outcome.out_of_time:
        found.append(f"out of time in {name}; raise LIMIT")
    elif outcome.code:
        why = next((line for line in reversed(outcome.said) if line.startswith("Error")), "")
        found.append(f"failed in {name}, exit status {outcome.code}: {why or ' / '.join(outcome.said[-3:])}")
    return found


def left_out(outcome: Outcome, labels: Sequence[str]) -> list[str]:
    """A phrase for every row with one of these `labels` that the command did not run, as it says itself."""
    said = [line.removeprefix("Not run: ") for line in outcome.said if line.startswith("Not run: ")]
    return [f"not rehearsed: {line}" for line in said if any(f", {label}: " in line for label in labels)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads, the first to the left."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in ([*zip(line, widths, strict=True)] for line in lines)
    )


def of_walk(outcome: Outcome) -> str:
    """A line a stage: runs, seconds, peak memory of all processes together, how many there were."""
    rows = [[name, str(s.runs), f"{s.seconds:.0f}", f"{s.peak_gib:.1f}", str(s.processes)]
            for name, s in outcome.stages.items()]  # fmt: skip
    return table(["stage", "runs", "seconds", "peak GiB", "processes"], rows)


def of_counts(counts: Mapping[int, Outcome]) -> str:
    """A line a stage: seconds and peak memory at each number of rows."""
    sizes = sorted(counts)
    head = ["stage", *(f"{rows:,} rows: s" for rows in sizes), *(f"{rows:,}: GiB" for rows in sizes)]
    rows = []
    for stage in stages(counts.values()):
        taken = [counts[size].stages.get(stage, Stage()) for size in sizes]
        rows.append([stage, *(f"{s.seconds:.1f}" for s in taken), *(f"{s.peak_gib:.2f}" for s in taken)])
    return table(head, rows)
