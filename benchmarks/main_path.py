"""Time and memory of the README's commands on this machine, from a fresh clone: `python benchmarks/main_path.py`.

Writes main_path.json and the table in README.md beside this file. Memory is the sum over all processes of the
command, sampled every two seconds, with shared pages counted once (PSS). CPU seconds are user and system time of the
whole tree of processes: what others do on the machine lengthens the clock and hardly these.

The floor is the arithmetic that the runs cannot do without, at the speed at which one core multiplies matrices of the
model's shapes in the profile's dtype, by CPU time, measured just before and after.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from functools import cache
from pathlib import Path

import yaml

from sao_lib.machine import multiplies_bf16

HERE = Path(__file__).resolve().parent


def tree_pss_gib(root: int) -> float:
    """Proportional set size of a process and its descendants, GiB."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children[int(fields[1])].append(int(stat.parent.name))
    total, queue = 0, [root]
    while queue:
        pid = queue.pop()
        queue += children[pid]
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**20


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Seconds on the clock and of CPU, and peak memory, of a command; raises if it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    start, peak, ended = time.monotonic(), 0.0, threading.Event()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, cwd=folder, env=environment)

    def watch() -> None:
        nonlocal peak
        while not ended.wait(2):
            peak = max(peak, tree_pss_gib(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(time.monotonic() - start), "cpu_seconds": round(cpu), "peak_gib": round(peak, 1)}


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


def operations(outputs: Path) -> float:
    """Arithmetic that finished runs could not do without: 2 for a weight and token, 4 where adapters are trained.

    Tokens are those that engines counted, and those of the training files; where a run used no engine, its plan's. The
    output head counts for tokens that are written or trained. Attention is left out.
    """
    from sao_lib.plan.chain import Planned
    from sao_lib.plan.groups import model_of
    from sao_lib.plan.workload import asks

    manifests = {f"cpu/{m.parent.parent.name}/{m.parent.name}": json.loads(m.read_text())
                 for m in outputs.glob("*/*/run.json")}  # fmt: skip
    runs = {folder: Planned(folder, m["spec"]) for folder, m in manifests.items()}
    total = 0.0
    for folder, run in runs.items():
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
            total += sum(2 * layers * a.tokens_in + 2 * (layers + head) * a.steps for a in asks(run, runs))
    return total


def tokens_of(file: Path) -> int:
    """Tokens of a training file, each prompt once."""
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    return sum(len(row[key]) for row in map(json.loads, file.read_text().splitlines()) for key in keys)


@cache
def weights(model: str) -> tuple[float, float]:
    """Weights of a model's layers and of its output head."""
    from sao_lib.engines.models import resolve
    from sao_lib.plan.workload import rates

    config = json.loads((resolve(model) / "config.json").read_text())
    head = float(config["vocab_size"] * config["hidden_size"])
    return max(0.0, rates()["parameters"][model] * 1e9 - head), head


def by_stage(outputs: Path) -> dict[str, dict[str, float]]:
    """Runs and summed seconds of every stage, from the log of finished runs and their manifests."""
    seconds = {row["run"]: row["seconds"] for row in map(json.loads, (outputs / "done.jsonl").read_text().splitlines())}
    table = {}
    stages = {m.parent.name: json.loads(m.read_text())["spec"]["stage"] for m in outputs.rglob("run.json")}
    for stage in dict.fromkeys(stages.values()):
        folders = [folder for folder, of in stages.items() if of == stage and folder in seconds]
        table[stage] = {"runs": len(folders), "seconds": round(sum(seconds[f] for f in folders))}
    return table


def by_target(outputs: Path) -> dict[str, dict[str, float]]:
    """Runs of every finished table or figure and their summed seconds: what it takes alone, on one core."""
    seconds = {row["run"]: row["seconds"] for row in map(json.loads, (outputs / "done.jsonl").read_text().splitlines())}

    def needed(folder: str) -> set[str]:
        inputs = json.loads((outputs.parent / folder / "run.json").read_text())["spec"]["inputs"].values()
        return {folder}.union(*(needed(other) for other in inputs))

    found = {}
    for manifest in outputs.glob("*/run.json"):
        runs = needed(f"{outputs.name}/{manifest.parent.name}")
        total = round(sum(seconds[Path(run).name] for run in runs))
        found[manifest.parent.name] = {"runs": len(runs), "seconds": total}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", default="all")
    parser.add_argument("--keep", type=Path, help="copy the outputs there")
    parser.add_argument("--folder", type=Path, help="clone there instead of into a temporary folder; it stays")
    parser.add_argument("--no-tests", action="store_true", help="leave out make test")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        clone = (given.folder or Path(scratch)) / "suite"
        subprocess.run(["git", "clone", "--quiet", str(HERE.parent), str(clone)], check=True)
        first = ceiling()
        found = {
            "cpus": os.cpu_count(),
            "bf16": multiplies_bf16(),
            "setup": measured(["make", "setup"], clone),
            f"reproduce-{given.table}": measured(["make", f"reproduce-{given.table}"], clone),
            "report": measured(["make", "report"], clone),
            "stages": by_stage(clone / "outputs" / "cpu"),
            "targets": by_target(clone / "outputs" / "cpu"),
            "operations": operations(clone / "outputs" / "cpu"),
            "again": measured(["make", f"reproduce-{given.table}"], clone),
        }
        found["ceiling_gflops"] = round(max(first, ceiling()) / 1e9)
        if not given.no_tests:
            found["test"] = measured(["make", "test"], clone)
        if given.keep:
            shutil.copytree(clone / "outputs", given.keep, ignore=shutil.ignore_patterns("model", "reference"))
    write(found)


def predicted(names: list[str]) -> dict[str, float]:
    """Core-seconds by stage, as the plan predicts them."""
    from sao_lib.plan import cost, layers
    from sao_lib.plan import planning as plan

    runs = {run.folder: run for name in names for run in plan.make("cpu", name).runs}
    seconds: dict[str, float] = defaultdict(float)
    for folder, found in cost.estimates(
        [*runs.values()], layers.validate(layers.profile_layers("cpu")).machine
    ).items():
        seconds[runs[folder].spec["stage"]] += found.device_hours * 3600
    return seconds


def write(found: dict) -> None:
    lines = ["| command | seconds | CPU seconds | peak memory, GiB |", "|---|---|---|---|"]
    commands = {k: v for k, v in found.items() if isinstance(v, dict) and "peak_gib" in v}
    lines += [f"| make {k} | {v['seconds']} | {v['cpu_seconds']} | {v['peak_gib']} |" for k, v in commands.items()]
    name = next(k for k in commands if k.startswith("reproduce-"))
    floor = found["operations"] / found["ceiling_gflops"] / 1e9
    found["floor_seconds"], found["ratio"] = round(floor), round(commands[name]["cpu_seconds"] / floor, 2)
    (HERE / "main_path.json").write_text(json.dumps(found, indent=1) + "\n")
    dtype = "bfloat16" if found["bf16"] else "float32, having no instructions for bfloat16"
    lines += ["", f"One core multiplied {found['ceiling_gflops']} GFLOP/s in {dtype}, which makes the floor of make "
              f"{name} {found['floor_seconds']} CPU seconds: it took {found['ratio']} times as many."]  # fmt: skip
    expected = predicted([*found["targets"]])
    lines += ["", "| stage | runs | seconds, summed over runs | predicted by `make plan-all` |", "|---|---|---|---|"]
    lines += [
        f"| {stage} | {v['runs']} | {v['seconds']} | {expected[stage]:.0f} |" for stage, v in found["stages"].items()
    ]
    total = sum(v["seconds"] for v in found["stages"].values())
    lines.append(
        f"| total | {sum(v['runs'] for v in found['stages'].values())} | {total} | {sum(expected.values()):.0f} |"
    )
    lines += ["", "| table or figure alone | core-seconds | predicted by its plan | taken / predicted |"]
    lines.append("|---|---|---|---|")
    for target in ordered(found["targets"]):
        taken, plan = found["targets"][target]["seconds"], sum(predicted([target]).values())
        lines.append(f"| {target} | {taken} | {plan:.0f} | {taken / plan:.2f} |")
    text = (HERE / "README.md").read_text()
    head, _, rest = text.partition("<!-- measured -->")
    _, _, tail = rest.partition("<!-- end -->")
    body = "\n".join(lines).replace("make again", "the same, a second time")
    (HERE / "README.md").write_text(f"{head}<!-- measured -->\n{body}\n<!-- end -->{tail}")
    if name == "reproduce-all":
        write_targets(found["targets"])


def ordered(targets: dict[str, dict[str, float]]) -> list[str]:
    """Tables by number, then figures by number."""
    return sorted(targets, key=lambda n: (not n.startswith("table"), int("".join(filter(str.isdigit, n)))))


def write_targets(targets: dict[str, dict[str, float]]) -> None:
    """The README's table of targets: title, where the paper has it, runs, and minutes alone with two jobs at once."""
    lines = ["| command | what it runs | paper | runs | cpu minutes |", "|---|---|---|---|---|"]
    for name in ordered(targets):
        experiment = yaml.safe_load((HERE.parent / "params" / "experiments" / f"{name}.yaml").read_text())
        minutes = max(1, round(targets[name]["seconds"] / 120))
        where = experiment["where"].removeprefix("SAO ")
        lines.append(
            f"| `make reproduce-{name}` | {experiment['title']} | {where} | {targets[name]['runs']} | {minutes} |"
        )
    readme = HERE.parent / "README.md"
    head, _, rest = readme.read_text().partition("<!-- targets -->")
    _, _, tail = rest.partition("<!-- end targets -->")
    body = "\n".join(lines)
    readme.write_text(f"{head}<!-- targets -->\n{body}\n<!-- end targets -->{tail}")


if __name__ == "__main__":
    main()
