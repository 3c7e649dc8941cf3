"""The notebooks as lessons: they open where no run is named, and what stands in them is theirs and fit to be read."""

import ast
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from sao_lib import lesson, machine, progress, provenance, runs
from sao_lib.errors import SaoError
from sao_lib.files import read_rows, write_rows
from sao_lib.launch import lab, lesson_rows, lessons
from sao_lib.runs import MANIFEST, Run, load
from sao_lib.settings import NOTEBOOKS, ROOT

LESSONS = lesson.LESSONS
EVERY = sorted([lessons.START, *LESSONS.values()])


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("named", LESSONS)
def test_a_notebook_without_a_run_opens_a_lesson_whose_inputs_are_there(named: str, outputs: Path) -> None:
    run = Run.open("", named)
    assert run.folder == outputs / "lesson" / LESSONS[named]
    assert run.spec["stage"] == ("ablate" if named == "dose" else named)
    for role in run.spec["inputs"]:
        assert run.input(role).results
    cells = nbformat.read(ROOT / "notebooks" / f"{LESSONS[named]}.ipynb", 4).cells
    assert any(f'Run.open(spec, "{named}")' in c.source for c in cells)
    assert next(c for c in cells if "parameters" in c.metadata.get("tags", [])).source.startswith('spec = ""  #')


def test_a_lesson_that_was_interrupted_goes_on_and_one_that_finished_begins_anew(outputs: Path) -> None:
    run = Run.open("", "math500")
    (run.folder / "rows.jsonl").write_text("{}\n")
    assert (Run.open("", "math500").folder / "rows.jsonl").exists()
    run.finish({})
    assert load(run.folder)
    again = Run.open("", "math500")
    assert not (again.folder / "rows.jsonl").exists()
    assert not (again.folder / MANIFEST).exists()


def test_a_lesson_of_other_settings_begins_anew(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open("", "math500")
    (run.folder / "rows.jsonl").write_text("{}\n")
    changed = {**lesson.spec_of("math500"), "name": "other"}
    monkeypatch.setattr(lesson, "spec_of", lambda stage: changed)
    assert not (Run.open("", "math500").folder / "rows.jsonl").exists()


def test_a_lesson_writes_nowhere_else_and_what_it_reads_is_as_before(outputs: Path) -> None:
    before = {p: p.read_bytes() for p in lesson.DATA.rglob("*") if p.is_file()}
    run = Run.open("", "rating")
    run.finish({"score": 1})
    assert {p.relative_to(outputs).parts[:2] for p in outputs.rglob("*") if p.is_file()} == {("lesson", "10_rating")}
    assert {p: p.read_bytes() for p in lesson.DATA.rglob("*") if p.is_file()} == before


def test_a_lesson_computes_in_float32_where_the_cpu_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def types() -> set[str]:
        params = [lesson.spec_of(stage)["params"] for stage in NOTEBOOKS]
        sections = [p[name] for p in params for name in ("engine", "train", "leaderboard", "logits") if p.get(name)]
        return {section.get("dtype", "bfloat16") for section in sections}

    monkeypatch.setattr(machine, "multiplies_bf16", lambda: True)
    assert types() == {"bfloat16"}
    monkeypatch.setattr(machine, "multiplies_bf16", lambda: False)
    assert types() == {"float32"}


def test_a_lesson_runs_in_transformers_where_vllm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lesson.spec_of("answer")["params"]["engine"]["kind"] == "vllm"
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert lesson.spec_of("answer")["params"]["engine"]["kind"] == "transformers"


def test_an_unknown_lesson_is_one_sentence(outputs: Path) -> None:
    with pytest.raises(SaoError, match="There is no lesson 'judges'; there are: synthesize"):
        Run.open("", "judges")


def test_the_lessons_are_what_is_planned_today_and_their_rows_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(bf16: bool) -> dict[str, Any]:
        monkeypatch.setattr(machine, "multiplies_bf16", lambda: bf16)
        return {name: each.spec for name, each in lesson_rows.planned().items()}

    either = [json.loads(json.dumps(planned(bf16))) for bf16 in (True, False)]
    for name, notebook in LESSONS.items():
        kept = json.loads((lesson.SPECS / f"{name}.json").read_text())
        assert kept in [specs[name] for specs in either], f"`make lesson-rows ONLY={notebook}`"
    whole = {name: each for name, each in lesson_rows.planned().items() if each.whole}
    own = {lesson.SPECS / f"{name}.json" for name in whole}
    own |= {path for each in whole.values() for folder in each.reads for path in (lesson.ROWS / folder).iterdir()}
    of_whole = sum(path.stat().st_size for path in own)
    assert sum(p.stat().st_size for p in lesson.DATA.rglob("*") if p.is_file()) - of_whole < 200_000
    assert of_whole < 800_000


def test_rows_are_kept_of_the_lessons_that_are_named_and_of_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SaoError, match="There is no lesson '05'; there are: 01_synthesize"):
        lesson_rows.write(["05"])
    monkeypatch.setattr(lesson, "ROWS", tmp_path / "runs")
    monkeypatch.setattr(lesson, "SPECS", tmp_path / "specs")
    two = {"ablate": lesson_rows.Lesson({"a": 1}), "dose": lesson_rows.Lesson({"b": 2})}
    monkeypatch.setattr(lesson_rows, "planned", lambda: two)
    lesson_rows.write(["11_dose"])
    assert [path.name for path in lesson.SPECS.iterdir()] == ["dose.json"]
    lesson_rows.write()
    assert sorted(path.name for path in lesson.SPECS.iterdir()) == ["ablate.json", "dose.json"]


