"""A run's folder survives kills, damage and full disks."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from sao_lib import files, provenance, runs
from sao_lib.engines.journal import JOURNAL
from sao_lib.errors import SaoError
from sao_lib.files import append_rows, read_rows, resume_rows
from sao_lib.method import train
from sao_lib.plan import chain
from sao_lib.plan import planning as plan
from sao_lib.runs import MANIFEST, load


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"n": 1}, {"n": 2}])
    path.write_bytes(path.read_bytes()[:-4])
    assert read_rows(path) == [{"n": 1}]


def test_damage_in_the_middle_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\nnot json\n{"n": 3}\n')
    with pytest.raises(SaoError, match=r"rows\.jsonl, line 2"):
        read_rows(path)


def test_resume_keeps_whole_chunks_and_cuts_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"n": n} for n in range(7)])
    assert [r["n"] for r in resume_rows(path, 3)] == list(range(6))
    append_rows(path, [{"n": 6}])
    assert [r["n"] for r in read_rows(path)] == list(range(7))
    assert len(resume_rows(path, 3, 7)) == len(read_rows(path)) == 7, "the last chunk is a short one"
    assert len(resume_rows(path, 3, 8)) == 6
    assert len(resume_rows(path, 500, 6)) == 6


def test_no_manifest_no_result(make_run: Any, tmp_path: Path) -> None:
    run = make_run(a=1)
    assert load(tmp_path) is None
    append_rows(tmp_path / "rows.jsonl", [{"n": 1}])
    manifest = run.finish({"score": 0.5})
    found = load(tmp_path)
    assert found is not None
    assert found.results == {"score": 0.5}
    assert manifest["versions"]["torch"].startswith("2.13.0")
    assert manifest["peak_memory_gib"] > 0


def test_a_truncated_file_is_noticed(make_run: Any, tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", [{"n": 1}, {"n": 2}])
    make_run().finish({})
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n')
    with pytest.raises(SaoError, match="not as its manifest says"):
        load(tmp_path)


def test_a_damaged_run_is_set_aside_and_planned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "OUTPUTS", tmp_path)
    made = plan.make("cpu", "smoke")
    folder = made.runs[0].path
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{ half a mani")
    (folder / JOURNAL).write_text('{"paid": 1}\n')
    plan.write_specs(made)
    assert (folder / JOURNAL).read_text() == '{"paid": 1}\n', "paid replies go with the run"
    assert not made.runs[0].done
    assert (folder / "spec.yaml").is_file()
    assert (folder.with_name(folder.name + ".damaged") / MANIFEST).is_file()


def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.md"
    files.write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for write in (lambda: files.write_atomic(path, "new"), lambda: append_rows(tmp_path / "rows.jsonl", [{"n": 1}])):
        with pytest.raises(SaoError, match="No space left on device.*same command again"):
            write()
    assert path.read_text() == "old"
    assert list(tmp_path.glob(".*tmp")) == []


def test_a_raised_cap_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "OUTPUTS", tmp_path)
    low, high = (plan.make("cpu", "smoke", [f"engine.max_usd={usd}"]) for usd in (5, 600))
    assert [run.folder for run in low.runs] == [run.folder for run in high.runs]
    plan.write_specs(low)
    plan.write_specs(high)
    spec = json.loads((high.runs[0].path / "spec.yaml").read_text())
    assert spec["params"]["engine"]["max_usd"] == 600
    assert runs.identity(spec) != runs.identity({**spec, "params": {**spec["params"], "seed": 43}})


def test_identity_follows_content() -> None:
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 1.5})


def test_spec_that_is_missing_or_damaged_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SaoError, match="no run's spec.yaml"):
        runs.Run.open(tmp_path / "spec.yaml")
    (tmp_path / "spec.yaml").write_text("{")
    with pytest.raises(SaoError, match="damaged"):
        runs.Run.open(tmp_path / "spec.yaml")


def test_manifest_is_json(make_run: Any, tmp_path: Path) -> None:
    make_run().finish({"x": 1})
    assert json.loads((tmp_path / MANIFEST).read_text())["results"]["x"] == 1


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished training with a model."""
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path)
    folder = tmp_path / "cpu" / "train" / "simpo-1"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    spec = {"stage": "train", "name": "simpo", "profile": "cpu", "params": {}, "inputs": {}, "files": {}}
    (folder / "spec.yaml").write_text(json.dumps(spec))
    run = runs.Run.open(folder / "spec.yaml")
    append_rows(folder / "rows.jsonl", [{"n": 1}])
    run.finish({"loss": 1.0})
    return folder


