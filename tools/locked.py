"""`python tools/locked.py`: ask the package registry whether requirements.lock can be installed on every system.

For each system and version of Python, uv finds a wheel of that system for every line that applies there. Nothing is
installed and nothing but descriptions is fetched: minutes the first time, then seconds. That no line is missing is
tested without a registry (tests/test_locks.py).
"""

import os
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
PYTHONS = ("3.11.5", "3.12", "3.13")
LINUX, MAC = (
    {"sys_platform": "linux", "platform_system": "Linux"},
    {"sys_platform": "darwin", "platform_system": "Darwin"},
)
MACOS = "14.0"  # the oldest with wheels of torch; glibc 2.31 is the oldest with wheels of what vLLM needs
SYSTEMS = {  # uv's name of a system, and what markers see there
    "x86_64-manylinux_2_31": {**LINUX, "platform_machine": "x86_64"},
    "aarch64-manylinux_2_31": {**LINUX, "platform_machine": "aarch64"},
    "aarch64-apple-darwin": {**MAC, "platform_machine": "arm64"},
}
# Published as source alone, with nothing in it to compile at installation (DeepSpeed compiles when it trains).
SOURCE_ONLY = {"connection-pool", "deepspeed", "rouge-score", "sqlitedict", "word2number"}


def environment(system: str, python: str) -> dict[str, str]:
    """What markers see on a system with CPython."""
    version = {"python_version": ".".join(python.split(".")[:2]), "python_full_version": f"{python}.9"[:6]}
    return {**SYSTEMS[system], **version, "os_name": "posix", "platform_python_implementation": "CPython"}


def lines(lock: Path = LOCK) -> list[Requirement]:
    """The pins of a lock, with their markers."""
    texts = (line.split("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines())
    return [Requirement(text) for text in texts if text]


def locked(system: str, python: str, lock: Path = LOCK) -> dict[str, str]:
    """What is installed on a system, {package: version}."""
    here = environment(system, python)
    applying = [r for r in lines(lock) if not r.marker or r.marker.evaluate(here)]
    return {r.name: str(r.specifier).removeprefix("==") for r in applying}


def unavailable(system: str, python: str, *options: str, lock: Path = LOCK) -> str:
    """What uv says of a line that has no wheel on a system; empty where all have one. `options` are uv's."""
    pins = [f"{name}=={version}" for name, version in locked(system, python, lock).items() if name not in SOURCE_ONLY]
    command = [Path(sys.executable).parent / "uv", "pip", "compile", "--quiet", "--no-deps", "--no-build", *options]
    command += ["--python", sys.executable, "--python-version", python, "--python-platform", system, "-"]
    wanted = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": MACOS}
    done = subprocess.run(command, input="\n".join(pins), capture_output=True, text=True, check=False, env=wanted)
    return done.stderr.strip() or f"uv ended with {done.returncode}" if done.returncode else ""


def main() -> int:
    failed = 0
    for system in SYSTEMS:
        for python in PYTHONS:
            said = unavailable(system, python)
            failed += bool(said)
            print(f"{system}, Python {python}: {said or f'{len(locked(system, python))} packages'}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
