"""AlpacaEval 2: answers in its format, pairwise verdicts, and win rates computed by the alpaca-eval package."""

import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sao_lib.chunks import in_chunks
from sao_lib.engines import Engine, seed_for, user_turn
from sao_lib.errors import SaoError
from sao_lib.evaluate.instruments import Instruments, Triple
from sao_lib.files import write_rows
from sao_lib.runs import Run
from sao_lib.settings import Evaluate, Policy
from sao_lib.sources import load_rows

# Length-controlled win rate on a set that has no published instruction difficulty: the official regression
# without its difficulty term and without cross-validation, which needs hundreds of rows. Shown as "LC*".
LENGTH_ONLY = {
    "formula": "np.tanh(std_delta_len) + not_gamed_baseline.astype(float) - 1",
    "regularize_to_baseline_lambda": None,
    "kwargs": {"n_splits": 0},
}
LC_RESAMPLES = 40


def load_instructions(settings: Evaluate) -> list[dict[str, Any]]:
    """The first n rows {instruction, output, generator, dataset} of the benchmark: `output` is the reference answer.

    Raises SaoError if there are fewer, or if one holds no output by the generator that `settings.reference` names.
    """
    rows = load_rows(settings.instructions)[: settings.n]
    if len(rows) < settings.n:
        raise SaoError(f"{settings.instructions} has {len(rows)} instructions, fewer than evaluate.n = {settings.n}.")
    wrong = next((row for row in rows if row.get("generator") != settings.reference or not row.get("output")), None)
    if wrong:
        raise SaoError(
            f"{settings.instructions} holds no output by '{settings.reference}' for '{wrong['instruction'][:60]}'; "
            "set evaluate.reference to the file's generator."
        )
    return rows


