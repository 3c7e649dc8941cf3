"""What runs cost before they run, and the dollar cap that stops a command before it starts.

Everything comes from the parameters (`workload`) and params/rates.yaml.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from typing import Any

from sao_lib import machine as hardware
from sao_lib.errors import SaoError
from sao_lib.plan import layers
from sao_lib.plan.chain import Planned
from sao_lib.plan.groups import groups, knows_one_card, on_a_card
from sao_lib.plan.workload import Ask, Runs, asks, rates, trained_pairs
from sao_lib.settings import Machine

API = "openai/"
BYTES_PER_TOKEN = 12  # of text in the rows and the executed notebook that show it
NOTEBOOK_GIB = 0.0005
# Bytes a parameter: weights as saved; in a checkpoint fp32 weights, Adam's two moments and bf16 weights.
BF16, CHECKPOINT = 2, 14
CHECKPOINTS = 3  # the trainer keeps two, and writes the next before it deletes the oldest


@dataclass(frozen=True)
class Cost:
    """`device_hours` are hours of one card times the cards that a run holds, of one core without a GPU.

    `calls` and `usd` are those of an API, tokens include the API's, `disk_gib` is what the run's folder holds.
    """

    tokens_in: float = 0
    tokens_out: float = 0
    device_hours: float = 0
    disk_gib: float = 0
    calls: float = 0
    usd: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Device:
    """A kind of device from params/rates.yaml, and how many of it one run holds."""

    name: str
    count: int
    entry: dict[str, Any]

    @property
    def dollars(self) -> float:
        """Rent of one device in dollars an hour."""
        return float(self.entry.get("usd_per_hour", 0))


def devices_of(profile: str, machine: Machine | None = None) -> list[Device]:
    """The device that a profile runs on, then the others that are priced beside it; SaoError if none is listed."""
    named = rates()["profiles"].get(profile)
    if not named:
        raise SaoError(f"params/rates.yaml names no device for the profile {profile}; add a line to profiles.")
    gpus = machine.gpus if machine else _gpus(profile)
    slower = named.get("without_bf16") if not hardware.multiplies_bf16() else None
    names = [slower or named["device"], *named.get("others", [])]
    return [Device(name, max(1, gpus), rates()["devices"][name]) for name in names]


@cache
def _gpus(profile: str) -> int:
    return layers.validate(layers.profile_layers(profile)).machine.gpus


def estimates(runs: Sequence[Planned], machine: Machine, device: Device | None = None) -> dict[str, Cost]:
    """The cost of each of `runs`, which hold all that they read, done in groups; by folder.

    SaoError for a model without a rate or size.
    """
    planned, found = {run.folder: run for run in runs}, {}
    for group in groups(runs, machine, None if machine.gpus else machine.jobs or hardware.cores()):
        for number, run in enumerate(group):
            found[run.folder] = estimate(run, planned, device, first=not number)
    return found


def estimate(run: Planned, planned: Runs, device: Device | None = None, first: bool = True) -> Cost:
    """The cost of a run; `planned` holds the runs it reads, by folder. SaoError for a model without a rate or size.

    `first`: it starts its process and engine; else they are there, and the engine takes other weights.
    """
    device = device or devices_of(run.spec["profile"])[0]
    device = replace(device, count=1) if knows_one_card(run) else device
    wanted = asks(run, planned)
    over = device.entry["overhead"] if first else {**device.entry["overhead"], **device.entry["overhead"]["again"]}
    fixed = over["run"] + over.get(run.spec["stage"], 0)
    held = device.count if on_a_card(run) or not _gpus(run.spec["profile"]) else 0
    hours = (fixed * held + sum(_seconds(ask, device, over, held) for ask in wanted)) / 3600
    tokens_out = sum(a.tokens_out + a.steps for a in wanted)
    disk = NOTEBOOK_GIB + BYTES_PER_TOKEN * tokens_out / 2**30 + _weights_gib(run, planned)
    calls = sum(a.calls for a in wanted if a.model.startswith(API))
    read = sum(a.tokens_in + a.trained for a in wanted)
    return Cost(read, tokens_out, hours, disk, calls, sum(map(_dollars, wanted)))


def _seconds(ask: Ask, device: Device, over: dict[str, Any], held: int) -> float:
    """Device-seconds of an ask of a run that holds so many devices, none where only an API answers."""
    if ask.model.startswith(API):
        speed = rates()["api_speed"]
        return float(ask.calls * speed["seconds_per_call"] / speed["at_once"] * held)
    if not held:  # embeddings, on the CPU
        return 0.0
    speed = _speed(ask.model, device)
    busy = (ask.tokens_in - ask.cached) / speed["prefill"] + ask.tokens_out / speed["decode"]
    busy += ask.effort * ask.trained / speed["train"]
    ready = (over[ask.starts] + BF16 * _billions(ask.model) / over["load"]) if ask.starts else 0
    # A batch at a time holds every card, and so does reading the weights, however many cards share them.
    return float(busy + (ask.steps / speed["steps"] + ready) * held)


def _speed(model: str, device: Device) -> dict[str, float]:
    """Tokens per second of one device: measured for this model, else by counting operations."""
    model = model.partition("@")[0]
    if measured := device.entry.get("models", {}).get(model):
        return dict(measured)
    if "tflops" not in device.entry:
        raise SaoError(f"params/rates.yaml has no speed of {model} on {device.name}; add a line to devices.")
    operations = {"prefill": 2, "decode": 2, "train": 6}  # for each parameter and token
    peak, used, n = device.entry["tflops"] * 1e12, device.entry["utilisation"], _billions(model) * 1e9
    return {kind: used[kind] * peak / (times * n) for kind, times in operations.items()} | {
        "steps": device.entry["steps"]
    }


def _billions(model: str) -> float:
    size = rates()["parameters"].get(model.partition("@")[0])
    if size is None:
        raise SaoError(f"params/rates.yaml does not know the size of {model}; add a line to parameters.")
    return float(size)


def _dollars(ask: Ask) -> float:
    """Dollars that an API is expected to ask; SaoError for a model that has no listed price."""
    if not ask.model.startswith(API):
        return 0.0
    rate = rates()["api"].get(ask.model.removeprefix(API))
    if rate is None:
        raise SaoError(f"params/rates.yaml lists no price for {ask.model}, so it cannot be planned; add a line to api.")
    return float((ask.tokens_in * rate["input"] + ask.tokens_out * rate["output"]) / 1e6)


def _weights_gib(run: Planned, planned: Runs) -> float:
    """What a training leaves on disk: the model. Its checkpoints go when that is whole."""
    if run.spec["stage"] != "train":
        return 0.0
    train = run.spec["params"]["train"]
    saved = BF16 if train["save_dtype"] == "bfloat16" else 2 * BF16
    return _billions(run.spec["params"]["policy"]["model"]) * 1e9 * saved / 2**30


def checkpoints_gib(run: Planned, planned: Runs) -> float:
    """What a training has on disk beside its model while it runs; 0 for other stages and where it keeps none."""
    if run.spec["stage"] != "train" or not (every := run.spec["params"]["train"]["save_steps"]):
        return 0.0
    train = run.spec["params"]["train"]
    steps = trained_pairs(run, planned) * train["epochs"] / train["global_batch"]
    count = min(CHECKPOINTS, math.ceil(steps / every))  # one more at the end
    return _billions(run.spec["params"]["policy"]["model"]) * 1e9 * CHECKPOINT * count / 2**30


def disk_needed(to_do: Sequence[Planned], runs: Sequence[Planned], jobs: int = 1) -> float:
    """GiB that `to_do`, some of `runs`, will need at once at most, with `jobs` trainings at a time.

    Trainings of a model of unknown size are left out.
    """
    planned, total, passing = {run.folder: run for run in runs}, 0.0, []
    for run in to_do:
        try:
            total += estimate(run, planned).disk_gib
            passing.append(checkpoints_gib(run, planned))
        except SaoError:
            continue
    return total + sum(sorted(passing)[-jobs:])


def over_cap(runs: Iterable[Planned], planned: Runs) -> str | None:
    """A sentence if the API calls of `runs` are expected to cost more than their engines' caps, else None."""
    spent, caps = 0.0, [0.0]
    for run in runs:
        for ask in (a for a in asks(run, planned) if a.model.startswith(API)):
            usd = _dollars(ask)
            spent, caps = spent + usd, [*caps, ask.cap]
            if usd > ask.cap:
                return f"{run.folder} is estimated at ${usd:.2f} of {ask.model}, more than its {_cap(ask.cap)}"
    if spent > max(caps):
        return f"The API calls of the runs to do are estimated at ${spent:.2f}, more than their {_cap(max(caps))}"
    return None


def _cap(usd: float) -> str:
    return f"cap engine.max_usd = ${usd:.2f}; raise the cap or lower synthesize.n."


def check_cap(to_do: Sequence[Planned], runs: Sequence[Planned]) -> None:
    """Raise SaoError if `to_do`, some of `runs`, are expected to spend more on an API than their engines may."""
    reason = over_cap(to_do, {run.folder: run for run in runs})
    if reason:
        raise SaoError(f"Nothing was started: {reason}")


def hub_gib(runs: Sequence[Planned]) -> float:
    """GiB of weights that `runs`, which hold all that they read, have from the hub; SaoError for an unknown size."""
    return sum(hub_models(list(runs), {run.folder: run for run in runs}).values())


def hub_models(runs: list[Planned], planned: Runs) -> dict[str, float]:
    """GiB of weights to fetch, by model."""
    named = {ask.model for run in runs for ask in asks(run, planned)}
    return {m: _billions(m) * 1e9 * BF16 / 2**30 for m in named if not m.startswith((API, "embedded/", ".", "/"))}
