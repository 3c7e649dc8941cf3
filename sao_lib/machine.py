"""What this machine has, and has free within the limits of a container: cores, idle share, memory, GPUs."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # Linux alone has it
# Limit, use, and the statistic of the file cache that the kernel gives back first, in cgroups of version 2 and 1.
MEMORY = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def cores() -> int:
    """Cores that this process may use at once: by its affinity and its container's quota, rounded up."""
    import joblib  # comes with scikit-learn

    return int(joblib.cpu_count())


def multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has instructions for products of bfloat16; without, these take several times float32's time.

    False where nothing can be read, as on macOS, whose build of torch has no such kernels.
    """
    try:
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return False
    return bool(flags and {"avx512_bf16", "amx_bf16", "bf16"} & set(flags[1].split()))


# Sections of a profile without GPUs, which are laid over the rest of it on a machine for which this holds.
SECTIONS: dict[str, Callable[[], bool]] = {
    "without_vllm": lambda: find_spec("vllm") is None,
    "without_bf16": lambda: not multiplies_bf16(),
}


def has_gpu() -> bool:
    """Whether torch sees a GPU; the one place that asks. CUDA stays uninitialised, see `sao_lib`."""
    import torch

    return bool(torch.cuda.is_available())


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count() if has_gpu() else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(count)] if count else []


def idle_share(seconds: float = 1.0) -> float:
    """Share of processor time that nobody used in the last moment; the load average lags by minutes."""
    import psutil  # comes with accelerate

    try:
        return 1 - psutil.cpu_percent(seconds) / 100
    except OSError:  # Linux without /proc
        return 1.0


def available_gib(cgroup: Path = CGROUP) -> float:
    """GiB of memory that can still be had: of the machine's, and of the container's limit if that leaves less.

    Where neither can be read (Linux without /proc): 16.
    """
    import psutil

    room: list[float] = []
    with suppress(OSError):
        room.append(psutil.virtual_memory().available / 2**30)
    for limit, used, stat, cache in MEMORY:
        if (cgroup / limit).exists() and (most := (cgroup / limit).read_text().strip()) != "max":
            # A container that has read its weights is full of file cache, and yet has memory.
            lines = dict(line.split() for line in (cgroup / stat).read_text().splitlines())
            taken = int((cgroup / used).read_text()) - int(lines.get(cache, 0))
            room.append((int(most) - taken) / 2**30)
    return max(0.0, min(room, default=16.0))
