"""What our choices cost or gain on this machine: `python benchmarks/speed.py`, eight minutes on two cores.

Four comparisons, each in a process of its own and each against a named baseline in the same process or on the same
runs: vLLM against transformers, a judge with and without prefix caching, our training against TRL's own SimPO, and
papermill and snakemake against the notebooks' own cells. Writes speed.json and the table in README.md beside this file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sao_lib.engines import open_engine, user_turn
from sao_lib.method import judge
from sao_lib.method.labelled import labelled_pairs
from sao_lib.plan import layers
from sao_lib.plan import planning as plan
from sao_lib.provenance import cpu_name
from sao_lib.runs import Run
from sao_lib.settings import PARAMS, ROOT, Judge, Settings

HERE = Path(__file__).resolve().parent
TABLE = "table13"
SMALLEST = ["synthesize.n=4", "synthesize.pairs=2", "judge.source=length", "judge.audit_questions=1", "machine.jobs=1"]


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.monotonic()
    value = call()
    return time.monotonic() - start, value


def cpu() -> Settings:
    return layers.validate(layers.profile_layers("cpu"))


def generation(scratch: Path) -> dict[str, Any]:
    """Tokens written per second, greedily, on the same requests: one engine after the other, each warmed up."""
    base = cpu()
    instructions = [row["instruction"] for row in json.loads((PARAMS / "data" / "chat.json").read_text())]
    found = {}
    for name, count, changes in (
        ("vllm", 32, {"max_num_seqs": 32}),
        ("transformers, 32 at once", 32, {"kind": "transformers", "max_num_seqs": 32}),
        ("transformers, one by one", 4, {"kind": "transformers", "max_num_seqs": 1}),
    ):
        engine = open_engine(base.policy.model, base.engine.model_copy(update=changes), scratch / "log")
        requests = [user_turn(base.policy, text) for text in instructions[:count]]
        engine.generate(requests[:2], 8, 0.0, [0] * 2)
        took, out = seconds(lambda e=engine, r=requests: e.generate(r, 64, 0.0, [0] * len(r)))
        engine.close()
        found[name] = sum(c.tokens_out for c in out) / took
    return {"what": "generation, tokens/s", "baseline": "transformers, 32 at once", "rates": found}


def judging(scratch: Path) -> dict[str, Any]:
    """Ranking prompts per second, both orders of 40 labelled pairs; medians of three turns each."""
    settings = Judge(source="llm", template="params/templates/ranking.yaml", reading="logprob", orders="both")
    pairs = [(p["prompt"], *p["responses"]) for p in labelled_pairs(8, 0)]
    took: dict[str, list[float]] = {}
    cached = {}
    for _ in range(3):
        for name, caching in (("without prefix caching", False), ("with prefix caching", True)):
            engine: Any = open_engine(
                cpu().policy.model, cpu().engine.model_copy(update={"prefix_caching": caching}), scratch / "log"
            )
            judge.llm_verdicts(engine, pairs[:1], settings, True, 0)
            seen: list[Any] = []
            plain = engine.llm.generate
            engine.llm.generate = lambda *a, p=plain, s=seen, **k: s.extend(p(*a, **k)) or s
            once = seconds(lambda e=engine: judge.llm_verdicts(e, pairs, settings, True, 0))[0]
            took.setdefault(name, []).append(once)
            tokens = sum(len(o.prompt_token_ids) for o in seen)
            cached[name] = sum(o.num_cached_tokens or 0 for o in seen) / tokens
            engine.close()
    rates = {name: 2 * len(pairs) / statistics.median(values) for name, values in took.items()}
    return {"what": "judging, prompts/s", "baseline": "without prefix caching", "rates": rates, "cached": cached}


def training(scratch: Path) -> dict[str, Any]:
    """Tokens trained per second: our trainer and trl.experimental's CPOTrainer with the SimPO loss, same pairs."""
    from sao_lib.method import train, trainer

    base = cpu()
    settings = base.train.model_copy(update={"data": "params/data/preferences.jsonl", "pairs": 24, "samples": 1})
    params = {"seed": 1, "policy": base.policy.model_dump(), "train": settings.model_dump()}
    spec = {"stage": "train", "name": "speed", "profile": "cpu", "params": params, "inputs": {}, "files": {}}
    (scratch / "spec.yaml").write_text(json.dumps(spec))
    run = Run(spec, scratch)
    train.prepare(run, train.load_preferences(run, settings), settings, base.policy)
    rows = run.rows("train.jsonl")
    tokens = sum(2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)

    runtimes: list[float] = []
    plain = trainer.PreferenceTrainer.train

    def timed(self: Any, **given: Any) -> Any:
        self.callback_handler.remove_callback(trainer.Samples)
        done = plain(self, **given)
        runtimes.append(done.metrics["train_runtime"])
        return done

    trainer.PreferenceTrainer.train = timed  # type: ignore[method-assign]
    trainer.main(str(scratch))
    rates = {"ours": tokens / runtimes[0], "TRL's CPOTrainer": tokens / _cpo(run, settings, rows)}
    return {"what": "training, tokens/s", "baseline": "TRL's CPOTrainer", "rates": rates}


