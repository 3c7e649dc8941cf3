"""A notebook kernel that executes notebooks one after another: imports and an engine stay, names and figures do not."""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

from jupyter_core.utils import run_sync

from sao_lib.settings import ROOT
from sao_lib.writers import STARTED_BY

ENVIRONMENT = {  # nothing leaves the machine, and notebooks stay readable
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONWARNINGS": "ignore",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
EMPTY = "from sao_lib.launch.kernel import empty; empty()"
CLOSE = "from sao_lib.engines import close_kept; close_kept()"


class Kernel:
    """One kernel process. `manager()` is papermill's `km`: a running kernel in which nothing has been defined yet.

    The manager is an asynchronous one: waiting for a message through the other, papermill sees no kernel die.
    `variables` of the environment are set for it beside ours.
    """

    def __init__(self, variables: dict[str, str] | None = None) -> None:
        self._manager: Any = None
        self._code = 0.0
        self.variables = variables or {}

    def manager(self) -> Any:
        """The kernel's manager; a kernel that has died, or imported what has changed since, is started anew."""
        if self._alive() and self._code == _written():
            self._do(EMPTY)
        else:
            self.close(interrupted=False)
            self._start()
        return self._manager

    def _start(self) -> None:
        from jupyter_client.manager import AsyncKernelManager

        environment = {
            **os.environ,
            **ENVIRONMENT,
            **self.variables,
            STARTED_BY: str(os.getpid()),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        self._code = _written()
        self._manager = AsyncKernelManager(kernel_name="python3")
        run_sync(self._manager.start_kernel)(cwd=str(ROOT), env=environment)

    def _alive(self) -> bool:
        return bool(self._manager and run_sync(self._manager.is_alive)())

    def _do(self, code: str) -> None:
        """Run a line in the kernel without a trace in any notebook; whatever becomes of it."""
        client = self._manager.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            client.execute_interactive(code, silent=True, store_history=False, output_hook=lambda _: None, timeout=120)
        finally:
            client.stop_channels()

    def close(self, interrupted: bool) -> None:
        """End the process, its engine first, unless it is in the middle of a cell."""
        if not self._manager:
            return
        with contextlib.suppress(RuntimeError, TimeoutError):
            if not interrupted and self._alive():
                self._do(CLOSE)
        run_sync(self._manager.shutdown_kernel)(now=True)


def _written() -> float:
    """When the library's code was last written."""
    return max(file.stat().st_mtime for file in (ROOT / "sao_lib").rglob("*.py"))


@contextlib.contextmanager
def one_kernel() -> Iterator[Kernel]:
    """A kernel for the notebooks executed in the body, started with the first."""
    kernel = Kernel()
    try:
        yield kernel
    except BaseException:
        kernel.close(interrupted=True)
        raise
    kernel.close(interrupted=False)


def empty() -> None:
    """In the kernel: forget what the last notebook defined, drew and counted."""
    from IPython import get_ipython

    if "matplotlib" in sys.modules:
        import matplotlib
        import matplotlib.pyplot as plt

        plt.close("all")
        matplotlib.rc_file_defaults()
    get_ipython().reset(new_session=True)
    for name in ("last_traceback", "last_value", "last_exc"):  # a cell that failed: they hold all that it had
        sys.__dict__.pop(name, None)
    if "sao_lib.engines" in sys.modules:
        from sao_lib.engines import close_left

        close_left()
    gc.collect()
