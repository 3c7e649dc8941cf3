"""Where a table is not what the paper did, and why: params/fidelity.yaml, typed."""

from pydantic import ValidationError

from sao_lib.errors import SaoError
from sao_lib.plan import layers
from sao_lib.settings import PARAMS, Strict
from sao_lib.yaml_files import read_yaml

FILE = PARAMS / "fidelity.yaml"


class Entry(Strict):
    """`did` is the paper's setting, `unsaid` what it leaves open, `differs` what a profile does instead."""

    did: str
    unsaid: str | None = None
    differs: dict[str, str]


class Fidelity(Strict):
    """Tables and figures of the paper by name; `common` holds for every table of a profile."""

    common: dict[str, str]
    tables: dict[str, Entry]


def read() -> Fidelity:
    """What params/fidelity.yaml says; SaoError in one sentence for whatever it gets wrong."""
    body = read_yaml(FILE)
    try:
        return Fidelity.model_validate(body)
    except ValidationError as error:
        raise SaoError(layers.explain(error, [("params/fidelity.yaml", body)], Fidelity, "key")) from None


def sentences(table: str, profile: str) -> list[str]:
    """The caption's lines on a table of the paper: its setting, what it leaves open, how this profile differs."""
    known = read()
    entry = known.tables.get(table)
    if not entry:
        return []
    own = [text for text in (entry.differs.get(profile), known.common.get(profile)) if text]
    lines = [f"Paper: {entry.did}; `-`: the paper prints no number there."]
    lines += [f"Not in the paper: {entry.unsaid}."] if entry.unsaid else []
    return [*lines, f"Differs from the paper: {' '.join(own)}"] if own else lines
