"""Tables that are texts or distributions: repeated prompts, examples, lengths, skewness, templates."""

from collections.abc import Callable
from dataclasses import dataclass

from sao_lib.method.judge import pairs_of, ranking_request
from sao_lib.method.synthesize import most_repeated, persona_request
from sao_lib.report.columns import policy_name
from sao_lib.report.paper import PAPER
from sao_lib.report.rows import TableRow, TableRows
from sao_lib.settings import ROOT
from sao_lib.sources import load_rows
from sao_lib.yaml_files import read_yaml

LONGEST = 600  # characters of a text in a table


def cut(text: str) -> str:
    """`text`, shortened visibly when it is long."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [... {len(text) - LONGEST} more characters]"


def _first(rows: TableRows, stage: str) -> TableRow:
    """The first row that ran a stage; there is one, as `check` asks for it and a table without any row is not made."""
    return next(row for row in rows.values() if row.has(stage))


def repeated_prompts(rows: TableRows) -> list[list[str]]:
    """Table 12: the five most frequent prompts of each source, the paper's first."""
    out = [["Prompts", "Prompt", "Count"]]
    out += [
        ["Paper, random, 10k prompts", row["prompt"], str(row["count"])] for row in read_yaml(PAPER)["table12"]["rows"]
    ]
    for row in rows.values():
        if not row.has("synthesize"):
            out.append([row.label, f"not run: {row.skipped or 'not asked for'}", "-"])
            continue
        prompts = [p["prompt"] for p in row.prompts]  # before any filter: refusals repeat too
        label = f"Ours, {row.label.lower()}, {len(prompts)} prompts"
        out += [[label, cut(prompt), str(count)] for prompt, count in most_repeated(prompts)]
    return out


def dataset_example(rows: TableRows) -> list[list[str]]:
    """Table 13: persona, prompt, both responses and the ranking of the first judged pair."""
    row = _first(rows, "judge")
    judged = row.run("judge")
    verdicts = {v["id"]: v for v in judged.rows("verdicts.jsonl")}
    responses = row.run("synthesize").rows("responses.jsonl")
    first = next((r for r in responses if verdicts.get(r["id"], {}).get("verdict")), responses[0])
    made = next(p for p in row.prompts if p["id"] == first["id"])
    verdict = verdicts[first["id"]]["verdict"]
    margin = verdicts[first["id"]]["margin"]
    return [
        ["Field", "Ours"],
        ["Input persona", made["persona"] or "-"],
        ["Generated prompt", made["prompt"]],
        ["Response 1", cut(first["responses"][0]["text"])],
        ["Response 2", cut(first["responses"][1]["text"])],
        [
            "Ranking",
            {1: "1 > 2", 2: "2 > 1", None: "none"}[verdict]
            + ("" if margin is None else f" ({margin:+.2f} nats for 1)"),
        ],
        ["Judge", judged.results["source"]],
    ]


def before_and_after(rows: TableRows) -> list[list[str]]:
    """Table 14: the paper's kind of instruction, answered by the policy before and after."""
    out = [["Instruction", *(row.label for row in rows.values())]]
    answers = [row.answers for row in rows.values()]
    picked = next((a for a in answers if a), [])[:3]
    for number, answer in enumerate(picked):
        out.append([answer["instruction"], *(cut(a[number]["output"]) if a else "not run" for a in answers)])
    return out


def words(rows: TableRows) -> dict[str, dict[str, list[int]]]:
    """Words of prompts and responses per source, {label: {prompts, responses}}: figure 3's data."""
    found = {}
    for row in rows.values():
        if row.data and not row.skipped:
            pairs = load_rows(row.data)
            texts = [r["prompt"] for r in pairs], [r[s][-1]["content"] for r in pairs for s in ("chosen", "rejected")]
        elif row.has("judge"):
            kept = row.run("judge").rows("preferences.jsonl")
            texts = (
                [r["prompt"][0]["content"] for r in kept],
                [r[s][0]["content"] for r in kept for s in ("chosen", "rejected")],
            )
        else:
            continue
        prompts, responses = ([len(t.split()) for t in part] for part in texts)
        found[row.label] = {"prompts": prompts, "responses": responses}
    return found


