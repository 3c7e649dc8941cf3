"""A table run as text: rows, caption, claims, and the files table.md, .csv and .tex."""

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from sao_lib.errors import visible
from sao_lib.evaluate.instruments import read_by
from sao_lib.files import write_atomic
from sao_lib.hub import short
from sao_lib.method.feedback import Gold
from sao_lib.method.rewards import RELEVANCE_MODEL
from sao_lib.plan.experiment import Experiment
from sao_lib.report import claims as tests
from sao_lib.report import paper_side, texts
from sao_lib.report.columns import column, text_of, value_of
from sao_lib.report.fidelity import sentences
from sao_lib.report.figures import KINDS
from sao_lib.report.inference import in_words
from sao_lib.report.rows import TableRows, experiment_of
from sao_lib.runs import Run, outdated_behind, seconds_behind
from sao_lib.settings import PARAMS
from sao_lib.yaml_files import read_yaml

LONG = 60  # characters of a cell that a LaTeX table wraps


def formatted(run: Run, rows: TableRows) -> list[list[str]]:
    """The table as strings, header first."""
    experiment = experiment_of(run)
    if experiment.table:
        return texts.TABLES[experiment.table].made(rows)
    names = columns_of(rows)
    head = ["Row", *(column(name).header for name in names)]
    return [head, *([row.label, *(text_of(name, row) for name in names)] for row in rows.values())]


def columns_of(rows: TableRows) -> list[str]:
    """The experiment's columns, and how many runs there are behind a row where that is more than one."""
    row = next(iter(rows.values()))
    names = experiment_of(row.table).columns
    many = any(len(row.replicates) > 1 for row in rows.values())
    return [*names, "runs"] if many and "runs" not in names else list(names)


def caption(run: Run, rows: TableRows) -> str:
    """What ran, in sentences: models, sizes, judges with their measured agreement, and what that can tell."""
    experiment, profile = experiment_of(run), run.spec["profile"]
    lines = [f"Profile {profile}: policy {run.params['policy']}. {_data(rows)}".strip()]
    lines += _judges(rows) + _graders(rows) + _the_same(rows)
    lines += _measured(experiment, rows)
    differs = sentences(experiment.printed_in or run.params["experiment"], profile)
    lines += differs
    if experiment.paper_setting and not differs:
        lines.append(f"Paper: {experiment.paper_setting}; `-`: the paper prints no number there.")
    lines += [" ".join(experiment.note.split())] if experiment.note else []
    if any(row.published for row in rows.values()):
        lines.append(
            "Rows marked published are read from the leaderboard in the alpaca-eval package; nothing ran here."
        )
    lines += [f"Not run: {row.label}: {row.skipped}" for row in rows.values() if row.skipped]
    lines.append(" ".join(read_yaml(PARAMS / "shows.yaml").get(profile, "").split()))
    lines += _outdated(run)
    lines.append(f"Command: `{run.params['command']}`.")
    return "\n".join(line for line in lines if line)


def _measured(experiment: Experiment, rows: TableRows) -> list[str]:
    """What the figure shows, in sentences with their numbers."""
    return KINDS[experiment.figure.kind].says(rows) if experiment.figure else []


def _outdated(run: Run) -> list[str]:
    """Which of the runs behind this table other code made than this, as of now."""
    found = {} if run.is_lesson else outdated_behind(run.spec["inputs"].values())
    if not found:
        return []
    parts = ", ".join(dict.fromkeys(part for why in found.values() for part in why))
    runs = ", ".join(folder.partition("/")[2] for folder in found)
    again = f"`{run.params['command']} FRESH=stale` makes them again."
    return [f"Made by other code than this: {runs}. Changed since: {parts}. {again}"]


def _data(rows: TableRows) -> str:
    made = next((row.run("synthesize").results for row in rows.values() if row.has("synthesize")), None)
    evaluated = next((row.run("evaluate").params["evaluate"] for row in rows.values() if row.has("evaluate")), None)
    text = f"{made['usable']} usable prompts of {made['personas']}, {made['pairs']} answered twice." if made else ""
    if evaluated:
        text += (
            f" Evaluated on {evaluated['n']} instructions of {evaluated['instructions']} against the answers of "
            f"{evaluated['reference']}."
        )
    return text.strip()


def _judges(rows: TableRows) -> list[str]:
    """One sentence per evaluation judge, with its agreement on labelled pairs that did not choose it."""
    found = {}
    for row in rows.values():
        role = next((r for r in ("evaluate", "chat_benchmarks") if row.has(r)), None)
        if role:
            run = row.run(role)
            calibrated = (
                run if role == "evaluate" and "calibration" not in run.spec["inputs"] else run.input("calibration")
            )
            found[calibrated.folder.name] = calibrated
    return [_judge_sentence(run) for run in found.values()]


