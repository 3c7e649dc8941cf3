"""Tables and figures: ours beside the paper's, with uncertainty, and what ran."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sao_lib.analyze import claim_verdict, paper_verdict, share_positive
from sao_lib.evaluate.alpaca_eval import mean_length
from sao_lib.runs import Run, write_atomic
from sao_lib.settings import PARAMS, experiment_file, read_yaml

COLUMNS = {
    "source": "Feedback source",
    "paper_lc": "Paper LC (%)",
    "paper_wr": "Paper WR (%)",
    "lc": "Our LC (%)",
    "wr": "Our WR (%)",
    "se": "SE",
    "length": "Mean answer (characters)",
    "held_out": "Held-out preference accuracy (%)",
    "pairs": "Pairs trained / held out",
    "ran": "Feedback from",
}


def table_rows(run: Run) -> dict[str, dict[str, Any]]:
    """The rows of a table run: its columns, plus `annotations` for paired tests."""
    paper = paper_numbers(run)
    rows = {}
    for row in run.params["rows"]:
        name = row["name"]
        evaluated, trained = run.input(f"{name}/evaluate"), run.input(f"{name}/train")
        scores = evaluated.results["scores"]
        rows[name] = {
            "source": row["label"],
            "paper_lc": paper[name]["lc"],
            "paper_wr": paper[name]["wr"],
            "lc": scores["lc"],
            "wr": scores["wr"],
            "se": scores["se"],
            "length": mean_length(evaluated.rows("answers.jsonl")),
            "held_out": 100 * share_positive(trained.results["held_out_margins"]),
            "pairs": f"{trained.results['pairs']['train']} / {trained.results['pairs']['held_out']}",
            "ran": run.input(f"{name}/judge").results["source"],
            "annotations": evaluated.rows("annotations.jsonl"),
        }
    return rows


def paper_numbers(run: Run) -> dict[str, dict[str, Any]]:
    """The paper's rows of this table, or of the one the experiment names as `paper_table`."""
    name = run.params["experiment"]
    return dict(read_yaml(PARAMS / "paper.yaml")[read_yaml(experiment_file(name)).get("paper_table", name)]["rows"])


