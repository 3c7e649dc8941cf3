"""Runs that one process does in turn: of one stage and model, none of which needs another.

Kernel, imports and engine are then started once. What a run is, where it lies and when it is done does not change.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from sao_lib.evaluate.instruments import simple_parts
from sao_lib.files import digest
from sao_lib.method.feedback import SOURCES
from sao_lib.method.readings import BY_EMBEDDINGS
from sao_lib.method.rewards import RELEVANCE_MODEL
from sao_lib.plan.chain import Planned
from sao_lib.settings import Machine

Group = list[Planned]


def groups(runs: Sequence[Planned], machine: Machine, at_once: int | None = None) -> list[Group]:
    """`runs`, each in one group, groups in an order in which they can be done.

    No group is larger than the machine's cap, nor than its share of what can be done at the same time when `at_once`
    groups are done at once (None: a cluster does as many as it likes).
    """
    depths = _depths(runs)
    of_depth: dict[int, dict[Hashable, Group]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        of_depth[depths[run.folder]][_opens(run, machine)].append(run)
    made: list[Group] = []
    number: dict[str, int] = {}  # folder -> its group
    for depth in sorted(of_depth):
        alike = of_depth[depth].values()
        share = math.inf if at_once is None else math.ceil(sum(map(len, alike)) / at_once)
        for members in alike:
            most = int(min(_cap(members[0], machine), share))
            # Runs whose inputs come out of one group stay together, and need not wait for another's.
            members.sort(key=lambda run: max((number.get(i, -1) for i in run.inputs.values()), default=-1))
            for part in _parts(members, most):
                number |= {run.folder: len(made) for run in part}
                made.append(part)
    return made


def _cap(run: Planned, machine: Machine) -> int:
    need = machine.stages.get(run.spec["stage"])
    return (need and need.group) or machine.group


def _parts(members: Group, most: int) -> list[Group]:
    """`members` in parts of at most `most`, as equal as can be."""
    count = math.ceil(len(members) / most)
    cuts = [len(members) * n // count for n in range(count + 1)]
    return [members[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


def _depths(runs: Sequence[Planned]) -> dict[str, int]:
    """How many of `runs`, one after the other, each waits for; `runs` are in an order in which they can be done."""
    depths: dict[str, int] = {}
    for run in runs:
        depths[run.folder] = max((depths[i] + 1 for i in run.inputs.values() if i in depths), default=0)
    return depths


def _opens(run: Planned, machine: Machine) -> Hashable:
    """What runs of a group have in common: the stage, the model's shape and the settings that it is opened with."""
    stage, p = run.spec["stage"], run.spec["params"]
    if stage == "ablate":
        return (stage,)
    if stage == "train" and launched(p["train"], machine):
        return stage, run.folder  # has processes of its own
    held = on_a_card(run)  # a run that needs no card must not hold another's
    if stage == "judge" and not p["engine"]:
        return stage, held, None  # opens no engine
    section: Mapping[str, Any] = p.get(stage) or {}
    engine = section.get("engine") or section.get("judge_engine") or p.get("engine")
    return stage, held, model_of(run), digest(engine)


def model_of(run: Planned) -> str:
    """The model that a run works with above all: its judge's, its generator's or its policy's name."""
    p, stage = run.spec["params"], run.spec["stage"]
    section: Mapping[str, Any] = p.get(stage) or {}
    other = section.get("model") or section.get("judge_model") or (section.get("generator") or {}).get("model")
    return str(other or p["policy"]["model"])


def on_a_card(run: Planned) -> bool:
    """Whether the run opens a model on a card: no API's, and not the embeddings, which are read on the CPU."""
    stage, p = run.spec["stage"], run.spec["params"]
    if stage == "ablate" or (stage == "judge" and SOURCES[p["judge"]["source"]].opens is None):
        return False
    if stage == "evaluate" and all(name in BY_EMBEDDINGS for name in simple_parts(p["evaluate"]["judges"])):
        return False
    judges = stage in ("judge", "evaluate", "rating") or "prompts" in run.inputs  # no model but the judge or generator
    trained = "policy" in run.inputs and not judges
    return trained or not model_of(run).startswith(("openai/", RELEVANCE_MODEL))


def knows_one_card(run: Planned) -> bool:
    """Whether the run's work is on one card, however many its profile has: a reward model's, and lm-eval's."""
    stage, p = run.spec["stage"], run.spec["params"]
    return bool(stage == "leaderboard" or (stage == "judge" and SOURCES[p["judge"]["source"]].opens == "reward model"))


def launched(train: Mapping[str, Any], machine: Machine) -> bool:
    """Whether a training is started by a launcher, in processes of its own, and not by the notebook's."""
    return bool(machine.gpus or train["processes"] > 1 or train["deepspeed"])
