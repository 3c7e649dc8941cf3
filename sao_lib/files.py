"""Files that a kill or a full disk cannot spoil: written whole or row by row, and known by their digests."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sao_lib.errors import SaoError

Record = dict[str, Any]  # one line of a JSONL file
SURROGATE = re.compile("[\ud800-\udfff]")


def digest(content: Any) -> str:
    """sha256 of the canonical JSON of `content`, hexadecimal."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(well_formed(text).encode()).hexdigest()


def well_formed(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate, which JSON can name, and no file can hold and no tokenizer read."""
    return SURROGATE.sub("\ufffd", text)


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never half of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", encoding="utf-8") as file:
            file.write(well_formed(text))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise _disk(path, error) from None


def append_rows(path: Path, rows: Iterable[Record]) -> None:
    """Append `rows` to a JSONL file and force them to disk."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(well_formed(text).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _disk(path, error) from None


def check_writable(folder: Path) -> None:
    """Raise SaoError unless files can be made in `folder`, which is made where it is missing."""
    probe = folder / ".writable"
    write_atomic(probe, "")
    probe.unlink(missing_ok=True)


def write_rows(path: Path, rows: Iterable[Record]) -> None:
    """A whole JSONL file at once, in place of any that is there."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[Record]:
    """All rows of a JSONL file; a torn last line (a killed writer) is left out.

    Raises SaoError when the file is missing or a line before the last is damaged.
    """
    if not path.is_file():
        raise SaoError(f"{path} is missing; move its folder elsewhere and run the same command again.")
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise SaoError(
                f"{path}, line {number}, is not valid JSON; move the file elsewhere and run the same command again."
            ) from None
    return rows


def resume_rows(path: Path, chunk: int, count: int | None = None) -> list[Record]:
    """Rows of the complete chunks already written; anything after them is cut from the file.

    Where all `count` rows are there the last chunk is complete, however short.

    Keeping to whole chunks makes a resumed run batch, and so sample, exactly like an uninterrupted one.
    """
    if not path.is_file():
        return []
    rows = read_rows(path)
    kept = rows if len(rows) == count else rows[: len(rows) // chunk * chunk]
    if len(kept) < len(rows) or not path.read_bytes().endswith(b"\n"):
        write_rows(path, kept)
    return kept


def _disk(path: Path, error: OSError) -> SaoError:
    return SaoError(
        f"Cannot write {path}: {error.strerror or error}. Everything finished so far is kept; "
        "make room, fix the permission or choose another folder, and run the same command again."
    )
