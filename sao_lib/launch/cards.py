"""The NVIDIA cards of this machine: which there are, whether they can be used, and who gets which.

On this machine every job takes the cards that its runs state out of a pool and sees no others; one that states none
sees none. On a cluster the scheduler does that. The pool is the machine's, so that two commands share it: a card is
held through a lock on a file, which ends with the process that holds it.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from sao_lib.errors import SaoError
from sao_lib.settings import Machine

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
DRIVERS = {"12": 525, "13": 580}  # the oldest driver that runs a major version of CUDA, by NVIDIA's release notes
SHARED_GIB = 1  # at /dev/shm for cards that exchange through it; containers have 64 MiB unless they are told
SHM = Path("/dev/shm")
REHEARSAL = "SAO_REHEARSAL"  # set: runs that state cards are done without any, to try all the rest on a CPU
ASK_TORCH = "import torch; print(torch.version.cuda, torch.cuda.device_count() if torch.cuda.is_available() else 0)"


@dataclass(frozen=True)
class Card:
    """One card as nvidia-smi says it: `number` is its own, `driver` that of the machine."""

    number: str
    name: str
    memory_gib: float
    driver: str
    uuid: str

    def __str__(self) -> str:
        return f"{self.name} of {self.memory_gib:.0f} GiB, driver {self.driver}"


def cards_here() -> list[Card]:
    """Every card that the machine has and CUDA_VISIBLE_DEVICES, where it is set, does not hide."""
    lines = _smi("--query-gpu=index,name,memory.total,driver_version,uuid")
    found = [Card(n, name, _gib(mib), driver, uuid) for n, name, mib, driver, uuid in lines]
    asked = os.environ.get(VISIBLE)
    if asked is None:
        return found
    named = [name.strip() for name in asked.split(",")]
    return [card for card in found if any(n == card.number or (n and card.uuid.startswith(n)) for n in named)]


def _gib(mib: str) -> float:
    """Of a card; one that shares the machine's memory has none of its own, and nvidia-smi says so in words."""
    try:
        return float(mib) / 1024
    except ValueError:
        return psutil.virtual_memory().total / 2**30


def strangers() -> list[str]:
    """A phrase for every process that holds memory of a card: which, how much, its number and its name."""
    of = {card.uuid: card.number for card in cards_here()}
    held = _smi("--query-compute-apps=gpu_uuid,used_memory,pid,process_name")
    return [f"card {of[uuid]}: {mib} MiB held by process {pid}, {name}" for uuid, mib, pid, name in held if uuid in of]


def _smi(query: str) -> list[list[str]]:
    if not shutil.which("nvidia-smi"):
        return []
    asked = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    out = subprocess.run(asked, capture_output=True, text=True, check=False)
    fields = query.count(",")
    lines = out.stdout.splitlines() if out.returncode == 0 else []
    return [[part.strip() for part in line.split(",", fields)] for line in lines if line.count(",") >= fields]


def missing(machine: Machine) -> list[str]:
    """What this machine lacks of the cards that a job of the profile needs, a phrase each; empty for a CPU profile.

    torch is asked as well as nvidia-smi: under a driver that is too old it finds no card and would train on the CPU.
    """
    if not machine.gpus:
        return []
    cards = cards_here()
    if len(cards) < machine.gpus:
        return [f"{machine.gpus} GPU(s), here {len(cards)}"]
    small = next((card for card in cards if card.memory_gib < machine.card_gib), None)
    lacks = [f"cards of {machine.card_gib:.0f} GiB or more (machine.card_gib), here {small}"] if small else []
    cuda, count = _torch(os.environ.get(VISIBLE))
    oldest = DRIVERS.get(cuda.split(".")[0], 0)
    if cuda == "None":
        lacks.append("a torch built for CUDA, which this environment lacks; `make setup` with this PROFILE installs it")
    elif _major(cards[0].driver) < oldest:
        lacks.append(f"driver {oldest} or newer for CUDA {cuda}, here {cards[0].driver}")
    elif count < machine.gpus:
        lacks.append(f"{machine.gpus} GPU(s) that torch can use, which finds {count} of the {len(cards)} here")
    shared = shutil.disk_usage(SHM).total / 2**30 if SHM.is_dir() else 0
    if machine.gpus > 1 and shared < SHARED_GIB:
        lacks.append(f"{SHARED_GIB} GiB at /dev/shm, here {shared:.2f}; start the container with --ipc=host")
    return lacks


def _major(driver: str) -> int:
    found = re.match(r"\d+", driver)
    return int(found[0]) if found else 0


@cache
def _torch(visible: str | None) -> tuple[str, int]:
    """The CUDA that torch was built with, and how many of the `visible` cards it can use; asked in another process.

    Asking starts CUDA, and what is forked from a process that has started it cannot use it.
    """
    plain = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "0"}
    out = subprocess.run([sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, env=plain, check=False)
    cuda, _, count = out.stdout.strip().partition(" ")
    return (cuda, int(count)) if count.isdecimal() else ("None", 0)


@contextlib.contextmanager
def held(count: int, pool: Sequence[str] | None) -> Iterator[None]:
    """In the body this process and what it starts see `count` cards of `pool`, waited for where others have them.

    `pool` None: the scheduler has chosen. Raises SaoError where the pool is smaller than `count`, and where cards are
    stated and torch finds none, so that nothing trains on a CPU by mistake.
    """
    before = {name: os.environ.get(name) for name in (VISIBLE, ORDER)}
    taken = _taken(count, pool) if count and pool is not None else {}
    try:
        if pool is not None:
            os.environ |= {VISIBLE: ",".join(taken), ORDER: "PCI_BUS_ID"}  # the order that numbers the pool
        if count and not os.environ.get(REHEARSAL) and (found := _torch(os.environ.get(VISIBLE))[1]) < count:
            raise SaoError(
                f"This run needs {count} GPU(s) and torch finds {found} on {os.uname().nodename}; `make doctor` there "
                "says why."
            )
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        for lock in taken.values():
            lock.release()


def _taken(count: int, pool: Sequence[str], pause: float = 2.0) -> dict[str, FileLock]:
    """`count` cards of the pool with their locks, all or none: of two that wait neither holds what both need."""
    if count > len(pool):
        raise SaoError(f"This run needs {count} GPU(s) and the command was given {len(pool)}.")
    folder, waiting = Path(tempfile.gettempdir()) / f"sao-cards-{os.getuid()}", False
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        found: dict[str, FileLock] = {}
        with FileLock(folder / "all.lock"):
            for name in pool:
                lock = FileLock(folder / f"{name}.lock", timeout=0)
                with contextlib.suppress(Timeout):
                    if len(found) < count:
                        lock.acquire()
                        found[name] = lock
            if len(found) == count:
                return found
            for lock in found.values():
                lock.release()
        if not waiting:
            print(f"Waiting for {count} GPU(s), which other runs hold.", flush=True)
        waiting = True
        time.sleep(pause)
