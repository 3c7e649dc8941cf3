"""The leaderboard's tasks on local data: lm-eval's own but for where the data come from. No model is loaded."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import published
import pytest

from sao_lib.errors import SaoError
from sao_lib.evaluate import leaderboard
from sao_lib.evaluate.leaderboard import TASKS, Task
from sao_lib.files import read_rows
from sao_lib.settings import ROOT, Leaderboard

MINIS = ROOT / "params" / "data" / "leaderboard"
SETTINGS = Leaderboard(data="params/data/leaderboard", batch_size=1, max_gen_toks=64)
DATA_KEYS = {"dataset_path", "dataset_name", "dataset_kwargs", "validation_split"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every task of TASKS as lm-eval builds it, MMLU by subject; the folder with its YAML is under `folder`."""
    folder = tmp_path_factory.mktemp("run")
    manager = leaderboard.task_manager(folder, SETTINGS)
    return {"folder": folder / "tasks", **{task.name: leaderboard.load_task(task, manager) for task in TASKS}}


def subtasks(item: Any) -> list[Any]:
    return item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]


@published.needs("the reference answers of GSM8K", "gsm8k/test.jsonl")
def test_gsm8k_extraction_finds_every_reference_answer() -> None:
    rows = read_rows(published.path("gsm8k/test.jsonl"))
    gold = [row["answer"].rsplit("#### ", 1)[1].strip() for row in rows]
    assert [leaderboard.extract_gsm8k(row["answer"]) for row in rows] == gold
    assert len(rows) == 1319


def test_gsm8k_extraction_is_strict() -> None:
    assert leaderboard.extract_gsm8k("2+2=4\n#### 4\n\nQuestion: 1+1?\n#### 2") == "4"
    assert leaderboard.extract_gsm8k("#### -1,250.5") == "-1,250.5"
    assert leaderboard.extract_gsm8k("The answer is 4.") is None
    assert leaderboard.extract_gsm8k("####4") is None


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.column)
def test_local_tasks_build_prompts_and_targets(loaded: dict[str, Any], task: Task) -> None:
    for built in subtasks(loaded[task.name]):
        built.set_config("num_fewshot", task.shots)
        built.set_fewshot_seed(1234)
        docs = list(built.eval_docs)
        assert len(docs) >= (10 if task.name == "mmlu" else 16)
        for doc in docs:
            assert built.doc_to_text(doc) not in ("", None)
            assert built.doc_to_target(doc) not in ("", None)
        built.build_all_requests(limit=2)
        prompt, last = built.instances[0].args[0], built.doc_to_text(docs[0])
        examples = prompt.split("\n\n")
        if task.shots and isinstance(last, str):
            assert prompt.endswith(last)
            assert len(examples) == task.shots + 1 + bool(built.config.description)
        if task.shots == 0:
            assert docs[0]["question"] in examples[-1]


def test_generated_yaml_changes_only_where_the_data_come_from(loaded: dict[str, Any]) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    files = sorted(loaded["folder"].glob("*.yaml"))
    assert len(files) == 5 + 4 + 1
    for path in files:
        ours = load_yaml(path, resolve_func=False)
        official = load_yaml(load_yaml(path, resolve_func=False, recursive=False)["include"], resolve_func=False)
        changed = {key for key in {*ours, *official} if ours.get(key, "-") != official.get(key, "-")}
        if path.stem == "_mmlu":
            assert changed == {"task"}
        else:
            assert {"dataset_path", "dataset_kwargs"} <= changed <= DATA_KEYS
            assert ("validation_split" in changed) == (path.stem == "arc")


def test_tasks_name_the_papers_columns_and_lm_evals_metrics(loaded: dict[str, Any]) -> None:
    assert [task.column for task in TASKS] == ["arc", "truthfulqa", "winogrande", "gsm8k", "hellaswag", "mmlu"]
    for task in TASKS:
        metric, which = task.metric.split(",")
        for built in subtasks(loaded[task.name]):
            assert metric in built.aggregation()
            filters = [f["name"] for f in built.config.filter_list or [{"name": "none"}]]
            assert which in filters
    assert leaderboard.FLEXIBLE.split(",")[1] in [f["name"] for f in loaded["gsm8k"].config.filter_list]


def test_right_answers_are_spread_over_the_places() -> None:
    for path in MINIS.glob("*.jsonl"):
        rows = read_rows(path)
        key = next((k for k in ("answerKey", "label", "answer") if k in rows[0]), "")
        if key and not path.stem.startswith("gsm8k"):
            assert max(Counter(row[key] for row in rows).values()) <= math.ceil(len(rows) / len_choices(rows[0])) + 1


def len_choices(row: dict[str, Any]) -> int:
    return 2 if "option1" in row else 4


def test_local_sums_are_right() -> None:
    for split in ("train", "test"):
        for row in read_rows(MINIS / f"gsm8k_{split}.jsonl"):
            steps = [s.split(">>")[0].split("=") for s in row["answer"].split("<<")[1:]]
            assert all(eval(left) == float(right) for left, right in steps)
            assert leaderboard.extract_gsm8k(row["answer"]) == steps[-1][1]


def test_data_that_cannot_be_used_says_which(tmp_path: Path) -> None:
    with pytest.raises(SaoError, match="holds no file arc_"):
        leaderboard.write_tasks(tmp_path / "tasks", tmp_path)
    for task in TASKS[:5]:
        (tmp_path / f"{task.data}_test.jsonl").write_text("{}\n")
    with pytest.raises(SaoError, match="holds no file mmlu_"):
        leaderboard.write_tasks(tmp_path / "tasks", tmp_path)
    (tmp_path / "mmlu_astrology_test.jsonl").write_text("{}\n")
    with pytest.raises(SaoError, match="no subject"):
        leaderboard.write_tasks(tmp_path / "tasks", tmp_path)


