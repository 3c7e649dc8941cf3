"""What a machine has free, within the limits of a container: cgroup folders as the kernel writes them, made here."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sao_lib import machine
from sao_lib.launch import graph
from sao_lib.plan import cost, summary
from sao_lib.settings import Settings

GIB = 2**30


def files(folder: Path, contents: dict[str, object]) -> Path:
    """`folder` with these files in it."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content}\n")
    return folder


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 32 GiB available."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=32 * GIB))


def version2(folder: Path, limit: object, used: int, cache: int) -> Path:
    stat = f"anon {used - cache}\ninactive_file {cache}"
    return files(folder, {"memory.max": limit, "memory.current": used, "memory.stat": stat})


@pytest.mark.usefixtures("free")
def test_a_machine_without_a_limit_has_what_the_kernel_says(tmp_path: Path) -> None:
    assert machine.available_gib(tmp_path / "none") == 32
    assert machine.available_gib(version2(tmp_path / "two", "max", GIB, 0)) == 32


@pytest.mark.usefixtures("free")
def test_a_containers_limit_counts_and_its_file_cache_does_not(tmp_path: Path) -> None:
    assert machine.available_gib(version2(tmp_path / "a", 8 * GIB, 3 * GIB, 0)) == 5
    assert machine.available_gib(version2(tmp_path / "b", 8 * GIB, 7 * GIB, 4 * GIB)) == 5
    assert machine.available_gib(version2(tmp_path / "c", 99 * GIB, GIB, 0)) == 32
    assert machine.available_gib(version2(tmp_path / "d", GIB, 2 * GIB, 0)) == 0


@pytest.mark.usefixtures("free")
def test_the_older_cgroups_are_read_too(tmp_path: Path) -> None:
    for limit, left in ((8 * GIB, 6), (9223372036854771712, 32)):  # the latter: no limit
        stat = f"inactive_file 5\ntotal_inactive_file {GIB}"
        names = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat")
        folder = files(tmp_path, dict(zip(names, (limit, 3 * GIB, stat), strict=True)))
        assert machine.available_gib(folder) == left


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil reads no /proc")
def test_without_proc_a_machine_is_taken_for_idle_and_of_16_gib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert machine.idle_share(0.01) == 1
    assert machine.available_gib(tmp_path) == 16
    monkeypatch.undo()
    assert 0 <= machine.idle_share(0.01) <= 1
    assert machine.available_gib(tmp_path) != 16


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cores_are_those_that_this_process_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from sao_lib import machine"
    said = subprocess.check_output([sys.executable, "-c", f"{code}; print(machine.cores())"], text=True)
    assert said.strip() == "1"


def test_no_more_jobs_start_than_the_container_has_room_for(cpu: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    monkeypatch.setattr(graph, "idle_share", lambda: 1.0)
    monkeypatch.setattr(graph, "available_gib", lambda: 100.0)
    assert graph.jobs_at_once(cpu.machine) == (3, "3 cores, 3 of them idle, memory for 22")
    assert "3 at once" in summary._clock_and_rent(cost.devices_of("cpu")[0], 1.0, cpu.machine)
    monkeypatch.setattr(graph, "available_gib", lambda: 2 * cpu.machine.memory_gib + graph.SPARE_GIB)
    assert graph.jobs_at_once(cpu.machine)[0] == 2
