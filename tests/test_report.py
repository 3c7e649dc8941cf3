"""Every table and figure is built from the results of its runs; here the results are fake, so that it takes seconds."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sao_lib import runs
from sao_lib.errors import SaoError
from sao_lib.method.rewards import Relevance
from sao_lib.plan import chain
from sao_lib.plan import planning as plan
from sao_lib.plan.chain import Planned
from sao_lib.plan.experiment import experiments
from sao_lib.report import figures, page, table
from sao_lib.report.claims import NOT_HERE, ONE_RUN
from sao_lib.report.columns import METRICS, column
from sao_lib.report.rows import experiment_of, table_rows
from sao_lib.runs import Run

SE_OR_INTERVAL = re.compile(r"\bSE\b|interval|\(SD\)|5% to 95%")
TEXTS = ("table12", "table13", "table14", "figure5")  # counts and texts have no uncertainty
N = 8


def fake_results(run: Planned) -> dict[str, Any]:
    """Results in the schema that the stage's notebook writes."""
    p = run.spec["params"]
    scores = {"wr": 50.0, "se": 6.0, "lc": None, "lc_se": None, "n": N}
    judge = {"model": "embedded/smollm2-135m-instruct", "instrument": "reverse", "verdict": "discrete"}
    own = {"parrot": 0.02, "parrot_pairs": 60, "by_hand": 0.04, "by_hand_pairs": 24}
    wrong = {"wrong": {"agreement": 0.5, "n": 30, "se": 0.09}, "echo": {"agreement": 1.0, "n": 30, "se": 0.0}}
    calibration = {
        "chosen": "reverse",
        "agreement": 0.84,
        "pairs": 50,
        "se": 0.05,
        "by_fault": wrong,
        "candidates": {"reverse": own},
    }
    scores |= {"direct": 60.0, "direct_se": 5.0, "margin": 0.1, "margin_se": 0.05}
    gold = {"accuracy": 60.0, "accuracy_se": 4.0, "n": 100}
    grader = {"agreement": 0.8, "se": 0.05, "n": 30, "signal": True}
    blind = {"agreement": 0.5, "se": 0.09, "n": 30, "signal": False}
    audit = {"agreement": 0.7, "se": 0.06, "pairs": 60, "flip": None, "longer_wins": 0.5}
    moments = {"n": 1000, "mean": 1.0, "std": 4.0, "skewness": 0.2, "skewness_mean": 0.2, "skewness_sd": 0.1,
               "responses": 20, "edges": [0.0, 1.0, 2.0], "counts": [400, 600]}  # fmt: skip
    metric = {"mean": 4.5, "se": 0.1, "n": N, "failed": 0}
    columns = {
        c: {"score": 30.0, "se": 9.0, "n": 24}
        for c in ("arc", "truthfulqa", "winogrande", "gsm8k", "hellaswag", "mmlu")
    }
    by_stage: dict[str, dict[str, Any]] = {
        "synthesize": {"usable": N, "personas": N, "pairs": N, "repetition": 0.1, "near_duplicates": 0.2,
                       "diversity": 0.625},
        "judge": {"source": "the policy", "kept": N, "shorter": 0.5, "audit": audit},
        "train": {"pairs": {"train": 6, "held_out": 2}, "held_out_margins": [1.0, -1.0]},
        "answer": {"gold": gold, "kl": {"kl": 0.1, "se": 0.01, "n": 32}},
        "evaluate": {"scores": scores, "judge": judge, "calibration": calibration, "mean_length": 8.0},
        "chat_benchmarks": {"reading": "logprob", "mt_bench_grader": grader,
                            "mt_bench": {"score": 4.5, "se": 0.1, "turn1": 4.6, "turn2": 4.4, "n": 48},
                            "arena_hard": {"score": 40.0, "low": 30.0, "high": 50.0, "n": 32}, "judge": judge},
        "leaderboard": {"columns": columns, "average": 30.0, "average_se": 4.0},
        "math500": {"score": 20.0, "se": 5.0, "n": 60, "no_answer": 3},
        "rating": {"metrics": dict.fromkeys(METRICS, metric), "average": 4.5, "n": N, "rater": "fake",
                   "grader": dict.fromkeys((*METRICS, "average"), blind)},
        "logits": {"totals": {"chat": moments, "math": moments}, "softcap": {"cap": None, "logits": "no cap"}},
    }  # fmt: skip
    assert "seed" in p or run.spec["stage"] == "leaderboard"
    return by_stage[run.spec["stage"]]


