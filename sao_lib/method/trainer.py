"""The training process: `accelerate launch -m sao_lib.method.trainer RUN_FOLDER`.

TRL's DPOTrainer does the work (batches, optimiser, checkpoints, DeepSpeed). We give it our own token ids,
because its tokenisation adds end-of-sequence tokens, and our own losses (sao_lib/method/losses.py) where TRL has none
that is stable: SimPO and ORPO live in trl.experimental. The tests hold every loss against hand-computed values, SimPO
against TRL's too, and ten steps with each against a stored curve. It leans on private names of TRL 1.16
(`_prepare_dataset`, `_compute_loss`, `_metrics`), which is why TRL is pinned exactly.
"""

import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, load_from_disk
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer

from sao_lib.engines.models import attention_for, resolve
from sao_lib.files import read_rows, write_atomic
from sao_lib.machine import has_gpu
from sao_lib.method.batches import SortedInSteps, lengths
from sao_lib.method.callbacks import Curves, Samples, dashboards
from sao_lib.method.logps import completion_logps
from sao_lib.method.losses import loss_named, simpo_reward
from sao_lib.method.saving import save
from sao_lib.runs import Run
from sao_lib.settings import ROOT, Train


def rate(step: int, warmup: int, steps: int) -> float:
    """Share of the peak learning rate at optimiser step `step`, counted from 0: linear warm-up, then half a cosine.

    Transformers' schedule, whose first step has rate 0, except that warm-up begins at 1/(warmup + 1): a run may have
    six steps, and would learn nothing from the first.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class PreferenceTrainer(DPOTrainer):
    """Trains with one of `losses.LOSSES` on rows of token ids."""

    def __init__(self, *args: Any, preference: Train, **kwargs: Any) -> None:
        self.preference, self.loss = preference, loss_named(preference.loss)
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
        if self.loss.needs_reference:
            return super()._precompute_ref_logps(dataset, *args)
        return dataset.map(lambda _: {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0})  # no reference model

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Sorted inside each step where anything waits for the longest of several rows, else as transformers'."""
        p, rows = self.preference, train_dataset or self.train_dataset
        if p.micro_batch * p.processes == 1:
            return super()._get_train_sampler(train_dataset)
        return SortedInSteps(lengths(rows), p.global_batch, self.args.data_seed)

    def _prepare_input(self, data: Any) -> Any:
        """As transformers', which under DeepSpeed rounds floats to bf16: DPO's reference log p, off by up to a nat."""
        if isinstance(data, Tensor) and data.is_floating_point():
            return data.to(self.args.device)
        return super()._prepare_input(data)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """With `rate` instead of transformers' own."""
        if self.lr_scheduler is None:
            warmup = self.args.get_warmup_steps(num_training_steps)
            share = partial(rate, warmup=warmup, steps=num_training_steps)
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(chosen, share)
        return self.lr_scheduler

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Any:
        if self.loss.per_pair is None:
            return super()._compute_loss(model, inputs, return_outputs)
        logp, tokens = completion_logps(model, inputs)
        (w, l), (n_w, n_l) = logp.chunk(2), tokens.chunk(2)
        beta = self.preference.beta
        self._record(simpo_reward(w, n_w, beta).detach(), simpo_reward(l, n_l, beta).detach())
        return self.loss.per_pair(w, l, n_w, n_l, self.preference).mean()

    def _record(self, chosen: Tensor, rejected: Tensor) -> None:
        model: Any = self.model
        metrics = self._metrics["train" if model.training else "eval"]
        values = {"chosen": chosen, "rejected": rejected, "margins": chosen - rejected, "accuracies": chosen > rejected}
        for name, value in values.items():
            metrics[f"rewards/{name}"].append(self.accelerator.gather(value.float()).mean().item())


def deepspeed_on_cpu() -> dict[str, Any]:
    """Arguments with which DeepSpeed trains on CPU; empty with CUDA or without DeepSpeed.

    Accelerate 1.15 makes a DeepSpeed state for GPUs alone, so on CPU we make it and the gloo group ourselves.
    """
    if has_gpu() or os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return {}
    os.environ["DS_ACCELERATOR"] = "cpu"  # before the import, which chooses the device
    import deepspeed
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled for minutes, to gain little over gloo
    deepspeed.init_distributed("gloo")
    PartialState(cpu=True, backend="gloo").distributed_type = DistributedType.DEEPSPEED
    return {"accelerator_config": {"use_configured_state": True}}


def arguments(run: Run, settings: Train, seed: int) -> DPOConfig:
    """TRL's arguments; under DeepSpeed they must exist before the model is loaded, which shards it on the way."""
    cuda = has_gpu()
    return DPOConfig(
        output_dir=str(run.folder / "checkpoints"),
        beta=settings.beta,
        loss_type=["sigmoid"],
        precompute_ref_log_probs=True,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,  # below 1: a share of the steps; `rate` is the schedule
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.micro_batch,
        per_device_eval_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=_bf16(settings),  # autocast over fp32 weights; pure bf16 weights do not move at the paper's rate
        use_cpu=not cuda,
        max_length=None,  # prepare() has dropped what is too long: nothing is truncated here
        logging_steps=1,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 500,
        save_total_limit=2,
        seed=seed,
        data_seed=seed,
        report_to=dashboards(run.folder),
        disable_tqdm=True,
        **deepspeed_on_cpu(),
    )


