"""Stage 3: preferences -> trained model. Prepares token ids, starts `sao_lib.method.trainer` and reads its curves.

One call for one core, one GPU and four GPUs with DeepSpeed ZeRO-3. On a machine without GPUs one process trains here,
in the caller's; everything else runs in processes of its own, started by accelerate, so that a notebook's kernel never
holds a device.
"""

import ctypes
import gc
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

from sao_lib.engines import Conversation, close_kept, user_turn
from sao_lib.engines.chat import Chat
from sao_lib.engines.models import resolve
from sao_lib.errors import SaoError
from sao_lib.files import read_rows, write_rows
from sao_lib.machine import cores, has_gpu
from sao_lib.progress import Progress, quiet
from sao_lib.runs import Run
from sao_lib.settings import PARAMS, ROOT, Policy, Train
from sao_lib.sources import load_rows, refused
from sao_lib.writers import STARTED_BY, die_with_parent

MANY, PART = 2000, 500  # pairs from which starting a process a core pays, and of what each does at a time
TRAINER_LOG = "trainer.log"
CHECKPOINTS = "checkpoints"
ENDED = "held_out.json"  # what the trainer writes last, when the model is saved and was read back


def load_preferences(run: Run, settings: Train) -> list[dict[str, Any]]:
    """TRL's preference rows: the judge's, or an external set's (UltraFeedback's format: `prompt` is text).

    Raises SaoError when an external row lacks one of prompt, chosen and rejected, or has them in another form.
    """
    if settings.data is None:
        return run.input("judge").rows("preferences.jsonl")
    return external_preferences(settings.data)


def external_preferences(source: str) -> list[dict[str, Any]]:
    """The rows of an external preference set."""
    rows = []
    for number, row in enumerate(load_rows(source, texts=["prompt"], unique=["prompt_id"]), 1):
        if not all(row.get(key) for key in ("prompt", "chosen", "rejected")):
            raise refused(source, row, "it lacks one of prompt, chosen and rejected")
        if not isinstance(row["prompt"], str) or not all(_is_dialogue(row[side]) for side in ("chosen", "rejected")):
            raise refused(source, row, "prompt must be a text, chosen and rejected lists of {role, content}")
        rows.append(
            {
                "id": str(row.get("prompt_id", number))[:16],
                "prompt": [{"role": "user", "content": row["prompt"]}],
                **{side: [row[side][-1]] for side in ("chosen", "rejected")},
                **{f"{side}_finished": True for side in ("chosen", "rejected")},
            }
        )
    return rows


def _is_dialogue(value: Any) -> bool:
    messages = value if isinstance(value, list) else [None]
    return all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages)


def prepare(run: Run, rows: list[dict[str, Any]], settings: Train, policy: Policy) -> dict[str, Any]:
    """Write train.jsonl and held_out.jsonl of token ids and return how many pairs were kept and dropped, and why.

    Rows are {id, prompt_ids, chosen_ids, rejected_ids}: the prompt as the chat template gives it, each response
    as it was sampled, with end-of-turn only where the model ended it. Nothing is truncated: a pair longer than
    max_length, or with a completion shorter than min_completion tokens, is dropped and counted.
    """
    kept, dropped = [], {"too long": 0, "too short": 0}
    for row in tokenised(rows, policy, run):
        sides = (len(row["chosen_ids"]), len(row["rejected_ids"]))
        if len(row["prompt_ids"]) + max(sides) > settings.max_length:
            dropped["too long"] += 1
        elif min(sides) < settings.min_completion:
            dropped["too short"] += 1
        else:
            kept.append(row)
    if len(kept) < settings.held_out + settings.global_batch:
        raise SaoError(
            f"{len(kept)} usable pairs are too few for {settings.held_out} held out and one batch of "
            f"{settings.global_batch}; raise synthesize.n or lower train.global_batch ({run.folder.name})."
        )
    cut = len(kept) - settings.held_out
    if settings.pairs and settings.pairs > cut:
        raise SaoError(
            f"{cut} pairs are left to train on beside {settings.held_out} held out, fewer than train.pairs = "
            f"{settings.pairs}; raise synthesize.n or lower train.pairs ({run.folder.name})."
        )
    train = kept[:cut][: settings.pairs]
    for name, part in (("train", train), ("held_out", kept[cut:])):
        write_rows(run.folder / f"{name}.jsonl", part)
    return {"train": len(train), "held_out": settings.held_out, "dropped": dropped}


def tokenised(
    rows: list[dict[str, Any]], policy: Policy, run: Run, processes: int | None = None
) -> list[dict[str, Any]]:
    """Preference rows as {id, prompt_ids, chosen_ids, rejected_ids}, by `processes`; None: all cores for many rows.

    A pair takes 4 ms: four minutes for 60,000 on one core, while four cards wait. Many say in the run's log how far
    they are.
    """
    processes = processes or (cores() if len(rows) > MANY else 1)
    if processes == 1:
        chat = Chat(resolve(policy.model), policy.chat_template)
        return [_tokens(row, policy, chat) for row in rows]
    progress, found = Progress(run.folder, "pairs tokenised", len(rows)), []
    parts = [rows[start : start + PART] for start in range(0, len(rows), PART)]
    context = get_context("spawn")  # a notebook's process has threads, and CUDA on GPUs
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for part in pool.map(partial(_part, policy), parts):
            found += part
            progress.update(len(part))
    return found


def _part(policy: Policy, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    chat = _chat(policy.model, policy.chat_template)
    return [_tokens(row, policy, chat) for row in rows]


@cache  # in a process that does many parts
def _chat(model: str, chat_template: str | None) -> Chat:
    return Chat(resolve(model), chat_template)


def _tokens(row: dict[str, Any], policy: Policy, chat: Chat) -> dict[str, Any]:
    request: Conversation = user_turn(policy, row["prompt"][0]["content"])
    sides = {
        f"{side}_ids": chat.completion_ids(row[side][0]["content"], row[f"{side}_finished"])
        for side in ("chosen", "rejected")
    }
    return {"id": row["id"], "prompt_ids": chat.ids(request.messages), **sides}


def launch(run: Run, settings: Train) -> None:
    """Train, in this process or in those that accelerate starts; raises SaoError with the reason if it fails.

    What is there is not trained again: the copy of a finished run, a training that ended before its run did. When the
    model is whole and was read back, its checkpoints go: seven times as large, and nothing goes on from them.
    """
    if run.copied:
        return
    if (run.folder / ENDED).is_file():
        shutil.rmtree(run.folder / CHECKPOINTS, ignore_errors=True)
        return
    close_kept()  # training needs its place
    one = settings.processes == 1 and not settings.deepspeed and not has_gpu()
    code = train_here(run) if one else train_launched(run, settings)
    if code:
        reason = why_stopped((run.folder / TRAINER_LOG).read_text())
        raise SaoError(
            f"Training of {run.folder.name} stopped ({code}): {reason} "
            f"The whole log is in {run.folder / TRAINER_LOG}; run the same command to try again."
        )
    shutil.rmtree(run.folder / CHECKPOINTS, ignore_errors=True)


def train_here(run: Run) -> int:
    """Train in this process and say whether it failed, as 1; what a launched process would leave, to the byte."""
    from sao_lib.method import trainer

    log = run.folder / TRAINER_LOG
    log.write_text("")
    with quiet(log), _fresh_accelerate():
        try:
            trainer.train(run)
        except Exception:
            traceback.print_exc()
            return 1
    return 0


@contextmanager
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate's state and variables as in a new process, and afterwards as in one that never trained.

    It keeps the device and the precision of the first training in its classes, and more of it in the environment, where
    engines also leave the ranks of their processes.
    """
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import clear_environment

    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    kept = {k: v for k, v in os.environ.items() if k not in ranks and not k.startswith("ACCELERATE_")}

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    try:
        with clear_environment():
            os.environ.update(kept)
            yield
    finally:
        reset()
        gc.collect()  # the trainer, its callbacks and the model refer to each other
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps what was freed: measured, 1.2 GiB
            trim(0)


def train_launched(run: Run, settings: Train) -> int:
    """Train in processes started by accelerate and return their exit status."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--config_file", str(PARAMS / "accelerate.yaml")]  # not the user's own
    command += ["--dynamo_backend", "no", "--num_processes", str(settings.processes)]
    command += ["--main_process_port", "0"]  # any free one: runs may train side by side
    if settings.deepspeed:
        command += ["--use_deepspeed", "--deepspeed_config_file", str(ROOT / settings.deepspeed)]
    elif settings.processes > 1:
        command += ["--multi_gpu"]  # the launcher's word for one process per device; they may all be CPU
    command += ["-m", "sao_lib.method.trainer", str(run.folder)]
    environment = {
        **os.environ,
        STARTED_BY: str(os.getpid()),
        "OMP_NUM_THREADS": str(settings.threads),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",  # DeepSpeed calls ninja
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),  # the weights are on disk by now
        "TOKENIZERS_PARALLELISM": "false",
    }
    with (run.folder / TRAINER_LOG).open("w") as log:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
            preexec_fn=die_with_parent,
        )
    return done.returncode


def why_stopped(log: str) -> str:
    """The last error in a trainer's log that is not a launcher's, which says that a process failed and not why."""
    said = log.strip().splitlines()
    launchers = ("ChildFailedError", "CalledProcessError", "error_file")
    errors = [line for line in said if "Error" in line and not any(name in line for name in launchers)]
    return (errors or said or ["no output"])[-1].strip()[:300]


def curves(run: Run) -> list[dict[str, float]]:
    """One row per optimiser step: step, loss, reward margin, accuracy, mean chosen and rejected log p per token."""
    return read_rows(run.folder / "metrics.jsonl")