def answer(
    run: Run, engine: Engine, settings: Evaluate, policy: Policy, instructions: Sequence[dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Write answers.jsonl in alpaca_eval's format: {instruction, output, generator} plus tokens and finished."""

    def make(part: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        texts = [row["instruction"] for row in part]
        requests, seeds = [user_turn(policy, t) for t in texts], [seed_for(seed, t) for t in texts]
        out = engine.generate(requests, settings.max_tokens, settings.temperature, seeds)
        return [
            {
                "instruction": t,
                "output": c.text.strip(),
                "generator": run.spec["name"],
                "tokens": c.tokens_out,
                "finished": c.finished,
            }
            for t, c in zip(texts, out, strict=True)
        ]

    return in_chunks(run, "answers.jsonl", instructions, make, settings.chunk)


def published_answers(run: Run, settings: Evaluate, instructions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write answers.jsonl from `settings.answers`, a file in alpaca_eval's format; nothing is generated.

    Each answer counts as finished. Raises SaoError when the file lacks an instruction.
    """
    found = {row.get("instruction"): row for row in load_rows(str(settings.answers))}
    missing = next((row["instruction"] for row in instructions if row["instruction"] not in found), None)
    if missing is not None:
        raise SaoError(f"{settings.answers} has no answer to '{missing[:60]}' of {settings.instructions}.")
    answers = [found[row["instruction"]] for row in instructions]
    kept = [{key: row[key] for key in ("instruction", "output", "generator")} for row in answers]
    rows = [{**row, "tokens": None, "finished": True} for row in kept]
    write_rows(run.folder / "answers.jsonl", rows)
    return rows


def annotate(
    run: Run,
    instruments: Instruments,
    calibration: dict[str, Any],
    answers: list[dict[str, Any]],
    reference: list[dict[str, Any]],
    settings: Evaluate,
) -> list[dict[str, Any]]:
    """Write annotations.jsonl in alpaca_eval's format: output_1 the reference, output_2 the model.

    `preference` is 1 for the reference, 2 for the model and 1.5 for a tie where verdicts are discrete, as the
    paper's open judges'; weighted it is 1 + p(model). An empty answer loses. `margin` is the instrument's,
    positive for the model.
    """

    def make(part: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
        return [
            {
                "instruction": m["instruction"],
                "output_1": r["output"],
                "generator_1": r["generator"],
                "output_2": m["output"],
                "generator_2": m["generator"],
                "annotator": calibration["chosen"],
                "preference": preference(margin, settings.verdict),
                "margin": margin,
            }
            for (r, m), margin in zip(part, _margins(instruments, calibration, part), strict=True)
        ]

    return in_chunks(run, "annotations.jsonl", list(zip(reference, answers, strict=True)), make, settings.chunk)


def preference(margin: float, verdict: str) -> float:
    """A margin as alpaca_eval's preference in [1, 2]: its sign, or `weighted` as log-odds."""
    if verdict == "weighted":
        return 2 - 1 / (1 + math.exp(min(margin, 700.0)))
    return 1.5 if margin == 0 else 2.0 if margin > 0 else 1.0


def _margins(
    instruments: Instruments, calibration: dict[str, Any], part: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> list[float]:
    """The chosen instrument's margins; equal answers are ties and are not asked, an empty answer loses."""
    different = [(r, m) for r, m in part if r["output"] != m["output"] and r["output"] and m["output"]]
    triples: list[Triple] = [(m["instruction"], r["output"], m["output"]) for r, m in different]
    found = dict(zip(triples, instruments.judged(calibration, triples), strict=True)) if triples else {}
    return [
        found.get((m["instruction"], r["output"], m["output"]), 100.0 * (bool(m["output"]) - bool(r["output"])))
        for r, m in part
    ]


def win_rates(annotations: Sequence[dict[str, Any]], length_term: str) -> dict[str, float]:
    """wr, se, lc, lc_se (percent) and n, by alpaca_eval's own metrics.

    `length_term` "alpaca_eval" is the official length-controlled regression, whose difficulty table comes from
    the hub; "length_only" is LENGTH_ONLY, for instruction sets that have none. Its `lc_se` is ours, a bootstrap
    over instructions: where nearly all answers are longer than the reference's, LC is an extrapolation.
    """
    import pandas as pd
    from alpaca_eval.metrics import glm_winrate

    frame = pd.DataFrame(annotations)
    frame["generator_2"] = frame["generator_2"] + " "  # a model may carry the reference's name
    plain = glm_winrate.get_winrate(frame)
    wr, se = float(plain["win_rate"]), float(plain["standard_error"])
    if (frame["output_1"].str.len() == frame["output_2"].str.len()).all():
        lc, lc_se = wr, se  # nothing to control for: the regression has no length to fit
    elif length_term == "alpaca_eval":
        found = _length_controlled(frame, {"glm_name": "length_controlled_v1"})
        lc, lc_se = float(found["length_controlled_winrate"]), float(found["lc_standard_error"])
    else:
        lc, lc_se = _length_only(frame)
    return {"wr": wr, "se": se, "lc": lc, "lc_se": lc_se, "n": len(frame)}


def _length_controlled(frame: Any, options: dict[str, Any]) -> dict[str, Any]:
    from alpaca_eval.metrics import glm_winrate

    quiet_options = {"save_weights_dir": None, "is_warn_extreme_changes": False, "is_add_glm_preference_inplace": False}
    return dict(glm_winrate.get_length_controlled_winrate(frame.copy(), **quiet_options, **options))


def _length_only(frame: Any) -> tuple[float, float]:
    """LC and its bootstrap standard error; the win rate where lengths do not differ, as there is nothing to control."""
    from alpaca_eval.metrics import glm_winrate

    def fit(part: Any) -> float:
        if (part["output_1"].str.len() == part["output_2"].str.len()).all():
            return float(glm_winrate.get_winrate(part)["win_rate"])
        return float(_length_controlled(part, {"glm_info": LENGTH_ONLY})["length_controlled_winrate"])

    download = glm_winrate.hf_hub_download
    with tempfile.TemporaryDirectory() as folder:
        neutral = _neutral_difficulty(len(frame), Path(folder))
        glm_winrate.hf_hub_download = lambda *_, **__: str(neutral)
        try:
            numbered = frame.assign(instruction=[f"{n}" for n in range(len(frame))])
            draws = [frame.sample(len(frame), replace=True, random_state=n).index for n in range(LC_RESAMPLES)]
            resampled = [fit(frame.loc[d].assign(instruction=numbered["instruction"].to_numpy())) for d in draws]
            return fit(frame), statistics.stdev(resampled)
        finally:
            glm_winrate.hf_hub_download = download


def _neutral_difficulty(n: int, folder: Path) -> Path:
    import pandas as pd

    path = folder / "df_gamed.csv"
    zero = {"model": "none", "preference": 0.5, "std_delta_len": 0.0, "instruction_difficulty": 0.0}
    pd.DataFrame([{**zero, "index": i, "not_gamed_baseline": False} for i in range(n)]).to_csv(path, index=False)
    return path


def mean_length(rows: Sequence[dict[str, Any]]) -> float:
    """Mean answer length in characters, as alpaca_eval's avg_length."""
    return statistics.fmean(len(row["output"]) for row in rows)
