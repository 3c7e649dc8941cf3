"""What a rehearsal changes in a profile, each with its reason: as little as a CPU and a stated time leave possible."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sao_lib.evaluate.instruments import simple_parts
from sao_lib.machine import cores, idle_share
from sao_lib.method.readings import BY_EMBEDDINGS
from sao_lib.settings import Settings

STEPS = 1  # of the optimiser: 128 pairs, two seconds each on a core
SLOW, RANDOM = "a CPU's time", "a random model"  # why most things are changed
# Seconds on two free cores: of a walk and of its rows of pairs, of a count without rows and of its thousands. From the
# rehearsals of 2026-11-28 (docs/reliability.md), which ran beside each other: by what was free of the cores, so rough.
# A profile of one card walks in two thirds of the time.
WALK, A_ROW = 1400.0, 0.45
COUNT, A_THOUSAND = 190.0, 8.5
LEAST = 0.25  # of the two cores, beside others' work
COPY_GIB = 2.5  # of a copy of vLLM with its own processes
PROMPT, RESPONSE, SAMPLE = 48, 64, 16  # tokens


@dataclass(frozen=True)
class Change:
    """A parameter that is other than the profile's, as `SET` takes it."""

    key: str
    was: Any
    value: Any
    why: str

    @property
    def assignment(self) -> str:
        return f"{self.key}={json.dumps(self.value)}"

    def __str__(self) -> str:
        return f"{self.key}: {_plain(self.was)} -> {_plain(self.value)} ({self.why})"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def takes(settings: Settings, asked: Sequence[int], only: str | None) -> float:
    """Seconds on two free cores of a walk with the fewest rows and of the counts of `asked`, or of `only` one part."""
    walk = WALK + A_ROW * rows_of_walk(settings, 0)
    return walk * (only != "count") + sum(COUNT + A_THOUSAND * rows / 1000 for rows in asked) * (only != "walk")


def free() -> float:
    """The part of the two cores behind the seconds above that is free here now: at most all, and no less than LEAST.

    Beside others' work a process still gets its share of a core.
    """
    return min(1.0, max(LEAST, cores() * idle_share() / 2))


def changed(settings: Settings, wanted: dict[str, tuple[Any, str]]) -> list[Change]:
    """Those of `wanted`, value and reason by key, that differ from `settings`."""
    found = []
    for key, (value, why) in wanted.items():
        was: Any = settings
        for part in key.split("."):
            was = getattr(was, part)
        if was != value:
            found.append(Change(key, was, value, why))
    return found


def rows_of_walk(settings: Settings, seconds: float) -> int:
    """Rows of synthesis that a walk of so many seconds has time for, and no fewer than its training needs."""
    s, t = settings.synthesize, settings.train
    needed = math.ceil(1.25 * (STEPS * t.global_batch + _held_out(settings)))
    return min(s.n, max(needed, int((seconds - WALK) / A_ROW)))


def _held_out(settings: Settings) -> int:
    return min(settings.train.held_out, 32)


def of_walk(settings: Settings, seconds: float, memory_gib: float) -> list[Change]:
    """For the walk: real engines and trainings with tiny random models."""
    s, t, e = settings.synthesize, settings.train, settings.evaluate
    rows = rows_of_walk(settings, seconds)
    wanted: dict[str, tuple[Any, str]] = {
        "machine.jobs": (1, "one run at a time, so that memory is one stage's"),
        "synthesize.n": (rows, "LIMIT"),
        "synthesize.chunk": (min(s.chunk, math.ceil(rows / 3)), "as many chunks as the paper's rows would have, or 3"),
        "synthesize.filter": ("log", f"{RANDOM} writes no prompt without a fault"),
        "synthesize.max_prompt_tokens": (min(s.max_prompt_tokens, PROMPT), SLOW),
        "synthesize.max_response_tokens": (min(s.max_response_tokens, RESPONSE), SLOW),
        "synthesize.sentences": (None, f"{RANDOM} writes no sentences"),
        "judge.audit_questions": (min(settings.judge.audit_questions, 4), SLOW),
        "train.pairs": (min(t.pairs or rows, STEPS * t.global_batch), SLOW),
        "train.held_out": (_held_out(settings), SLOW),
        "train.min_completion": (1, f"what {RANDOM} writes may be few tokens when it is read again"),
        "train.threads": (1, "more processes than cores"),
        "train.sample_tokens": (min(t.sample_tokens, SAMPLE), SLOW),
        "train.sample_every": (t.sample_every and 1, "so that one falls into the steps"),
        "train.save_steps": (t.save_steps and 1, "so that a checkpoint falls into the steps"),
        "evaluate.max_tokens": (min(e.max_tokens, RESPONSE), SLOW),
        "evaluate.gold_questions": (min(e.gold_questions, 6), SLOW),
    }
    if settings.judge.reading == "text":
        wanted["judge.reading"] = ("logprob", f"{RANDOM} writes no verdict")
    if (judge := e.judge_engine) and judge.tensor_parallel > 1 and not judge.options:
        spread = {"tensor_parallel_size": judge.tensor_parallel}
        wanted["evaluate.judge_engine.options"] = (spread, "on a CPU the suite itself spreads no model")
    if copies := _copies(settings, memory_gib):
        wanted["engine.data_parallel"] = (copies, f"{memory_gib:.0f} GiB of memory are free")
    return changed(settings, wanted | dict(_random_judge(settings)))


def _random_judge(settings: Settings) -> Iterator[tuple[str, tuple[Any, str]]]:
    """A judge without sense is refused after enough labelled questions; embeddings are real here and have some."""
    if any(name not in BY_EMBEDDINGS for name in simple_parts(settings.evaluate.judges)):
        few = min(settings.evaluate.labelled_questions, 4)
        yield "evaluate.labelled_questions", (few, f"after more, {RANDOM} would be refused as a judge, rightly")


def _copies(settings: Settings, memory_gib: float) -> int | None:
    """How many copies of an engine there is memory for; None where all that are asked for fit."""
    room = max(1, int(memory_gib // COPY_GIB))
    return room if room < settings.engine.data_parallel else None


def of_count(settings: Settings, rows: int) -> list[Change]:
    """For a count of `rows` with canned texts: nothing else is shrunk, but for what does not grow with the rows."""
    t, e = settings.train, settings.evaluate
    few = rows < t.held_out + t.global_batch
    wanted: dict[str, tuple[Any, str]] = {
        "machine.jobs": (1, "one run at a time, so that memory is one stage's"),
        "synthesize.n": (rows, "the rows that are counted"),
        "synthesize.pairs": (None, "all rows"),
        "synthesize.filter": ("log", "all rows"),
        "train.pairs": (None, "all rows"),
        "train.held_out": (rows // 8 if few else t.held_out, "few rows"),
        "train.global_batch": (t.micro_batch * t.processes if few else t.global_batch, "few rows"),
        "evaluate.n": (min(e.n, rows) if few else e.n, "few rows"),
        "evaluate.gold_questions": (min(e.gold_questions, 4) if few else e.gold_questions, "few rows"),
    }
    return changed(settings, wanted | dict(_random_judge(settings)))


def counts_in(sizes: list[int], seconds: float) -> tuple[list[int], list[int]]:
    """The sizes that so many seconds suffice for, from the smallest on, and the others."""
    kept: list[int] = []
    for size in sorted(sizes):
        seconds -= COUNT + A_THOUSAND * size / 1000
        if seconds < 0 and kept:
            break
        kept.append(size)
    return kept, [size for size in sorted(sizes) if size not in kept]