def _cpo(run: Run, settings: Any, rows: list[dict[str, Any]]) -> float:
    """Seconds of TRL's own SimPO training on the same pairs, adapters and batches."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    from sao_lib.engines.models import resolve
    from sao_lib.method import trainer

    folder = resolve(run.policy_model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = [{side: tokenizer.decode(row[f"{side}_ids"]) for side in ("prompt", "chosen", "rejected")} for row in rows]
    args = CPOConfig(
        output_dir=str(run.folder / "cpo"),
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=settings.beta,
        simpo_gamma=settings.gamma / settings.beta,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=1,
        max_length=None,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
    )
    made = CPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        args=args,
        train_dataset=Dataset.from_list(text),
        processing_class=tokenizer,
        peft_config=trainer.lora(settings.lora_rank),
    )
    return float(made.train().metrics["train_runtime"])


def overhead(scratch: Path) -> dict[str, Any]:
    """Seconds for the three runs of the smallest table: cells alone, papermill, snakemake; a process for each run."""
    took = {}
    for name in ("the notebooks' cells", "papermill", "snakemake and papermill"):
        place = {"SAO_OUTPUTS": str(scratch / name.split()[0]), "MPLBACKEND": "agg"}
        folders = part("specs", **place).split()
        sao = [sys.executable, "-m", "sao_lib"]
        calls = {
            "papermill": [[*sao, "run", folder] for folder in folders],
            "snakemake and papermill": [[*sao, "reproduce", TABLE, "--set", *SMALLEST]],
        }.get(name, [[sys.executable, __file__, "cells", folder] for folder in folders])
        start = time.monotonic()
        for call in calls:
            subprocess.run(call, env={**os.environ, **place}, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        took[name] = time.monotonic() - start
    return {"what": "three runs, seconds", "baseline": "the notebooks' cells", "rates": took}


def part(*words: str, **environment: str) -> str:
    """What this file prints when it does one of PARTS in a process of its own."""
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    call = [sys.executable, __file__, *words]
    env = {**os.environ, **fixed, **environment}
    return subprocess.run(call, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def specs() -> None:
    """Write the specs of the smallest table's runs and print their folders."""
    made = plan.make("cpu", TABLE, SMALLEST)
    plan.write_specs(made)
    print("\n".join(str(run.path) for run in made.runs))


def cells(folder: str) -> None:
    """Run the code cells of a run's notebook in this process."""
    from IPython.display import display

    from sao_lib.launch.kernel import ENVIRONMENT
    from sao_lib.settings import NOTEBOOKS

    os.environ.update(ENVIRONMENT)
    stage = json.loads((Path(folder) / "spec.yaml").read_text())["stage"]
    notebook = json.loads((ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb").read_text())
    names = {"display": display, "__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names["spec"] = f"{folder}/spec.yaml"


MEASURES = {"generation": generation, "judging": judging, "training": training, "overhead": overhead}


def write(found: dict[str, Any]) -> None:
    (HERE / "speed.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = ["| what | how | measured | against the baseline |", "|---|---|---|---|"]
    for measure in (found[name] for name in MEASURES if name in found):
        base = measure["rates"][measure["baseline"]]
        for name, value in measure["rates"].items():
            against = "baseline" if name == measure["baseline"] else f"{value / base:.2f}"
            lines.append(f"| {measure['what']} | {name} | {value:.3g} | {against} |")
    readme = HERE / "README.md"
    head, _, rest = readme.read_text().partition("<!-- speed -->")
    _, _, tail = rest.partition("<!-- end speed -->")
    machine = f"{found['machine']['cpu']}, {found['machine']['cpus']} cores, {found['machine']['date']}"
    body = "\n".join([*lines, "", f"Measured on {machine}; every job has one thread."])
    readme.write_text(f"{head}<!-- speed -->\n{body}\n<!-- end speed -->{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=["all", *MEASURES])
    names = [parser.parse_args().what]
    names = [*MEASURES] if names == ["all"] else names
    file = HERE / "speed.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in names:
        found[name] = json.loads(part("measure", name).splitlines()[-1])
        print(json.dumps(found[name]), flush=True)
    found["machine"] = {"cpu": cpu_name(), "cpus": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
    write(found)


def measure(name: str) -> None:
    """One comparison, printed as JSON on the last line."""
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(MEASURES[name](Path(scratch))))


PARTS = {"measure": measure, "specs": specs, "cells": cells}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in PARTS:  # a process of its own
        PARTS[sys.argv[1]](*sys.argv[2:])
    else:
        main()