def state(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_finished_run_opens_as_a_copy_and_stays_as_it_is(finished: Path) -> None:
    before = state(finished)
    run = runs.Run.open(finished / "spec.yaml")
    assert run.copied
    assert run.rows("rows.jsonl") == [{"n": 1}]
    assert (run.folder / "model" / "model.safetensors").read_bytes() == b"weights"
    append_rows(run.folder / "rows.jsonl", [{"n": 2}])
    assert run.finish({"loss": 2.0})["results"] == {"loss": 2.0}
    train.launch(run, None)  # type: ignore[arg-type]  # would train over model/
    assert state(finished) == before


def test_a_model_that_is_cut_is_noticed(finished: Path) -> None:
    assert load(finished) is not None
    (finished / "model" / "model.safetensors").write_bytes(b"weigh")
    with pytest.raises(SaoError, match="model.safetensors is not as its manifest says"):
        load(finished)


def edit(file: Path, old: bytes, new: bytes) -> None:
    file.write_bytes(file.read_bytes().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: edit(f / "rows.jsonl", b"1", b"2"), "rows.jsonl is not as its manifest says"),
        (lambda f: (f / "rows.jsonl").unlink(), "rows.jsonl is not as its manifest says"),
        (lambda f: edit(f / MANIFEST, b'"loss": 1.0', b'"loss": 0.1'), "run.json is not as it was written"),
        (lambda f: edit(f / MANIFEST, b"weights", b"weight"), None),
        (lambda f: (f / MANIFEST).write_bytes(b"[]"), "run.json is damaged"),
        (lambda f: (f / MANIFEST).write_bytes(b"[" * 100_000), "run.json is damaged"),
        (lambda f: (f / MANIFEST).write_bytes(b"caf\xe9"), "run.json is damaged"),
        (
            lambda f: edit(f / "model" / "model.safetensors", b"w", b"v"),
            "model.safetensors is not as its manifest says",
        ),
        (lambda f: (f / "model" / "model.safetensors").unlink(), "model.safetensors is not as its manifest says"),
        (lambda f: shutil.rmtree(f / "model"), "model.safetensors is not as its manifest says"),
        (lambda f: (f / runs.NOTEBOOK).unlink(), "notebook.ipynb is missing"),
        (lambda f: (f / runs.NOTEBOOK).write_text("opened and saved"), None),
        (lambda f: (f / "spec.yaml").unlink(), None),
    ],
)
def test_damage_to_a_finished_run_is_noticed(
    damage: Callable[[Path], object], said: str | None, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finished / runs.NOTEBOOK).write_text("executed")
    (finished / MANIFEST).rename(finished / runs.PENDING)
    runs.conclude(finished)
    monkeypatch.setattr(chain, "OUTPUTS", finished.parents[2])
    run = chain.Planned("cpu/train/simpo-1", {"stage": "train"})
    assert run.done
    damage(finished)
    assert run.done == (said is None)
    if said:
        with pytest.raises(SaoError, match=f"{said}.*sets this run aside and makes it again"):
            load(finished)


def test_of_large_files_the_size_alone_is_looked_at_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "READ_AGAIN", 3)
    monkeypatch.setattr(runs, "file_digest", lambda path: pytest.fail("read again"))
    assert load(finished) is not None


def test_a_damaged_run_is_made_again_and_a_lost_spec_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (runs, chain):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path)
    made = plan.make("cpu", "smoke")
    plan.write_specs(made)
    for run in made.runs:
        if run.spec["stage"] == "train":
            (run.path / "model").mkdir()
            (run.path / "model" / "model.safetensors").write_bytes(b"weights")
        runs.Run.open(run.path / "spec.yaml").finish({})
    trained = next(run for run in made.runs if run.spec["stage"] == "train")
    (trained.path / "model" / "model.safetensors").unlink()
    (made.runs[0].path / "spec.yaml").unlink()
    assert [run for run in made.runs if not run.done] == [trained]
    plan.write_specs(made)
    assert (trained.path.with_name(f"{trained.path.name}.damaged") / MANIFEST).is_file()
    assert (trained.path / "spec.yaml").is_file()
    assert runs.Run.open(made.runs[0].path / "spec.yaml").copied


def test_the_manifest_waits_for_whoever_holds_the_lock(make_run: Any, tmp_path: Path) -> None:
    run = make_run()
    with FileLock(tmp_path / runs.LOCK):
        run.finish({})
    assert load(tmp_path) is None
    assert (tmp_path / runs.PENDING).is_file()
    run.finish({})
    assert load(tmp_path) is not None