def formatted(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table as strings, header first; numbers with as many decimals as the paper prints."""
    body = [[_text(key, row[key]) for key in COLUMNS] for row in rows.values()]
    return [list(COLUMNS.values()), *body]


def _text(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if key == "length" else f"{value:.1f}" if key in ("se", "held_out") else f"{value:.2f}"
    return str(value)


def caption(run: Run) -> str:
    """What ran, in sentences: models, sizes, judge with its measured agreement, and what that can tell."""
    experiment, reference = read_yaml(experiment_file(run.params["experiment"])), run.input("reference")
    evaluated, profile = reference.params["evaluate"], run.spec["profile"]
    against_itself = evaluated["reference"] == "policy"
    against = "the untrained model" if against_itself else evaluated["reference"]
    paper = f"Paper: {experiment['paper_setting']}; it prints no SE for this table."
    if against_itself:
        paper += " Its win rates are against GPT-4-Turbo, ours against the untrained model: compare orders, not levels."
    lines = [
        f"Profile {profile}: policy {reference.params['policy']['model']}, "
        f"{run.input('synthesize').results['usable']} prompts, evaluated on {evaluated['n']} instructions of "
        f"{evaluated['instructions']} against {against}.",
        _judge_sentence(reference),
        paper,
        " ".join(read_yaml(PARAMS / "shows.yaml").get(profile, "").split()),
        f"Command: `make reproduce-{run.params['experiment']} PROFILE={profile}`.",
    ]
    return "\n".join(line for line in lines if line)


def _judge_sentence(reference: Run) -> str:
    evaluated, found = reference.params["evaluate"], reference.results["calibration"]
    judge = evaluated["judge_model"] or reference.params["policy"]["model"]
    measured = "not measured on labelled pairs"
    if found["pairs"]:
        agreement = 100 * found["agreement"][found["chosen"]]
        measured = (
            f"which agrees with {agreement:.1f}% (SE {100 * found['se']:.1f}) of {found['pairs']} labelled pairs "
            "that were not used to choose it"
        )
    term = "LC controls for length alone, because these instructions have no published difficulty"
    if evaluated["length_term"] == "alpaca_eval":
        term = "LC is the official regression"
    return f"Judge: {judge} read by `{found['chosen']}`, {measured}. Win rates and SE by alpaca-eval; {term}."


def claims(run: Run, rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each claim of the experiment with its verdict on our rows and on the paper's numbers."""
    experiment, paper = read_yaml(experiment_file(run.params["experiment"])), paper_numbers(run)
    return [
        {**c, **claim_verdict(c["holds"], rows), "paper": paper_verdict(c["holds"], paper)}
        for c in experiment["claims"]
    ]


def claim_lines(checked: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Claims as strings, header first."""
    head = ["Claim", "Predicate", "Paper", "Ours: difference [95% interval], p", "Verdict"]
    body = [
        [
            c["sentence"],
            c["holds"],
            c["paper"],
            f"{c['mean']:+.1f} [{c['low']:+.1f}, {c['high']:+.1f}], p = {c['p']:.2g}",
            c["verdict"],
        ]
        for c in checked
    ]
    return [head, *body]


def markdown(table: list[list[str]]) -> str:
    """A list of rows, header first, as a Markdown table."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in table]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def latex(table: list[list[str]]) -> str:
    """A list of rows, header first, as a LaTeX tabular (booktabs)."""
    escape = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"})
    head, *body = [[cell.translate(escape) for cell in row] for row in table]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 2)}l}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    return "\n".join([*lines, *(" & ".join(row) + r" \\" for row in body), r"\bottomrule", r"\end{tabular}"]) + "\n"


def write_tables(run: Run, rows: dict[str, dict[str, Any]], checked: Sequence[dict[str, Any]]) -> None:
    """<experiment>.md, .csv and .tex in the table's folder."""
    name, table = run.params["experiment"], formatted(rows)
    title = read_yaml(experiment_file(name))["title"]
    text = f"# {name}: {title}\n\n{markdown(table)}\n\n{caption(run)}\n\n{markdown(claim_lines(checked))}\n"
    write_atomic(run.folder / f"{name}.md", text)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([row[key] for key in COLUMNS] for row in rows.values())
    write_atomic(run.folder / f"{name}.csv", buffer.getvalue())
    write_atomic(run.folder / f"{name}.tex", latex(table))


def figure(rows: dict[str, dict[str, Any]], path: Path) -> Any:
    """Win rate per feedback source with one standard error, the paper's value marked; saved to `path`."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
    blue, orange = sns.color_palette("colorblind")[0], sns.color_palette("colorblind")[1]
    labels = [row["source"].replace(" (", "\n(") for row in rows.values()]
    at = list(range(len(rows)))[::-1]
    picture, axes = plt.subplots(figsize=(8, 0.55 * len(rows) + 1.2), layout="constrained")
    axes.errorbar(
        [r["wr"] for r in rows.values()], at, xerr=[r["se"] for r in rows.values()],
        fmt="o", color=blue, capsize=3, label="ours, win rate with standard error",
    )  # fmt: skip
    axes.plot([r["paper_wr"] for r in rows.values()], at, "D", color=orange, fillstyle="none", label="paper, win rate")
    axes.axvline(50, color="0.4", lw=0.8, ls="--")
    axes.set(
        yticks=at,
        yticklabels=labels,
        ylim=(-0.6, len(rows) - 0.4),
        xlim=(0, 100),
        xlabel="Win rate (%); references differ, see the caption",
    )
    picture.legend(loc="outside upper center", ncol=2, frameon=False)
    picture.savefig(path, dpi=150)
    return picture