@pytest.mark.parametrize(("whole", "kept"), [(True, {"id", "verdict"}), (False, {"id", "verdict", "margin"})])
def test_of_a_whole_run_every_row_is_kept_without_what_nobody_reads_else_the_first_as_they_are(
    whole: bool, kept: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson, "ROWS", tmp_path / "rows")
    run = next(run for run, _ in lesson_rows.planned()["dose"].reads.values() if run.spec["stage"] == "judge")
    monkeypatch.setattr("sao_lib.plan.chain.OUTPUTS", tmp_path)
    rows = [{"id": str(n), "verdict": 1, "margin": 0.5} for n in range(90)]
    write_rows(run.path / "verdicts.jsonl", rows)
    made = {"spec": run.spec, "results": {}, "git_commit": "c", "seconds": 1, "finished": "now"}
    (run.path / MANIFEST).write_text(json.dumps(made))
    lesson_rows._keep(run, {"verdicts.jsonl"}, whole)
    found = read_rows(lesson.ROWS / run.folder / "verdicts.jsonl")
    assert len(found) == (90 if whole else lesson_rows.FIRST["verdicts.jsonl"])
    assert set(found[0]) == kept


@pytest.mark.parametrize("name", lessons.names())
def test_what_a_notebook_shows_was_made_by_its_cells(name: str) -> None:
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells
    assert any(c.outputs for c in cells if c.cell_type == "code"), f"run `make notebooks ONLY={name}`"
    assert name not in lessons.stale(), f"run `make notebooks ONLY={name}`"


