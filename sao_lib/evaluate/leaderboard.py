"""Open LLM Leaderboard v1 (SAO table 3) by lm-eval: its prompts, its metrics and its numbers.

`data: null` runs lm-eval's own tasks with the data sets from the hub. A folder of JSONL files, `<set>_<split>.jsonl`
in the schema of those data sets, takes their place through YAML files that include lm-eval's and change only
where the data come from; params/data/leaderboard/ holds the suite's own small ones.
"""

import copy
import gc
import json
import math
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from sao_lib.engines.models import attention_for
from sao_lib.errors import SaoError
from sao_lib.files import write_atomic
from sao_lib.machine import has_gpu
from sao_lib.progress import Progress, quiet
from sao_lib.settings import ROOT, Leaderboard

LOG = "lm_eval.log"


@dataclass(frozen=True)
class Task:
    """A column of table 3, as params/paper.yaml names it: lm-eval's task, its shots and the leaderboard's metric."""

    column: str
    name: str
    shots: int
    metric: str
    data: str  # the first part of the file names in a data folder
    official: str  # lm-eval's YAML below lm_eval/tasks; {} is an MMLU subject


TASKS = (
    Task("arc", "arc_challenge", 25, "acc_norm,none", "arc", "arc/arc_challenge.yaml"),
    Task("truthfulqa", "truthfulqa_mc2", 0, "acc,none", "truthfulqa", "truthfulqa/truthfulqa_mc2.yaml"),
    Task("winogrande", "winogrande", 5, "acc,none", "winogrande", "winogrande/default.yaml"),
    Task("gsm8k", "gsm8k", 5, "exact_match,strict-match", "gsm8k", "gsm8k/gsm8k.yaml"),
    Task("hellaswag", "hellaswag", 10, "acc_norm,none", "hellaswag", "hellaswag/hellaswag.yaml"),
    Task("mmlu", "mmlu", 5, "acc,none", "mmlu", "mmlu/default/mmlu_{}.yaml"),
)
FLEXIBLE = "exact_match,flexible-extract"  # GSM8K's last number in the answer, reported beside the strict one


def official_folder() -> Path:
    """lm-eval's task folder."""
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks"


def write_tasks(folder: Path, data: Path) -> Path:
    """YAML files in `folder` that point lm-eval's tasks at the JSONL files in `data`; returns `folder`.

    Raises SaoError when a task has no file there.
    """
    sets: dict[str, dict[str, str]] = {}
    for path in sorted(data.glob("*.jsonl")):
        name, _, split = path.stem.rpartition("_")
        sets.setdefault(name, {})[split] = str(path.resolve())
    for task in TASKS:
        subjects = [name for name in sets if name.startswith(f"{task.data}_")] if task.data == "mmlu" else [task.data]
        if not subjects or any(name not in sets for name in subjects):
            raise SaoError(f"{data} holds no file {task.data}_<split>.jsonl; add it or set leaderboard.data.")
        for name in subjects:
            official = official_folder() / task.official.format(name.removeprefix("mmlu_"))
            if not official.is_file():
                raise SaoError(f"{data} holds {name}, which is no subject of lm-eval's MMLU; rename or remove it.")
            config = {"include": str(official), **_data_keys(official, sets[name])}
            write_atomic(folder / f"{name}.yaml", yaml.safe_dump(config))
        if task.data == "mmlu":
            group = {"include": str(official_folder() / "mmlu/default/_mmlu.yaml"), "task": subjects}
            write_atomic(folder / "_mmlu.yaml", yaml.safe_dump(group))
    return folder


def _data_keys(official: Path, files: dict[str, str]) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(official, resolve_func=False)
    splits = [key for key in ("training_split", "validation_split", "test_split") if config.get(key)]
    absent = {key: None for key in splits if config[key] not in files}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}, **absent}


def task_manager(run_folder: Path, settings: Leaderboard) -> Any:
    """lm-eval's task manager, over its own tasks or over the generated ones."""
    from lm_eval.tasks import TaskManager

    if settings.data is None:
        return TaskManager()
    folder = write_tasks(run_folder / "tasks", ROOT / settings.data)
    return TaskManager(include_path=str(folder), include_defaults=False)


def load_task(task: Task, manager: Any) -> Any:
    """lm-eval's task or group of tasks with its data; raises SaoError when the data cannot be had."""
    try:
        loaded = manager.load([task.name])
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise SaoError(f"The data of {task.name} cannot be loaded: {reason}") from None
    return loaded["groups"].get(task.name) or loaded["tasks"][task.name]


def evaluate(run_folder: Path, model_folder: Path, settings: Leaderboard) -> dict[str, Any]:
    """lm-eval's results by task, written to <task>.json as each task ends; a task that has its file is not run again.

    Every sample is kept with its log-likelihoods; the prompts only of the first in each data set.
    """
    files = {task.name: run_folder / f"{task.name}.json" for task in TASKS}
    missing = [task for task in TASKS if not files[task.name].is_file()]
    if missing:
        progress = Progress(run_folder, "downstream tasks", len(TASKS), len(TASKS) - len(missing), "tasks")
        with quiet(run_folder / LOG):
            manager = task_manager(run_folder, settings)
            model = open_model(model_folder, settings, run_folder)
            for task in missing:
                write_atomic(files[task.name], _run(task, model, manager, settings))
                progress.update(1)
            del model
            _free()
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}


def _run(task: Task, model: Any, manager: Any, settings: Leaderboard) -> str:
    import lm_eval
    from lm_eval.utils import handle_non_serializable

    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[load_task(task, manager)],
        num_fewshot=task.shots,
        task_manager=manager,
        limit=settings.limit,
        gen_kwargs={"max_gen_toks": settings.max_gen_toks},
    )
    for samples in found["samples"].values():
        for sample in samples[1:]:
            del sample["arguments"]
    return json.dumps(found, indent=1, ensure_ascii=False, default=handle_non_serializable) + "\n"