def _graders(rows: TableRows) -> list[str]:
    """One sentence per grader of table 2 and 7, with its own agreement on labelled pairs."""
    said = {}
    for row in rows.values():
        if row.has("chat_benchmarks"):
            run = row.run("chat_benchmarks")
            who = f"MT-Bench's grader, {short(run.results['judge']['model'])} in {run.results['reading']},"
            said[who] = run.results["mt_bench_grader"]
        if row.has("rating"):
            results = row.run("rating").results
            said[f"The rater, {results['rater']}, by its average,"] = results["grader"]["average"]
    return [
        f"{who} is right on {100 * (g['agreement'] or 0):.0f}% (SE {100 * (g['se'] or 0):.0f}) of {g['n']} labelled "
        + ("pairs." if g["signal"] else "pairs, which is no signal. What has none is printed without digits.")
        for who, g in said.items()
    ]


def _judge_sentence(run: Run) -> str:
    found, judge = run.results["calibration"], run.results["judge"]
    measured = "not measured on labelled pairs"
    if found["pairs"]:
        agreement = 100 * found["agreement"]
        se = "no SE from one question" if found["se"] is None else f"SE {100 * found['se']:.1f}"
        measured = (
            f"which agrees with {agreement:.1f}% ({se}) of {found['pairs']} labelled pairs "
            "that were not used to choose it"
        )
    term = "no LC, which needs AlpacaEval's own instructions"
    if run.params["evaluate"]["length_term"] == "alpaca_eval":
        term = "LC is the official regression with its difficulty of GPT-4's time"
    model = " and ".join(short(m) for m in read_by(found["chosen"], judge["model"]))
    verdicts = "Verdicts are discrete" if judge["verdict"] == "discrete" else "Verdicts are weighted by probability"
    fails = _fails_at(found)
    return (
        f"Judge: {model} read by `{found['chosen']}`, {measured}.{fails} {verdicts}; WR and SE by alpaca-eval; {term}."
        + _second_sentence(run.results.get("second"), judge["model"])
    )


def _second_sentence(found: dict[str, Any] | None, model: str) -> str:
    """What reads the same answers beside the judge, and what it is worth; nothing where nothing does."""
    if not found:
        return ""
    said = f" Second reading, of the same answers: {' and '.join(map(short, read_by(found['name'], model)))} by "
    said += f"`{found['name']}`"
    if not found["pairs"]:
        return f"{said}, not measured on labelled pairs."
    said += f", which agrees with {100 * found['agreement']:.1f}% of {found['pairs']} labelled pairs"
    kinds = {"parrot": "echoes", "by_hand": "echoes in other words"}
    beaten = [f"{100 * found[k]:.0f}% of {n} {what}" for k, what in kinds.items() if (n := found[f"{k}_pairs"])]
    return f"{said}; {' and '.join(beaten)} beat the good answer." if beaten else f"{said}."


def _fails_at(found: dict[str, Any]) -> str:
    """What the chosen instrument gets wrong, worst first, and how often an echo of the question wins."""
    faults = {k: v["agreement"] for k, v in found["by_fault"].items() if v["agreement"] is not None}
    low = sorted((share, fault) for fault, share in faults.items() if share < 0.9)
    text = (
        " It is right least often on the faults "
        + ", ".join(f"{fault} ({100 * share:.0f}%)" for share, fault in low[:3])
        + "."
        if low
        else ""
    )
    own = found["candidates"][found["chosen"]]
    if own["parrot_pairs"]:
        text += f" An echo of the question beats the good answer in {100 * own['parrot']:.0f}% of {own['parrot_pairs']}"
        text += (
            f", one in other words in {100 * own['by_hand']:.0f}% of {own['by_hand_pairs']}."
            if own["by_hand_pairs"]
            else "."
        )
    return text


def _the_same(rows: TableRows) -> list[str]:
    """Rows in which two of judge, policy and source are one model, said in a sentence for each such pair."""
    found: dict[str, list[str]] = {}
    for row in rows.values():
        if not row.ours or not row.has("evaluate"):
            continue
        run = row.run("evaluate")
        judge, second = run.results["judge"], run.results.get("second")
        readers = {"evaluation judge": read_by(judge["instrument"], judge["model"])}
        readers |= {"second reading": read_by(second["name"], judge["model"])} if second else {}
        roles = {"the policy": run.params["policy"]["model"]}
        if row.has("judge"):
            asked = row.run("judge").params
            own = {"llm": (asked.get("policy") or {}).get("model"), Gold.key: RELEVANCE_MODEL}
            roles["the feedback source"] = asked["judge"].get("model") or own.get(asked["judge"]["source"])
        for reader, models in readers.items():
            for role, model in roles.items():
                if model in models:
                    found.setdefault(f"{short(model)} is the {reader} and {role}", []).append(row.label)
        if len(roles) == 2 and roles["the policy"] == roles["the feedback source"]:
            found.setdefault(f"{short(roles['the policy'])} is the policy and the feedback source", []).append(
                row.label
            )
    return [f"{what} in: {'; '.join(labels)}." for what, labels in found.items()]


