"""Layers of parameters, later over earlier, merged and validated as a whole before anything is loaded.

Profile <- experiment <- presets <- row <- command line.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sao_lib.errors import SaoError
from sao_lib.method.feedback import SOURCES
from sao_lib.method.losses import LOSSES
from sao_lib.method.synthesize import PROMPT_SOURCES
from sao_lib.settings import Settings, profile_file, read_yaml

# Parameters that name an entry of a registry.
REGISTRIES: dict[tuple[str, str], Mapping[str, Any]] = {
    ("judge", "source"): SOURCES,
    ("train", "loss"): LOSSES,
    ("synthesize", "source"): PROMPT_SOURCES,
}
Layer = tuple[str, dict[str, Any]]  # what an error message calls it, and its parameters


def profile_layers(name: str) -> list[Layer]:
    """A profile's layers: the one it `extends`, if any, its own, and where vLLM is not installed its `without_vllm`.

    Raises SaoError when a profile does not exist.
    """
    layers, instead = _profile(name)
    if instead and find_spec("vllm") is None:
        layers.append((f"params/profiles/{name}.yaml, without_vllm", instead))
    return layers


def _profile(name: str) -> tuple[list[Layer], dict[str, Any]]:
    """The layers, and what the profile itself (not one that it extends) says for a machine without vLLM."""
    own = read_yaml(profile_file(name))
    base, instead = own.pop("extends", None), own.pop("without_vllm", {})
    return [*(_profile(base)[0] if base else []), (f"params/profiles/{name}.yaml", own)], instead


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
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise SaoError(explain(error, layers)) from None
    for loc, registry in REGISTRIES.items():
        name = getattr(getattr(settings, loc[0]), loc[1])
        if name not in registry:
            known, where = ", ".join(registry), _where(loc, layers)
            raise SaoError(f"Parameter '{'.'.join(loc)}' in {where} is '{name}'; there are: {known}.")
    if problem := SOURCES[settings.judge.source].problem(settings.judge):
        raise SaoError(f"Impossible combination in {_where(('judge', 'source'), layers)}, judge: {problem}.")
    return settings


def explain(
    error: ValidationError, layers: list[Layer], model: type[BaseModel] = Settings, what: str = "parameter"
) -> str:
    """The first thing that is wrong, in one sentence: which layer, which key, what was expected."""
    first = error.errors()[0]
    loc = tuple(str(part) for part in first["loc"])
    where, key = _where(loc, layers), ".".join(loc)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"Unknown {what} '{key}' in {where}; known here: {', '.join(sorted(_siblings(loc, model)))}."
    if first["type"] == "missing":
        return f"{what.capitalize()} '{key}' is missing in {where}."
    if first["type"] == "value_error":
        place = (
            f" in {where}{', ' + key if key else ''}" if key or model is not Settings else ""
        )  # else it names sections
        return f"Impossible combination{place}: {message}."
    return f"{what.capitalize()} '{key}' in {where} is {first['input']!r}: {message[0].lower()}{message[1:]}."


def _where(loc: tuple[str, ...], layers: list[Layer]) -> str:
    """The last layer that holds the key, else the first."""
    return next((name for name, layer in reversed(layers) if loc and _has(layer, loc)), layers[0][0])


def _has(layer: Any, loc: tuple[str, ...]) -> bool:
    for part in loc:
        if not isinstance(layer, dict) or part not in layer:
            return False
        layer = layer[part]
    return True


def _siblings(loc: tuple[str, ...], model: Any) -> list[str]:
    for part in loc[:-1]:
        field = model.model_fields.get(part)
        if field is None:  # a name that the file chose, such as a row's
            continue
        inner = field.annotation
        options = getattr(inner, "__args__", (inner,))
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
