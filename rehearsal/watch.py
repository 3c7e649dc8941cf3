"""A command under watch: what each stage takes, whether it still moves, and what it leaves behind."""

import contextlib
import os
import queue
import re
import secrets
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sao_lib.machine import available_gib
from sao_lib.settings import ROOT
from sao_lib.writers import watch_parent

MARK = "SAO_REHEARSED"  # in the environment of all that a watched command starts: whose it is
YOUNG = 5.0  # seconds; a younger process may not have its own environment yet
LOOK, SAMPLE = 0.2, 2.0  # seconds between two looks at the command, at its processes
GRACE = 10.0  # seconds that a process may outlive the command
LEAST_GIB = 1.0  # of memory that the machine keeps for others
# A line of `launch.execute`'s: `[4/33, 6:10 left] train/simpo-self: done in 0:10`.
LINE = re.compile(r"(?:\[[^\]]*\] )?(\w+)/(\S+): (started|done in )")

Said = tuple[float, str]  # a line, and when it was said


@dataclass
class Stage:
    """What a stage's runs took together: seconds from start to end, and the most that all processes held meanwhile."""

    runs: int = 0
    seconds: float = 0.0
    peak_gib: float = 0.0
    processes: int = 0


@dataclass
class Outcome:
    """How a command ended. `code` is None where it was ended: it hung, or its time or the machine's memory was up."""

    code: int | None = None
    hung: str | None = None
    out_of_time: bool = False
    out_of_memory: bool = False
    leaked: list[str] = field(default_factory=list)
    stages: dict[str, Stage] = field(default_factory=lambda: defaultdict(Stage))
    said: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Marked:
    """The processes with a mark in their environment or once seen with it, however they were renamed or orphaned."""

    def __init__(self, mark: str) -> None:
        self.mark, self.ours, self.others = mark, set[psutil.Process](), set[psutil.Process]()

    def alive(self) -> list[psutil.Process]:
        """Those that run now."""
        for process in psutil.process_iter():
            if process not in self.others and process not in self.ours:
                self._look(process)
        return [process for process in self.ours if _runs(process)]

    def _look(self, process: psutil.Process) -> None:
        try:
            if process.environ().get(MARK) == self.mark:
                self.ours.add(process)
            elif time.time() - process.create_time() > YOUNG:
                self.others.add(process)
        except psutil.AccessDenied:
            self.others.add(process)
        except (psutil.Error, OSError):
            return  # it ended meanwhile

    def end(self) -> None:
        """Kill them until none is left."""
        while alive := self.alive():
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(LOOK)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def named(process: psutil.Process) -> str:
    """A process in words."""
    try:
        words = " ".join(process.cmdline()).split()  # a title is padded with blanks
        return f"{process.pid} {' '.join(words)[:100] or process.name()}"
    except psutil.Error:
        return f"{process.pid}, which has just ended"


