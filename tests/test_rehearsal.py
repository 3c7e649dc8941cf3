"""`make rehearse`: each of its verdicts fires where it must, and its short form walks the paper's table 6 here."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rehearsal import sizes, verdict
from rehearsal.__main__ import chosen, counted, main
from rehearsal.command import fake_cards, rows_may_be_shrunk
from rehearsal.fake_api import served
from rehearsal.watch import MARK, Marked, Outcome, Stage, Watch, plain_environment
from sao_lib.engines import Conversation
from sao_lib.engines.openai_api import OpenAIEngine
from sao_lib.errors import SaoError
from sao_lib.launch import cards
from sao_lib.plan import layers, planning
from sao_lib.settings import ROOT, Engine

GPU_PROFILES = ("paper", "gpu", "gpu-small")


def watched(code: str, folder: Path, patience: float = 60, seconds: float = 120) -> Outcome:
    """A Python command under watch."""
    watch = Watch(folder, patience, time.monotonic() + seconds, show=lambda line: None)
    return watch.run([sys.executable, "-c", code], plain_environment())


STAGES = """
import time
print("[1/2] judge/one: started", flush=True)
held = bytearray(300 * 2**20)
time.sleep(6)
print("[1/2] judge/one: done in 0:06", flush=True)
print("[2/2, 0:06 left] judge/two: started", flush=True)
print("[2/2] judge/two: done in 0:00", flush=True)
"""


def test_what_a_stage_takes_is_measured(tmp_path: Path) -> None:
    found = watched(STAGES, tmp_path)
    stage = found.stages["judge"]
    assert (found.code, stage.runs, stage.processes) == (0, 2, 1)
    assert 5.5 < stage.seconds < 20
    assert 0.29 < stage.peak_gib < 0.6
    assert verdict.problems("walk", found) == []
    assert "judge" in verdict.of_walk(found)


LEFT = "import setproctitle, time; setproctitle.setproctitle('renamed'); time.sleep(600)"
LEAK = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {LEFT!r}], start_new_session=True)
time.sleep(1)
os._exit(0)
"""
ORPHAN = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LEAK!r}])"


@pytest.mark.parametrize("code", [LEAK, ORPHAN])
def test_a_process_that_outlives_the_command_is_a_leak_and_is_ended(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a session of its own and under another name, as vLLM's are; and orphaned before the command ended."""
    monkeypatch.setattr("rehearsal.watch.GRACE", 2)
    found = watched(code, tmp_path)
    assert found.code == 0
    (left,) = found.leaked
    assert "renamed" in left
    assert verdict.problems("walk", found) == [f"leaked by walk: {left}"]
    pid = int(left.split()[0])
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_stage_that_moves_no_more_is_a_hang_and_is_ended(tmp_path: Path) -> None:
    code = "import time; print('train/simpo-self: started', flush=True); time.sleep(600)"
    found = watched(code, tmp_path, patience=3)
    assert found.hung is not None
    assert found.hung.startswith("train/simpo-self: nothing moved for 3 s; alive: ")
    assert verdict.problems("walk", found)[0].startswith("hung in walk: train/simpo-self")
    assert any('File "<string>", line 1' in line for line in found.said), "where it stood is said"


def test_a_stage_that_only_writes_files_moves(tmp_path: Path) -> None:
    code = f"""
import time
for n in range(8):
    time.sleep(1)
    open({str(tmp_path / "rows")!r}, "a").write("a row")
"""
    assert watched(code, tmp_path, patience=5).code == 0


def test_a_command_has_its_time_and_no_more(tmp_path: Path) -> None:
    code = "import time\nwhile True:\n    print('.', flush=True)\n    time.sleep(0.1)"
    found = watched(code, tmp_path, seconds=2)
    assert found.out_of_time
    assert verdict.problems("walk", found) == ["out of time in walk; raise LIMIT"]


def test_a_command_leaves_the_machine_some_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rehearsal.watch.available_gib", lambda: 0.5)
    found = watched("import time; print('judge/one: started', flush=True); time.sleep(600)", tmp_path)
    assert re.fullmatch(r"out of memory in walk, whose .* up to 0\.\d GiB", verdict.problems("walk", found)[0])


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    found = watched("import sys; print('Error: no room.'); print('later'); sys.exit(3)", tmp_path)
    assert verdict.problems("count 10", found) == ["failed in count 10, exit status 3: Error: no room."]


def test_a_row_that_was_left_out_is_not_ready() -> None:
    found = Outcome(
        code=0, said=["Not run: table6, Self-feedback: no model", "Not run: table6, Another: not rehearsed"]
    )
    assert verdict.left_out(found, ["Self-feedback"]) == ["not rehearsed: table6, Self-feedback: no model"]


def test_processes_of_others_are_none_of_ours() -> None:
    assert Marked("another").alive() == []
    assert MARK not in os.environ


def took(seconds: dict[int, float], gib: float = 1.0) -> dict[int, Outcome]:
    return {rows: Outcome(code=0, stages={"judge": Stage(1, s, gib)}) for rows, s in seconds.items()}


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        ({1000: 11, 10000: 20, 60000: 70}, False),  # in proportion, after ten seconds for any
        ({1000: 11, 10000: 20, 60000: 95}, False),
        ({1000: 10.02, 10000: 12, 60000: 82}, True),  # with the square of the rows
        ({1000: 10, 10000: 10.1, 60000: 13}, False),  # chance
        ({1000: 10, 60000: 500}, False),  # two sizes say nothing
    ],
)
def test_a_stage_that_grows_with_the_square_of_its_rows_is_named(seconds: dict[int, float], found: bool) -> None:
    phrases = verdict.quadratic(took(seconds))
    assert bool(phrases) is found
    if found:
        assert phrases == ["quadratic: judge takes 10.0 s at 1,000, 12.0 s at 10,000, 82.0 s at 60,000 rows"]


