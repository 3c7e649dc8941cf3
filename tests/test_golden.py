"""Ten steps of a tiny model with every loss, held to a stored curve: loss and gradient norm of each step.

What the other tests cannot see moves these numbers: optimiser, schedule, warm-up, masking, the order of the data.
The process of a real training runs, `trainer.main`, in fp32 on CPU. 19 pairs of unequal lengths in batches of 4 make
5 steps an epoch, the last of 3 pairs, so which pairs share a batch, and how far they are padded, is seen too.

To renew the curves after a change on purpose: RENEW below. The commit must say why they moved.
"""

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import a_run, saved
from trl.trainer.dpo_trainer import DataCollatorForPreference

from sao_lib.method import train, trainer
from sao_lib.method.losses import LOSSES

FILE = Path(__file__).parent / "golden" / "training.json"
RENEW = "SAO_RENEW_GOLDEN=1 python -m pytest -n 0 tests/test_golden.py"
# Relative. Instruction sets from SSE4 to AVX-512 differ by up to 1.6e-5 in these curves; of the changes below the
# smallest, DPO's with another beta of Adam, moves its curve by 7e-4, a shorter warm-up every curve by 1e-2 and more.
TOLERANCE = 2e-4
STEPS = {"epochs": 2, "global_batch": 4, "micro_batch": 2, "warmup": 0.3, "learning_rate": 3e-3}

Curve = dict[str, list[float]]  # `loss` (nats) and `grad_norm` before clipping, a number a step


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 on CPU, whatever the machine has: bf16 and a GPU differ by more than a mistake does."""
    monkeypatch.setattr(trainer, "_bf16", lambda settings: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def curve(loss: str, model: Path, folder: Path) -> Curve:
    run, _ = a_run(folder, model, pairs=19, loss=loss, beta=10 if loss == "simpo" else 0.1, **STEPS)
    trainer.main(str(run.folder))
    return {key: [float(f"{row[key]:.7g}") for row in train.curves(run)] for key in ("loss", "grad_norm")}


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "trl")}


def stored() -> dict[str, Any]:
    """{loss: {versions, curve}} as last renewed."""
    return dict(json.loads(FILE.read_text())) if FILE.is_file() else {}


def renew(loss: str, found: Curve) -> None:
    entries = {**stored(), loss: {"versions": versions(), "curve": found}}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({name: entries[name] for name in sorted(entries) if name in LOSSES}, indent=1) + "\n")


def differences(loss: str, found: Curve) -> list[str]:
    """One line for each number that is not the stored one."""
    lines = []
    for key, numbers in stored()[loss]["curve"].items():
        if len(numbers) != len(found[key]):
            return [f"{len(found[key])} steps, not {len(numbers)}"]
        for step, (new, old) in enumerate(zip(found[key], numbers, strict=True), 1):
            if new != pytest.approx(old, rel=TOLERANCE):
                lines.append(f"step {step}: {key} {new:.6g}, stored {old:.6g}")
    return lines


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("loss", LOSSES)
def test_ten_steps_go_as_they_went(loss: str, model: Path, tmp_path: Path) -> None:
    found = curve(loss, model, tmp_path)
    if os.environ.get("SAO_RENEW_GOLDEN"):
        renew(loss, found)
    if loss not in stored():
        pytest.skip(f"not tested: {loss} has no stored curve yet; {RENEW} makes it")
    made, different = stored()[loss]["versions"], differences(loss, found)
    assert not different, (
        f"Training with {loss} does not go as it went with {made} (now {versions()}):\n"
        + "\n".join(different)
        + f"\nIf it was changed on purpose, {RENEW} renews {FILE.name}, and the commit must say why the numbers moved."
    )


def arguments_with(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    def change(monkeypatch: pytest.MonkeyPatch) -> None:
        original = trainer.arguments

        def changed(*args: Any) -> Any:
            made = original(*args)
            for name, value in changes.items():
                assert getattr(made, name) != value
                setattr(made, name, value)
            return made

        monkeypatch.setattr(trainer, "arguments", changed)

    return change


def without_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last token of each response, its end of turn, is not trained."""
    original = DataCollatorForPreference.torch_call

    def changed(self: Any, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = original(self, examples)
        mask = batch["completion_mask"]
        batch["completion_mask"] = mask * torch.nn.functional.pad(mask[:, 1:], (0, 1))
        return batch

    monkeypatch.setattr(DataCollatorForPreference, "torch_call", changed)


CHANGES = {
    "warm-up": ("orpo", arguments_with(warmup_steps=0.2)),
    "optimiser": ("dpo", arguments_with(adam_beta2=0.99)),
    "order": ("simpo", arguments_with(data_seed=2)),
    "mask": ("simpo", without_the_end),
    "mask of TRL's": ("dpo", without_the_end),
}


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_training_is_seen(what: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, change = CHANGES[what]
    change(monkeypatch)
    assert differences(loss, curve(loss, model, tmp_path))
