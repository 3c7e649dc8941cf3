"""`make export`: a training's model, or a judge's preference set, as a folder that a hub takes; nothing is uploaded.

The cards say what the manifests know: parameters, data, commits, results of the audit, and the base model's licence.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from sao_lib import hub
from sao_lib.engines.models import entry_of
from sao_lib.errors import SaoError
from sao_lib.files import write_atomic
from sao_lib.runs import MANIFEST, OUTPUTS, Run, ancestry, load
from sao_lib.settings import ROOT

PAPER = "https://arxiv.org/abs/2510.06652"
TASK = "text-generation"


def export(folder: Path) -> Path:
    """Write outputs/export/<run>/ of a finished training or judgment, and return it; it replaces an earlier one.

    Raises SaoError for any other folder.
    """
    path = (ROOT / folder).resolve()
    run = load(path) if path.is_relative_to(OUTPUTS.resolve()) else None
    if run is None or run.spec["stage"] not in ("train", "judge"):
        raise SaoError(
            f"RUN is '{folder}', which is no finished training or judgment; name a folder like outputs/cpu/train/... "
            "or outputs/cpu/judge/... that holds a run.json."
        )
    target = OUTPUTS / "export" / f"{run.spec['profile']}-{run.spec['stage']}-{path.name}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if run.spec["stage"] == "train":
        _model(run, target)
    else:
        _preferences(run, target)
    return target


def _model(run: Run, target: Path) -> None:
    for file in (run.folder / "model").iterdir():
        try:
            os.link(file, target / file.name)  # weights of many GB once
        except OSError:
            shutil.copy2(file, target)
    base, licence = run.params["policy"]["model"], entry_of(run.params["policy"]["model"]).get("license")
    loss = run.params["train"]["loss"]
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": TASK,
        "tags": ["sao", loss],
    }
    head |= {"base_model": base.partition("@")[0]} if hub.MODEL.fullmatch(base) else {}
    _card(target, head, licence, f"{hub.short(base)}, {run.spec['name']}", run, [
        f"Trained by {loss} from {base} with SAO ({PAPER}), a reproduction of it.",
        "It was trained on preferences that models gave, with no filter for safety. Judge it before you use it.",
    ])  # fmt: skip


def _preferences(run: Run, target: Path) -> None:
    import pandas as pd

    rows = run.rows("preferences.jsonl")
    (target / "data").mkdir()
    pd.DataFrame(rows).to_parquet(target / "data" / "train-00000-of-00001.parquet", index=False)
    size = "n<1K" if len(rows) < 1000 else "1K<n<10K" if len(rows) < 10_000 else "10K<n<100K"
    head = {"task_categories": [TASK], "tags": ["sao", "preference", "trl"], "size_categories": [size]}
    licence = entry_of(_writer(run)).get("license")
    _card(target, head, licence, f"{len(rows)} preference pairs of {run.spec['name']}", run, [
        f"Prompts and responses were written by {_writer(run)}, as SAO ({PAPER}) has it; `{run.spec['name']}` chose.",
        "Columns `prompt`, `chosen` and `rejected` are lists of messages, as TRL reads them; others are the verdict's.",
        f"Text that a model wrote may fall under that model's licence{f' ({licence})' if licence else ''}.",
    ])  # fmt: skip


def _writer(run: Run) -> str:
    """The model that wrote a judge's pairs."""
    params = run.input("synthesize").params
    return str((params["synthesize"]["generator"] or params["policy"])["model"])


def _card(target: Path, head: dict[str, Any], licence: str | None, title: str, run: Run, text: list[str]) -> None:
    """README.md: the head that hubs read, what this is, and all runs that it was made from."""
    head = {"license": "other", "license_name": licence or "unknown: see the base model", **head}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", "", f"# {title}", ""]
    lines += ["\n\n".join(text), "", "## How it was made", ""]
    for name in ancestry([run.folder.relative_to(OUTPUTS.resolve()).as_posix()]):
        made = json.loads((OUTPUTS / name / MANIFEST).read_text())
        lines += [
            f"### {name}",
            "",
            f"Code: commit {made.get('git_commit') or 'unknown'}. Finished {made['finished']}.",
        ]
        commits = made.get("hub_commits") or {}
        lines += ["", *(f"- `{what}` at commit `{commit}`" for what, commit in commits.items())]
        shown = {"parameters": made["spec"]["params"], "results": made["results"]}
        lines += ["", "```json", json.dumps(shown, indent=1, ensure_ascii=False), "```", ""]
    write_atomic(target / "README.md", "\n".join(lines))
