"""The paid replies of an API in a run's folder: each is on disk before it is used, and none is asked for again."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from sao_lib.errors import SaoError
from sao_lib.files import Record, append_rows, digest, resume_rows

JOURNAL = "api_calls.jsonl"

Key = tuple[str, int]  # a request's digest, and how often the same one stands before it


class Journal:
    """The paid replies in one run's folder, by request and occurrence; one is on disk before it is used."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        try:
            rows = resume_rows(path, 1)
        except SaoError as error:
            line, damaged, _ = str(error).partition(" is not valid JSON")
            if not damaged:
                raise
            raise SaoError(
                f"{line}{damaged}; delete that line alone, the others are paid replies, and run the same command again."
            ) from None
        try:
            self.rows = {(row["request"], row["occurrence"]): {**row, "usd": float(row["usd"])} for row in rows}
        except (KeyError, TypeError, ValueError):
            raise SaoError(
                f"{path} holds a line that is no reply of an API; delete that line alone, the others are paid replies."
            ) from None

    @property
    def spent(self) -> float:
        """Dollars that all replies cost; none gave any back."""
        return math.fsum(max(0.0, row["usd"]) for row in self.rows.values())

    def keep(self, key: Key, reply: Record) -> None:
        row = {"request": key[0], "occurrence": key[1], **reply}
        with self._lock:
            append_rows(self.path, [row])
            self.rows[key] = row


def keys_of(requests: Sequence[Record]) -> list[Key]:
    """A digest of each request and how often the same one stands before it: repeated samples stay distinct."""
    seen: Counter[str] = Counter()
    keys = []
    for name in map(digest, requests):
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys
