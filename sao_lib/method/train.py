"""Stage 3: preferences -> trained model. Prepares token ids, launches `sao_lib.method.trainer` and reads its curves.

Training runs in a process of its own, started by accelerate, so that one core, one GPU and four GPUs with
DeepSpeed ZeRO-3 are the same call and the notebook's kernel never holds a device.
"""

import os
import subprocess
import sys
from typing import Any

from sao_lib.engines import Conversation, user_turn
from sao_lib.engines.chat import Chat
from sao_lib.engines.models import resolve
from sao_lib.errors import SaoError
from sao_lib.files import read_rows, write_rows
from sao_lib.runs import Run, die_with_parent
from sao_lib.settings import ROOT, Policy, Train
from sao_lib.sources import load_rows

TRAINER_LOG = "trainer.log"


def load_preferences(run: Run, settings: Train) -> list[dict[str, Any]]:
    """TRL's preference rows: the judge's, or an external set's (UltraFeedback's format: `prompt` is text).

    Raises SaoError when an external row lacks one of prompt, chosen and rejected.
    """
    if settings.data is None:
        return run.input("judge").rows("preferences.jsonl")
    rows = []
    for number, row in enumerate(load_rows(settings.data), 1):
        if not all(row.get(key) for key in ("prompt", "chosen", "rejected")):
            raise SaoError(f"{settings.data}, row {number}, lacks one of prompt, chosen and rejected.")
        rows.append(
            {
                "id": str(row.get("prompt_id", number))[:16],
                "prompt": [{"role": "user", "content": row["prompt"]}],
                **{side: [row[side][-1]] for side in ("chosen", "rejected")},
                **{f"{side}_finished": True for side in ("chosen", "rejected")},
            }
        )
    return rows


def prepare(run: Run, rows: list[dict[str, Any]], settings: Train, policy: Policy) -> dict[str, Any]:
    """Write train.jsonl and held_out.jsonl of token ids and return how many pairs were kept and dropped, and why.

    Rows are {id, prompt_ids, chosen_ids, rejected_ids}: the prompt as the chat template gives it, each response
    as it was sampled, with end-of-turn only where the model ended it. Nothing is truncated: a pair longer than
    max_length, or with a completion shorter than min_completion tokens, is dropped and counted.
    """
    chat = Chat(resolve(policy.model), policy.chat_template)
    kept, dropped = [], {"too long": 0, "too short": 0}
    for row in rows:
        request: Conversation = user_turn(policy, row["prompt"][0]["content"])
        prompt = chat.ids(request.messages)
        sides = {
            side: chat.completion_ids(row[side][0]["content"], row[f"{side}_finished"])
            for side in ("chosen", "rejected")
        }
        if len(prompt) + max(map(len, sides.values())) > settings.max_length:
            dropped["too long"] += 1
        elif min(map(len, sides.values())) < settings.min_completion:
            dropped["too short"] += 1
        else:
            kept.append({"id": row["id"], "prompt_ids": prompt, **{f"{s}_ids": ids for s, ids in sides.items()}})
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


def launch(run: Run, settings: Train) -> None:
    """Train in a process started by accelerate; raises SaoError with the end of its log if it fails.

    The copy of a finished run is not trained again: its model and curves are there.
    """
    if run.copied:
        return
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--num_processes", str(settings.processes)]
    command += ["--main_process_port", "0"]  # any free one: runs may train side by side
    if settings.deepspeed:
        command += ["--use_deepspeed", "--deepspeed_config_file", str(ROOT / settings.deepspeed)]
    elif settings.processes > 1:
        command += ["--multi_gpu"]  # the launcher's word for one process per device; they may all be CPU
    elif not _cuda():
        command += ["--cpu"]
    command += ["-m", "sao_lib.method.trainer", str(run.folder)]
    environment = {
        **os.environ,
        "SAO_STARTED_BY": str(os.getpid()),
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
    if done.returncode:
        reason = why_stopped((run.folder / TRAINER_LOG).read_text())
        raise SaoError(
            f"Training of {run.folder.name} stopped ({done.returncode}): {reason} "
            f"The whole log is in {run.folder / TRAINER_LOG}; run the same command to try again."
        )


def why_stopped(log: str) -> str:
    """The last error in a trainer's log that is not a launcher's, which says that a process failed and not why."""
    said = log.strip().splitlines()
    launchers = ("ChildFailedError", "CalledProcessError", "error_file")
    errors = [line for line in said if "Error" in line and not any(name in line for name in launchers)]
    return (errors or said or ["no output"])[-1].strip()[:300]


def _cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def curves(run: Run) -> list[dict[str, float]]:
    """One row per optimiser step: step, loss, reward margin, accuracy, mean chosen and rejected log p per token."""
    return read_rows(run.folder / "metrics.jsonl")
