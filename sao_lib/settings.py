"""Typed, strict parameters: load, merge, validate, explain.

Layers are merged profile <- experiment <- row <- command line, then validated as a whole before
anything is loaded. Nothing of ours is imported here except the error class.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sao_lib.errors import SaoError

ROOT = Path(__file__).resolve().parents[1]
PARAMS = ROOT / "params"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(Strict):
    """What one job of this profile uses; not part of a run's identity."""

    gpus: int = Field(ge=0)
    memory_gib: float = Field(gt=0)
    jobs: int | None = Field(default=None, ge=1, description="jobs at once; null: as the machine allows")


class Policy(Strict):
    model: str
    system: str | None = None
    chat_template: str | None = None


class Engine(Strict):
    kind: Literal["vllm", "transformers", "openai"]
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_model_len: int = Field(default=4096, ge=64)
    max_num_seqs: int = Field(default=64, ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    kv_cache_tokens: int = Field(default=32768, ge=1024, description="on CPU; a GPU gives what it has")
    max_usd: float = Field(default=0, ge=0)


class Synthesize(Strict):
    personas: str
    n: int = Field(ge=2)
    template: str
    temperature: float = Field(ge=0)
    max_prompt_tokens: int = Field(ge=8)
    max_response_tokens: int = Field(ge=8)
    chunk: int = Field(ge=1)


class Judge(Strict):
    """A feedback source. `model: null` is the policy itself."""

    source: Literal["llm", "reward", "length", "random"]
    model: str | None = None
    engine: Engine | None = None
    chat_template: str | None = None
    template: str = "params/templates/ranking.yaml"
    reading: Literal["text", "logprob"] = "text"
    orders: Literal["one", "both"] = "one"
    without_criterion: Literal[1, 2, 3, 4] | None = None
    audit_questions: int = Field(default=8, ge=0)
    chunk: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> "Judge":
        if self.source == "reward" and not self.model:
            raise ValueError("source: reward needs a model")
        if self.source in ("length", "random") and self.model:
            raise ValueError(f"source: {self.source} takes no model")
        return self


class Train(Strict):
    loss: Literal["simpo", "dpo", "orpo"]
    beta: float = Field(gt=0)
    gamma: float = Field(default=0, ge=0)
    learning_rate: float = Field(gt=0)
    epochs: int = Field(ge=1)
    global_batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    warmup: float = Field(ge=0, lt=1)
    max_length: int = Field(ge=64)
    min_completion: int = Field(ge=1)
    held_out: int = Field(ge=0)
    samples: int = Field(default=4, ge=1)
    sample_tokens: int = Field(default=256, ge=8)
    sample_every: int | None = Field(default=None, ge=1, description="steps; null: before and after only")
    processes: int = Field(ge=1)
    threads: int = Field(default=1, ge=1)
    deepspeed: str | None = None
    attention: str = "sdpa"
    lora_rank: int | None = Field(default=None, ge=1, description="null: all weights are trained")
    save_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    gradient_checkpointing: bool = False
    save_steps: int | None = None

    @model_validator(mode="after")
    def _splits(self) -> "Train":
        share = self.micro_batch * self.processes
        if self.global_batch % share:
            raise ValueError(
                f"global_batch {self.global_batch} cannot be split over {self.processes} process(es) of "
                f"micro_batch {self.micro_batch}: it must be a multiple of {share}"
            )
        return self

    @property
    def accumulation(self) -> int:
        """Gradient accumulation steps: global batch / (micro batch x processes)."""
        return self.global_batch // (self.micro_batch * self.processes)


class Evaluate(Strict):
    instructions: str
    n: int = Field(ge=4)
    reference: str = "policy"
    temperature: float = Field(ge=0)
    max_tokens: int = Field(ge=8)
    judge_model: str | None = None
    judge_engine: Engine | None = None
    judges: list[str] = Field(min_length=1)
    labelled_questions: int = Field(ge=0)
    length_term: Literal["alpaca_eval", "length_only"]
    chunk: int = Field(ge=1)


class StandIn(Strict):
    """What runs in place of a model this profile cannot have, and what the row is then called."""

    label: str
    unless_env: str | None = None
    judge: dict[str, Any]


class Settings(Strict):
    seed: int
    machine: Machine
    policy: Policy
    engine: Engine
    synthesize: Synthesize
    judge: Judge
    train: Train
    evaluate: Evaluate
    stand_ins: dict[str, StandIn] = {}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from `path`; raises SaoError naming the file when it is missing or malformed."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SaoError(f"{_shown(path)} does not exist.") from None
    except yaml.YAMLError as error:
        raise SaoError(f"{_shown(path)} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise SaoError(f"{_shown(path)} must hold a mapping of keys, found {type(loaded).__name__}.")
    return loaded


def profile_file(name: str) -> Path:
    """params/profiles/<name>.yaml; raises SaoError listing the profiles there are."""
    return _named("profile", PARAMS / "profiles", name)


def experiment_file(name: str) -> Path:
    """params/experiments/<name>.yaml; raises SaoError listing the experiments there are."""
    return _named("experiment", PARAMS / "experiments", name)


def _named(kind: str, folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise SaoError(f"There is no {kind} '{name}' in {_shown(folder)}/; there are: {known}.")
    return path


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


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


def validate(layers: list[tuple[str, dict[str, Any]]]) -> Settings:
    """Merge named layers in order and validate; raises SaoError naming layer, key and expectation."""
    merged: dict[str, Any] = {}
    for _, layer in layers:
        merged = merge(merged, layer)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SaoError(_explain(error, layers)) from None


def _explain(error: ValidationError, layers: list[tuple[str, dict[str, Any]]]) -> str:
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
        return f"Impossible combination in {where}, {key}: {message}."
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
