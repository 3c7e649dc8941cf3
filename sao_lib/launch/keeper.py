"""What a command starts ends with it, whoever is killed: `python keeper.py FD COMMAND ...`.

vLLM's engine and workers are processes of their own: they outlive a killed notebook and keep their card, as what a
killed command had others start outlives it. So a keeper stands between a command and what it starts. Orphans fall to it
(it is a child subreaper, which Linux alone has), and it leaves the command's session, so that what is killed with the
command's process group is not the keeper. It ends orphans when it finds them, and everything below it when the end of a
pipe that the command holds is gone. The command does so where the keeper is killed.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LOOK = 1.0  # seconds between two looks for orphans
GRACE = 20.0  # seconds in which an interrupted command may end by itself
KEEPER = "SAO_KEEPER"  # in the environment of what a keeper keeps: its process id
SUBREAPER, IS_SUBREAPER, DEATH_SIGNAL = 36, 37, 1  # PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER, PR_SET_PDEATHSIG


def is_kept() -> bool:
    """Whether this process lies below a keeper."""
    return Path(f"/proc/{os.environ.get(KEEPER)}").exists()


@contextlib.contextmanager
def kept(command: Sequence[str], **how: Any) -> Iterator["subprocess.Popen[str]"]:
    """`command`, started with subprocess.Popen's arguments `how` below a keeper; with the body all below it ends.

    Without Linux there is no keeper and the command alone ends.
    """
    if sys.platform != "linux":
        with subprocess.Popen(command, text=True, **how) as process:
            yield process
        return
    was = _is_subreaper()
    _set(SUBREAPER, 1)
    try:
        yield from _kept(command, how)
    finally:  # else orphans of commands without a keeper would come here later, and nobody would bury them
        _set(SUBREAPER, was)


def _kept(command: Sequence[str], how: dict[str, Any]) -> Iterator["subprocess.Popen[str]"]:
    others = set(_alive().get(os.getpid(), []))
    reader, writer = os.pipe()
    words = [sys.executable, "-P", "-S", __file__, str(reader), *command]
    with subprocess.Popen(words, pass_fds=[reader], text=True, **how) as process:
        os.close(reader)
        try:
            yield process
        except KeyboardInterrupt:  # the command got it too
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            raise
        finally:
            os.close(writer)
    if process.returncode == -signal.SIGKILL:
        _end(set(_alive().get(os.getpid(), [])) - others)


def main(words: Sequence[str]) -> int:
    """Start the command, wait for its end or for that of whoever gave it, and end what is left."""
    reader, command = int(words[0]), words[1:]
    me = os.getpid()
    _set(SUBREAPER, 1)
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells the command as well

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN if interrupted == signal.SIG_IGN else signal.SIG_DFL)
        _set(DEATH_SIGNAL, signal.SIGKILL)

    process = subprocess.Popen(command, env={**os.environ, KEEPER: str(me)}, preexec_fn=prepare)
    with contextlib.suppress(OSError):
        os.setsid()  # after the command, which stays in the group that its terminal interrupts
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while process.poll() is None and not select.select([reader], [], [], LOOK)[0]:
        _end(set(_alive().get(me, [])) - {process.pid})
    _end(set(_alive().get(me, [])))
    code = process.wait()
    _end(set(_alive().get(me, [])))  # what was still its child when it ended just now
    ends = time.monotonic() + GRACE
    with contextlib.suppress(ChildProcessError):  # raised when none is left; else the command would keep zombies
        while time.monotonic() < ends:
            os.waitpid(-1, os.WNOHANG)
            time.sleep(0.02)
    return code if code >= 0 else 128 - code


def _set(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def _is_subreaper() -> int:
    found = ctypes.c_int()
    ctypes.CDLL(None).prctl(IS_SUBREAPER, ctypes.byref(found))
    return found.value


def _alive() -> dict[int, list[int]]:
    """Processes by their parent; one that has ended and only waits to be noticed is none."""
    found = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(parent)].append(int(stat.parent.name))
    return found


def _end(ancestors: set[int]) -> None:
    """Kill -9 these processes and all that descends from them, again and again until none is left."""
    ours = set(ancestors)
    while ours:
        children = _alive()
        waiting = list(ours)
        while waiting:
            new = set(children.get(waiting.pop(), [])) - ours
            ours |= new
            waiting += new
        ours &= {pid for of in children.values() for pid in of}
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