def hand_made() -> dict[str, Any]:
    """lm-eval's results with scores 0.1 ... 0.5 and SE 0.03, MMLU of a small and a large subject."""
    results: dict[str, Any] = {}
    for n, task in enumerate(TASKS[:5], 1):
        kind, which = task.metric.split(",")
        scores = {task.metric: n / 10, f"{kind}_stderr,{which}": 0.03}
        results[task.name] = {"results": {task.name: scores}, "n-samples": {task.name: {"effective": 20}}}
    gsm8k = results["gsm8k"]["results"]["gsm8k"]
    gsm8k.update({leaderboard.FLEXIBLE: 0.45, "exact_match_stderr,flexible-extract": 0.05})
    scores = {
        name: {"acc,none": acc, "acc_stderr,none": se}
        for name, acc, se in (("mmlu", 0.6, 0.03), ("mmlu_a", 0.0, 0.0), ("mmlu_b", 0.8, 0.04))
    }
    counts = {"mmlu_a": {"effective": 10}, "mmlu_b": {"effective": 30}}
    results["mmlu"] = {"results": scores, "n-samples": counts}
    return results


def test_summary_by_hand() -> None:
    found = leaderboard.summary(hand_made())
    assert list(found["columns"]) == [task.column for task in TASKS]
    assert found["columns"]["winogrande"] == pytest.approx({"score": 30, "se": 3, "n": 20})
    assert found["columns"]["mmlu"] == pytest.approx({"score": 60, "se": 3, "n": 40})
    assert found["average"] == pytest.approx((10 + 20 + 30 + 40 + 50 + 60) / 6)
    assert found["average_se"] == pytest.approx(3 / math.sqrt(6))
    assert found["beside"]["gsm8k, flexible"] == pytest.approx({"score": 45, "se": 5, "n": 20})
    assert found["beside"]["mmlu, mean of subjects"] == pytest.approx({"score": 40, "se": 2, "n": 40})


def test_a_finished_task_is_not_run_again(tmp_path: Path) -> None:
    for name, results in hand_made().items():
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    results = leaderboard.evaluate(tmp_path, tmp_path / "no model here", SETTINGS)
    assert leaderboard.summary(results) == leaderboard.summary(hand_made())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 3 of two layers, one of them with a sliding window, and a tokenizer of 64 words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["<bos>", "<eos>", *map(str, range(62))])}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=8, max_position_embeddings=64,
        layer_types=["sliding_attention", "full_attention"], bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_prompt_read_once_gives_lm_evals_own_likelihoods(tiny: Path, tmp_path: Path, batch_size: int) -> None:
    from lm_eval.models.huggingface import HFLM

    settings = SETTINGS.model_copy(update={"dtype": "float32", "batch_size": batch_size})
    ours, theirs = leaderboard.open_model(tiny, settings, tmp_path), HFLM(str(tiny), device="cpu", dtype="float32")
    prompts, choices = ([*range(2, 22)], [*range(5, 9)], [3]), ([7], [8, 9], [10, 11, 12, 13], [9], [7, 8, 9])
    requests = [(("", ""), prompt, choice) for prompt in prompts for choice in choices]
    requests.append((("", ""), [*range(62)], [5, 6, 7, 8]))  # longer than the model's 64 positions
    found, expected = (model._loglikelihood_tokens(requests, disable_tqdm=True) for model in (ours, theirs))
    assert [f[0] for f in found] == pytest.approx([e[0] for e in expected], abs=1e-4)
    assert [f[1] for f in found] == [e[1] for e in expected]


def test_gemma_gets_one_bos(tiny: Path, tmp_path: Path) -> None:
    model = leaderboard.open_model(tiny, SETTINGS, tmp_path)
    assert model.tok_encode("5 6") == [0, 7, 8]
    assert model.tok_encode("<bos> 5 6").count(0) == 1
    assert model._encode_pair("5 6", " 7") == ([0, 7, 8], [9])
    assert model.tok_batch_encode(["5 6"])[0].tolist() == [[0, 7, 8]]


def test_a_batch_is_sized_by_the_longest_request_and_choices_before_it_leave_no_trace(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.instance import Instance

    def asked(*prompts: str) -> list[Instance]:
        given = [(prompt, {"until": ["1"], "max_gen_toks": 4, "do_sample": False}) for prompt in prompts]
        return [Instance("generate_until", {}, one, n) for n, one in enumerate(given)]

    settings = SETTINGS.model_copy(update={"dtype": "float32", "batch_size": "auto"})
    model = leaderboard.open_model(tiny, settings, tmp_path)
    tried = []
    call = type(model)._model_call
    monkeypatch.setattr(
        type(model), "_model_call", lambda self, ids, *a, **k: tried.append(ids.shape) or call(self, ids)
    )
    alone = model.generate_until(asked("5 6 7", "8"), disable_tqdm=True)
    assert {length for _, length in tried} == {4 + 4}, "a begin token, three words and four to write"
    model._loglikelihood_tokens([(("", ""), [*range(2, 22)], [7]), (("", ""), [*range(2, 22)], [8, 9])])
    assert model.generate_until(asked("5 6 7", "8"), disable_tqdm=True) == alone
