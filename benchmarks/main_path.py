"""Time and memory of the README's commands on this machine, from a fresh clone: `python benchmarks/main_path.py`.

Writes main_path.json and the table in README.md beside this file. Memory is the sum over all processes of the
command, sampled every two seconds, with shared pages counted once (PSS).
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import yaml

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
    """Seconds and peak memory of a command; raises if it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    start, peak, ended = time.monotonic(), 0.0, threading.Event()
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
    return {"seconds": round(time.monotonic() - start), "peak_gib": round(peak, 1)}


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
    parser.add_argument("--no-tests", action="store_true", help="leave out make test")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "suite"
        subprocess.run(["git", "clone", "--quiet", str(HERE.parent), str(clone)], check=True)
        found = {
            "cpus": os.cpu_count(),
            "setup": measured(["make", "setup"], clone),
            f"reproduce-{given.table}": measured(["make", f"reproduce-{given.table}"], clone),
            "report": measured(["make", "report"], clone),
            "stages": by_stage(clone / "outputs" / "cpu"),
            "targets": by_target(clone / "outputs" / "cpu"),
            "again": measured(["make", f"reproduce-{given.table}"], clone),
        }
        if not given.no_tests:
            found["test"] = measured(["make", "test"], clone)
        if given.keep:
            shutil.copytree(clone / "outputs", given.keep, ignore=shutil.ignore_patterns("model", "reference"))
    write(found)


def predicted(names: list[str]) -> dict[str, float]:
    """Core-seconds by stage, as the plan predicts them."""
    from sao_lib.plan import cost
    from sao_lib.plan import planning as plan

    runs = {run.folder: run for name in names for run in plan.make("cpu", name).runs}
    seconds: dict[str, float] = defaultdict(float)
    for run in runs.values():
        seconds[run.spec["stage"]] += cost.estimate(run, runs).device_hours * 3600
    return seconds


def write(found: dict) -> None:
    (HERE / "main_path.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = ["| command | seconds | peak memory, GiB |", "|---|---|---|"]
    commands = {k: v for k, v in found.items() if isinstance(v, dict) and "peak_gib" in v}
    lines += [f"| make {k} | {v['seconds']} | {v['peak_gib']} |" for k, v in commands.items()]
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
    for name in ordered(found["targets"]):
        taken, plan = found["targets"][name]["seconds"], sum(predicted([name]).values())
        lines.append(f"| {name} | {taken} | {plan:.0f} | {taken / plan:.2f} |")
    text = (HERE / "README.md").read_text()
    head, _, rest = text.partition("<!-- measured -->")
    _, _, tail = rest.partition("<!-- end -->")
    body = "\n".join(lines).replace("make again", "the same, a second time")
    (HERE / "README.md").write_text(f"{head}<!-- measured -->\n{body}\n<!-- end -->{tail}")
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
