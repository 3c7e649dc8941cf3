"""Names of files in data sets on the hub: `hub:org/dataset@revision/file`."""

import re
from pathlib import Path
from typing import NamedTuple

NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)@([\w.-]+)/(.+)")


class HubFile(NamedTuple):
    repo: str
    revision: str
    file: str


def parse(source: str) -> HubFile | None:
    """The parts of a hub file's name; None if it is not of that form."""
    found = NAME.fullmatch(source)
    return HubFile(*found.groups()) if found else None


def cached(name: HubFile) -> Path | None:
    """Where the file lies on this machine, None if it has not been fetched."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name.repo, name.file, revision=name.revision, repo_type="dataset")
    return Path(path) if isinstance(path, str) else None


def commit(source: str) -> str | None:
    """The commit that a fetched hub file belongs to: what `main` meant when it was read."""
    name = parse(source)
    path = cached(name) if name else None
    return path.parts[path.parts.index("snapshots") + 1] if path and "snapshots" in path.parts else None
