"""`make lab` as a reader has it: the first notebook opens, Run All runs it to its end, and nobody else is asked."""

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from serving import free_port, wait_until_it_answers

from sao_lib.launch import lab
from sao_lib.provenance import cells_of
from sao_lib.settings import ROOT

TOKEN = "of-this-test"
# With the application at hand a test can read what is far down the page, which JupyterLab does not draw.
CELLS = """jupyterapp.shell.currentWidget.content.widgets.filter(cell => cell.model.type == "code").map(cell => [
    cell.model.executionCount, cell.model.outputs.toJSON().some(output => output.output_type == "error")])"""


@pytest.fixture
def address() -> Iterator[str]:
    """JupyterLab's, as `make lab` starts it but for a port and a token that are known."""
    port = free_port()
    known = [f"--ServerApp.port={port}", f"--IdentityProvider.token={TOKEN}", "--no-browser", "--expose-app-in-browser"]
    server = subprocess.Popen([*lab.command(), *known], cwd=ROOT, env=lab.environment(), stderr=subprocess.DEVNULL)
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/api?token={TOKEN}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()  # a kernel that is asked to end may take a minute
        server.wait(60)


def test_the_first_notebook_opens_and_runs_to_its_end(address: str, browser: Any) -> None:
    path = ROOT / lab.FIRST
    before = path.read_bytes(), cells_of(path)
    view = browser.new_page()
    asked: list[str] = []
    view.on("request", lambda request: asked.append(request.url))
    view.goto(f"{address}/lab/tree/{lab.FIRST}?token={TOKEN}")
    view.wait_for_function("window.jupyterapp?.shell.currentWidget?.content?.widgets?.length > 5", timeout=120_000)
    view.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session?.kernel", timeout=120_000)
    assert view.evaluate("jupyterapp.shell.currentWidget.context.path") == lab.FIRST
    assert view.locator(".Toastify__toast").all_inner_texts() == [], "no news, no question"
    view.evaluate("jupyterapp.commands.execute('docmanager:toggle-autosave')")  # the file stays as it is
    view.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    cells = view.evaluate(CELLS)
    assert len(cells) > 5
    assert not any(failed for _, failed in cells)
    assert [count for count, _ in cells] == list(range(1, len(cells) + 1))
    view.locator(".jp-RenderedImage img").first.wait_for()
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:", address.replace("http", "ws")))]
    assert elsewhere == []
    view.close()
    assert (path.read_bytes(), cells_of(path)) == before
    assert os.access(path, os.W_OK)
