"""One writer a run: no process goes on writing into a folder when the command that started it has ended.

A command's own process holds the run's lock. The kernel and the trainers, which do the writing, hold the run's writing
lock besides, for as long as they live: the next command begins when the last of them is gone.
"""

import ctypes
import fcntl
import os
import signal
import sys
from pathlib import Path

STARTED_BY = "SAO_STARTED_BY"  # in the environment: the process whose end ends this one too
WRITING = ".writing"

_held: tuple[Path, int] | None = None  # the folder that this process writes into, and its writing lock


def die_with_parent() -> None:
    """Let the system kill this process when the one that started it is killed, so that no orphan goes on writing.

    Does nothing unless the environment's SAO_STARTED_BY names the process that started it, directly or through others.
    Ends this process at once where that one is gone: a dead process has no children, whether or not it was reaped.
    """
    starter = os.environ.get(STARTED_BY)
    if starter and sys.platform == "linux":
        watch_parent()
        if int(starter) not in _ancestors():
            os._exit(1)  # it was killed before we asked


def watch_parent() -> None:
    """Let the system kill this process when its parent ends; Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def _ancestors() -> list[int]:
    """Processes from this one's parent up to the first; the chain of a process whose starter died does not name it."""
    found, process = [], os.getppid()
    while process > 0:
        found.append(process)
        try:
            said = Path(f"/proc/{process}/stat").read_text()
        except OSError:  # gone meanwhile
            break
        process = int(said.rpartition(")")[2].split()[1])
    return found


def hold(folder: Path) -> None:
    """Say that this process, a kernel or a trainer, writes into `folder` from now on and into no other."""
    global _held
    if _held and _held[0] == folder:
        return
    if _held:
        fcntl.flock(_held[1], fcntl.LOCK_UN)  # closing would not do: an engine that was forked has it open too
        os.close(_held[1])
    lock = os.open(folder / WRITING, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(lock, fcntl.LOCK_SH)  # shared: a kernel and its trainers write together
    _held = folder, lock


def wait_for_writers(folder: Path) -> None:
    """Return when no process of an earlier command writes into `folder` any more; say so if that takes time."""
    lock = os.open(folder / WRITING, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder.name}: waiting for a process of an earlier command that still writes there", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(lock)
