"""Shared fixtures. Engines and models here are real; what is fake says so in its name."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["SAO_TESTING"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from sao_lib.plan import layers  # noqa: E402
from sao_lib.runs import Run  # noqa: E402
from sao_lib.settings import Settings  # noqa: E402

SMOL = "embedded/smollm2-135m-instruct"


LONGEST = ("main_path", "families", "engines", "distributed", "groups", "openai", "rehearsal", "kubernetes", "slurm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first, so that one worker does not wait for the other in the end."""
    order = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def cpu() -> Settings:
    return layers.validate(layers.profile_layers("cpu"))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """A run in a temporary folder with the given parameters."""

    def make(**params: Any) -> Run:
        spec = {"stage": "test", "name": "test", "profile": "cpu", "params": params, "inputs": {}, "files": {}}
        (tmp_path / "spec.yaml").write_text(json.dumps(spec))
        return Run(spec, tmp_path)

    return make


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, where there is one."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine")
    sync = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()
