"""A data file's name -> its rows: a file of the suite, or one elsewhere.

`hub:org/dataset@revision/file` lies on the hub, `github:org/repo@commit/file` in a public repository.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sao_lib import hub
from sao_lib.errors import SaoError, in_one_line
from sao_lib.files import Record, write_atomic
from sao_lib.settings import ROOT

RAW = "https://raw.githubusercontent.com"
FETCHED = ROOT / ".cache" / "github"
PATIENCE = 60  # seconds
# Escapes in JSON: a pair of surrogates or an escaped backslash (kept as they are), or one surrogate without the other.
LONE_SURROGATE = re.compile(r"(\\\\|\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w)|\\u[dD][89a-fA-F]\w\w")


def fetch(source: str) -> Path:
    """The local path of `source`; raises SaoError when it is missing or cannot be fetched."""
    if source.startswith("github:"):
        return _github(source)
    if not source.startswith("hub:"):
        path = ROOT / source
        if not path.exists():
            raise SaoError(f"{source} does not exist.")
        return path
    from huggingface_hub import hf_hub_download

    found = hub.parse(source)
    if not found:
        raise SaoError(f"'{source}' is not of the form hub:org/dataset@revision/file.")
    try:
        return Path(hf_hub_download(found.repo, found.file, repo_type="dataset", revision=found.revision))
    except Exception as error:
        raise SaoError(f"{source} cannot be fetched from the hub: {in_one_line(error)}") from None


def _github(source: str) -> Path:
    """A text file of a public repository at a commit, fetched once."""
    from urllib.request import urlopen

    found = hub.GITHUB.fullmatch(source)
    if not found or ".." in source:
        raise SaoError(f"'{source}' is not of the form github:org/repo@commit/file, with the whole commit.")
    path = FETCHED.joinpath(*found.groups())
    if path.is_file():
        return path
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise SaoError(f"{source} has not been fetched yet and HF_HUB_OFFLINE is set; unset it once.")
    try:
        with urlopen("/".join((RAW, *found.groups())), timeout=PATIENCE) as answer:
            text = answer.read().decode()
    except (OSError, ValueError) as error:
        raise SaoError(f"{source} cannot be fetched from GitHub: {in_one_line(error)}") from None
    write_atomic(path, text)
    return path


def check(source: str) -> None:
    """Raise SaoError unless `source` is there, without fetching it where it lies on the hub."""
    found = hub.parse(source)
    if not found:
        fetch(source)
        return
    from huggingface_hub import file_exists

    try:
        there = hub.cached(found) or file_exists(found.repo, found.file, repo_type="dataset", revision=found.revision)
    except Exception as error:
        raise SaoError(f"{source} cannot be had; the hub says: {in_one_line(error)}") from None
    if not there:
        raise SaoError(f"{source} is not on the hub; check its name, revision and HF_TOKEN.")


class Row(dict[str, Any]):
    """A row of a data file, which knows where it stands there."""

    place = ""


def refused(source: str, row: Record, what: str) -> SaoError:
    """The sentence for a row of a data file: file, place, what is wrong, what to do; no file is to be deleted."""
    return SaoError(f"{source}, {getattr(row, 'place', 'a row')}: {what}; mend that row or take it out.")


def load_rows(source: str, texts: Sequence[str] = (), unique: Sequence[str] = ()) -> list[Record]:
    """The rows of a JSON list, JSONL or Parquet file.

    `texts` are the columns that hold a text in every row, `unique` those in which no value stands twice: both are asked
    of a user's own file, not of one that others publish. Raises SaoError when the file is missing, holds something else
    or has a row that is broken; unlike a run's own log, which a kill may have cut, no line of it is left out.
    """
    path = fetch(source)
    rows = _parquet(path, source) if path.suffix == ".parquet" else _json(path, source)
    if not rows:
        raise SaoError(f"{source} holds no rows.")
    if not source.startswith(hub.ELSEWHERE):
        for key in texts:
            for row in rows:
                text_of(source, row, key)
        for key in unique:
            _unique(source, rows, key)
    return rows


def text_of(source: str, row: Record, key: str) -> str:
    """The text under `key`; raises SaoError where there is none, or a blank one."""
    value = row.get(key)
    if not isinstance(value, str):
        raise refused(source, row, f"{key} is {_said(value)} and must be a text" if key in row else f"it has no {key}")
    if not value.strip():
        raise refused(source, row, f"{key} is blank")
    return value


def _unique(source: str, rows: Sequence[Record], key: str) -> None:
    seen: dict[str, Record] = {}
    for row in rows:
        if row.get(key) is not None:
            first = seen.setdefault(str(row[key]), row)
            if first is not row:
                where = getattr(first, "place", "another row")
                raise refused(source, row, f"its {key} {_said(row[key])} stands in {where} already")


def _parquet(path: Path, source: str) -> list[Record]:
    import pandas as pd

    try:
        loaded = json.loads(pd.read_parquet(path).to_json(orient="records"))
    except (OSError, ValueError) as error:
        raise SaoError(f"{source} cannot be read as Parquet: {in_one_line(error)}") from None
    return [_placed(row, f"row {number}") for number, row in enumerate(loaded, 1)]


def _json(path: Path, source: str) -> list[Record]:
    text = _text(path, source)
    if path.suffix == ".jsonl":
        lines = [(f"line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        found = [(place, _value(line, f"{source}, {place},")) for place, line in lines]
    else:
        loaded = _value(text, source)
        if not isinstance(loaded, list):
            raise SaoError(f"{source} must hold a list of objects, and holds {_said(loaded)}.")
        found = [(f"row {number}", row) for number, row in enumerate(loaded, 1)]
    wrong = next(((place, row) for place, row in found if not isinstance(row, dict)), None)
    if wrong:
        raise SaoError(
            f"{source}, {wrong[0]}, must be an object {{...}} and is {_said(wrong[1])}; mend it or take it out."
        )
    return [_placed(row, place) for place, row in found]


def _text(path: Path, source: str) -> str:
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise SaoError(f"{source} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SaoError(f"{source}, line {line}, is not UTF-8; save the file with that encoding.") from None


def _value(text: str, where: str) -> Any:
    """What a JSON text holds, a lone surrogate as U+FFFD; raises SaoError for what is none, or says a thing twice."""

    def once(pairs: list[tuple[str, Any]]) -> Record:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError(f"it has {max(keys, key=keys.count)!r} twice")
        return dict(pairs)

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(_with_whole_characters(text), object_pairs_hook=once, parse_constant=no_number)
    except json.JSONDecodeError as error:
        place = f" at line {error.lineno}" if "\n" in text.strip() else ""
        what = f"{error.msg}{place}"
    except RecursionError:
        what = "it is nested too deeply"
    except ValueError as error:
        what = in_one_line(error)
    raise SaoError(f"{where} is not JSON as it should be ({what}); mend it there.")


def _with_whole_characters(text: str) -> str:
    """A JSON text in which no escape names a lone surrogate."""
    return LONE_SURROGATE.sub(lambda found: found[0] if found[1] else "\\ufffd", text)


def _placed(row: Record, place: str) -> Row:
    placed = Row(row)
    placed.place = place
    return placed


def _said(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."
