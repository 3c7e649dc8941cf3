"""The training process: `accelerate launch -m sao_lib.trainer RUN_FOLDER`.

TRL's DPOTrainer does the work (batches, optimiser, checkpoints, DeepSpeed). We give it our own token ids,
because its tokenisation adds end-of-sequence tokens, and our own losses where TRL has none that is stable:
SimPO and ORPO live in trl.experimental. The tests hold SimPO against
TRL's and ORPO against hand-computed values. It leans on private names of
TRL 1.16 (`_prepare_dataset`, `_compute_loss`, `_metrics`), which is why TRL is pinned exactly.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.models.utils import unwrap_model_for_generation

from sao_lib.losses import orpo_loss, simpo_loss, simpo_reward
from sao_lib.models import resolve
from sao_lib.progress import Progress
from sao_lib.runs import Run, append_rows, read_rows, write_atomic
from sao_lib.settings import Train


def completion_logps(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Summed log p of each completion (nats, fp32) and its token count, both [2 x pairs], chosen first.

    On CUDA TRL's fused head is used, which never builds [batch, tokens, vocabulary]; on CPU it has no fast
    kernel, so the logits of the completion's positions alone are made instead (about 1.8 times faster).
    """
    mask = batch["completion_mask"][:, 1:].bool()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    if batch["input_ids"].device.type == "cuda":
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        return model(**inputs, labels=labels, fused_lm_head=True).log_probs.sum(1), mask.sum(1)
    first = int(mask.any(0).nonzero()[0])  # the first position that predicts a completion token
    keep = mask.shape[1] - first + 1
    logits = model(**inputs, logits_to_keep=keep).logits[:, :-1].float()
    target = batch["input_ids"][:, first + 1 :]
    logp = torch.gather(logits, 2, target.unsqueeze(2)).squeeze(2) - logits.logsumexp(2)
    return (logp * mask[:, first:]).sum(1), mask.sum(1)


class PreferenceTrainer(DPOTrainer):
    """SimPO, ORPO or DPO on rows of token ids."""

    def __init__(self, *args: Any, preference: Train, **kwargs: Any) -> None:
        self.preference = preference
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
        if self.preference.loss == "dpo":
            return super()._precompute_ref_logps(dataset, *args)
        return dataset.map(lambda _: {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0})  # no reference model

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Any:
        if self.preference.loss == "dpo":
            return super()._compute_loss(model, inputs, return_outputs)
        logp, tokens = completion_logps(model, inputs)
        (w, l), (n_w, n_l) = logp.chunk(2), tokens.chunk(2)
        beta = self.preference.beta
        if self.preference.loss == "simpo":
            loss = simpo_loss(w, l, n_w, n_l, beta, self.preference.gamma)
        else:
            loss = orpo_loss(w, l, n_w, n_l, beta)
        self._record(simpo_reward(w, n_w, beta).detach(), simpo_reward(l, n_l, beta).detach())
        return loss.mean()

    def _record(self, chosen: Tensor, rejected: Tensor) -> None:
        model: Any = self.model
        metrics = self._metrics["train" if model.training else "eval"]
        values = {"chosen": chosen, "rejected": rejected, "margins": chosen - rejected, "accuracies": chosen > rejected}
        for name, value in values.items():
            metrics[f"rewards/{name}"].append(self.accelerator.gather(value.float()).mean().item())


