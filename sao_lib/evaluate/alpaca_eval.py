"""AlpacaEval 2: answers in its format, pairwise verdicts, and win rates computed by the alpaca-eval package."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sao_lib.engines import Engine
from sao_lib.errors import SaoError
from sao_lib.evaluate.instruments import Instruments, Triple, combine, simple_parts
from sao_lib.progress import Progress
from sao_lib.runs import Run, append_rows, resume_rows
from sao_lib.settings import ROOT, Evaluate, Policy
from sao_lib.synthesize import load_json_list, seed_for, user_turn

# Length-controlled win rate on a set that has no published instruction difficulty: the official regression
# without its difficulty term and without cross-validation, which needs hundreds of rows. Shown as "LC*".
LENGTH_ONLY = {
    "formula": "np.tanh(std_delta_len) + not_gamed_baseline.astype(float) - 1",
    "regularize_to_baseline_lambda": None,
    "kwargs": {"n_splits": 0},
}


def load_instructions(settings: Evaluate) -> list[dict[str, Any]]:
    """The first n benchmark instructions, rows {instruction, dataset, ...}; raises SaoError if there are fewer."""
    path = _hub(settings.instructions) if settings.instructions.startswith("hub:") else ROOT / settings.instructions
    rows = load_json_list(path)
    if len(rows) < settings.n:
        raise SaoError(f"{settings.instructions} has {len(rows)} instructions, fewer than evaluate.n = {settings.n}.")
    return rows[: settings.n]


def _hub(source: str) -> Path:
    from huggingface_hub import hf_hub_download

    repo, _, rest = source.removeprefix("hub:").partition("@")
    revision, _, file = rest.partition("/")
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except Exception as error:
        raise SaoError(f"Instructions {source} cannot be fetched from the hub: {str(error).strip()[:160]}") from None


def answer(
    run: Run, engine: Engine, settings: Evaluate, policy: Policy, instructions: Sequence[dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Write answers.jsonl in alpaca_eval's format: {instruction, output, generator} plus tokens and finished."""
    path = run.folder / "answers.jsonl"
    rows = resume_rows(path, settings.chunk)
    progress = Progress(run.folder, "answers", len(instructions), len(rows))
    for start in range(len(rows), len(instructions), settings.chunk):
        texts = [row["instruction"] for row in instructions[start : start + settings.chunk]]
        out = engine.generate(
            [user_turn(policy, t) for t in texts],
            settings.max_tokens,
            settings.temperature,
            [seed_for(seed, t) for t in texts],
        )
        new = [
            {
                "instruction": t,
                "output": c.text.strip(),
                "generator": run.spec["name"],
                "tokens": c.tokens_out,
                "finished": c.finished,
            }
            for t, c in zip(texts, out, strict=True)
        ]
        append_rows(path, new)
        rows += new
        progress.update(len(new))
    return rows


