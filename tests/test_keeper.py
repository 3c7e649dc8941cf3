"""Nothing that a command starts outlives it, whoever of them is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sao_lib.launch import keeper
from sao_lib.settings import ROOT

# As on GPUs: a command starts a kernel in a session of its own, the kernel an engine, the engine a worker.
TREE = """
import json, os, subprocess, sys, time
role, folder = sys.argv[1:]
below = {"command": "kernel", "kernel": "engine", "engine": "worker"}.get(role)
if below:
    subprocess.Popen([sys.executable, __file__, below, folder], start_new_session=role != "kernel")
open(f"{folder}/{role}.tmp", "w").write(str(os.getpid()))
os.rename(f"{folder}/{role}.tmp", f"{folder}/{role}")
time.sleep(600)
"""
CALLER = "import sys; from sao_lib.launch.keeper import kept\nwith kept(sys.argv[1:]) as process: process.wait()"
ROLES = ("command", "kernel", "engine", "worker")


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, psutil.Process]:
    """The caller and all that it has started, by role."""
    script = tmp_path / "tree.py"
    script.write_text(TREE)
    words = [sys.executable, "-c", CALLER, sys.executable, str(script), "command", str(tmp_path)]
    caller = psutil.Process(subprocess.Popen(words, cwd=ROOT, start_new_session=True).pid)
    until = time.monotonic() + 60
    while not all((tmp_path / role).exists() for role in ROLES):
        assert time.monotonic() < until
        time.sleep(0.05)
    found = {role: psutil.Process(int((tmp_path / role).read_text())) for role in ROLES}
    return {"caller": caller, "keeper": found["command"].parent(), **found}


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def gone(processes: list[psutil.Process], seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while alive(processes) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(processes)


@pytest.mark.parametrize("killed", ["caller", "group", "keeper", "command"])
def test_all_that_a_killed_command_started_ends(tree: dict[str, psutil.Process], killed: str) -> None:
    if killed == "group":
        assert {os.getpgid(tree[name].pid) for name in ("caller", "command")} == {tree["caller"].pid}
        os.killpg(tree["caller"].pid, signal.SIGKILL)
    else:
        tree[killed].kill()
    assert gone(list(tree.values()))


def test_what_a_killed_kernel_leaves_ends_and_the_command_goes_on(tree: dict[str, psutil.Process]) -> None:
    tree["kernel"].kill()
    assert gone([tree[name] for name in ("kernel", "engine", "worker")])
    assert len(alive([tree[name] for name in ("caller", "keeper", "command")])) == 3
    tree["caller"].kill()
    assert gone(list(tree.values()))


@pytest.mark.parametrize(
    ("code", "seen"), [("pass", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 15)", 143)]
)
def test_a_command_ends_as_it_would_alone(code: str, seen: int) -> None:
    with keeper.kept([sys.executable, "-c", f"{code}"], stdout=subprocess.PIPE) as process:
        assert process.wait() == seen


def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"
    with keeper.kept([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        said = process.stdout.readline() if process.stdout else ""
    assert gone([psutil.Process(int(said))] if psutil.pid_exists(int(said)) else [])


def test_an_interruption_reaches_the_command_which_ends_as_it_likes(tmp_path: Path) -> None:
    code = f"""
import time, pathlib
try:
    pathlib.Path({str(tmp_path / "up")!r}).touch(); time.sleep(600)
except KeyboardInterrupt:
    time.sleep(0.5); pathlib.Path({str(tmp_path / "said")!r}).touch()
"""
    words = [sys.executable, "-c", CALLER, sys.executable, "-c", code]
    process = subprocess.Popen(
        words, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(30)
    assert (tmp_path / "said").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
def test_orphans_of_later_commands_do_not_come_to_who_once_kept_one() -> None:
    """Else nobody buries them: SLURM, which waits until a job's processes are gone, waits for ever."""
    with keeper.kept([sys.executable, "-c", "pass"], stdout=subprocess.PIPE) as process:
        process.wait()
    orphan = "import subprocess; print(subprocess.Popen(['sleep', '5']).pid)"
    said = subprocess.run([sys.executable, "-c", orphan], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert psutil.Process(int(said)).ppid() != os.getpid()
