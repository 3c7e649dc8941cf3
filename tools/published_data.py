"""Published data for the strongest tests: where they lie, and how they are fetched. `make published-data` calls it.

`tests/published.json` has under `files`, by name: `sha256` and `licence`; `url` with the `repo`, `commit` and `path` it
is made of, or `no_address`, which says why there is none; where the file is not the source itself, `made_by`, one of
RECIPES, and `note`; `each`, the values of a * in the address; `stand_in`, another file that tests take where this one
is missing; `beside`, where else it may lie. The data are not ours to redistribute: only names and hashes are kept.

A file counts as at hand only with its sha256. It is looked for in the place that SAO_PUBLISHED names, .cache/published
without it, and then beside the repository.
"""

import contextlib
import csv
import functools
import hashlib
import http.client
import io
import json
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ROOT / "tests" / "published.json"
BESIDE = ROOT.parent / "shared" / "data"
SOURCES = ".sources"  # what other files are made of, in the place until all are made
SECONDS, CHUNK = 30, 1 << 20

Entry = dict[str, Any]
Row = dict[str, Any]


class PublishedError(Exception):
    """A sentence saying which file is missing and why."""


# What is at hand


def place() -> Path:
    """Where fetched files are put and looked for first."""
    return Path(os.environ.get("SAO_PUBLISHED") or ROOT / ".cache" / "published").expanduser().absolute()


@functools.cache
def manifest() -> dict[str, Entry]:
    """Entries by name, as the module's docstring describes them."""
    return json.loads(MANIFEST.read_text())["files"]


@functools.cache
def _sha256(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(path: Path) -> str:
    """The file's hash, read once as long as the file is not changed."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


def at_hand(name: str) -> Path | None:
    """The file itself with its sha256, in the place or beside the repository; None if it is nowhere."""
    entry = manifest()[name]
    for root in (place(), BESIDE):
        for path in (root / name, root.parent / entry.get("beside", root / name)):
            if path.is_file() and sha256(path) == entry["sha256"]:
                return path
    return None


def locate(name: str) -> Path | None:
    """The file as at_hand finds it, else what stands in for it."""
    stand_in = manifest()[name].get("stand_in")
    return at_hand(name) or (at_hand(stand_in) if stand_in else None)


# Files made of fetched ones: a recipe reads the sources by the values of `each`, and gives the text


def _picked(rows: list[Row], keys: str) -> str:
    return "".join(json.dumps({key: row[key] for key in keys.split()}, ensure_ascii=False) + "\n" for row in rows)


def judgments(sources: dict[str, Path]) -> str:
    """FastChat's judgments, one JSON a line, without the judge's prompts."""
    rows = [json.loads(line) for path in sources.values() for line in path.read_bytes().split(b"\n") if line]
    return _picked(rows, "question_id model judge turn score judgment tstamp")


def _verdicts(path: Path) -> list[Row]:
    """AlpacaEval's annotations with each row's position and the lengths of both answers."""
    rows = enumerate(json.loads(path.read_bytes()))
    return [{"position": n, **r, "len_1": len(r["output_1"]), "len_2": len(r["output_2"])} for n, r in rows]


def annotations(sources: dict[str, Path]) -> str:
    """A model's annotations, one JSON a line, with its own answers and without the reference's."""
    rows = [row for path in sources.values() for row in _verdicts(path)]
    keys = "position dataset instruction generator_1 generator_2 output_2 len_1 len_2 preference annotator"
    return _picked(rows, keys)


def lengths(sources: dict[str, Path]) -> str:
    """Many models' verdicts as CSV, with the answers' lengths; the first model, which lacks none, numbers the rows."""
    verdicts = {model: _verdicts(path) for model, path in sources.items()}
    index = {row["instruction"]: row["position"] for row in next(iter(verdicts.values()))}
    columns = "model position instruction_index preference len_1 len_2 generator_1 generator_2 annotator"
    text = io.StringIO()
    table = csv.DictWriter(text, columns.split(), extrasaction="ignore")
    table.writeheader()
    for model, rows in verdicts.items():
        table.writerows({**row, "model": model, "instruction_index": index[row["instruction"]]} for row in rows)
    return text.getvalue()


RECIPES: dict[str, Callable[[dict[str, Path]], str]] = {
    "judgments": judgments, "annotations": annotations, "lengths": lengths,
}  # fmt: skip


# Fetching


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A file beside the target that takes its name when the block ends well, and goes when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def download(url: str, target: Path) -> None:
    """The body of the address, streamed. Raises PublishedError if it cannot be had whole."""
    request = urllib.request.Request(url, headers={"User-Agent": "sao-reproduction"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer, target.open("wb") as file:
            shutil.copyfileobj(answer, file, CHUNK)
            announced = answer.headers["Content-Length"]
    except (OSError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise PublishedError(f"{url} cannot be fetched: {reason}") from None
    if announced and target.stat().st_size != int(announced):
        raise PublishedError(f"{url} was cut after {target.stat().st_size} of {announced} bytes")


def _sources(entry: Entry, root: Path) -> dict[str, Path]:
    """The fetched sources of a file that is made; one that an earlier call fetched whole is not fetched again."""
    found = {}
    for value in entry.get("each", [""]):
        url = entry["url"].replace("*", value)
        path = root / SOURCES / urlsplit(url).path.lstrip("/")
        if not path.exists():
            with new_file(path) as part:
                download(url, part)
        found[value] = path
    return found


def _made(entry: Entry, sources: dict[str, Path]) -> str:
    try:
        return RECIPES[entry["made_by"]](sources)
    except (ValueError, KeyError, TypeError) as error:
        raise PublishedError(f"what {entry['url']} gave is not what it should be: {error!r}") from None


def fetch(name: str, entry: Entry, root: Path) -> None:
    """Put one file into the place. Raises PublishedError, and leaves nothing of it there, if its hash is wrong."""
    sources = _sources(entry, root) if "made_by" in entry else {}
    try:
        with new_file(root / name) as part:
            if sources:
                part.write_bytes(_made(entry, sources).encode())
            else:
                download(entry["url"], part)
            if (found := sha256(part)) != entry["sha256"]:
                raise PublishedError(f"what {entry['url']} gave has sha256 {found[:12]}, not {entry['sha256'][:12]}")
    except PublishedError:
        for path in sources.values():
            path.unlink(missing_ok=True)
        raise


def main() -> int:
    """Fetch what is not at hand, say what was done and what has no address; 1 if a file is still missing, else 0."""
    root, failed, fetched = place(), 0, 0
    for name, entry in manifest().items():
        if at_hand(name):
            continue
        if "url" not in entry:
            print(f"{name} has no public address: {entry['no_address']}.")
            continue
        print(f"{name} ...", flush=True)
        try:
            fetch(name, entry, root)
            fetched += 1
        except (PublishedError, OSError) as error:
            print(f"Error: {name} was not fetched: {error}.", file=sys.stderr, flush=True)
            failed += 1
    if all(at_hand(name) for name, entry in manifest().items() if "made_by" in entry):
        shutil.rmtree(root / SOURCES, ignore_errors=True)
    there = sum(at_hand(name) is not None for name in manifest())
    print(f"{there} of {len(manifest())} files are at hand; {fetched} of them were fetched now, into {root}.")
    return int(failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Error: interrupted; give the command again and it goes on.")
