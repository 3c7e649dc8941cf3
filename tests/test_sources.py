"""Loaders on rows in the real schemas of the hub's data sets, written here into files of the same formats."""

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sao_lib import hub, sources
from sao_lib.errors import SaoError, in_one_line
from sao_lib.evaluate import alpaca_eval, arena_hard, mt_bench
from sao_lib.method import synthesize, train
from sao_lib.plan import layers
from sao_lib.plan import planning as plan
from sao_lib.plan.experiment import experiments
from sao_lib.plan.needs import models_of
from sao_lib.runs import Run
from sao_lib.settings import Settings

WITHOUT_COMMIT = ("princeton-nlp/Llama-3-Instruct-8B-SimPO-v0.2",)  # none was found; params/models.yaml says so


def ultrafeedback(number: int) -> dict[str, Any]:
    """A row as HuggingFaceH4/ultrafeedback_binarized has it."""
    prompt = f"Question {number}?\nWith a second line."
    turns = [{"content": prompt, "role": "user"}]
    return {
        "prompt": prompt,
        "prompt_id": hashlib.sha256(prompt.encode()).hexdigest(),
        "chosen": [*turns, {"content": "Good.", "role": "assistant"}],
        "rejected": [*turns, {"content": "Bad.", "role": "assistant"}],
        "messages": [*turns, {"content": "Good.", "role": "assistant"}],
        "score_chosen": 9.0,
        "score_rejected": 3.0,
    }