def claims(run: Run, rows: TableRows) -> list[dict[str, Any]]:
    """Each claim of the experiment with its verdict on our rows and on the paper's numbers (claims.check)."""
    return tests.check(experiment_of(run), rows)


def claim_lines(checked: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Claims as strings, header first."""
    head = ["Claim", "Predicate", "Paper", "Ours: difference [interval], p (Holm)", "Verdict"]
    return [head, *([_sentence(c), c["holds"], paper_side.text(c["paper"]), tested(c), c["verdict"]] for c in checked)]


def _sentence(c: dict[str, Any]) -> str:
    return f"Control, {c['control']}: {c['sentence']}" if c["control"] else c["sentence"]


def tested(c: dict[str, Any]) -> str:
    """A finding in words: the difference; where it was tested with its interval and p-value; and the runs behind it."""
    if c["difference"] is None:
        return "-"
    runs = f"runs {' and '.join(map(str, c['runs']))}" if len(c["runs"]) < 3 else f"runs {min(c['runs'])} or more each"
    rival = f" against {c['rival']}" if c["rival"] else ""
    text = f"{c['difference']:+.3g} {c['unit']}".rstrip() + rival
    if c["p"] is not None:
        holm = "" if c["holm"] is None else f" ({in_words(c['holm']).removeprefix('p ').removeprefix('= ')})"
        text += f" [{c['low']:+.3g}, {c['high']:+.3g}] at {100 * c['level']:.0f}%, {in_words(c['p'])}{holm}"
    return f"{text}; {runs}"


def markdown(table: list[list[str]]) -> str:
    """A list of rows, header first, as a Markdown table."""
    head, *body = [[_in_markdown(visible(cell)) for cell in row] for row in table]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def _in_markdown(cell: str) -> str:
    """A cell in one line that shows what is in it: no bar ends it, and no tag in it hides what follows."""
    barred = re.sub(r"(\\*)\|", r"\1\1\\|", " ".join(cell.split()))
    return re.sub(r"<(?=[A-Za-z/!?])", r"\<", barred)


def latex(table: list[list[str]]) -> str:
    """A list of rows, header first, as a LaTeX tabular (booktabs, T1); long texts stand in paragraphs that wrap."""
    import pandas as pd

    head, *body = [[" ".join(visible(cell).split()) for cell in row] for row in table]
    frame = pd.DataFrame(body, columns=head)
    text = frame.to_latex(escape=True, index=False, column_format=_column_format(head, body))
    for sign, name in {"<": "less", ">": "greater", "|": "bar"}.items():  # pandas leaves them, and OT1 prints others
        text = text.replace(sign, rf"\text{name}{{}}")
    return re.sub(r"^([\[*])", r"{\1}", text, flags=re.MULTILINE)  # after \\ or \midrule it would be their argument


def _column_format(head: list[str], body: list[list[str]]) -> str:
    """Column types: p for long texts, which share 0.7 of the line; else l for the first and the last, r between."""
    columns = list(zip(head, *body, strict=True))
    long = [any(len(cell) > LONG for cell in column) for column in columns]
    kinds = ["l", *("r" * (len(head) - 2)), "l"]
    paragraph = rf"p{{{0.7 / max(1, sum(long)):.2f}\linewidth}}"
    return "".join(paragraph if wraps else kind for wraps, kind in zip(long, kinds, strict=True))


def write_tables(run: Run, rows: TableRows, checked: Sequence[dict[str, Any]]) -> None:
    """<experiment>.md, .csv and .tex in the table's folder, and claims.json, which the status table reads."""
    name, table, experiment = run.params["experiment"], formatted(run, rows), experiment_of(run)
    parts = [f"# {name}: {experiment.title}"]
    parts += [line] if (line := tests.controls(checked)) else []
    parts += [markdown(table), caption(run, rows).replace("\n", "\n\n")]
    parts += [markdown(claim_lines(checked))] if checked else []
    write_atomic(run.folder / f"{name}.md", "\n\n".join(parts) + "\n")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if experiment.table:
        writer.writerows(table)
    else:
        names = columns_of(rows)
        writer.writerow(["row", *names])
        writer.writerows([row.name, *(value_of(c, row) for c in names)] for row in rows.values())
    write_atomic(run.folder / f"{name}.csv", buffer.getvalue())
    write_atomic(run.folder / f"{name}.tex", latex(table))
    found = {
        "command": run.params["command"],
        "minutes": round(seconds_behind(run.spec["inputs"].values(), run.inputs_in) / 60, 1),
        "says": _measured(experiment, rows),
        "claims": list(checked),
    }
    write_atomic(run.folder / "claims.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