def open_model(folder: Path, settings: Leaderboard, run_folder: Path) -> Any:
    """The model as lm-eval's HFLM, which here reads a prompt once for all its choices and logs its progress.

    Gemma's tokenizers need not add the BOS token it was trained with (lm-eval 0.4.13 leaves that to them), so it is
    asked for; other models keep what their tokenizer does.
    """
    import torch
    from transformers import AutoConfig

    device = "cuda" if has_gpu() else "cpu"
    if device == "cpu":
        torch.set_num_threads(settings.threads)
    return _shared_prompt_class(run_folder)(
        pretrained=str(folder),
        device=device,
        dtype=settings.dtype,
        softmax_dtype="float32",  # in bfloat16 likelihoods are so coarse that choices tie
        batch_size=settings.batch_size,
        attn_implementation=attention_for(folder, "sdpa")[0],
        add_bos_token=True if AutoConfig.from_pretrained(folder).model_type.startswith("gemma") else None,
    )


def _shared_prompt_class(run_folder: Path) -> type[Any]:
    import torch
    from lm_eval.models.huggingface import HFLM

    class SharedPrompt(HFLM):
        """HFLM whose model computes the prompt of a question once, and logits for its choices only.

        A quarter of the work for four choices, and no logits of a long prompt in a large vocabulary, which take
        gigabytes. HFLM counts positions from the end of the logits it gets, so its own scoring stays as it is.
        """

        shared, cache = 0, None  # tokens of the prompt that a question's choices share, and what was computed of them
        longest = 0  # tokens of the longest request to write, with all that may be written

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            scores: list[tuple[float, bool]] = []
            progress = Progress(run_folder, "choices", len(requests))
            for prompt, same in groupby(requests, key=lambda request: request[1]):
                choices = list(same)
                fits = len(prompt) + max(len(choice) for _, _, choice in choices) <= self.max_length
                self.shared, self.cache = (len(prompt) - 1 if fits else 0), None
                size = len(choices) if self.batch_size == "auto" else None  # else it would be looked for every time
                scores += super()._loglikelihood_tokens(choices, disable_tqdm=True, override_bs=size)
                progress.update(len(choices))
            return scores

        def generate_until(self, requests: Any, *args: Any, **kwargs: Any) -> list[str]:
            self.shared, self.cache = 0, None  # no choices here
            room = [request.args[1].get("max_gen_toks", self.max_gen_toks) for request in requests]
            prompts = [len(self.tok_encode(request.args[0])) for request in requests]
            self.longest = max(map(sum, zip(prompts, room, strict=True)), default=0)
            return super().generate_until(requests, *args, **kwargs)

        def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
            """At the longest request; HFLM would try the model's whole window, of which a card holds few."""
            return super()._detect_batch_size(requests or [(None, [0] * self.longest, [0])], pos)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                if self.shared and self.cache is None:
                    self.cache = self.model(inps[:1, : self.shared], use_cache=True, logits_to_keep=1).past_key_values
                past = copy.deepcopy(self.cache)  # the model writes into it
                if past is not None:
                    past.batch_repeat_interleave(len(inps))
                return self.model(inps[:, self.shared :], past_key_values=past).logits

    return SharedPrompt


def _free() -> None:
    import torch

    gc.collect()
    if has_gpu():
        torch.cuda.empty_cache()


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """{columns: {column: {score, se, n}}, average, average_se} in percent; the average is the columns' plain mean.

    `beside` holds what the leaderboard might also mean: GSM8K's flexible extraction, and MMLU with every subject
    counted alike where lm-eval counts every question alike.
    """
    columns = {task.column: _score(results[task.name], task.name, task.metric) for task in TASKS}
    mmlu = results["mmlu"]
    subjects = [_score(mmlu, name, "acc,none") for name in mmlu["n-samples"]]
    return {
        "columns": columns,
        "average": _mean([c["score"] for c in columns.values()]),
        "average_se": _mean_se([c["se"] for c in columns.values()]),
        "beside": {
            "gsm8k, flexible": _score(results["gsm8k"], "gsm8k", FLEXIBLE),
            "mmlu, mean of subjects": {
                "score": _mean([s["score"] for s in subjects]),
                "se": _mean_se([s["se"] for s in subjects]),
                "n": sum(s["n"] for s in subjects),
            },
        },
    }


def _score(results: dict[str, Any], name: str, metric: str) -> dict[str, Any]:
    found, (kind, which) = results["results"][name], metric.split(",")
    counts = results["n-samples"]
    return {
        "score": 100 * found[metric],
        "se": 100 * found[f"{kind}_stderr,{which}"],
        "n": counts[name]["effective"] if name in counts else sum(c["effective"] for c in counts.values()),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _mean_se(errors: list[float]) -> float:
    """Standard error of the mean of independent estimates."""
    return math.sqrt(sum(e * e for e in errors)) / len(errors)


def extract_gsm8k(text: str) -> str | None:
    """The number that lm-eval's strict-match filter takes from an answer, None if it takes none."""
    return str(next(iter(_strict_filter().apply([[text]], [{}])))[0]) or None


@cache
def _strict_filter() -> Any:
    from lm_eval.filters.extraction import RegexFilter
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(official_folder() / "gsm8k/gsm8k.yaml", resolve_func=False)
    strict = next(f for f in config["filter_list"] if f["name"] == "strict-match")
    arguments = {key: value for key, value in strict["filter"][0].items() if key != "function"}
    return RegexFilter(**{**arguments, "fallback": ""})
