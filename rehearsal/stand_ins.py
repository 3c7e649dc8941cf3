"""A hub's cache full of stand-ins: under the profile's own names and commits, tiny random models and drawn rows.

So the profile is run as it is written, as on a compute node without a network: with HF_HUB_OFFLINE and HF_HOME set.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from rehearsal import families
from rehearsal.texts import text
from sao_lib import hub
from sao_lib.files import Record, write_rows

COMMIT = "0" * 40  # what the main branch means
POSITIONS, SPREAD, END = 32768, 0.02, 15.0  # so that four answers in ten end before 64 tokens
HEADS = {"llama3": 4, "qwen2": 4}  # as many as the cards that a judge of 70B is spread over
EMBEDDED = "embedded/"
FAMILY_OF = {"gemma-2": "gemma2", "llama-3": "llama3", "qwen2": "qwen2"}  # in a model's name: one of FAMILIES


def personas(count: int) -> list[Record]:
    """PersonaHub's rows."""
    draw = random.Random(0)
    return [{"persona": f"Person {n}, who knows about {text(draw, 12)}"} for n in range(count)]


def preferences(count: int) -> list[Record]:
    """UltraFeedback's rows, as zephyr's authors binarised them."""
    draw, rows = random.Random(1), []
    for n in range(count):
        prompt = text(draw, draw.randint(10, 150))
        sides = {
            side: [{"role": "user", "content": prompt}, {"role": "assistant", "content": text(draw, 150)}]
            for side in ("chosen", "rejected")
        }
        rows.append({"prompt": prompt, "prompt_id": f"{n:064x}", **sides, "score_chosen": 8.0, "score_rejected": 5.0})
    return rows


def instructions(count: int) -> list[Record]:
    """AlpacaEval 2's rows."""
    draw = random.Random(2)
    return [
        {"dataset": "drawn", "instruction": f"{n}. {text(draw, 25)}", "output": text(draw, draw.randint(100, 500)),
         "generator": "gpt4_1106_preview"}
        for n in range(count)
    ]  # fmt: skip


def problems(count: int) -> list[Record]:
    """MATH-500's rows."""
    return [{"problem": f"What is {n} + {n}?", "answer": str(2 * n), "solution": str(2 * n), "subject": "Algebra",
             "level": 1, "unique_id": f"drawn/{n}"} for n in range(count)]  # fmt: skip


# The data sets that stand-ins are made of: how, and how many rows the published one has.
DATA: dict[str, tuple[Callable[[int], list[Record]], int]] = {
    "proj-persona/PersonaHub": (personas, 200_000),
    "HuggingFaceH4/ultrafeedback_binarized": (preferences, 61_135),
    "tatsu-lab/alpaca_eval": (instructions, 805),
    "HuggingFaceH4/MATH-500": (problems, 500),
}


def gamed(count: int = 805) -> pd.DataFrame:
    """alpaca_eval's table behind length-controlled win rates: two answerers of its own, and a difficulty for each."""
    draw = random.Random(3)
    hard = [draw.gauss(0, 1) for _ in range(count)]
    return pd.DataFrame(
        [
            {"model": model, "index": n, "preference": draw.random(), "std_delta_len": draw.gauss(sign, 1),
             "instruction_difficulty": hard[n], "not_gamed_baseline": False}
            for model, sign in (("verbose", -1), ("concise", 1))
            for n in range(count)
        ]
    )  # fmt: skip


def snapshot(cache: Path, kind: str, repo: str, revision: str | None) -> Path:
    """The folder where the hub's library looks for a repository's files at a commit."""
    folder = cache / "hub" / f"{kind}s--{repo.replace('/', '--')}"
    commit = revision if revision and len(revision) == len(COMMIT) else COMMIT
    if commit != revision:
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / (revision or "main")).write_text(commit)
    found = folder / "snapshots" / commit
    found.mkdir(parents=True, exist_ok=True)
    return found


def put_models(cache: Path, names: Iterable[str]) -> list[str]:
    """Tiny models for those of `names` that have a family; returns the others, which nothing here stands for."""
    unknown, made = [], {}
    for name in sorted(names):
        if name.startswith(EMBEDDED):
            _put_embedded(cache, name)
            continue
        family = _family(name)
        if not family:
            unknown.append(name)
            continue
        if family not in made:
            made[family] = _made(family, cache / "families" / family)
        shutil.copytree(made[family], snapshot(cache, "model", *hub.model(name)), dirs_exist_ok=True)
    return unknown


def _family(name: str) -> str | None:
    if "ArmoRM" in name:
        return "armorm"
    return next((family for part, family in FAMILY_OF.items() if part in name.lower()), None)


def _made(family: str, folder: Path) -> Path:
    if family == "armorm":
        return families.make_armorm(folder, positions=POSITIONS, spread=SPREAD)
    return families.make(family, folder, POSITIONS, SPREAD, END, HEADS.get(family, 2))


def _put_embedded(cache: Path, name: str) -> None:
    """Where SAO_MODELS says that a model out of a package was converted to; embeddings are small and stay real."""
    if "minilm" not in name:
        families.shrunk(name, cache / "models" / name.removeprefix(EMBEDDED), POSITIONS, SPREAD, END)


def put_data(cache: Path, sources: Iterable[str]) -> list[str]:
    """Rows for those of the `sources` on the hub that can be drawn, as many as published; returns the others."""
    unknown = []
    for source in sorted(sources):
        name = hub.parse(source)
        if not name or name.repo not in DATA:
            unknown.append(source)
            continue
        make, count = DATA[name.repo]
        path = snapshot(cache, "dataset", name.repo, name.revision) / name.file
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, make(count))
    gamed().to_csv(snapshot(cache, "dataset", "tatsu-lab/alpaca_eval", None) / "df_gamed.csv", index=False)
    return unknown


def _write(path: Path, rows: list[Record]) -> None:
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        write_rows(path, rows)
    else:
        path.write_text(json.dumps(rows))


def environment(cache: Path) -> dict[str, Any]:
    """With which the hub's libraries and ours look into `cache`, and nowhere else."""
    return {
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(cache / "hub"),
        "HF_HUB_OFFLINE": "1",
        "SAO_MODELS": str(cache / "models"),
    }