def test_what_made_a_run_is_compared_with_what_is_there_now(finished: Path) -> None:
    assert runs.outdated(finished) == []
    manifest = json.loads((finished / MANIFEST).read_text())
    manifest["code"]["sao_lib/method/losses.py"] = "another"
    (finished / MANIFEST).write_text(json.dumps(manifest))
    assert runs.outdated(finished) == ["sao_lib/method/losses.py"]
    del manifest["code"]
    (finished / MANIFEST).write_text(json.dumps(manifest))
    assert runs.outdated(finished) == ["code that was not recorded"]


def test_a_run_whose_input_was_made_again_with_another_result_is_outdated(finished: Path) -> None:
    folder = finished.parents[1] / "evaluate" / "simpo-2"
    folder.mkdir(parents=True)
    spec = {"stage": "evaluate", "name": "simpo", "profile": "cpu", "params": {},
            "inputs": {"policy": "cpu/train/simpo-1"}, "files": {}}  # fmt: skip
    (folder / "spec.yaml").write_text(json.dumps(spec))
    runs.Run.open(folder / "spec.yaml").finish({})
    assert runs.outdated(folder) == []
    training = runs.Run(json.loads((finished / "spec.yaml").read_text()), finished)
    (finished / MANIFEST).unlink()
    training._begin()
    training.finish({"loss": 1.0})
    assert runs.outdated(folder) == [], "another time, the same result"
    (finished / MANIFEST).unlink()
    training._begin()
    training.finish({"loss": 1.5})
    assert runs.outdated(folder) == ["its input cpu/train/simpo-1"]
    assert runs.outdated_behind(["cpu/evaluate/simpo-2"]) == {"cpu/evaluate/simpo-2": ["its input cpu/train/simpo-1"]}


def test_rows_that_other_code_left_are_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"stage": "judge", "name": "self", "profile": "cpu", "params": {}, "inputs": {}, "files": {}}
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    now = provenance.code_of("judge")
    before = {**now, "sao_lib/method/judge.py": "before"}
    monkeypatch.setattr(provenance, "code_of", lambda stage: before)
    runs.Run.open(tmp_path / "spec.yaml")
    monkeypatch.setattr(provenance, "code_of", lambda stage: now)
    runs.Run.open(tmp_path / "spec.yaml").finish({})
    assert runs.outdated(tmp_path) == [], "nothing was left of the first try"
    (tmp_path / MANIFEST).unlink()
    monkeypatch.setattr(provenance, "code_of", lambda stage: before)
    runs.Run.open(tmp_path / "spec.yaml")
    append_rows(tmp_path / "verdicts.jsonl", [{"n": 1}])
    monkeypatch.setattr(provenance, "code_of", lambda stage: now)
    runs.Run.open(tmp_path / "spec.yaml").finish({})
    assert runs.outdated(tmp_path) == ["sao_lib/method/judge.py"]


def test_fresh_chooses_what_is_stale_and_knows_what_may_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (runs, chain):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path)
    made = plan.make("cpu", "smoke")
    plan.write_specs(made)
    for run in made.runs:
        runs.Run.open(run.path / "spec.yaml").finish({})
    assert plan.fresh(made, "stale") == []
    judged = next(run for run in made.runs if "/judge/self" in run.folder)
    manifest = json.loads((judged.path / MANIFEST).read_text())
    manifest["code"]["sao_lib/method/judge.py"] = "another"
    del manifest["digest"]
    (judged.path / MANIFEST).write_text(json.dumps(manifest))
    assert plan.fresh(made, "stale") == [judged]
    chosen = [run.folder.split("/")[1:] for run in plan.with_readers(made, [judged.folder])]
    assert [(stage, name.rpartition("-")[0]) for stage, name in chosen] == [
        ("judge", "self"), ("train", "simpo-self"), ("answer", "simpo-self"), ("evaluate", "simpo-self")
    ]  # fmt: skip
    assert len(plan.fresh(made, "all")) == len(made.runs) - 1
    again = plan.joined(made)
    assert again.table.spec["params"]["outdated"] == {judged.folder: ["sao_lib/method/judge.py"]}
    (judged.path / "model").mkdir()
    plan.replaced(judged)
    assert not judged.done
    assert plan.fresh(made, "stale") == [], "whether its readers are stale is known when it is there again"
    kept = judged.path.with_name(judged.path.name + ".replaced")
    assert (kept / MANIFEST).is_file()
    assert not (kept / "model").exists()
