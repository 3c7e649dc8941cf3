"""Time and memory of the README's commands on this machine, from a fresh clone: `python benchmarks/main_path.py`.

Writes the section of this kind of CPU in main_path.json, and the tables made of it (pages.py). Memory is the sum over
all processes of the command, sampled every two seconds, with shared pages counted once (PSS). CPU seconds are
user and system time of the whole tree of processes: what others do on the machine lengthens the clock and hardly these.

The floor is the arithmetic that the runs cannot do without, at the speed at which one core multiplies matrices of the
model's shapes in the profile's dtype, by CPU time, measured just before and after.

With `--folder` it can be interrupted, even killed, and goes on: what each command took so far is kept there.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pages
import psutil

from sao_lib import machine
from sao_lib.engines.models import resolve
from sao_lib.files import append_rows, read_rows
from sao_lib.plan.chain import Planned
from sao_lib.plan.groups import model_of
from sao_lib.plan.workload import asks, rates
from sao_lib.provenance import cpu_name

HERE = Path(__file__).resolve().parent


def sampled(root: int) -> tuple[float, float]:
    """CPU seconds so far of a process and its descendants, ended ones included, and their memory now in GiB (PSS)."""
    cpu = memory = 0.0
    with contextlib.suppress(psutil.Error):
        for process in (parent := psutil.Process(root), *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                cpu += sum(process.cpu_times()[:4])  # user, system, and both of its children that have ended
                memory += process.memory_full_info().pss
    return cpu, memory / 2**30


@dataclass
class Measured:
    """What commands took, kept in `folder`: rows of measured.jsonl, one a minute and one at a command's end."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "measured.jsonl"

    def __call__(self, key: str, command: list[str]) -> dict[str, float]:
        """What the command took in all its pieces: seconds on the clock and of CPU, peak memory; raises if it fails.

        It is run unless it has ended well before.
        """
        if not any(row["ended"] for row in self._rows(key)):
            self._run(key, command)
        pieces = {row["piece"]: row for row in self._rows(key)}.values()  # the last row of each
        seconds, cpu = (round(sum(row[name] for row in pieces)) for name in ("seconds", "cpu_seconds"))
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_gib": max(row["peak_gib"] for row in pieces)}

    def _rows(self, key: str) -> list[dict[str, Any]]:
        return [row for row in read_rows(self.file) if row["key"] == key] if self.file.exists() else []

    def _run(self, key: str, command: list[str]) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
        start, before, noted = time.monotonic(), of_children(), 0.0
        process = subprocess.Popen(command, cwd=self.folder / "suite", env=environment)
        said: dict[str, Any] = {"key": key, "piece": time.time_ns(), "cpu_seconds": 0.0, "peak_gib": 0.0}
        code = None
        while code is None:
            cpu, memory = sampled(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(2)
            cpu = max(said["cpu_seconds"], cpu) if code is None else of_children() - before
            said |= {"ended": code == 0, "seconds": time.monotonic() - start}
            said |= {"cpu_seconds": cpu, "peak_gib": max(said["peak_gib"], round(memory, 1))}
            if code is not None or said["seconds"] > noted + 60:
                noted = said["seconds"]
                append_rows(self.file, [said])
        if code:
            raise SystemExit(f"{' '.join(command)} ended with {code}")


def of_children() -> float:
    """CPU seconds of this process's children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ceiling() -> float:
    """Operations in a CPU second of one core, multiplying matrices of SmolLM2's shapes, in bf16 where it has that."""
    code = """
import statistics, time, torch
from sao_lib.machine import multiplies_bf16
dtype = torch.bfloat16 if multiplies_bf16() else torch.float32
torch.set_num_threads(1)
rates = []
for inner, columns in ((576, 1536), (1536, 576), (576, 576)):
    a, b = torch.randn(512, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    for _ in range(20):
        start = time.process_time()
        for _ in range(100):
            torch.nn.functional.linear(a, b)
        rates.append(100 * 2 * 512 * inner * columns / (time.process_time() - start))
print(statistics.median(rates))
"""
    said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return float(said.stdout)


def operations(outputs: Path, wanted: set[str]) -> float:
    """Arithmetic that the finished runs `wanted` (folders) could not do without.

    It is 2 for a weight and token, 4 where adapters are trained. Tokens are those that engines counted, and those of
    the training files; where a run used no engine, its plan's. The output head counts for tokens that are written or
    trained. Attention is left out.
    """
    manifests = {f"cpu/{m.parent.parent.name}/{m.parent.name}": json.loads(m.read_text())
                 for m in outputs.glob("*/*/run.json")}  # fmt: skip
    runs = {folder: Planned(folder, m["spec"]) for folder, m in manifests.items()}
    total = 0.0
    for folder, run in ((f, r) for f, r in runs.items() if f in wanted):
        stage, tokens = run.spec["stage"], manifests[folder]["tokens"]
        if stage == "judge" and not run.spec["params"]["engine"]:
            continue
        layers, head = weights(model_of(run))
        if stage == "train":
            trained, held = (tokens_of(outputs.parent / folder / f"{name}.jsonl") for name in ("train", "held_out"))
            total += 4 * (layers + head) * trained + 2 * (layers + head) * held
        elif tokens:
            total += 2 * layers * tokens["read"] + 2 * (layers + head) * tokens["written"]
        else:
            for ask in asks(run, runs):
                body, top = weights(ask.model)
                total += 2 * body * ask.tokens_in + 2 * (body + top) * ask.steps
    return total


def tokens_of(file: Path) -> int:
    """Tokens of a training file, each prompt once."""
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    return sum(len(row[key]) for row in map(json.loads, file.read_text().splitlines()) for key in keys)


@cache
def weights(model: str) -> tuple[float, float]:
    """Weights of a model's layers and of its output head."""

    config = json.loads((resolve(model) / "config.json").read_text())
    head = float(config["vocab_size"] * config["hidden_size"])
    return max(0.0, rates()["parameters"][model] * 1e9 - head), head


def runs_behind(outputs: Path, table: str) -> set[str]:
    """Folders of all runs that a finished table needs, its own among them."""

    def needed(folder: str) -> set[str]:
        inputs = json.loads((outputs.parent / folder / "run.json").read_text())["spec"]["inputs"].values()
        return {folder}.union(*(needed(other) for other in inputs))

    return needed(f"{outputs.name}/{table}")


def by_stage(outputs: Path, wanted: set[str]) -> dict[str, dict[str, float]]:
    """Runs and summed seconds of every stage, of the runs `wanted`, from the log of finished runs and manifests."""
    seconds = {row["run"]: row["seconds"] for row in read_rows(outputs / "done.jsonl")}
    table: dict[str, dict[str, float]] = {}
    for folder in sorted(wanted):
        stage = json.loads((outputs.parent / folder / "run.json").read_text())["spec"]["stage"]
        entry = table.setdefault(stage, {"runs": 0, "seconds": 0.0})
        entry["runs"] += 1
        entry["seconds"] = round(entry["seconds"] + seconds[Path(folder).name], 1)
    return table


def by_target(outputs: Path) -> dict[str, dict[str, float]]:
    """Runs of every finished table or figure and their summed seconds: what it takes alone, on one core."""
    seconds = {row["run"]: row["seconds"] for row in read_rows(outputs / "done.jsonl")}
    found = {}
    for manifest in outputs.glob("*/run.json"):
        runs = runs_behind(outputs, manifest.parent.name)
        found[manifest.parent.name] = {"runs": len(runs), "seconds": round(sum(seconds[Path(r).name] for r in runs))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only-table6", action="store_true", help="leave out make reproduce-all")
    parser.add_argument("--keep", type=Path, help="copy the outputs there")
    parser.add_argument("--folder", type=Path, help="clone there instead of into a temporary folder; it stays")
    parser.add_argument("--no-tests", action="store_true", help="leave out make test")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(given.folder or Path(scratch), given.only_table6, given.no_tests, given.keep)
    pages.write(found)


def measure(folder: Path, only_table6: bool, no_tests: bool, keep: Path | None) -> dict[str, Any]:
    """A section of main_path.json: `commands` with what each took, those of the tables with their floors."""
    clone, commands = folder / "suite", Measured(folder)
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", str(HERE.parent), str(clone)], check=True)
    outputs = clone / "outputs" / "cpu"
    at_first = ceiling()
    took = {"setup": commands("setup", ["make", "setup"])}
    took["reproduce-table6"] = commands("reproduce-table6", ["make", "reproduce-table6"])
    needed = {"reproduce-table6": runs_behind(outputs, "table6")}
    if not only_table6:
        rest = commands("reproduce-all", ["make", "reproduce-all"])
        took["reproduce-all"] = {k: v + took["reproduce-table6"][k] if k != "peak_gib" else v for k, v in rest.items()}
        needed["reproduce-all"] = set().union(
            *(runs_behind(outputs, m.parent.name) for m in outputs.glob("*/run.json"))
        )
    took["report"] = commands("report", ["make", "report"])
    took["again"] = commands("again", ["make", [*needed][-1]])
    if not no_tests:
        took["test"] = commands("test", ["make", "test"])
    gflops = round(max(at_first, ceiling()) / 1e9)
    for name, runs in needed.items():
        took[name]["floor_seconds"] = round(operations(outputs, runs) / gflops / 1e9)
    if keep:
        shutil.copytree(clone / "outputs", keep, ignore=shutil.ignore_patterns("model", "reference"))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, stdout=subprocess.PIPE, text=True, check=True)
    return {
        "cpus": os.cpu_count(),
        "bf16": machine.multiplies_bf16(),
        "cpu": cpu_name(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip()[:12],
        "ceiling_gflops": gflops,
        "commands": took,
        "of": [*needed][-1],
        "stages": by_stage(outputs, needed[[*needed][-1]]),
        "targets": by_target(outputs),
    }


if __name__ == "__main__":
    main()
