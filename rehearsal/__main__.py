"""`python -m rehearsal TABLE`: walk a table's graph with tiny real models, count its rows with canned texts, and judge.

It ends with one word: ready, or what was found, and with status 1 unless it is ready.
"""

import argparse
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rehearsal import canned, sizes, stand_ins, verdict
from rehearsal.command import rows_may_be_shrunk
from rehearsal.fake_api import served
from rehearsal.watch import Outcome, Watch, plain_environment
from sao_lib import hub
from sao_lib.errors import SaoError
from sao_lib.launch.cards import REHEARSAL
from sao_lib.machine import available_gib
from sao_lib.method.feedback import SOURCES
from sao_lib.plan import planning
from sao_lib.plan.chain import Row
from sao_lib.plan.cost import API
from sao_lib.plan.groups import on_a_card
from sao_lib.plan.needs import models_of
from sao_lib.progress import clock
from sao_lib.settings import ROOT

HERE = ROOT / "outputs" / "rehearsal"
LONGEST = 10_000  # minutes: a week
PARTS = ("hub", "ipython", "walk", "count-*")  # of the folder of a rehearsal


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m rehearsal", description=__doc__)
    top.add_argument("experiment", help="a table or figure")
    top.add_argument("--profile", default="paper")
    top.add_argument("--limit", default="90", help="minutes")
    top.add_argument("--rows", default="", help="names of rows; default: the two that open most")
    top.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000, 60000], help="rows that are counted")
    top.add_argument("--patience", type=float, default=300, help="seconds without movement that are a hang")
    top.add_argument("--only", choices=("walk", "count"), help="one of the two parts")
    top.add_argument("--outputs", type=Path, help="default: outputs/rehearsal/PROFILE-TABLE; begun anew")
    return top