def _bf16(settings: Train) -> bool:
    """True unless the parameters say float32, or the DeepSpeed file turns bf16 off, as the one for CPU does."""
    if settings.dtype != "bfloat16":
        return False
    config = json.loads((ROOT / settings.deepspeed).read_text()) if settings.deepspeed else {}
    return config.get("bf16", {}).get("enabled", True) is not False


def lora(rank: int) -> Any:
    """Low-rank adapters on every linear layer, scaled by 2 as is usual."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def newest_checkpoint(folder: Path, processes: int = 1) -> str | None:
    """The newest whole checkpoint: trainer_state.json is written last by rank 0, its random state by each rank."""
    found = [
        p.parent for p in folder.glob("checkpoint-*/trainer_state.json")
        if _is_json(p) and len([*p.parent.glob("rng_state*.pth")]) >= processes
    ]  # fmt: skip
    return str(max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]))) if found else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def held_out_margins(trainer: PreferenceTrainer, rows: list[dict[str, Any]]) -> list[float]:
    """Reward margin (eq. 5, chosen - rejected) of each held-out pair under the model as it is.

    Batches are dealt out over the processes, and all run equally many, as ZeRO-3 gathers weights in each.
    """
    model, accelerator, size = trainer.model_wrapped, trainer.accelerator, trainer.preference.micro_batch
    model.eval()
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    done: list[tuple[int, list[float]]] = []
    for start in range(0, len(batches), accelerator.num_processes):
        number = (start + accelerator.process_index) % len(batches)
        batch = {k: v.to(accelerator.device) for k, v in trainer.data_collator(batches[number]).items()}
        with torch.no_grad(), accelerator.autocast():
            logp, tokens = completion_logps(model, batch)
        w, l = simpo_reward(logp, tokens, trainer.preference.beta).chunk(2)
        done.append((number, (w - l).tolist()))
    found = dict(gather_object(done))
    return [margin for number in range(len(batches)) for margin in found[number]]


def load_model(run: Run, source: Path, settings: Train, main: bool) -> tuple[Any, Any]:
    """The policy in `source` in fp32 and its tokenizer. The attention and why it is that one go to attention.json."""
    used, reason = attention_for(source, settings.attention)
    if main:
        print(f"attention: {used}" + (f", not {settings.attention}: {reason}" if reason else ""), flush=True)
        chosen = {"asked": settings.attention, "used": used, "reason": reason}
        write_atomic(run.folder / "attention.json", json.dumps(chosen))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation=used)
    model.config.use_cache = False
    return model, AutoTokenizer.from_pretrained(source)


def load_rows(run: Run, args: DPOConfig) -> tuple[Dataset, list[dict[str, Any]]]:
    """Training and held-out rows. Training rows lie on disk, where TRL caches DPO's reference for all processes."""
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows, held_out = (
        [{c: row[c] for c in columns} for row in read_rows(run.folder / f"{name}.jsonl")]
        for name in ("train", "held_out")
    )
    target = run.folder / "checkpoints" / "rows"
    if args.process_index == 0:
        Dataset.from_list(rows).save_to_disk(target)
    if args.world_size > 1:
        torch.distributed.barrier()
    return load_from_disk(target), held_out


def train(run: Run) -> None:
    """Train as the run's parameters say: metrics.jsonl, samples.jsonl, held_out.json and model/ in its folder.

    What came before in this process leaves no trace in them: the seed and the threads are the run's.
    """
    settings, seed = Train.model_validate(run.params["train"]), run.params["seed"]
    torch.set_num_threads(settings.threads)
    set_seed(seed)  # of the adapters, which are drawn before TRL sets it
    args = arguments(run, settings, seed)
    source = resolve(run.policy_model)
    model, tokenizer = load_model(run, source, settings, args.process_index == 0)
    rows, held_out = load_rows(run, args)
    first = rows.select(range(min(settings.samples, len(rows)))).to_list()
    samples = Samples(run.folder, first, tokenizer, settings, source)
    trainer = PreferenceTrainer(
        model,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[Curves(run.folder), samples],
        peft_config=lora(settings.lora_rank) if settings.lora_rank else None,
        preference=settings,
    )
    samples.trainer = trainer
    trainer.train(resume_from_checkpoint=newest_checkpoint(run.folder / "checkpoints", args.world_size))
    margins = held_out_margins(trainer, held_out)
    save(trainer, run.folder / "model", settings)
    if trainer.accelerator.is_main_process:
        write_atomic(run.folder / "held_out.json", json.dumps(margins))
    trainer.accelerator.wait_for_everyone()


def main(folder: str) -> None:
    """`train` as a process of its own, one of those that accelerate starts."""
    train(Run.open(Path(folder) / "spec.yaml"))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