def fake_files(run: Planned) -> dict[str, list[dict[str, Any]]]:
    ids = [f"p{n}" for n in range(N)]
    texts = [{"text": f"one {n}"} for n in range(2)]
    chat = [{"role": "assistant", "content": "some words"}]
    return {
        "synthesize": {
            "prompts.jsonl": [{"id": i, "persona": "a baker", "prompt": f"Why {i}?", "reason": None} for i in ids],
            "responses.jsonl": [{"id": i, "prompt": f"Why {i}?", "responses": texts} for i in ids],
        },
        "judge": {
            "verdicts.jsonl": [{"id": i, "verdict": 1, "margin": 0.5} for i in ids],
            "preferences.jsonl": [{"id": i, "prompt": chat, "chosen": chat, "rejected": chat} for i in ids],
        },
        "answer": {
            "answers.jsonl": [{"instruction": f"Why {i}?", "output": "Because."} for i in ids],
            "gold.jsonl": [{"id": f"q{n}-echo", "margin": 0.1 * n} for n in range(N)],
        },
        "evaluate": {
            "annotations.jsonl": [
                {
                    "instruction": f"Why {i}?",
                    "output_1": "So.",
                    "output_2": "Because.",
                    "preference": 1.0 + n % 2,
                    "margin_untrained": 1.0 if n == 0 else -1.0,
                }
                for n, i in enumerate(ids)
            ],
        },
        "chat_benchmarks": {
            "mt_judgments.jsonl": [{"question_id": n // 2, "turn": 1 + n % 2, "score": 4.0 + n % 3} for n in range(N)],
            "arena_games.jsonl": [{"question_id": i, "games": ["A>B", "A>B"]} for i in ids],
        },
        "rating": {"ratings.jsonl": [{"id": i, **dict.fromkeys(METRICS, 4.0 + n % 3)} for n, i in enumerate(ids)]},
        "logits": {"logits.jsonl": [{"set": "chat", "id": i, "skewness": 0.1 * n} for n, i in enumerate(ids)]},
    }.get(run.spec["stage"], {})


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for module in (runs, chain, page):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path


def finished(made: plan.Plan) -> Run:
    """The table run of a plan all of whose other runs have fake results."""
    plan.write_specs(made)
    for run in made.runs[:-1]:
        for name, rows in fake_files(run).items():
            (run.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        manifest = {"spec": run.spec, "results": fake_results(run), "files": {}}
        (run.path / "run.json").write_text(json.dumps(manifest))
    return Run(made.table.spec, made.table.path)


@pytest.mark.parametrize("name", experiments())
def test_every_table_and_figure_is_whole(name: str, outputs: Path) -> None:
    run = finished(plan.make("cpu", name))
    rows = table_rows(run)
    written = table.formatted(run, rows)
    assert all(len(line) == len(written[0]) for line in written)
    assert all(cell.strip() for line in written for cell in line)
    assert not any(cell in ("None", "nan", "not run") for line in written for cell in line)
    experiment = experiment_of(run)
    head = " ".join(written[0])
    assert name in TEXTS or SE_OR_INTERVAL.search(head + written[1][-1] + " ".join(written[1])), head
    if experiment.columns:
        assert "Paper" in head
        paper = [c for c in experiment.columns if c.startswith("paper.")]
        assert any(row.printed.get(c.removeprefix("paper.")) is not None for row in rows.values() for c in paper)
    said = table.caption(run, rows)
    assert f"`make reproduce-{name} PROFILE=cpu`" in said
    checked = table.claims(run, rows)
    assert all(c["verdict"] in ("undecided", "no interval", ONE_RUN) or NOT_HERE in c["verdict"] for c in checked)
    table.write_tables(run, rows, checked)
    assert (run.folder / f"{name}.tex").read_text().startswith(r"\begin{tabular}")
    drawn = figures.draw(run, rows, run.folder / f"{name}.png")
    assert (drawn is None) == (experiment.figure is None)
    assert drawn is None or (run.folder / f"{name}.png").stat().st_size > 10_000


def test_off_the_shelf_rows_come_from_the_published_leaderboard_and_say_so(outputs: Path) -> None:
    run = finished(plan.make("cpu", "table1"))
    lines = {line[0]: line for line in table.formatted(run, table_rows(run))}
    row = lines["Yi-34B-Chat, published"]
    assert row[1:4] == ["27.2", "29.7", "1.3"]
    assert row[4] == "27.19"
    assert "GPT-4-Turbo (published)" in row
    assert "not on the leaderboard" in lines["Self-Rewarding-70B-Iter3, published"]
    assert "nothing ran here" in table.caption(run, table_rows(run))


def test_a_row_that_cannot_run_is_named_with_its_reason_and_keeps_the_papers_numbers(outputs: Path) -> None:
    made = plan.make("cpu", "table6")
    failed = next(run.folder for run in made.runs if "/judge/length-" in run.folder)
    run = finished(plan.without(made, {failed: "The model x cannot be had."}))
    rows = table_rows(run)
    line = next(line for line in table.formatted(run, rows) if line[0] == "Length-based feedback")
    assert line[2] == "3.29"
    assert "not run" in line
    assert "Not run: Length-based feedback: The model x cannot be had." in table.caption(run, rows)
    assert "not run" in [c["verdict"] for c in table.claims(run, rows)]


@pytest.mark.parametrize("name", ["figure2", "figure3", "figure4", "table11", "table12", "table14"])
@pytest.mark.parametrize("place", [0, -1])
def test_a_figure_or_table_of_texts_without_one_of_its_rows_shows_the_others(
    name: str, place: int, outputs: Path
) -> None:
    made = plan.make("cpu", name)
    rows = list(made.rows)
    rows[place] = replace(rows[place], skipped="The model x cannot be had.")
    run = finished(plan.joined(replace(made, rows=rows)))
    shown = table_rows(run)
    table.write_tables(run, shown, table.claims(run, shown))
    assert len(table.formatted(run, shown)) > 1
    assert figures.draw(run, shown, run.folder / f"{name}.png") or not experiment_of(run).figure


def test_an_agreement_measured_on_one_question_has_no_standard_error(outputs: Path) -> None:
    run = finished(plan.make("cpu", "smoke"))
    assert "84.0% (SE 5.0) of 50 labelled pairs" in table.caption(run, table_rows(run))
    for path in outputs.rglob("run.json"):
        path.write_text(path.read_text().replace('"pairs": 50, "se": 0.05', '"pairs": 5, "se": null'))
    assert "84.0% (no SE from one question) of 5 labelled pairs" in table.caption(run, table_rows(run))


def test_the_caption_says_what_the_judge_fails_at_and_where_it_is_a_model_that_it_judges(outputs: Path) -> None:
    run = finished(plan.make("cpu", "smoke"))
    said = table.caption(run, table_rows(run))
    assert "It is right least often on the faults wrong (50%)." in said
    assert "An echo of the question beats the good answer in 2% of 60, one in other words in 4% of 24." in said
    labels = "; ".join(row.label for row in table_rows(run).values())
    assert f"smollm2-135m-instruct is the evaluation judge and the policy in: {labels}." in said
    assert "smollm2-135m-instruct is the policy and the feedback source in: Self-feedback." in said


def test_table_6_shows_how_good_its_sources_are(outputs: Path) -> None:
    run = finished(plan.make("cpu", "table6"))
    head, *lines = table.formatted(run, table_rows(run))
    assert {line[head.index("Source right on labelled pairs (%)")] for line in lines} == {"70.0 (SE 6.0, n 60)"}
    assert {line[head.index("Prefers the longer (%)")] for line in lines} == {"50"}


def test_a_grader_that_cannot_tell_good_from_bad_has_no_digits(outputs: Path) -> None:
    ratings, games = (finished(plan.make("cpu", name)) for name in ("table7", "table2"))
    head, *lines = table.formatted(ratings, table_rows(ratings))
    assert {line[head.index("Our average")] for line in lines} == {"no signal (50% right, SE 9)"}
    assert "by its average, is right on 50% (SE 9) of 30 labelled pairs, which is no signal" in table.caption(
        ratings, table_rows(ratings)
    )
    head, *lines = table.formatted(games, table_rows(games))
    assert {line[head.index("Our MT-Bench")] for line in lines} == {"4.50"}


def test_diversity_is_read_from_the_run_and_no_model_is_opened(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Relevance, "__init__", lambda *_: pytest.fail("a table opened a model"))
    run = finished(plan.make("cpu", "table5"))
    head, *lines = table.formatted(run, table_rows(run))
    assert [line[head.index("Embedding diversity")] for line in lines] == ["0.62"] * 3
    assert not (run.folder / "engine.log").exists()


def test_the_page_shows_what_has_finished_and_where_the_paper_disagrees_with_itself(outputs: Path) -> None:
    run = finished(plan.make("cpu", "table4"))
    rows = table_rows(run)
    figures.draw(run, rows, run.folder / "table4.png")
    run.finish({})
    text = page.write_page("cpu").read_text()
    assert "Not finished: table1" in text
    assert text.index("The paper's claims") < text.index("data:image/png;base64")
    assert text.count("one run: not tested") == 2 * len(experiment_of(run).claims)
    assert "39.25; 39.30" in text


def test_a_table_with_replicates_shows_means_runs_and_its_control_above_everything(outputs: Path) -> None:
    made = plan.make("cpu", "smoke-replicates")
    run = finished(made)
    second = next(r for r in made.runs if "simpo-random-seed-142" in r.folder and r.spec["stage"] == "evaluate")
    results = fake_results(second)
    manifest = {"spec": second.spec, "files": {}, "results": {**results, "scores": {**results["scores"], "wr": 60.0}}}
    (second.path / "run.json").write_text(json.dumps(manifest))
    rows = table_rows(run)
    head, *lines = table.formatted(run, rows)
    shown = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert shown["Random feedback"]["Our WR (%)"] == "55.00"
    assert shown["Random feedback"]["Runs (SD of wins against the reference)"] == "2 (SD 7.1)"
    assert shown["Untrained"]["Runs (SD of wins against the reference)"] == "1"
    table.write_tables(run, rows, table.claims(run, rows))
    page_text = (run.folder / "smoke-replicates.md").read_text()
    assert page_text.index("Controls as they must be: 2 of 2.") < page_text.index("| Row |")
    written = json.loads((run.folder / "claims.json").read_text())
    of_controls = {c["control"]: c["verdict"] for c in written["claims"] if c["control"]}
    assert of_controls == {"placebo": "undecided", "positive": "supported"}


def test_latex_escapes_what_tex_reads_as_commands_and_wraps_long_texts() -> None:
    answer = "x^2 & 50% ~ a_b <tag> \\frac{1}{2} {x} # $ | " + "and so on " * 6
    lines = table.latex([["SE", "SE", "Answer"], ["[1] **a**", "2", answer], ["* b", "3", "short"]]).splitlines()
    assert lines[0] == r"\begin{tabular}{lrp{0.70\linewidth}}"
    assert lines[1:4] == [r"\toprule", r"SE & SE & Answer \\", r"\midrule"]
    first, second = lines[4:6]
    assert first.startswith("{[}1] **a** & 2 & ")  # a bare [ or * after \\ or \midrule would be its argument
    assert second.startswith("{*} b & 3 & ")
    for escaped in (r"\textasciicircum 2", r"\& 50\%", r"\textasciitilde ", r"a\_b", r"\textless{}tag\textgreater{}",
                    r"\textbackslash frac\{1\}\{2\} \{x\} \# \$ \textbar{}"):  # fmt: skip
        assert escaped in first


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("a|b", r"a\|b"), (r"a\|b", r"a\\\|b"), ("<script>x</script>", r"\<script>x\</script>"), ("<!-- x", r"\<!-- x"),
        ("\x1b[2Jx\x07", r"\x1b[2Jx\x07"), ("\u202eabc", r"\u202eabc"), ("a\r\nb\rc", r"a b\rc"), ("1 < 2", "1 < 2"),
    ],
)  # fmt: skip
def test_a_hostile_text_stands_in_its_cell_as_what_it_is(cell: str, shown: str) -> None:
    head, _, row = table.markdown([["A", "B"], [cell, "end"]]).splitlines()
    assert row == f"| {shown} | end |"
    tex = table.latex([["A", "B"], [cell, "end"]])
    assert not any(sign in tex for sign in ("\x1b", "\x07", "\u202e"))


def test_an_unknown_column_lists_what_there_is() -> None:
    with pytest.raises(SaoError, match="no column 'wrr'; there are: lc"):
        column("wrr")
