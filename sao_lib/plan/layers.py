"""Layers of parameters, later over earlier, merged and validated as a whole before anything is loaded.

Profile <- experiment <- presets <- row <- command line.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sao_lib import machine
from sao_lib.errors import SaoError, masked, short
from sao_lib.method.feedback import SOURCES
from sao_lib.method.losses import LOSSES
from sao_lib.method.synthesize import PROMPT_SOURCES
from sao_lib.settings import Settings
from sao_lib.yaml_files import parse_yaml, profile_file, read_yaml, shown

# Parameters that name an entry of a registry.
REGISTRIES: dict[tuple[str, str], Mapping[str, Any]] = {
    ("judge", "source"): SOURCES,
    ("train", "loss"): LOSSES,
    ("synthesize", "source"): PROMPT_SOURCES,
}
Layer = tuple[str, dict[str, Any]]  # what an error message calls it, and its parameters


def profile_layers(name: str) -> list[Layer]:
    """A profile's layers: the one it `extends`, if any, its own, and without a GPU its sections that hold here.

    Raises SaoError when a profile does not exist, or where one extends itself.
    """
    layers, sections = _profile(name, ())
    machines = [layer["machine"] for _, layer in layers if isinstance(layer.get("machine"), dict)]
    if next((m["gpus"] for m in reversed(machines) if "gpus" in m), 0):
        return layers
    return [*layers, *(section for key, section in sections if machine.SECTIONS[key]())]


def _profile(name: str, above: tuple[str, ...]) -> tuple[list[Layer], list[tuple[str, Layer]]]:
    """The layers, and their sections by machine.SECTIONS' keys. `above` are the profiles that extend this one."""
    file = profile_file(name)
    if name in above:
        raise SaoError(f"{shown(file)} extends itself: {' extends '.join([*above[above.index(name) :], name])}.")
    own = read_yaml(file)
    base = own.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise SaoError(f"{shown(file)}: extends is {base!r}; it must be the name of another profile.")
    layers, sections = _profile(base, (*above, name)) if base else ([], [])
    said = f"params/profiles/{name}.yaml"
    sections += [(key, (f"{said}, {key}", own.pop(key))) for key in machine.SECTIONS if key in own]
    return [*layers, (said, own)], sections


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, mappings merged key by key."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def split(text: str) -> list[str]:
    """The assignments in one text, quotes read as a shell does; SaoError where a quote is not closed."""
    try:
        return shlex.split(text)
    except ValueError:
        raise SaoError(f"SET is {text!r}, in which a quote is not closed.") from None


def from_command_line(assignments: list[str]) -> dict[str, Any]:
    """['train.beta=2', 'seed=7'] as a nested mapping; values are read as YAML (1e-6 is a number).

    Raises SaoError for what is no assignment, and where two of them contradict each other.
    """
    out: dict[str, Any] = {}
    said: dict[tuple[str, ...], Any] = {}
    for text in assignments:
        if masked(text) != text:
            raise SaoError(
                f"'{short(text)}' on the command line holds a key of the environment, and parameters are written into "
                "results; take it out."
            )
        key, equals, value = text.partition("=")
        path = tuple(key.split("."))
        if not equals or not all(map(str.isidentifier, (part.replace("-", "_") for part in path))):
            raise SaoError(
                f"'{short(text)}' on the command line is not of the form key.subkey=value (no spaces round =)."
            )
        try:
            loaded = parse_yaml(value)
        except yaml.YAMLError as error:
            why = (getattr(error, "problem", None) or str(error)).partition("\n")[0]
            hint = "; a value with blanks needs quotes round it" if value[:1] in "[{" else ""
            raise SaoError(
                f"The value of '{key}' on the command line is not valid YAML: {short(value)} ({why}{hint})."
            ) from None
        if over := next((p for p in said if _contradict(p, said[p], path, loaded)), None):
            raise SaoError(f"The command line sets {'.'.join(over)} and {key}, which contradict each other; leave one.")
        said[path] = loaded
        for part in reversed(path):
            loaded = {part: loaded}
        out = merge(out, loaded)
    return out