def cells_of(name: str) -> tuple[list[Any], list[Any]]:
    """A notebook's prose cells and its code cells."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells
    return ([c for c in cells if c.cell_type == "markdown"], [c for c in cells if c.cell_type == "code"])


@pytest.mark.parametrize("name", EVERY)
def test_a_notebook_says_more_than_it_computes(name: str) -> None:
    prose, code = cells_of(name)
    assert len(prose) >= 1.2 * len(code)
    words = sum(len(re.findall(r"[A-Za-z]+", re.sub(r"\$.*?\$", "", c.source, flags=re.DOTALL))) for c in prose)
    assert words >= 6 * sum(bool(line.strip()) for c in code for line in c.source.splitlines())
    assert [line for c in (*prose, *code) for line in c.source.splitlines() if len(line) > 110] == []


@pytest.mark.parametrize("name", EVERY)
def test_its_cells_are_short_and_some_of_them_draw(name: str) -> None:
    _, code = cells_of(name)
    lines = sorted(c.source.count("\n") + 1 for c in code)
    assert lines[len(lines) // 2] <= 8
    assert lines[int(0.9 * len(lines))] <= 20
    assert max(lines) <= 25
    assert name == lessons.START or any("parameters" in c.metadata.get("tags", []) for c in code)
    drawn = sum("plt.show()" in c.source for c in code)
    shown = sum("image/png" in o.get("data", {}) for c in code for o in c.outputs)
    assert 2 <= drawn <= 4
    assert shown == drawn


@pytest.mark.parametrize("name", EVERY)
def test_it_begins_with_what_is_learnt_the_map_of_all_and_an_idea(name: str) -> None:
    prose, code = cells_of(name)
    first, where = (c.source for c in prose[:2])
    assert first.startswith("# ")
    assert "**You will learn**" in first
    assert "**You need**" in first + where
    assert "**It takes**" in first + where or name == lessons.START
    map_of_all, you = where.split("\n\nYou are ")
    assert map_of_all == cells_of(lessons.START)[0][1].source.split("\n\nYou are ")[0]
    assert map_of_all.startswith("**Where it stands**\n\n```text\n01 synthesize")
    if name != lessons.START:
        assert you.startswith(f"at **{name.replace('_', ' ')}**")
        assert "parameters" not in code[0].metadata.get("tags", []), "first an idea, then settings"
        assert f"(../exercises/{name}.ipynb)" in prose[-1].source or name == "04_answer"


def names_in(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell gives a value, and those that it reads."""
    given, read = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else given).add(node.id)
        elif isinstance(node, ast.FunctionDef):
            given.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            given |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return given, read


@pytest.mark.parametrize("name", EVERY)
def test_a_run_needs_nothing_from_the_cells_that_it_passes_over(name: str) -> None:
    passed_over: set[str] = set()
    for cell in cells_of(name)[1]:
        given, read = names_in(cell.source)
        if provenance.FOR_READERS in cell.metadata.get("tags", []):
            passed_over |= given
        else:
            assert (read - given) & passed_over == set()
            passed_over -= given


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """One notebook in a folder of its own, with outputs as `make notebooks` leaves them."""
    monkeypatch.setattr(lessons, "FOLDER", tmp_path)

    def make(code: str = "1 + 1", prose: str = "A sum.", metadata: Any = None, **output: Any) -> Path:
        cell = new_code_cell(code, outputs=[new_output("stream", text="2\n")], **output)
        path = tmp_path / "06_logits_skew.ipynb"
        nbformat.write(new_notebook(cells=[new_markdown_cell(prose), cell], metadata=metadata or {}), path)
        return path

    return make


def test_outputs_of_other_code_are_noticed_and_saving_after_a_run_is_not(notebooks: Callable[..., Path]) -> None:
    path = notebooks()
    assert lessons.stale() == ["06_logits_skew"], "nobody has executed it"
    known = {lessons.TAG: {"code": provenance.cells_of(path), "seconds": 1}}
    notebooks(metadata=known, prose="A longer sentence.", execution_count=7)
    assert lessons.stale() == []
    notebooks(metadata=known, code="1 + 1  # two")
    assert lessons.stale() == []
    notebooks(metadata=known, code="1 + 2")
    assert lessons.stale() == ["06_logits_skew"]


def of(*outputs: Any) -> Any:
    return new_notebook(cells=[new_code_cell("x", outputs=list(outputs))])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[2026-11-23 12:39:28,570] done", "a time of day"),
        ("[WARNING] [real_accelerator.py:213:get] Setting accelerator to CPU", "log line"),
        ("FutureWarning: `x` is deprecated", "log line"),
        (f"saved to {ROOT}/outputs/x", "a path of this machine"),
        ("Traceback (most recent call last)", "an error"),
        ("x" * 400_000, "400 kB, more than 300"),
    ],
)
def test_outputs_that_are_not_fit_to_be_committed_are_named(text: str, said: str) -> None:
    notebook = of(new_output("stream", text=text))
    assert said in "; ".join(lessons.unfit(notebook, len(text)))
    html = of(new_output("display_data", data={"text/html": text}))
    assert said in "; ".join(lessons.unfit(html, len(text)))


