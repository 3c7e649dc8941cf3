"""The trained model on disk, read back before anything that could make it again is deleted."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor
from trl.distributed import DistributedBackend

from sao_lib.errors import SaoError
from sao_lib.files import write_atomic
from sao_lib.settings import Train

if TYPE_CHECKING:
    from sao_lib.method.trainer import PreferenceTrainer


def save(trainer: "PreferenceTrainer", target: Path, settings: Train) -> None:
    """The trained model with its tokenizer, in `save_dtype`; adapters are merged into the weights."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer: Any = trainer.processing_class
    main, dtype = trainer.accelerator.is_main_process, getattr(torch, settings.save_dtype)
    adapted = list(model.parameters()) if settings.lora_rank else []
    with DistributedBackend(trainer.accelerator).gather_params(adapted):
        model = model.merge_and_unload() if settings.lora_rank else model
        weights = _weights(model, dtype, main, gathered=bool(settings.lora_rank))
    if main:
        model.save_pretrained(target, state_dict=weights)
        check_saved(target, weights)
        tokenizer.save_pretrained(target)
        config = json.loads((target / "config.json").read_text())
        write_atomic(target / "config.json", json.dumps({**config, "dtype": settings.save_dtype}, indent=2))


def check_saved(folder: Path, weights: dict[str, Tensor]) -> None:
    """Read a saved model back; raises SaoError unless it holds all of `weights`, to the bit where a name is the same.

    transformers may give a weight another name on disk; then its size alone is checked.
    """
    left = sum(weight.numel() for weight in weights.values())
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as saved:
            for name in saved.keys():  # noqa: SIM118
                there = saved.get_tensor(name)
                left -= there.numel()
                if name in weights and not torch.equal(_bytes(there), _bytes(weights[name])):
                    raise SaoError(f"{name} in {file} is not what was saved; check the disk.")
    if left:
        raise SaoError(f"{folder} holds {-left:+,} numbers compared with what was saved; check the disk.")


def _bytes(weight: Tensor) -> Tensor:
    """A NaN is no other NaN, but its bytes are the same."""
    return weight.reshape(-1).view(torch.uint8)


def _weights(model: Any, dtype: torch.dtype, main: bool, gathered: bool) -> dict[str, Tensor]:
    """Every weight in `dtype` on the main process, rounded once from fp32; every process must call this.

    DeepSpeed's own saving gives the bf16 copies that it computes with, whatever `save_dtype` asks for.
    """
    weights = {}
    for name, parameter in model.named_parameters():
        whole = parameter.detach()
        if hasattr(parameter, "ds_id") and not gathered:
            from deepspeed.utils import safe_get_full_fp32_param

            whole = safe_get_full_fp32_param(parameter)
        if main:
            weights[name] = whole.to("cpu", dtype, copy=True)
    return weights