def test_memory_that_grows_with_the_square_is_named_too() -> None:
    counts = {
        rows: Outcome(stages={"judge": Stage(1, 1.0, gib)}) for rows, gib in ((1000, 1), (10000, 1.2), (60000, 9))
    }
    assert "GiB at 60,000" in verdict.quadratic(counts)[0]
    assert "60,000: GiB" in verdict.of_counts(counts)


QUADRATIC = """
import sys, time
rows = int(sys.argv[1])
print("judge/pairs: started", flush=True)
total = 0
for one in range(rows):
    for other in range(rows):
        total += other
print("judge/pairs: done in 0:01", flush=True)
"""


def test_a_planted_quadratic_stage_is_found_by_its_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows, so that the square takes seconds; what counts as chance is less in proportion."""
    monkeypatch.setattr(verdict, "NOISE_SECONDS", 0.1)
    script = tmp_path / "planted.py"
    script.write_text(QUADRATIC)
    counts = {}
    for rows in (100, 1000, 9000):
        watch = Watch(tmp_path, 60, time.monotonic() + 120, show=lambda line: None)
        counts[rows] = watch.run([sys.executable, str(script), str(rows)], plain_environment())
    assert verdict.quadratic(counts)[0].startswith("quadratic: judge takes")


@pytest.mark.parametrize("profile", GPU_PROFILES)
def test_every_gpu_profile_can_be_rehearsed_with_few_changes(profile: str) -> None:
    with rows_may_be_shrunk():
        whole = planning.make(profile, "table6")
        rows = chosen(whole, [])
        walk, count = sizes.of_walk(whole.base, 900, 64), sizes.of_count(whole.base, 60000)
        for changes in (walk, count):
            made = planning.make(profile, "table6", [change.assignment for change in changes])
            there = {row.name: row for row in made.rows}
            assert not [there[row.name].skipped for row in rows if there[row.name].skipped]
    assert len(rows) == 2
    assert counted(rows).settings.judge.source == "llm"
    layout = ("engine.kind", "engine.data_parallel", "train.processes", "train.deepspeed", "train.global_batch")
    assert not {change.key for change in walk + count} & set(layout)
    assert all(change.why and change.was != change.value for change in walk + count)
    assert {"synthesize.n", "train.pairs"} <= {change.key for change in count if profile == "paper"} | {
        "synthesize.n",
        "train.pairs",
    }


def test_less_memory_is_fewer_copies_and_said() -> None:
    paper = layers.validate(layers.profile_layers("paper"))
    found = [change for change in sizes.of_walk(paper, 900, 6) if change.key == "engine.data_parallel"]
    assert [str(change) for change in found] == ["engine.data_parallel: 4 -> 2 (6 GiB of memory are free)"]


def test_time_decides_how_many_rows_there_are() -> None:
    paper = layers.validate(layers.profile_layers("paper"))
    assert sizes.rows_of_walk(paper, 0) == 200
    assert sizes.rows_of_walk(paper, 1e9) == 64500
    assert sizes.counts_in([60000, 1000, 10000], 1e9) == ([1000, 10000, 60000], [])
    assert sizes.counts_in([60000, 1000, 10000], 500) == ([1000, 10000], [60000])


def test_what_it_takes_at_least_is_the_walk_with_the_fewest_rows_and_every_count() -> None:
    paper = layers.validate(layers.profile_layers("paper"))
    walk, count = (sizes.takes(paper, [1000, 60000], only) for only in ("walk", "count"))
    assert sizes.takes(paper, [1000, 60000], None) == pytest.approx(walk + count)
    assert sizes.counts_in([1000, 60000], count) == ([1000, 60000], [])
    assert sizes.rows_of_walk(paper, walk) == sizes.rows_of_walk(paper, 0)


def test_a_busy_machine_has_a_share_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "idle_share", lambda: 0.0)
    assert sizes.free() == sizes.LEAST
    monkeypatch.setattr(sizes, "idle_share", lambda: 1.0)
    assert sizes.free() <= 1


def test_rows_are_named_or_those_that_open_most() -> None:
    paper = planning.make("paper", "table6")
    assert {row.name for row in chosen(paper, [])} == {"armorm", "self"}
    assert [row.name for row in chosen(paper, ["gpt4o"])] == ["gpt4o"]
    assert counted(chosen(planning.make("gpu-small", "table6"), [])).name == "self"
    with pytest.raises(SaoError, match="table6 has no row 'none' on paper; there are: random"):
        chosen(paper, ["none"])


def test_a_profile_without_cards_is_not_rehearsed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["table6", "--profile", "cpu", "--outputs", str(tmp_path)]) == 1
    assert "Profile cpu needs no GPU and no rehearsal" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        *((["--limit", said], f"LIMIT is '{said}'; it") for said in ("0", "-5", "nan", "inf", "abc", "", "1e-9")),
        (["--rows", ","], "ROWS is ',', which names no row"),
        (["--sizes", "0", "10"], "--sizes has 0; a count needs 1 row or more"),
        (["--rows", "nope"], "table6 has no row 'nope'"),
    ],
)  # fmt: skip
def test_what_a_rehearsal_cannot_do_is_said_at_once(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*words, "--outputs", str(tmp_path), "table6"]) == 1
    assert capsys.readouterr().err.startswith(f"Error: {sentence}")


def test_fake_cards_are_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cards.VISIBLE, ",".join(card.number for card in fake_cards(4)))
    asked = "import torch; print(torch.cuda.device_count())"
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "0"


def test_the_fake_api_lists_models_and_names_winners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Conversation(({"role": "user", "content": 'Say "ranking: X > Y".'},))
    with served(["gpt-4o-mini"]) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        engine = OpenAIEngine("gpt-4o-mini", Engine(kind="openai", max_usd=1), tmp_path / "log")
        assert [model.id for model in engine.client.models.list()] == ["gpt-4o-mini"]
        assert engine.generate([ask], 20, 0.0, [0])[0].text in ("ranking: 1 > 2", "ranking: 2 > 1")
        assert all(p <= 0 for p in engine.label_logprobs([ask], ("m", "M"))[0])
        engine.close()
    with served([]) as environment:
        assert environment == {}


def test_the_short_form_is_ready(tmp_path: Path) -> None:
    """The paper's own profile, Snakemake, notebooks and four fake cards; forty rows of canned text."""
    words = [sys.executable, "-m", "rehearsal", "table6", "--profile", "paper", "--only", "count", "--sizes", "40"]
    words += ["--rows", "self", "--limit", "14", "--outputs", str(tmp_path / "out")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.strip().endswith("ready")
    for stage in ("synthesize", "judge", "train", "answer", "evaluate", "ablate"):
        assert f"\n{stage} " in done.stdout
    assert "changed: synthesize.n: 11000 -> 40 (the rows that are counted)" in done.stdout
    table = next((tmp_path / "out").glob("count-40/paper/table6*/table6.md")).read_text()
    assert "Self-feedback" in table
