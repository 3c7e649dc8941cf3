"""A run's folder survives kills, damage and full disks."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from sao_lib import runs
from sao_lib.engines.openai_api import JOURNAL
from sao_lib.errors import SaoError
from sao_lib.plan import chain
from sao_lib.plan import planning as plan
from sao_lib.runs import MANIFEST, append_rows, load, read_rows, resume_rows


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
    runs.write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", full)
    for write in (lambda: runs.write_atomic(path, "new"), lambda: append_rows(tmp_path / "rows.jsonl", [{"n": 1}])):
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
    assert runs.digest({"a": 1, "b": 2}) == runs.digest({"b": 2, "a": 1})
    assert runs.digest({"a": 1}) != runs.digest({"a": 1.5})


def test_spec_that_is_missing_or_damaged_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SaoError, match="no run's spec.yaml"):
        runs.Run.open(tmp_path / "spec.yaml")
    (tmp_path / "spec.yaml").write_text("{")
    with pytest.raises(SaoError, match="damaged"):
        runs.Run.open(tmp_path / "spec.yaml")


def test_manifest_is_json(make_run: Any, tmp_path: Path) -> None:
    make_run().finish({"x": 1})
    assert json.loads((tmp_path / MANIFEST).read_text())["results"]["x"] == 1