def parquet(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "train_prefs-00000-of-00001.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return str(path)


def test_ultrafeedback_trains_and_gives_prompts(tmp_path: Path, cpu: Settings, make_run: Any) -> None:
    source = parquet(tmp_path, *map(ultrafeedback, range(5)))
    rows = train.load_preferences(make_run(), cpu.train.model_copy(update={"data": source}))
    assert rows[0]["prompt"] == [{"role": "user", "content": "Question 0?\nWith a second line."}]
    assert rows[0]["chosen"] == [{"content": "Good.", "role": "assistant"}]
    assert rows[0]["rejected_finished"] is True
    prompts = synthesize.load_dataset_prompts(source, 3, 1)
    assert len({row["id"] for row in prompts}) == 3
    assert all(row["prompt"].endswith("With a second line.") and "\n" in row["prompt"] for row in prompts)


def test_an_external_row_without_an_answer_is_named(tmp_path: Path, cpu: Settings, make_run: Any) -> None:
    broken = {**ultrafeedback(1), "rejected": []}
    source = parquet(tmp_path, ultrafeedback(0), broken)
    with pytest.raises(SaoError, match="row 2: it lacks one of prompt, chosen and rejected"):
        train.load_preferences(make_run(), cpu.train.model_copy(update={"data": source}))


PERSONA = '{"id": "p1", "persona": "a baker"}'
INSTRUCTION = '{"instruction": "q1", "output": "a1", "generator": "us"}'
BROKEN: list[tuple[str, str | bytes, str]] = [  # the file of a user, what is in it, what is said of it
    ("p.jsonl", f"{PERSONA}\n{{broken\n{PERSONA}\n", r"p\.jsonl, line 2, is not JSON as it should be .*mend it"),
    ("p.jsonl", f'{PERSONA}\n{{"id": "p2", "per', r"line 2, is not JSON"),
    ("p.jsonl", f"{PERSONA}\n\n[1]\n", r"line 3, must be an object \{\.\.\.\} and is \[1\]; mend it"),
    ("p.jsonl", f'{PERSONA}\n"a nun"\n', r"line 2, must be an object"),
    ("p.jsonl", "7", r"line 1, must be an object"),
    ("p.jsonl", "null", r"line 1, must be an object"),
    ("p.jsonl", "<!DOCTYPE html><p>Not found</p>", r"line 1, is not JSON"),
    ("p.jsonl", "", r"p\.jsonl holds no rows"),
    ("p.jsonl", "[" * 100_000, r"line 1, is not JSON as it should be \(it is nested too deeply\)"),
    ("p.jsonl", f"{PERSONA}\n".encode("utf-16"), r"line 1, is not UTF-8; save the file with that encoding"),
    ("p.jsonl", PERSONA.encode() + b'\n{"persona": "a caf\xe9 owner"}\n', r"line 2, is not UTF-8"),
    ("p.jsonl", PERSONA + '\n{"persona": "a\0b"}', r"line 2, is not JSON"),
    ("p.jsonl", '{"persona": "a", "persona": "b"}', r"line 1, is not JSON as it should be \(it has 'persona' twice\)"),
    ("p.jsonl", '{"persona": NaN}', r"line 1, .*NaN is no number"),
    ("p.jsonl", f'{PERSONA}\n{{"id": "p2"}}', r"line 2: it has no persona; mend that row or take it out"),
    ("p.jsonl", f'{PERSONA}\n{{"persona": 7}}', r"line 2: persona is 7 and must be a text"),
    ("p.jsonl", f'{PERSONA}\n{{"persona": " \\n"}}', r"line 2: persona is blank"),
    ("p.jsonl", f"{PERSONA}\n{PERSONA}", r'line 2: its id "p1" stands in line 1 already'),
    ("q.json", f"[{INSTRUCTION},", r"q\.json is not JSON"),
    ("q.json", "{}", r"q\.json must hold a list of objects, and holds \{\}"),
    ("q.json", f"[{INSTRUCTION}, {{}}]", r"row 2: it has no instruction"),
    ("q.json", f"[{INSTRUCTION}, {INSTRUCTION}]", r'row 2: its instruction "q1" stands in row 1 already'),
    ("q.json", f"[{INSTRUCTION}, 5]", r"row 2, must be an object"),
    ("q.json", '[{"instruction": "q1", "output": "  ", "generator": "us"}]', r"row 1: output is blank"),
    ("q.json", '[{"instruction": "q1", "output": 5, "generator": "us"}]', r"row 1: output is 5 and must be a text"),
    ("q.json", '[{"instruction": "q1", "output": "a", "generator": "them"}]', r"holds no output by 'us' for 'q1'"),
    ("q.json", "[]", r"q\.json holds no rows"),
    ("d.jsonl", '{"prompt": "x", "chosen": "good", "rejected": "bad"}', r"line 1: prompt must be a text, chosen"),
    ("d.jsonl", '{"prompt": ["x"], "chosen": [], "rejected": []}', r'line 1: prompt is \["x"\] and must be a text'),
    ("d.jsonl", '{"prompt": "x", "chosen": [{"role": "user"}], "rejected": [1]}', r"line 1: prompt must be a text"),
    ("d.parquet", "no parquet", r"d\.parquet cannot be read as Parquet"),
    ("m.jsonl", '{"question_id": 1, "category": "math", "turns": ["one"]}', r"line 1: turns must be a list of two"),
    ("m.jsonl", '{"question_id": 1, "turns": ["one", "two"]}', r"line 1: it has no category"),
    ("a.jsonl", '{"question_id": 1, "baseline": "b"}', r"line 1: it has no prompt"),
    ("a.jsonl", '{"question_id": 1, "turns": ["q"], "baseline": "b"}', r"line 1: turns must be a list of \{content\}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), BROKEN)
def test_what_is_wrong_in_a_users_file_is_one_sentence_with_its_place(
    name: str, content: str | bytes, said: str, tmp_path: Path, cpu: Settings, make_run: Any
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    evaluate = cpu.evaluate.model_copy(update={"instructions": str(path), "reference": "us", "n": 1})
    readers = {
        "p": lambda: synthesize.load_personas(str(path), 1, 0), "q": lambda: alpaca_eval.load_instructions(evaluate),
        "d": lambda: train.load_preferences(make_run(), cpu.train.model_copy(update={"data": str(path)})),
        "m": lambda: mt_bench.load_questions(str(path), 1), "a": lambda: arena_hard.load_questions(str(path), None, 1),
    }  # fmt: skip
    with pytest.raises(SaoError, match=said) as refused:
        readers[name[0]]()
    assert str(path) in str(refused.value)
    assert "delete" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_right_in_a_users_file_is_read_whatever_wrote_it(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, blank lines, a last line without an end, numbers as ids, odd characters."""
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": 1, "persona": "a b\\ud83e\\udd56ker"}\r\n\r\n{"persona": "a \\ud800 nun\xe2\x80\xa8"}\n'
        b'{"persona": "a \\\\ud800 dyer"}'
    )
    found = sorted(row["persona"] for row in synthesize.load_personas(str(path), 3, 0))
    assert found == sorted(["a \\ud800 dyer", "a b\U0001f956ker", "a \ufffd nun\u2028"])


def test_a_published_set_may_hold_a_row_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set on the hub a row without its text is passed over, and repeated ids are its own."""
    path = tmp_path / "p.jsonl"
    path.write_text(f'{PERSONA}\n{PERSONA}\n{{"persona": ""}}\n')
    monkeypatch.setattr(sources, "fetch", lambda source: path)
    assert len(synthesize.load_personas("hub:org/set@main/p.jsonl", 2, 0)) == 2


def test_persona_hub_rows_have_no_id(tmp_path: Path) -> None:
    path = tmp_path / "persona.jsonl"
    path.write_text("".join(json.dumps({"persona": f"a baker from street {n}"}) + "\n" for n in range(20)))
    rows = synthesize.load_personas(str(path), 10, 1)
    assert len({row["id"] for row in rows}) == 10


def test_alpaca_eval_gpt4_baseline(tmp_path: Path, cpu: Settings) -> None:
    path = tmp_path / "alpaca_eval_gpt4_baseline.json"
    row = {
        "output": "a",
        "generator": "gpt4_1106_preview",
        "dataset": "helpful_base",
        "datasplit": "eval",
    }
    path.write_text(json.dumps([{"instruction": f"q{n}", **row} for n in range(6)]))
    settings = cpu.evaluate.model_copy(update={"instructions": str(path), "reference": "gpt4_1106_preview", "n": 5})
    assert [r["instruction"] for r in alpaca_eval.load_instructions(settings)] == [f"q{n}" for n in range(5)]


def test_published_answers_are_read_in_the_order_of_the_instructions(
    tmp_path: Path, cpu: Settings, make_run: Any
) -> None:
    asked = [{"instruction": f"q{n}"} for n in range(3)]
    path = tmp_path / "model_outputs.json"
    rows = [{"instruction": f"q{n}", "output": f"a{n}", "generator": "yi", "dataset": "koala"} for n in (2, 0, 1, 5)]
    path.write_text(json.dumps(rows))
    settings, run = cpu.evaluate.model_copy(update={"answers": str(path)}), make_run()
    answers = alpaca_eval.published_answers(run, settings, asked)
    assert answers == run.rows("answers.jsonl")
    assert [(a["instruction"], a["output"], a["generator"]) for a in answers] == [
        (f"q{n}", f"a{n}", "yi") for n in range(3)
    ]
    with pytest.raises(SaoError, match="has no answer to 'q9'"):
        alpaca_eval.published_answers(run, settings, [{"instruction": "q9"}])


def test_a_file_on_github_is_fetched_once_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = f"github:org/repo@{'0a' * 20}/folder/file.json", []

    def urlopen(url: str, timeout: float) -> Any:
        asked.append(url)
        return io.BytesIO('[{"a": "é"}]'.encode())

    monkeypatch.setattr(sources, "FETCHED", tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SaoError, match="has not been fetched yet and HF_HUB_OFFLINE is set"):
        sources.check(source)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert sources.load_rows(source) == sources.load_rows(source) == [{"a": "é"}]
    assert len(asked) == 1
    assert asked[0].endswith(f"/org/repo/{'0a' * 20}/folder/file.json")
    for wrong in ("github:org/repo@main/file.json", f"github:org/repo@{'0a' * 20}/../../file.json"):
        with pytest.raises(SaoError, match="is not of the form github:org/repo@commit/file"):
            sources.fetch(wrong)


def test_a_file_that_is_no_list_of_rows_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "b.json").write_text("[1, 2")
    with pytest.raises(SaoError, match="must hold a list of objects"):
        sources.load_rows(str(tmp_path / "a.json"))
    with pytest.raises(SaoError, match="is not JSON as it should be"):
        sources.load_rows(str(tmp_path / "b.json"))
    with pytest.raises(SaoError, match="does not exist"):
        sources.check(str(tmp_path / "c.json"))


def test_a_hub_that_fails_without_a_word_is_named_by_the_kind_of_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(hub, "cached", lambda name: None)
    for name in ("file_exists", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, fail)
    for ask in (sources.check, sources.fetch):
        with pytest.raises(SaoError, match=r"hub(:| says:) TimeoutError$"):
            ask("hub:org/set@main/file.json")


def test_only_the_first_line_of_a_failure_is_said() -> None:
    assert in_one_line(ValueError("\n no such thing \nTraceback")) == "no such thing"
    assert len(in_one_line(ValueError("x" * 400))) == 160


def test_hub_files_are_named_with_their_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.parse("hub:org/set@main/folder/file.json") == ("org/set", "main", "folder/file.json")
    with pytest.raises(SaoError, match="not of the form hub:org/dataset@revision/file"):
        sources.fetch("hub:org/set/file.json")
    monkeypatch.setattr(hub, "cached", lambda name: Path("cache") / "snapshots" / "0a1b" / name.file)
    assert hub.commit("hub:org/set@main/file.json") == "0a1b"


@pytest.mark.parametrize("profile", ["gpu-small", "gpu", "paper"])
def test_every_model_on_the_hub_that_a_profile_names_has_a_commit(profile: str) -> None:
    runs = [run for name in experiments() for run in plan.make(profile, name).runs]
    names = {name for run in runs if run.spec["stage"] != "ablate" for name in models_of(run)}
    for repo, revision in map(hub.model, (name for name in names if not name.startswith(("embedded/", "openai/")))):
        assert re.fullmatch("[0-9a-f]{40}", str(revision)) or repo in WITHOUT_COMMIT, repo
    assert names


def test_a_revision_after_the_name_comes_first() -> None:
    assert hub.model("google/gemma-2-9b-it@main") == ("google/gemma-2-9b-it", "main")
    assert hub.model("org/unheard-of") == ("org/unheard-of", None)


def test_a_run_records_the_commits_of_what_it_read_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = {("org/model", "main"): "0a1b", ("org/judge", "v1"): "2c3d"}

    def in_fake_cache(repo: str, file: str, revision: str | None = None, repo_type: str | None = None) -> str | None:
        found = read.get((repo, revision or "main"))
        return f"/cache/snapshots/{found}/{file}" if found else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", in_fake_cache)
    params = {"policy": {"model": "org/model", "system": None}, "judge": {"model": "org/judge@v1", "chunk": 3},
              "rating": {"model": "openai/gpt-4o"}, "train": {"deepspeed": "params/deepspeed_zero3.json"}}  # fmt: skip
    run = Run({"stage": "judge", "name": "t", "profile": "cpu", "params": params, "inputs": {}, "files": {}}, tmp_path)
    assert run.finish({})["hub_commits"] == {"org/model": "0a1b", "org/judge@v1": "2c3d"}


@pytest.mark.parametrize("profile", ["gpu-small", "gpu", "paper"])
def test_files_on_the_hub_are_named_with_their_commit(profile: str) -> None:
    text = json.dumps(layers.validate(layers.profile_layers(profile)).model_dump())
    files = [hub.parse(name) for name in re.findall(r'"(hub:[^"]+)"', text)]
    assert len(files) > 1
    assert all(file and re.fullmatch("[0-9a-f]{40}", file.revision) for file in files)