@dataclass
class Rehearsal:
    """One table on one profile; `found` are its problems so far."""

    profile: str
    table: str
    limit: float
    patience: float
    folder: Path
    rows: Sequence[Row]
    plan: planning.Plan
    start: float = field(default_factory=time.monotonic)
    found: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.start + 60 * self.limit - time.monotonic()

    def prepare(self) -> None:
        """A hub's cache with all that the rows' runs read."""
        runs = [run for row in self.rows for run in row.runs.values()]
        models = {model for run in runs for model in models_of(run) if not model.startswith(API)}
        files = {source for run in runs for source in run.spec["files"] if source.startswith(hub.ELSEWHERE)}
        unknown = stand_ins.put(self.folder / "hub", models, files)
        print(f"Stand-ins for {len(models)} models and {len(files)} files, in {clock(time.monotonic() - self.start)}.")
        for name in unknown:
            print(f"No stand-in for {name}: rows that need it are left out.")

    def do(self, name: str, rows: Sequence[Row], changes: Sequence[sizes.Change], extra: dict[str, str]) -> Outcome:
        """The suite's command for `rows`, watched."""
        names = ",".join(row.name for row in rows)
        print(f"\n{name}: {self.table} on {self.profile}, rows {names}")
        print("".join(f"  changed: {change}\n" for change in changes), end="", flush=True)
        outputs, scratch = self.folder / name.replace(" ", "-"), tempfile.mkdtemp(prefix="sao-r-")
        outputs.mkdir(parents=True, exist_ok=True)
        own = {"SAO_OUTPUTS": str(outputs), "TMPDIR": scratch, REHEARSAL: "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        given = {**plain_environment(), **stand_ins.environment(self.folder / "hub"), **own, **extra}
        words = [sys.executable, "-m", "rehearsal.command", names, str(self.plan.base.machine.gpus), "reproduce"]
        words += ["--profile", self.profile, self.table, "--set", *(change.assignment for change in changes)]
        watch = Watch(outputs, self.patience, self.start + 60 * self.limit)
        models = {model for row in rows for run in row.runs.values() for model in models_of(run)}
        try:
            with served([model.removeprefix(API) for model in models if model.startswith(API)]) as api:
                outcome = watch.run(words, {**given, **api})
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self.found += verdict.problems(name, outcome)
        self.found += verdict.left_out(outcome, [row.label for row in rows])
        return outcome

    def walk(self, share: float) -> None:
        """The graph with real engines and trainings, in that share of the time that is left."""
        changes = sizes.of_walk(self.plan.base, share * self.left * sizes.free(), available_gib())
        outcome = self.do("walk", self.rows, changes, {})
        print(f"\nThe walk took {clock(outcome.seconds)}; memory and processes are those of all that it started.\n")
        print(verdict.of_walk(outcome), flush=True)

    def count(self, asked: list[int]) -> None:
        """The graph of one row with canned texts, at each number of rows."""
        kept, left_out = sizes.counts_in(asked, self.left * sizes.free())
        if left_out:
            self.found.append(
                f"out of time for a count of {' and '.join(f'{n:,}' for n in left_out)} rows; raise LIMIT"
            )
        counts: dict[int, Outcome] = {}
        for rows in kept:
            extra = canned.start_up(self.folder / "ipython")
            counts[rows] = self.do(f"count {rows}", [counted(self.rows)], sizes.of_count(self.plan.base, rows), extra)
            if counts[rows].code != 0:
                break
        print("\nSeconds and peak memory of each stage with canned texts, kernel and imports included:\n")
        print(verdict.of_counts(counts), flush=True)
        self.found += verdict.quadratic(counts)


def counted(rows: Sequence[Row]) -> Row:
    """The row to count with: the last that asks a language model, whose replies are canned, if there is one."""
    return next((row for row in rows[::-1] if SOURCES[row.settings.judge.source].opens == "engine"), rows[-1])


def chosen(plan: planning.Plan, names: Sequence[str], count: int = 2) -> list[Row]:
    """The rows with these `names`; of none the one that opens most models, self-feedback, and what opens most.

    There are `count` of them, and none that asks an API.

    Raises SaoError for a name that the table does not have on this profile, and for a row that cannot be.
    """
    there = {row.name: row for row in plan.rows}
    for name in names:
        if name not in there:
            raise SaoError(f"{plan.experiment} has no row '{name}' on {plan.profile}; there are: {', '.join(there)}.")
        if why := there[name].skipped:
            raise SaoError(f"The row {name} cannot be rehearsed: {why}")
    if names:
        return [there[name] for name in names]
    possible = [row for row in plan.rows if row.runs and not row.skipped and not _asks_api(row)]
    if not possible:
        raise SaoError(f"{plan.experiment} on {plan.profile} has no row that runs without an API.")
    most = sorted(possible, key=_opens, reverse=True)
    own = [row for row in possible if (row.settings.judge.source, row.settings.judge.model) == ("llm", None)]
    return list({row.name: row for row in [*most[:1], *own[:1], *most]}.values())[:count]


def _asks_api(row: Row) -> bool:
    return any(model.startswith(API) for run in row.runs.values() for model in models_of(run))


def _opens(row: Row) -> tuple[int, int]:
    """How many of a row's runs open a model on a card, and how many models there are."""
    runs = list(row.runs.values())
    return sum(map(on_a_card, runs)), len({model for run in runs for model in models_of(run)})


def minutes(said: str) -> float:
    """LIMIT as a number; SaoError unless it is one that a rehearsal can keep."""
    try:
        found = float(said)
    except ValueError:
        found = math.nan
    if not 1 <= found <= LONGEST:
        raise SaoError(f"LIMIT is '{said}'; it must be a number of minutes from 1 to {LONGEST}.")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Rehearse; 0 where the verdict is ready."""
    given = parser().parse_args(arguments)
    os.environ.pop("OPENAI_API_KEY", None)  # nothing here is to be paid for
    try:
        limit = minutes(given.limit)
        if min(given.sizes) < 1:
            raise SaoError(f"--sizes has {min(given.sizes)}; a count needs 1 row or more.")
        with rows_may_be_shrunk():
            plan = planning.make(given.profile, given.experiment)
        if not plan.base.machine.gpus:
            raise SaoError(f"Profile {given.profile} needs no GPU and no rehearsal; PROFILE=paper, gpu or gpu-small.")
        names = given.rows.replace(",", " ").split()
        if given.rows.strip() and not names:
            raise SaoError(f"ROWS is '{given.rows}', which names no row.")
        rows = chosen(plan, list(dict.fromkeys(names)))
        folder = (given.outputs or HERE / f"{given.profile}-{given.experiment}").absolute()
        for left in (part for name in PARTS for part in folder.glob(name)):
            shutil.rmtree(left)
        share = sizes.free()
        if (needed := sizes.takes(plan.base, given.sizes, given.only) / share / 60) > limit:
            print(f"LIMIT={limit:.0f} is short: with what is free of this machine it takes about {needed:.0f} minutes.")
        this = Rehearsal(given.profile, given.experiment, limit, given.patience / share, folder, rows, plan)
        this.prepare()
        if given.only != "count":
            this.walk(1.0 if given.only else 0.5)
        if given.only != "walk" and this.left > 0:
            this.count(given.sizes)
    except SaoError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"\nAfter {clock(60 * this.limit - this.left)}: " + ("\n".join(this.found) or verdict.READY), flush=True)
    return bool(this.found)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended first
    sys.exit(main())
