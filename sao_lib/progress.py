"""Progress with a rate and time left, appended to a run's log so that it can be watched from outside."""

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LOG = "log.txt"
TOKENS: Counter[str] = Counter()  # that this process's engines have read (without a cache's) and written so far


class Progress:
    """Lines like `responses 64/192, 8.1 rows/s, 0:16 left` in `<folder>/log.txt`, at most one a second."""

    def __init__(self, folder: Path, what: str, total: int, done: int = 0, unit: str = "rows") -> None:
        self.path, self.what, self.total, self.unit = folder / LOG, what, total, unit
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
    with path.open("a") as log:
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout = sys.stderr = log
            yield
        finally:
            sys.stdout, sys.stderr = streams
            for number, old in enumerate(saved, 1):
                os.dup2(old, number)
                os.close(old)
