"""An engine and a training that only count: in a kernel, in place of the real ones, so that the rest can be timed.

`install` is run by a start-up file of IPython's that the rehearsal puts where its kernels look for one (IPYTHONDIR).
The notebooks, chunks, files, parsing, tokenising, tables and figures stay the suite's.
"""

import json
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rehearsal.texts import text
from sao_lib.engines import Completion, Conversation
from sao_lib.files import digest, write_atomic, write_rows
from sao_lib.method.synthesize import MARK
from sao_lib.progress import TOKENS, Progress
from sao_lib.runs import Run
from sao_lib.settings import Train

RANKING = "ranking:"  # stands in a request for a verdict
PROMPT, RESPONSE = (20, 120), (80, 600)  # words, as long as SAO figure 3 shows; 1.35 tokens each
TOKENS_PER_WORD = 1.35
START_UP = "from rehearsal import canned\n\ncanned.install()\n"


class CannedEngine:
    """Fake engine: a verdict, a prompt or a response, by what is asked for and by the request's seed."""

    def generate(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[Completion]:
        return [self._said(c, max_tokens, s) for c, s in zip(conversations, seeds, strict=True)]

    def _said(self, conversation: Conversation, max_tokens: int, seed: int) -> Completion:
        asked, most = conversation.messages[-1]["content"], int(max_tokens / TOKENS_PER_WORD)
        if RANKING in asked:
            first = _draw(conversation, seed).choice((1, 2))
            said = f"{RANKING} {first} > {3 - first}"
        elif MARK in asked + conversation.prefill:
            draw = _draw(conversation, seed)
            said = text(draw, min(most, draw.randint(*PROMPT)))
            said = said if conversation.prefill else f"{MARK} {said}"
        else:
            draw = random.Random(seed)
            said = text(draw, min(most, draw.randint(*RESPONSE)))
        tokens = int(TOKENS_PER_WORD * (1 + said.count(" ")))
        TOKENS["written"] += tokens
        return Completion(said, True, len(asked) // 4, tokens)

    def label_logprobs(self, conversations: Sequence[Conversation], labels: tuple[str, ...]) -> list[tuple[float, ...]]:
        draws = [_draw(c, 0) for c in conversations]
        return [tuple(-draw.random() for _ in labels) for draw in draws]

    def completion_logprobs(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> list[list[float]]:
        return [[-random.Random(y).random()] * (1 + y.count(" ")) for y in completions]

    def close(self) -> None: ...


def _draw(conversation: Conversation, seed: int) -> random.Random:
    return random.Random(digest([list(conversation.messages), seed]))


def canned_training(run: Run, settings: Train) -> None:
    """Stands for `train.launch`: rows are loaded and dealt out as by the trainer, and nothing is learnt from them.

    What later stages read is written: metrics.jsonl, samples.jsonl, held_out.json, attention.json and model/.
    """
    from sao_lib.engines.models import resolve
    from sao_lib.method import batches, trainer

    alone: Any = SimpleNamespace(process_index=0, world_size=1)
    rows, held_out = trainer.load_rows(run, alone)
    order = list(batches.SortedInSteps(batches.lengths(rows), settings.global_batch, run.params["seed"]))
    steps = math.ceil(len(order) * settings.epochs / settings.global_batch)
    progress = Progress(run.folder, "step", steps, unit="steps")
    progress.update(steps)
    keys = ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected", "grad_norm")
    write_rows(run.folder / "metrics.jsonl", ({"step": n + 1, **dict.fromkeys(keys, 0.5)} for n in range(steps)))
    said = [{"step": step, "prompt": n, "text": "Canned.", "tokens": 2}
            for step in (0, steps) for n in range(settings.samples)]  # fmt: skip
    write_rows(run.folder / "samples.jsonl", said)
    write_atomic(run.folder / "attention.json", json.dumps({"asked": settings.attention, "used": "none"}))
    shutil.copytree(resolve(run.policy_model), run.folder / "model", dirs_exist_ok=True)
    write_atomic(run.folder / "held_out.json", json.dumps([random.Random(n).gauss(0, 1) for n in range(len(held_out))]))
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)


def install() -> None:
    """Put both in place of the real ones, in this process; an API is asked as it is, and is a fake of its own."""
    from sao_lib import engines
    from sao_lib.method import train

    start = engines._start

    def start_canned(model: str, *given: Any) -> Any:
        return start(model, *given) if model.startswith("openai/") else CannedEngine()

    setattr(engines, "_start", start_canned)  # noqa: B010
    setattr(train, "launch", canned_training)  # noqa: B010


def start_up(folder: Path) -> dict[str, str]:
    """The environment in which every kernel installs what is canned; its IPython looks into `folder`."""
    file = folder / "profile_default" / "startup" / "canned.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(START_UP)
    return {"IPYTHONDIR": str(folder)}