def _contradict(one: tuple[str, ...], said: Any, other: tuple[str, ...], too: Any) -> bool:
    """Whether two assignments give one key two values; mappings are laid over each other, so those do not."""
    if one == other:
        return not (isinstance(said, dict) and isinstance(too, dict))
    outer, value = (one, said) if len(one) < len(other) else (other, too)
    return one[: len(outer)] == other[: len(outer)] and not isinstance(value, dict)


def validate(layers: list[Layer]) -> Settings:
    """Merge named layers in order and validate; raises SaoError naming layer, key and expectation."""
    merged: dict[str, Any] = {}
    for name, layer in layers:
        if not isinstance(layer, dict):
            raise SaoError(f"{name} is {short(repr(layer))}; it must be a mapping of parameters.")
        if wrong := next(_no_words(layer), None):
            raise SaoError(f"{name} has the key {wrong[0]!r}, which is no name of a parameter.")
        if empty := next(
            (k for k in layer if isinstance(merged.get(k), dict) and not isinstance(layer[k], dict)), None
        ):
            value = short(repr(layer[empty]))
            raise SaoError(f"Parameter '{empty}' in {name} is {value}: it must be a mapping of parameters.")
        merged = merge(merged, layer)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise SaoError(explain(error, layers)) from None
    for loc, registry in REGISTRIES.items():
        name = getattr(getattr(settings, loc[0]), loc[1])
        if name not in registry:
            known, where = ", ".join(registry), _where(loc, layers)[0]
            raise SaoError(f"Parameter '{'.'.join(loc)}' in {where} is '{short(name)}'; there are: {known}.")
    if problem := SOURCES[settings.judge.source].problem(settings.judge):
        raise SaoError(f"Impossible combination in {_where(('judge', 'source'), layers)[0]}, judge: {problem}.")
    return settings


def _no_words(layer: Any) -> Iterator[tuple[Any]]:
    """Keys that are no text: YAML reads `on` and `no` as truths."""
    if isinstance(layer, dict):
        for key, value in layer.items():
            if not isinstance(key, str):
                yield (key,)
            yield from _no_words(value)


def explain(
    error: ValidationError, layers: list[Layer], model: type[BaseModel] = Settings, what: str = "parameter"
) -> str:
    """The first thing that is wrong, in one sentence: which layer, which key, what was expected."""
    first = error.errors()[0]
    loc = tuple(str(part) for part in first["loc"])
    where, found = _where(loc, layers)
    whole = first["type"] in ("extra_forbidden", "missing")  # else pydantic's words for a kind may stand behind the key
    key = short(".".join(loc if whole else found or loc))
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
    value = short(repr(first["input"]))
    return f"{what.capitalize()} '{key}' in {where} is {value}: {message[0].lower()}{message[1:]}."


def _where(loc: tuple[str, ...], layers: list[Layer]) -> tuple[str, tuple[str, ...]]:
    """The last of the layers that hold most of the key, else the first, and how much of the key that is."""
    held = [(_held(layer, loc), name) for name, layer in layers]
    most = max(len(found) for found, _ in held)
    name = next(name for found, name in reversed(held) if len(found) == most) if most else layers[0][0]
    return name, loc[:most]


def _held(layer: Any, loc: Iterable[str]) -> tuple[str, ...]:
    """The part of a key, from its beginning, that a layer holds."""
    found: list[str] = []
    for part in loc:
        if isinstance(layer, dict):
            layer = {str(key): value for key, value in layer.items()}
        elif isinstance(layer, list):
            layer = {str(place): value for place, value in enumerate(layer)}
        else:
            break
        if part not in layer:
            break
        layer = layer[part]
        found.append(part)
    return tuple(found)


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
