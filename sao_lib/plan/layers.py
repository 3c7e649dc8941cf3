"""Layers of parameters, later over earlier, merged and validated as a whole before anything is loaded.

Profile <- experiment <- presets <- row <- command line.
"""

from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sao_lib.errors import SaoError
from sao_lib.settings import Settings, profile_file, read_yaml

Layer = tuple[str, dict[str, Any]]  # what an error message calls it, and its parameters


def profile_layers(name: str) -> list[Layer]:
    """A profile's layers: the one it `extends`, if any, and its own; raises SaoError when one does not exist."""
    own = read_yaml(profile_file(name))
    base = own.pop("extends", None)
    return [*(profile_layers(base) if base else []), (f"params/profiles/{name}.yaml", own)]


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, mappings merged key by key."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def from_command_line(assignments: list[str]) -> dict[str, Any]:
    """['train.beta=2', 'seed=7'] as a nested mapping; values are read as YAML (1e-6 is a number)."""
    out: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SaoError(f"'{text}' on the command line is not of the form key.subkey=value.")
        try:
            loaded = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SaoError(f"The value of '{key}' on the command line is not valid YAML: {value}") from None
        for part in reversed(key.split(".")):
            loaded = {part: loaded}
        out = merge(out, loaded)
    return out


def validate(layers: list[Layer]) -> Settings:
    """Merge named layers in order and validate; raises SaoError naming layer, key and expectation."""
    merged: dict[str, Any] = {}
    for _, layer in layers:
        merged = merge(merged, layer)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SaoError(_explain(error, layers)) from None


def _explain(error: ValidationError, layers: list[Layer]) -> str:
    first = error.errors()[0]
    loc = tuple(str(part) for part in first["loc"])
    where = next((name for name, layer in reversed(layers) if _has(layer, loc)), layers[0][0])
    key = ".".join(loc)
    if first["type"] == "extra_forbidden":
        near = ", ".join(sorted(_siblings(loc)))
        return f"Unknown parameter '{key}' in {where}; known here: {near}."
    if first["type"] == "missing":
        return f"Parameter '{key}' is missing in {where}."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        place = f" in {where}, {key}" if key else ""  # of several sections: the message names them
        return f"Impossible combination{place}: {message}."
    return f"Parameter '{key}' in {where} is {first['input']!r}: {message[0].lower()}{message[1:]}."


def _has(layer: Any, loc: tuple[str, ...]) -> bool:
    for part in loc:
        if not isinstance(layer, dict) or part not in layer:
            return False
        layer = layer[part]
    return True


def _siblings(loc: tuple[str, ...]) -> list[str]:
    model: Any = Settings
    for part in loc[:-1]:
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        options = getattr(inner, "__args__", (inner,))
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