class Curves(TrainerCallback):
    """Appends every log line of the trainer to metrics.jsonl and reports progress."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_atomic(self.folder / "metrics.jsonl", "".join(map(_line, _steps(state.log_history))))
            self.progress = Progress(self.folder, "step", state.max_steps, state.global_step, "steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress:
            self.progress.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            append_rows(self.folder / "metrics.jsonl", _steps([{**(logs or {}), "step": state.global_step}]))


class Samples(TrainerCallback):
    """Answers a few fixed prompts greedily before training, every `sample_every` steps and after, into samples.jsonl.

    Rows are {step, prompt, text, tokens}. A collapse shows here first: answers that shrink, swell or repeat.
    """

    def __init__(self, folder: Path, rows: list[dict[str, Any]], tokenizer: Any, settings: Train) -> None:
        self.path, self.tokenizer = folder / "samples.jsonl", tokenizer
        self.prompts = [row["prompt_ids"] for row in rows[: settings.samples]]
        self.max_tokens, self.every = settings.sample_tokens, settings.sample_every
        self.trainer: PreferenceTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            if state.is_world_process_zero:
                self.path.unlink(missing_ok=True)
            self.sample(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps or (self.every and state.global_step % self.every == 0):
            self.sample(state.global_step)

    def sample(self, step: int) -> None:
        assert self.trainer is not None
        accelerator, training = self.trainer.accelerator, self.trainer.model_wrapped.training
        batch = self.tokenizer.pad({"input_ids": self.prompts}, padding_side="left", return_tensors="pt")
        with unwrap_model_for_generation(self.trainer.model_wrapped, accelerator) as model, torch.no_grad():
            model.eval()
            # Autocast would cast every frozen weight again for every token; a GPU's attention kernels want it.
            with accelerator.autocast() if accelerator.device.type == "cuda" else contextlib.nullcontext():
                out = model.generate(
                    **batch.to(accelerator.device), max_new_tokens=self.max_tokens, do_sample=False, use_cache=True
                )
        self.trainer.model_wrapped.train(training)
        if accelerator.is_main_process:
            new = out[:, batch["input_ids"].shape[1] :].tolist()
            ended = [
                ids[: ids.index(self.tokenizer.eos_token_id)] if self.tokenizer.eos_token_id in ids else ids
                for ids in new
            ]
            texts = self.tokenizer.batch_decode(ended, skip_special_tokens=True)
            append_rows(
                self.path,
                (
                    {"step": step, "prompt": n, "text": t, "tokens": len(i)}
                    for n, (t, i) in enumerate(zip(texts, ended, strict=True))
                ),
            )


def _steps(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in history if "loss" in row]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def arguments(run: Run, settings: Train, seed: int) -> DPOConfig:
    cuda = torch.cuda.is_available()
    return DPOConfig(
        output_dir=str(run.folder / "checkpoints"),
        beta=settings.beta,
        loss_type=["sigmoid"],
        precompute_ref_log_probs=True,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,  # below 1: a share of the steps
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.micro_batch,
        per_device_eval_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=True,  # autocast over fp32 weights; pure bf16 weights do not move at the paper's rate
        use_cpu=not cuda,
        max_length=None,  # prepare() has dropped what is too long: nothing is truncated here
        logging_steps=1,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 500,
        save_total_limit=2,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
    )


def lora(rank: int) -> Any:
    """Low-rank adapters on every linear layer, scaled by 2 as is usual."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint: trainer_state.json is written last."""
    found = [p.parent for p in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]))) if found else None


def held_out_margins(trainer: PreferenceTrainer, rows: list[dict[str, Any]]) -> list[float]:
    """Reward margin (eq. 5, chosen - rejected) of each held-out pair under the model as it is."""
    model = trainer.model_wrapped
    model.eval()
    margins: list[float] = []
    size = trainer.preference.micro_batch
    for start in range(0, len(rows), size):
        batch = trainer.data_collator(rows[start : start + size])
        batch = {k: v.to(trainer.accelerator.device) for k, v in batch.items()}
        with torch.no_grad(), trainer.accelerator.autocast():
            logp, tokens = completion_logps(model, batch)
        w, l = simpo_reward(logp, tokens, trainer.preference.beta).chunk(2)
        margins += (w - l).tolist()
    return margins


def main(folder: str) -> None:
    run = Run.open(Path(folder) / "spec.yaml")
    settings, seed = Train.model_validate(run.params["train"]), run.params["seed"]
    args = arguments(run, settings, seed)
    source = resolve(run.policy_model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation=settings.attention)
    model.config.use_cache = False
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows, held_out = (
        [{c: row[c] for c in columns} for row in read_rows(run.folder / f"{name}.jsonl")]
        for name in ("train", "held_out")
    )
    samples = Samples(run.folder, rows, tokenizer, settings)
    trainer = PreferenceTrainer(
        model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Curves(run.folder), samples],
        peft_config=lora(settings.lora_rank) if settings.lora_rank else None,
        preference=settings,
    )
    samples.trainer = trainer
    trainer.train(resume_from_checkpoint=newest_checkpoint(run.folder / "checkpoints"))
    margins = held_out_margins(trainer, held_out)
    save(trainer, run.folder / "model", settings)
    if trainer.accelerator.is_main_process:
        write_atomic(run.folder / "held_out.json", json.dumps(margins))
    trainer.accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def save(trainer: PreferenceTrainer, target: Path, settings: Train) -> None:
    """The trained model with its tokenizer, in `save_dtype`; adapters are merged into the weights."""
    model, dtype = trainer.accelerator.unwrap_model(trainer.model), getattr(torch, settings.save_dtype)
    if settings.lora_rank:
        if trainer.accelerator.is_main_process:
            tokenizer: Any = trainer.processing_class
            model.merge_and_unload().to(dtype).save_pretrained(target)
            tokenizer.save_pretrained(target)
        return
    if trainer.accelerator.num_processes == 1:
        model.to(dtype)
    trainer.save_model(str(target))


if __name__ == "__main__":
    main(sys.argv[1])