def reference_answers(
    run: Run, settings: Evaluate, instructions: Sequence[dict[str, Any]], own: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What the answers are compared with: the untrained policy's answers, or the outputs in the instruction file.

    Raises SaoError when the file holds no output by the generator that `settings.reference` names.
    """
    if settings.reference == "policy":
        return run.input("reference").rows("answers.jsonl") if "reference" in run.spec["inputs"] else own
    wrong = next(
        (row for row in instructions if row.get("generator") != settings.reference or not row.get("output")), None
    )
    if wrong:
        raise SaoError(
            f"{settings.instructions} holds no output by '{settings.reference}' for '{wrong['instruction'][:60]}'; "
            "set evaluate.reference to policy or to the file's generator."
        )
    return list(instructions)


def annotate(
    run: Run,
    instruments: Instruments,
    calibration: dict[str, Any],
    answers: list[dict[str, Any]],
    reference: list[dict[str, Any]],
    chunk: int,
) -> list[dict[str, Any]]:
    """Write annotations.jsonl in alpaca_eval's format: output_1 the reference, output_2 the model.

    `preference` is discrete as for the paper's open judges: 1 reference, 2 model, 1.5 a tie; an empty answer
    loses. `margin` is the instrument's, positive for the model.
    """
    path, name = run.folder / "annotations.jsonl", calibration["chosen"]
    rows = resume_rows(path, chunk)
    progress = Progress(run.folder, "verdicts", len(answers), len(rows))
    for start in range(len(rows), len(answers), chunk):
        part = list(zip(reference, answers, strict=True))[start : start + chunk]
        different = [(r, m) for r, m in part if r["output"] != m["output"]]  # the rest are ties, not asked
        triples: list[Triple] = [(m["instruction"], r["output"] or " ", m["output"] or " ") for r, m in different]
        margins = {p: instruments.margins(p, triples) for p in simple_parts([name])} if triples else {}
        found = combine(name, margins, calibration["scale"]) if triples else []
        by_instruction = {t[0]: margin for t, margin in zip(triples, found, strict=True)}
        new = []
        for r, m in part:
            margin = by_instruction.get(m["instruction"], 0.0)
            if not r["output"] or not m["output"]:
                margin = float(bool(m["output"])) - float(bool(r["output"]))
            new.append(
                {
                    "instruction": m["instruction"],
                    "output_1": r["output"],
                    "generator_1": r["generator"],
                    "output_2": m["output"],
                    "generator_2": m["generator"],
                    "annotator": name,
                    "preference": 1.5 if margin == 0 else 2.0 if margin > 0 else 1.0,
                    "margin": margin,
                }
            )
        append_rows(path, new)
        rows += new
        progress.update(len(new))
    return rows


def win_rates(annotations: Sequence[dict[str, Any]], length_term: str) -> dict[str, float]:
    """wr, se, lc, lc_se (percent) and n, by alpaca_eval's own metrics.

    `length_term` "alpaca_eval" is the official length-controlled regression, whose difficulty table comes from
    the hub; "length_only" is LENGTH_ONLY, for instruction sets that have none.
    """
    import pandas as pd
    from alpaca_eval.metrics import glm_winrate

    frame = pd.DataFrame(annotations)
    official = {"glm_name": "length_controlled_v1"} if length_term == "alpaca_eval" else {"glm_info": LENGTH_ONLY}
    same_length = (frame["output_1"].str.len() == frame["output_2"].str.len()).all()
    download = glm_winrate.hf_hub_download
    with tempfile.TemporaryDirectory() as folder:
        if length_term != "alpaca_eval":
            neutral = _neutral_difficulty(len(frame), Path(folder))
            glm_winrate.hf_hub_download = lambda *_, **__: str(neutral)
        try:
            frame["generator_2"] = frame["generator_2"] + " "  # a model may carry the reference's name
            metrics = (
                glm_winrate.get_winrate(frame)
                if same_length  # nothing to control for: the regression has no length to fit
                else glm_winrate.get_length_controlled_winrate(
                    frame,
                    save_weights_dir=None,
                    is_warn_extreme_changes=False,
                    is_add_glm_preference_inplace=False,
                    **official,
                )
            )
        finally:
            glm_winrate.hf_hub_download = download
    wr, se = float(metrics["win_rate"]), float(metrics["standard_error"])
    return {
        "wr": wr,
        "se": se,
        "lc": float(metrics.get("length_controlled_winrate", wr)),
        "lc_se": float(metrics.get("lc_standard_error", se)),
        "n": len(frame),
    }


def _neutral_difficulty(n: int, folder: Path) -> Path:
    import pandas as pd

    path = folder / "df_gamed.csv"
    zero = {"model": "none", "preference": 0.5, "std_delta_len": 0.0, "instruction_difficulty": 0.0}
    pd.DataFrame([{**zero, "index": i, "not_gamed_baseline": False} for i in range(n)]).to_csv(path, index=False)
    return path


def mean_length(rows: Sequence[dict[str, Any]]) -> float:
    """Mean answer length in characters, as alpaca_eval's avg_length."""
    return statistics.fmean(len(row["output"]) for row in rows)
