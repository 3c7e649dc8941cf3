"""A data file's name -> its rows: a file of the suite, or one elsewhere.

`hub:org/dataset@revision/file` lies on the hub, `github:org/repo@commit/file` in a public repository.
"""

import json
import os
from pathlib import Path
from typing import Any

from sao_lib import hub
from sao_lib.errors import SaoError, in_one_line
from sao_lib.files import read_rows, write_atomic
from sao_lib.settings import ROOT

RAW = "https://raw.githubusercontent.com"
FETCHED = ROOT / ".cache" / "github"
PATIENCE = 60  # seconds


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


def load_rows(source: str) -> list[dict[str, Any]]:
    """The rows of a JSON list, JSONL or Parquet file; raises SaoError when it is missing or is something else."""
    path = fetch(source)
    if path.suffix == ".jsonl":
        return read_rows(path)
    if path.suffix == ".parquet":
        import pandas as pd

        return list(json.loads(pd.read_parquet(path).to_json(orient="records")))
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SaoError(f"{source} cannot be read as JSON: {error}") from None
    if not isinstance(loaded, list) or not all(isinstance(row, dict) for row in loaded):
        raise SaoError(f"{source} must hold a JSON list of objects.")
    return loaded