def memory_gib(processes: Iterable[psutil.Process]) -> float:
    """What the processes hold together; of a page that several share each has its part, where the system says that."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            held = process.memory_full_info()
            total += getattr(held, "pss", held.rss)
    return total / 2**30


class Watch:
    """Starts a command and looks at it until it ends, moves no more, or has had its time."""

    def __init__(self, outputs: Path, patience: float, ends: float, show: Callable[[str], None] = print) -> None:
        """`patience`: seconds without a line of the command's or a change in `outputs`; `ends`: monotonic seconds."""
        self.outputs, self.patience, self.ends, self.show = outputs, patience, ends, show
        self.marked, self.outcome = Marked(secrets.token_hex(8)), Outcome()
        self.begun: dict[tuple[str, str], float] = {}  # runs that have started and not ended
        self.seen, self.moved, self.last = "", time.monotonic(), "the command"

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> Outcome:
        start, lines = time.monotonic(), queue.SimpleQueue[Said]()
        # A title written over the environment would hide the mark; a Python that is aborted says where it stood.
        given = {**environment, MARK: self.marked.mark, "SPT_NOENV": "1", "PYTHONFAULTHANDLER": "1"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True, preexec_fn=watch_parent,  # it ends with the rehearsal, and its keeper ends the rest
        )  # fmt: skip
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        try:
            self._look_until_it_ends(process, lines)
            if self.outcome.code is not None:
                self._note_leaked()
        finally:
            if process.poll() is None:
                process.kill()  # its keeper ends what is below it
                process.wait()
                time.sleep(2 * LOOK)
            self.marked.end()
            self._take(lines)
        self.outcome.seconds = time.monotonic() - start
        return self.outcome

    def _look_until_it_ends(self, process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[Said]") -> None:
        sampled = 0.0
        while (code := process.poll()) is None:
            time.sleep(LOOK)
            self._take(lines)
            now = time.monotonic()
            if now - sampled > SAMPLE:
                self._sample()
                sampled = time.monotonic()
            self.outcome.out_of_time = now > self.ends
            if self.outcome.out_of_time or self.outcome.out_of_memory:
                return
            if now - self.moved > self.patience:
                self._note_hung(lines)
                return
        self.outcome.code = code

    def _take(self, lines: "queue.SimpleQueue[Said]") -> None:
        """Read what the command has said."""
        while True:
            try:
                at, line = lines.get_nowait()
            except queue.Empty:
                return
            self.moved = at
            self.outcome.said.append(line)
            self.show(f"  | {line}")
            if found := LINE.match(line):
                self._note(found[1], found[2], at, ended=found[3] != "started")

    def _note(self, stage: str, name: str, at: float, ended: bool) -> None:
        if not ended:
            self.begun[stage, name] = at
            self.last = f"{stage}/{name}"
        elif (stage, name) in self.begun:
            taken = self.outcome.stages[stage]
            taken.runs += 1
            taken.seconds += at - self.begun.pop((stage, name))

    def _sample(self) -> None:
        alive = self.marked.alive()
        held = memory_gib(alive)
        for stage, _ in self.begun:
            taken = self.outcome.stages[stage]
            taken.peak_gib, taken.processes = max(taken.peak_gib, held), max(taken.processes, len(alive))
        self.outcome.out_of_memory = available_gib() < LEAST_GIB
        files = [(str(path), _stamp(path)) for path in self.outputs.rglob("*") if path.is_file()]
        if (seen := str(sorted(files))) != self.seen:
            self.seen, self.moved = seen, time.monotonic()

    def _note_hung(self, lines: "queue.SimpleQueue[Said]") -> None:
        """Who is left, and where each stood: on our terminal, or in the log of an engine or a training."""
        alive = sorted(self.marked.alive(), key=lambda process: process.pid)
        said = "; ".join(map(named, alive))
        self.outcome.hung = f"{self.last}: nothing moved for {self.patience:.0f} s; alive: {said}"
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGABRT)
        time.sleep(10 * LOOK)
        self._take(lines)

    def _note_leaked(self) -> None:
        """What outlives the command by more than moments."""
        until = time.monotonic() + GRACE
        while (left := self.marked.alive()) and time.monotonic() < until:
            time.sleep(LOOK)
        self.outcome.leaked = sorted(map(named, left))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        now = path.stat()
    except OSError:
        return 0, 0
    return now.st_size, now.st_mtime_ns


def _read(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[Said]") -> None:
    assert process.stdout
    for line in process.stdout:
        lines.put((time.monotonic(), line.rstrip()))


def plain_environment() -> dict[str, str]:
    """This process's, without keys and without what would bring a real card or another place into play."""
    left_out = (
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "CUDA_VISIBLE_DEVICES",
        "SAO_OUTPUTS",
        "SNAKEMAKE_PROFILE",
        "WANDB_PROJECT",
    )
    return {key: value for key, value in os.environ.items() if key not in left_out}