def test_ordinary_outputs_are_fit() -> None:
    text = "win rate 45.31% (SE 6.3), n = 64; 2026 prompts\nINFO about rain"
    assert list(lessons.unfit(of(new_output("stream", text=text)), 1000)) == []


def test_cleaning_leaves_results_and_takes_out_this_machine(tmp_path: Path) -> None:
    notebook = of(
        new_output("stream", name="stderr", text="chatter"),
        new_output("stream", text=f"{ROOT}{os.sep}params/x and {tmp_path}/lesson/y <A at 0x7fa63b393f90>"),
        new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "kept"}),
    )
    notebook.metadata["widgets"] = {"state": {}}
    notebook.cells[0].metadata.update(tags=["parameters"], execution={"iopub.execute_input": "2026-11-27T12:00:00"})
    lessons.cleaned(notebook, tmp_path)
    stream, shown = notebook.cells[0].outputs
    assert stream.text == "params/x and outputs/lesson/y <A>"
    assert shown.data == {"text/plain": "kept"}
    assert notebook.cells[0].metadata == {"tags": ["parameters"]}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_the_numbers_are_those_of_every_notebook_as_it_is() -> None:
    assert lessons.NUMBERS.read_text() == lessons.numbers(), "run `make notebooks`"
    for name in lessons.names():
        assert f"[{name}](../notebooks/{name}.ipynb)" in lessons.NUMBERS.read_text()


def test_the_first_notebook_shows_the_numbers_anew_after_any_other(
    notebooks: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebooks()
    nbformat.write(new_notebook(), tmp_path / f"{lessons.START}.ipynb")
    done: list[str] = []
    monkeypatch.setattr(lessons, "_write", lambda name: done.append(name) or 1.0)
    monkeypatch.setattr(lessons, "NUMBERS", tmp_path / "numbers.md")
    lessons.write(["06_logits_skew"])
    assert done == ["06_logits_skew", lessons.START]


def test_the_first_notebook_shows_minutes_of_today() -> None:
    shown = "".join(
        o["data"].get("text/markdown", "") for c in cells_of(lessons.START)[1] for o in c.outputs if "data" in o
    )
    for name in lessons.names():
        minutes = re.search(rf"\[{name}\]\(\S*\) \| (\S+) \|", lessons.NUMBERS.read_text())
        assert minutes
        assert name == lessons.START or f"[{name}]({name}.ipynb) | {minutes.group(1)} |" in shown


@pytest.mark.parametrize("name", ["05_ablate", "11_dose"])
def test_a_lesson_runs_from_its_first_cell_to_its_last_traps_included(name: str, tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    lessons._execute(notebook, name, tmp_path)
    assert all(c.execution_count for c in notebook.cells if c.cell_type == "code")
    assert (tmp_path / "lesson" / name / MANIFEST).is_file()


NEWS = "labconfig/page_config.json"


def test_the_lab_opens_the_first_notebook_for_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    command = lab.command()
    assert f"--ServerApp.root_dir={ROOT}" in command
    assert "--ServerApp.ip=127.0.0.1" in command
    assert "--LabApp.news_url=None" in command
    assert "announcements" in (Path(lab.environment()["JUPYTER_CONFIG_PATH"].split(os.pathsep)[0]) / NEWS).read_text()
    assert f"--LabApp.default_url=/lab/tree/{lab.FIRST}" in command
    assert (ROOT / lab.FIRST).is_file()
    assert not any("token" in part or "allow-root" in part for part in command), "jupyter makes a token of its own"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--allow-root" in lab.command()
    assert "TQDM_DISABLE" not in lab.environment()


def test_who_runs_a_cell_by_hand_sees_one_line_that_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            shown[-1] = content["text/plain"]

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(content["text/plain"])
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    progress.Progress(tmp_path, "rows", 1).update(1)
    assert shown == [], "a notebook that a command executes has none"
    assert progress.bar() is False
    monkeypatch.setattr(progress, "by_hand", lambda: True)
    monkeypatch.setattr(progress.time, "monotonic", iter(range(0, 100, 10)).__next__)
    moving = progress.Progress(tmp_path, "rows", 4)
    moving.update(1)
    moving.update(1)
    assert shown == ["rows 2/4, 0.1 rows/s, 0:20 left"]