def lengths(rows: TableRows) -> list[list[str]]:
    """Figure 3 in numbers: n, median and middle 90% of the words of prompts and responses."""
    import numpy as np

    out = [["Data", "Text", "n", "Median (words)", "5% to 95% (words)", "Paper"]]
    said = {"prompts": "under 200 words", "responses": "mainly 400 to 800 words"}
    for number, (label, parts) in enumerate(words(rows).items()):
        for kind, counts in parts.items():
            low, middle, high = np.quantile(counts, [0.05, 0.5, 0.95])
            out.append(
                [
                    label,
                    kind,
                    str(len(counts)),
                    f"{middle:.0f}",
                    f"{low:.0f} to {high:.0f}",
                    said[kind] if not number else "-",
                ]
            )
    return out


def skewness(rows: TableRows) -> list[list[str]]:
    """Figure 4 in numbers: moments of the logits per model and set, with the spread over responses."""
    out = [
        [
            "Model",
            "What ran",
            "Set",
            "Responses",
            "Logits",
            "Mean",
            "SD",
            "Skewness (eq. 9)",
            "Per response, mean (SD)",
            "Soft-cap",
        ]
    ]
    for row in rows.values():
        if not row.has("logits"):
            out.append([row.label, "not run", *["-"] * 8])
            continue
        results = row.run("logits").results
        cap = results["softcap"]["logits"]
        for name, t in results["totals"].items():
            sd = "one response" if t["skewness_sd"] is None else f"{t['skewness_sd']:.4f}"
            spread = f"{t['skewness_mean']:.4f} ({sd})"
            moments = [f"{t['n']:,}", f"{t['mean']:.3f}", f"{t['std']:.3f}", f"{t['skewness']:.4f}", spread]
            out.append([row.label, policy_name(row), name, str(t["responses"]), *moments, cap])
    return out


def template_texts(rows: TableRows) -> dict[str, str]:
    """Figure 5: both templates as the first persona and the first pair of this profile's data fill them."""
    row = _first(rows, "judge")
    made, judged = row.run("synthesize"), row.run("judge")
    persona = row.prompts[0]["persona"]
    request = persona_request(read_yaml(ROOT / made.params["synthesize"]["template"]), persona)
    template = read_yaml(ROOT / judged.params["judge"]["template"])
    pair = pairs_of(made.rows("responses.jsonl")[:1])[0]
    ranking = ranking_request(template, pair, None, judged.params["judge"]["reading"] == "logprob")
    begun = "\n\n[The answer begins:] "
    return {
        "Persona instruction": request.messages[-1]["content"] + (begun + request.prefill if request.prefill else ""),
        "Pairwise ranking": ranking.messages[-1]["content"] + (begun + ranking.prefill if ranking.prefill else ""),
    }


def templates(rows: TableRows) -> list[list[str]]:
    """Figure 5 as a table: template, file, text with an example."""
    row = _first(rows, "judge")
    files = [row.run("synthesize").params["synthesize"]["template"], row.run("judge").params["judge"]["template"]]
    texts = template_texts(rows)
    return [
        ["Template", "File", "Example"],
        *([name, file, text] for (name, text), file in zip(texts.items(), files, strict=True)),
    ]


@dataclass(frozen=True)
class TextTable:
    """A table as strings, header first, and the stage that some row must run."""

    made: Callable[[TableRows], list[list[str]]]
    stages: tuple[str, ...]


TABLES: dict[str, TextTable] = {
    "repeated_prompts": TextTable(repeated_prompts, ("synthesize",)),
    "dataset_example": TextTable(dataset_example, ("judge",)),
    "before_and_after": TextTable(before_and_after, ("evaluate",)),
    "lengths": TextTable(lengths, ("judge",)),
    "skewness": TextTable(skewness, ("logits",)),
    "templates": TextTable(templates, ("judge",)),
}
