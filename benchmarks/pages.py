"""What was measured, into main_path.json, benchmarks/README.md and the README's table of targets."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from sao_lib import machine
from sao_lib.plan import cost, layers
from sao_lib.plan import planning as plan
from sao_lib.plan.experiment import experiments

HERE = Path(__file__).resolve().parent
KIND = {True: "bfloat16", False: "float32"}


def write(found: dict[str, Any]) -> None:
    """Put what was measured into main_path.json and both README files."""
    file = HERE / "main_path.json"
    sections = {**json.loads(file.read_text()), KIND[found["bf16"]]: found}
    file.write_text(json.dumps(sections, indent=1) + "\n")
    body = "\n\n".join(section(of) for of in sections.values())
    replace_between(HERE / "README.md", "<!-- measured -->", "<!-- end -->", body)
    replace_between(HERE.parent / "README.md", "<!-- targets -->", "<!-- end targets -->", targets(sections))


def predicted(names: list[str], bf16: bool) -> dict[str, float]:
    """Core-seconds by stage, as the plan predicts them for one kind of CPU."""
    seconds: dict[str, float] = defaultdict(float)
    with mock.patch.object(machine, "multiplies_bf16", return_value=bf16):
        runs = {run.folder: run for name in names for run in plan.make("cpu", name).runs}
        settings = layers.validate(layers.profile_layers("cpu"))
        for folder, found in cost.estimates([*runs.values()], settings.machine).items():
            seconds[runs[folder].spec["stage"]] += found.device_hours * 3600
    return seconds


def section(found: dict[str, Any]) -> str:
    """What one kind of CPU was measured to take; `-` where it was not."""
    ceiling = f" One core multiplied {found['ceiling_gflops']} GFLOP/s." if "ceiling_gflops" in found else ""
    lines = [f"### {KIND[found['bf16']]}", "",
             f"{found['date']}, commit {found['commit']}, {found['cpus']} cores of an {found['cpu']}.{ceiling}", "",
             "| command | seconds | CPU seconds | floor | ratio | peak memory, GiB |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name, took in found["commands"].items():
        floor, used = took.get("floor_seconds", "-"), took.get("cpu_seconds", "-")
        ratio = "-" if floor == "-" else f"{used / floor:.2f}"
        said = "the same, a second time" if name == "again" else f"make {name}"
        lines.append(f"| {said} | {took['seconds']} | {used} | {floor} | {ratio} | {took.get('peak_gib', '-')} |")
    return "\n".join([*lines, "", *stages(found), "", *tables(found)])


def stages(found: dict[str, Any]) -> list[str]:
    """Lines of a table: each stage's runs and core-seconds, beside the plan's."""
    names = [*found["targets"]] if found["of"] == "reproduce-all" else ["table6"]
    plans, of = predicted(names, found["bf16"]), found["stages"]
    lines = [f"| stage of make {found['of']} | runs | seconds, summed over runs | predicted |", "|---|---|---|---|"]
    lines += [f"| {stage} | {v['runs']} | {v['seconds']:.0f} | {plans[stage]:.0f} |" for stage, v in of.items()]
    runs, total = (sum(v[key] for v in of.values()) for key in ("runs", "seconds"))
    return [*lines, f"| total | {runs} | {total:.0f} | {sum(plans.values()):.0f} |"]


def tables(found: dict[str, Any]) -> list[str]:
    """Lines of a table: core-seconds of each table or figure alone, beside its plan's."""
    lines = [
        "| table or figure alone | core-seconds | predicted by its plan | taken / predicted |",
        "|---|---|---|---|",
    ]
    for name in filter(found["targets"].__contains__, experiments()):
        taken, expected = found["targets"][name]["seconds"], sum(predicted([name], found["bf16"]).values())
        lines.append(f"| {name} | {taken:.0f} | {expected:.0f} | {taken / expected:.2f} |")
    return lines


def targets(sections: dict[str, Any]) -> str:
    """The README's table of targets: title, where the paper has it, and minutes alone with two jobs at once.

    Minutes are measured where a section of main_path.json has the runs that there are now, and else planned.
    """
    lines = ["| command | what it runs | paper | minutes | without bf16 |", "|---|---|---|---|---|"]
    for name in experiments():
        experiment = yaml.safe_load((HERE.parent / "params" / "experiments" / f"{name}.yaml").read_text())
        where, runs = experiment["where"].removeprefix("SAO "), len(plan.make("cpu", name).runs)
        minutes = [minutes_of(name, runs, sections.get(KIND[bf16], {}), bf16) for bf16 in (True, False)]
        lines.append(f"| `make reproduce-{name}` | {experiment['title']} | {where} | {' | '.join(minutes)} |")
    return "\n".join(lines)


def minutes_of(name: str, runs: int, measured: dict[str, Any], bf16: bool) -> str:
    """Minutes of a table alone, two jobs at once; `~` where planned."""
    target = measured.get("targets", {}).get(name)
    if target and target["runs"] == runs:
        return str(max(1, round(target["seconds"] / 120)))
    return f"~{max(1, round(sum(predicted([name], bf16).values()) / 120))}"


def replace_between(file: Path, begin: str, end: str, body: str) -> None:
    head, _, rest = file.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    file.write_text(f"{head}{begin}\n{body}\n{end}{tail}")
