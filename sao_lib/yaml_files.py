"""YAML files of parameters and templates: where they lie, and a strict reading of them."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sao_lib.errors import SaoError
from sao_lib.settings import PARAMS, ROOT


class Unique(yaml.SafeLoader):
    """A loader that refuses a key which stands twice in one mapping, where YAML's own would take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return node


def parse_yaml(text: str) -> Any:
    """YAML to data; raises yaml.YAMLError, or ValueError and RecursionError where a value cannot be made of it."""
    return deepcopy(_parsed(text))


@cache
def _parsed(text: str) -> Any:
    return yaml.load(text, Unique)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from `path`; raises SaoError naming file and line when it is missing or malformed."""
    try:
        loaded = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SaoError(f"{shown(path)} does not exist.") from None
    except OSError as error:
        raise SaoError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise SaoError(f"{shown(path)} is not UTF-8 at byte {error.start}; save it as UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SaoError(f"{shown(path)}{line}, is not valid YAML: {error.problem}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SaoError(f"{shown(path)} is not valid YAML: {' '.join(str(error).split())[:160]}.") from None
    if not isinstance(loaded, dict):
        raise SaoError(f"{shown(path)} must hold a mapping of keys, found {type(loaded).__name__}.")
    return loaded


def profile_file(name: str) -> Path:
    """params/profiles/<name>.yaml; raises SaoError listing the profiles there are."""
    return _named("profile", PARAMS / "profiles", name)


def experiment_file(name: str) -> Path:
    """params/experiments/<name>.yaml; raises SaoError listing the experiments there are."""
    return _named("experiment", PARAMS / "experiments", name)


def _named(kind: str, folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    if path.name != f"{name}.yaml" or not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml") if p.is_file()))
        raise SaoError(f"There is no {kind} '{name}' in {shown(folder)}/; there are: {known}.")
    return path


def shown(path: Path) -> str:
    """A path as people read it: from the repository's root where it lies in there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
