"""`make lab`: JupyterLab on the whole repository, for this machine only, at the first notebook."""

import os
import sys
from pathlib import Path

from sao_lib.launch.kernel import ENVIRONMENT
from sao_lib.settings import ROOT

FIRST = "notebooks/00_start_here.ipynb"
CONFIGURATION = Path(__file__).with_name("jupyter")  # without the question whether one wants news
SHOWS = ("TQDM_DISABLE",)  # of what keeps executed notebooks readable: who runs a cell by hand wants to see it move


def command() -> list[str]:
    """JupyterLab's command line. It makes a token of its own, and asks no server for news or updates."""
    options = {
        "ServerApp.root_dir": str(ROOT),
        "ServerApp.ip": "127.0.0.1",
        "LabApp.default_url": f"/lab/tree/{FIRST}",
        "LabApp.news_url": "None",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
    }
    root = ["--allow-root"] if os.geteuid() == 0 else []  # a container's only user
    return [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items()), *root]


def environment() -> dict[str, str]:
    """What the server and its kernels get: this environment's Python and library, and libraries that are quiet."""
    quiet = {name: value for name, value in ENVIRONMENT.items() if name not in SHOWS}
    first = {"PYTHONPATH": ROOT, "JUPYTER_CONFIG_PATH": CONFIGURATION}
    paths = {name: f"{path}{os.pathsep}{os.environ.get(name, '')}".rstrip(os.pathsep) for name, path in first.items()}
    return {**os.environ, **quiet, **paths, "JUPYTER_PREFER_ENV_PATH": "1"}


def lab() -> None:
    """Become JupyterLab."""
    os.chdir(ROOT)
    os.execve(sys.executable, command(), environment())
