"""Commands that a test interrupts as a terminal does: `os.killpg(process.pid, signal.SIGINT)`."""

import os
import signal
import subprocess
import sys

from sao_lib.settings import ROOT


def start(words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """`python -m sao_lib` with `words`, in a process group of its own; `environment` is added to this process's."""
    return subprocess.Popen(
        [sys.executable, "-m", "sao_lib", *words],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
