"""Progress with a rate and time left: in a run's log, to be watched from outside, and under a cell run by hand."""

import contextlib
import functools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = "log.txt"
TOKENS: Counter[str] = Counter()  # that this process's engines have read (without a cache's) and written so far


class Progress:
    """Lines like `responses 64/192, 8.1 rows/s, 0:16 left` in `<folder>/log.txt`, at most one a second.

    In a notebook that a person runs, the newest of them stands under the cell.
    """

    def __init__(self, folder: Path, what: str, total: int, done: int = 0, unit: str = "rows") -> None:
        self.path, self.what, self.total, self.unit = folder / LOG, what, total, unit
        self.shown = _Shown() if by_hand() else None
        self.first = self.done = done
        self.start = self.last = time.monotonic()

    def update(self, count: int) -> None:
        """Say that `count` more are done."""
        self.done += count
        now = time.monotonic()
        if now - self.last < 1 and self.done < self.total:
            return
        self.last = now
        rate = (self.done - self.first) / max(now - self.start, 1e-6)
        left = (self.total - self.done) / rate if rate else 0
        line = f"{self.what} {self.done}/{self.total}, {rate:.1f} {self.unit}/s, {clock(left)} left"
        with self.path.open("a") as file:
            file.write(line + "\n")
        if self.shown:
            self.shown.write(line)


class _Shown:
    """A line under the running cell, each in place of the one before; a file for tqdm."""

    def __init__(self) -> None:
        self.handle: Any = None

    def write(self, line: str) -> None:
        from IPython.display import display

        if not (content := {"text/plain": line.strip()})["text/plain"]:
            return
        if self.handle is None:
            self.handle = display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)

    def flush(self) -> None:
        """Nothing waits."""


def bar() -> Any:
    """For libraries with a tqdm of their own: one that writes under the cell that is run by hand, else False."""
    if not by_hand():
        return False
    from tqdm import tqdm

    return functools.partial(tqdm, file=_Shown(), disable=False, mininterval=1)


def by_hand() -> bool:
    """Whether a person runs this in a notebook: a kernel that no command of ours started."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") and "SAO_STARTED_BY" not in os.environ


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def quiet(path: Path) -> Iterator[None]:
    """Send what libraries print meanwhile, also from compiled code, to `path` instead of the notebook."""
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = [os.dup(1), os.dup(2)]
    streams = sys.stdout, sys.stderr
    handlers = [(handler, handler.stream) for handler in _handlers() if handler.stream in streams]
    with path.open("a") as log:
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout = sys.stderr = log
            for handler, _ in handlers:
                handler.setStream(log)
            yield
        finally:
            for handler, stream in handlers:
                handler.setStream(stream)
            sys.stdout, sys.stderr = streams
            for number, old in enumerate(saved, 1):
                os.dup2(old, number)
                os.close(old)


def _handlers() -> list[Any]:
    """Of all loggers those that write to a stream, which they keep from when their library was imported."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = [handler for logger in loggers for handler in getattr(logger, "handlers", [])]
    return [handler for handler in found if type(handler) is logging.StreamHandler]
