"""`make doctor`: what it says of the machine, the hub and the profiles."""

import http.server
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from sao_lib import hub
from sao_lib.launch.cards import cards_here
from sao_lib.launch.doctor import ROOM_GIB, doctor, pins
from sao_lib.plan import cost, planning
from sao_lib.settings import PARAMS


def test_every_profile_has_a_line_and_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    said = capsys.readouterr().out
    for profile in (PARAMS / "profiles").glob("*.yaml"):
        assert f"profile   {profile.stem}: " in said
    assert "hub       not asked" in said
    there = find_spec("deepspeed") is not None  # it has no wheel for every system
    assert f"package   deepspeed: {'imports' if there else 'not installed'}" in said
    if not cards_here():
        assert "paper: needs 4 GPU(s), here 0" in said


def test_a_package_that_is_not_as_pinned_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = pins()[0].name
    monkeypatch.setattr("sao_lib.launch.doctor.version", lambda asked: "0.0.1" if asked == name else "9.9")
    doctor()
    assert f"{name}: 0.0.1, wanted ==" in capsys.readouterr().out


def test_without_vllm_the_profile_is_ready_with_the_engine_that_it_takes_instead(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sao_lib.machine.find_spec", lambda name: None)
    monkeypatch.setattr("sao_lib.launch.doctor.find_spec", lambda name: None)
    doctor()
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("profile   cpu: "))
    assert "vllm" not in line.lower() or "with transformers in place of vLLM" in line
    assert "deepspeed: not installed" in said


def test_cards_are_named_with_memory_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi = tmp_path / "nvidia-smi"
    fake_smi.write_text('#!/bin/sh\necho "$1" > ' + str(tmp_path / "asked") + "\necho '0, A100, 81920, 580.1, GPU-0'\n")
    fake_smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert [str(card) for card in cards_here()] == ["A100 of 80 GiB, driver 580.1"]
    assert "driver_version" in (tmp_path / "asked").read_text()


def test_the_disk_that_a_profile_needs_is_what_its_plan_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sao_lib.launch.doctor.shutil.disk_usage", lambda _: SimpleNamespace(free=2**30))
    doctor()
    said = capsys.readouterr().out
    runs = planning.make("paper", "table6").runs
    need = ROOM_GIB + cost.disk_needed(runs, runs) + cost.hub_gib(runs)
    assert f"{need:.0f} GiB free disk for table6, here 1" in said
    assert "3 GiB free disk for table6, here 1" in said  # cpu's


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None: ...


def test_a_hub_that_answers_and_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert hub.state() == f"{address} answers"
        thread.join()
    assert "cannot be reached" in hub.state()
