"""What a training shows while it runs: curves in metrics.jsonl, sampled answers in samples.jsonl, progress.

Only the main process writes; all processes sample, because under ZeRO-3 each holds a part of the weights.
"""

import contextlib
import json
import os
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl.models.utils import unwrap_model_for_generation

from sao_lib.engines.models import end_ids
from sao_lib.errors import SaoError
from sao_lib.files import append_rows, read_rows, write_atomic
from sao_lib.progress import Progress
from sao_lib.settings import Train


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


def dashboards(folder: Path) -> list[str]:
    """Where transformers shows the curves beside metrics.jsonl: TensorBoard, in the run's folder, if it is installed.

    Weights & Biases, which sends them away, only where WANDB_PROJECT is set; SaoError if it is not installed then.
    """
    found = []
    if find_spec("tensorboard") or find_spec("tensorboardX"):
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
        found.append("tensorboard")
    if os.environ.get("WANDB_PROJECT"):
        if not find_spec("wandb"):
            raise SaoError("WANDB_PROJECT is set and wandb is not installed; install it here or unset the variable.")
        os.environ["WANDB_DIR"] = str(folder)
        found.append("wandb")
    return found


# Greedy answers of untrained models as (text, tokens), by all that decides them: trainings of one process share theirs.
UNTRAINED: dict[tuple[Any, ...], list[tuple[str, int]]] = {}


class Samples(TrainerCallback):
    """Answers a few fixed prompts greedily before training, every `sample_every` steps and after, into samples.jsonl.

    Rows are {step, prompt, text, tokens}. A collapse shows here first: answers that shrink, swell or repeat.
    """

    def __init__(
        self, folder: Path, rows: list[dict[str, Any]], tokenizer: Any, settings: Train, model: Path | str
    ) -> None:
        self.path, self.tokenizer = folder / "samples.jsonl", tokenizer
        self.prompts = [row["prompt_ids"] for row in rows[: settings.samples]]
        self.max_tokens, self.every = settings.sample_tokens, settings.sample_every
        self.decided_by = (str(model), str(self.prompts), self.max_tokens, settings.attention, settings.threads)
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:  # what a killed training sampled after its last checkpoint is sampled again
            rows = read_rows(self.path) if state.global_step and self.path.is_file() else []
            write_atomic(self.path, "".join(_line(row) for row in rows if row["step"] <= state.global_step))
        if state.global_step == 0:
            if self.decided_by not in UNTRAINED:
                UNTRAINED[self.decided_by] = self.answers()
            self.write(0, UNTRAINED[self.decided_by])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps or (self.every and state.global_step % self.every == 0):
            self.write(state.global_step, self.answers())

    def answers(self) -> list[tuple[str, int]]:
        """Text and token count of each prompt's answer by the model as it is."""
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
            ends = end_ids(model)
        self.trainer.model_wrapped.train(training)
        new = out[:, batch["input_ids"].shape[1] :].tolist()
        ended = [list(takewhile(lambda token: token not in ends, ids)) for ids in new]
        texts = self.tokenizer.batch_decode(ended, skip_special_tokens=True)
        return [(text, len(ids)) for text, ids in zip(texts, ended, strict=True)]

    def write(self, step: int, answers: list[tuple[str, int]]) -> None:
        if self.trainer.accelerator.is_main_process:
            append_rows(
                self.path,
                ({"step": step, "prompt": n, "text": t, "tokens": k} for n, (t, k) in enumerate(answers)),
            )


def _steps(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in history if "loss" in row]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
