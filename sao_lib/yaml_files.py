"""YAML files of parameters and templates: where they lie, and a strict reading of them."""

import os
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sao_lib.errors import SaoError, short
from sao_lib.settings import PARAMS, ROOT


class Unique(yaml.SafeLoader):
    """YAML's own loader, which refuses what nobody means.

    A key that stands twice in one mapping, of which it would take the last; numbers to the bases 8 and 60, as it reads
    010 and 1:30; a part that holds itself.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.open: list[str] = []  # anchors of the parts that are being read

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and event.anchor in self.open:
            mark: Any = event.start_mark
            raise yaml.composer.ComposerError(problem=f"*{event.anchor} holds itself", problem_mark=mark)
        self.open.append(getattr(event, "anchor", None) or "")
        try:
            return super().compose_node(parent, index)
        finally:
            self.open.pop()

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

    def number(self, node: yaml.ScalarNode) -> Any:
        """A number as people read it."""
        whole = node.tag.endswith("int")
        if ":" in node.value or (whole and re.match(r"[-+]?0[0-7_]", node.value)):
            raise yaml.constructor.ConstructorError(
                problem=f"{node.value} would be read to the base {60 if ':' in node.value else 8}; write it without a "
                "colon or a leading zero, or in quotes where it is a text",
                problem_mark=node.start_mark,
            )
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    Unique.add_constructor(f"tag:yaml.org,2002:{_kind}", Unique.number)


def parse_yaml(text: str) -> Any:
    """YAML to data; raises yaml.YAMLError, also where no value can be made of it."""
    try:
        return deepcopy(_parsed(text))
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:
        raise yaml.YAMLError(" ".join(str(error).split())[:160]) from None
    except (LookupError, AttributeError, TypeError):  # PyYAML's own, of a value that does not fit its tag
        raise yaml.YAMLError("a value does not fit the kind that its !!tag says") from None


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
        line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        raise SaoError(f"{shown(path)}{line} is not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
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
    if path.name != f"{name}.yaml" or not os.path.isfile(path):
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml") if p.is_file()))
        raise SaoError(f"There is no {kind} '{short(name)}' in {shown(folder)}/; there are: {known}.")
    return path


def shown(path: Path) -> str:
    """A path as people read it: from the repository's root where it lies in there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
