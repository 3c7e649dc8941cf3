"""Do one run: papermill executes the stage's notebook, the terminal shows where it is."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from sao_lib import writers
from sao_lib.errors import Killed, SaoError, masked, visible
from sao_lib.files import append_rows, write_atomic
from sao_lib.launch.kernel import Kernel
from sao_lib.progress import LOG, clock
from sao_lib.runs import LOCK, MANIFEST, NOTEBOOK, OUTPUTS, PENDING, Run, clear, conclude
from sao_lib.settings import ROOT, notebook_of


def execute(folder: Path, kernel: Kernel, label: str = "") -> None:
    """Execute the run in `folder` unless it has finished; two callers asked for the same run do it once.

    Raises SaoError with one sentence when it fails. What it wrote until then stays and is continued.
    """
    with FileLock(folder / LOCK):
        if (folder / MANIFEST).is_file():
            return
        writers.wait_for_writers(folder)
        clear(folder)
        run = Run.open(folder / "spec.yaml")
        shown = f"{label}{run.spec['stage']}/{run.spec['name']}"
        print(f"{shown}: started", flush=True)
        start = time.monotonic()
        with _following(folder / LOG, shown):
            _papermill(run, kernel)
        seconds = time.monotonic() - start
        if not (folder / PENDING).is_file():
            raise SaoError(f"{shown}: the notebook ended without writing a manifest; see {folder}/notebook.ipynb.")
        conclude(folder)  # the very last
        append_rows(
            OUTPUTS / run.spec["profile"] / "done.jsonl", [{"run": str(folder.name), "seconds": round(seconds, 1)}]
        )
        print(f"{shown}: done in {clock(seconds)}", flush=True)


def _papermill(run: Run, kernel: Kernel) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    notebook = ROOT / "notebooks" / f"{notebook_of(run.spec)}.ipynb"
    scratch, final = run.folder / "notebook.tmp.ipynb", run.folder / NOTEBOOK
    try:
        papermill.execute_notebook(
            str(notebook),
            str(scratch),
            parameters={"spec": str(run.folder / "spec.yaml")},
            kernel_name="python3",
            progress_bar=False,
            km=kernel.manager(),
        )
    except DeadKernelError:
        raise Killed(
            f"{run.spec['stage']}/{run.spec['name']}: its process was ended from outside, perhaps for memory; what it "
            "wrote is kept, run the same command to continue."
        ) from None
    except PapermillExecutionError as error:
        failed = run.folder / "notebook.failed.ipynb"
        _to_be_shared(scratch)
        scratch.replace(failed)
        if error.ename == "SaoError":
            raise SaoError(error.evalue) from None
        said = f"{error.ename}: {masked(error.evalue)[:300]}"
        raise SaoError(
            f"{run.spec['stage']}/{run.spec['name']} failed in cell {error.exec_count}: {said} "
            f"The notebook with the traceback is {failed}; run the same command to try again."
        ) from None
    _to_be_shared(scratch)
    scratch.replace(final)


def _to_be_shared(notebook: Path) -> None:
    """Executed notebooks are shared: paths of this machine are cut down to the repository, keys are masked."""
    text = notebook.read_text(encoding="utf-8")
    write_atomic(notebook, masked(text.replace(json.dumps(str(ROOT))[1:-1] + "/", "")))


@contextmanager
def _following(log: Path, shown: str, every: float = 5.0) -> Iterator[None]:
    """Print the newest line of `log` now and then while the body runs."""
    ended = threading.Event()
    at = log.stat().st_size if log.exists() else 0

    def follow(position: int) -> None:
        while not ended.wait(every):
            if log.exists() and log.stat().st_size > position:
                with log.open() as file:
                    file.seek(position)
                    lines = file.read().strip().splitlines()
                    position = file.tell()
                if lines:
                    print(f"{shown}: {visible(masked(lines[-1]))}", flush=True)

    thread = threading.Thread(target=follow, args=(at,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
