"""Names on the hub: of files in data sets, `hub:org/dataset@revision/file`, and of models, `org/name@revision`.

Files of public repositories have names too: `github:org/repo@commit/file`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sao_lib.errors import masked
from sao_lib.settings import PARAMS
from sao_lib.yaml_files import read_yaml

NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)@([\w.-]+)/(.+)")
GITHUB = re.compile(r"github:([\w.-]+/[\w.-]+)@([0-9a-f]{40})/(.+)")
ELSEWHERE = ("hub:", "github:")  # how the name of a file begins that may have to be fetched
MODEL = re.compile(r"(?!embedded/|openai/)([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?")


class HubFile(NamedTuple):
    repo: str
    revision: str
    file: str


def parse(source: str) -> HubFile | None:
    """The parts of a hub file's name; None if it is not of that form."""
    found = NAME.fullmatch(source)
    return HubFile(*found.groups()) if found else None


def misnamed(source: str) -> str | None:
    """What is wrong with the name of a file elsewhere, None if nothing."""
    form = "hub:org/dataset@revision/file" if source.startswith("hub:") else "github:org/repo@commit/file"
    pattern = NAME if source.startswith("hub:") else GITHUB
    return None if pattern.fullmatch(source) and ".." not in source else f"is not of the form {form}"


def cached(name: HubFile) -> Path | None:
    """Where the file lies on this machine, None if it has not been fetched."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name.repo, name.file, revision=name.revision, repo_type="dataset")
    return Path(path) if isinstance(path, str) else None


def model(name: str) -> tuple[str, str | None]:
    """A model's repository and revision: the one after the @, else params/models.yaml's, else none, which is main."""
    repo, _, revision = name.partition("@")
    return repo, revision or read_yaml(PARAMS / "models.yaml").get(repo, {}).get("revision")


def short(name: str) -> str:
    """The last part of a model's name without revision, lower-case: how tables and folders call it."""
    return name.partition("@")[0].rstrip("/").rsplit("/", 1)[-1].lower()


def commit(source: str) -> str | None:
    """The commit that a fetched hub file or model belongs to: what `main` meant when it was read; else None."""
    if MODEL.fullmatch(source):
        from huggingface_hub import try_to_load_from_cache

        repo, revision = model(source)
        found = try_to_load_from_cache(repo, "config.json", revision=revision)
        path = Path(found) if isinstance(found, str) else None
    else:
        name = parse(source)
        path = cached(name) if name else None
    return path.parts[path.parts.index("snapshots") + 1] if path and "snapshots" in path.parts else None


def named_in(params: Any) -> Iterator[str]:
    """What in a run's parameters may be a hub file or a hub model, by its form."""
    if isinstance(params, dict):
        for value in params.values():
            yield from named_in(value)
    elif isinstance(params, str) and (NAME.fullmatch(params) or MODEL.fullmatch(params)):
        yield params


def state() -> str:
    """Whether the hub can be asked from here, in words."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "not asked, as HF_HUB_OFFLINE is set"
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except HTTPError:
        pass  # it answered
    except OSError as error:
        return masked(f"{constants.ENDPOINT} cannot be reached: {getattr(error, 'reason', error)}")
    return masked(f"{constants.ENDPOINT} answers")
