"""AlpacaEval 2: answers in its format, pairwise verdicts, and win rates computed by the alpaca-eval package."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import Any

from sao_lib.chunks import in_chunks
from sao_lib.engines import Engine, seed_for, user_turn, was_asked
from sao_lib.errors import SaoError
from sao_lib.evaluate.instruments import Instruments, Triple
from sao_lib.files import write_rows
from sao_lib.method.judge import sign
from sao_lib.runs import Run
from sao_lib.settings import Evaluate, Policy
from sao_lib.sources import load_rows, refused, text_of


def load_instructions(settings: Evaluate) -> list[dict[str, Any]]:
    """The first n rows {instruction, output, generator, dataset} of the benchmark: `output` is the reference answer.

    Raises SaoError if there are fewer, or if one holds no output by the generator that `settings.reference` names.
    """
    rows = load_rows(settings.instructions, texts=["instruction", "output"], unique=["instruction"])[: settings.n]
    if len(rows) < settings.n:
        raise SaoError(f"{settings.instructions} has {len(rows)} instructions, fewer than evaluate.n = {settings.n}.")
    for row in rows:
        asked = text_of(settings.instructions, row, "instruction")
        if row.get("generator") != settings.reference or not row.get("output"):
            raise SaoError(
                f"{settings.instructions} holds no output by '{settings.reference}' for '{asked[:60]}'; "
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
                **({"reason": c.reason} if c.reason else {}),
            }
            for t, c in zip(texts, out, strict=True)
        ]

    return in_chunks(run, "answers.jsonl", instructions, make, settings.chunk)


def published_answers(run: Run, settings: Evaluate, instructions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write answers.jsonl from `settings.answers`, a file in alpaca_eval's format; nothing is generated.

    Each answer counts as finished. Raises SaoError when the file lacks an instruction.
    """
    kept = [
        {key: row[key] for key in ("instruction", "output", "generator")}
        for row in load_answers(settings, instructions)
    ]
    rows = [{**row, "tokens": None, "finished": True} for row in kept]
    write_rows(run.folder / "answers.jsonl", rows)
    return rows


def load_answers(settings: Evaluate, instructions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `settings.answers` that answer `instructions`, in their order; SaoError where one is missing."""
    given = load_rows(str(settings.answers), texts=["instruction", "generator"], unique=["instruction"])
    found = {row.get("instruction"): row for row in given}
    missing = next((row["instruction"] for row in instructions if row["instruction"] not in found), None)
    if missing is not None:
        raise SaoError(f"{settings.answers} has no answer to '{missing[:60]}' of {settings.instructions}.")
    answers = [found[row["instruction"]] for row in instructions]
    wrong = next((row for row in answers if not isinstance(row.get("output"), str)), None)
    if wrong is not None:
        raise refused(str(settings.answers), wrong, "its output is no text")
    return answers


def annotate(
    run: Run,
    instruments: Instruments,
    calibration: dict[str, Any],
    answers: list[dict[str, Any]],
    reference: list[dict[str, Any]],
    settings: Evaluate,
    untrained: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Write annotations.jsonl in alpaca_eval's format: output_1 the reference, output_2 the model.

    `preference` is 1 for the reference, 2 for the model and 1.5 for a tie where verdicts are discrete, as the
    paper's open judges'; weighted it is 1 + p(model). An empty answer loses. `margin` is the instrument's, positive
    for the model; `margin_untrained` likewise against `untrained`, the answers of the model before it was trained,
    null without them. `second` and `second_untrained` are those margins by `settings.second`, which are null without.
    Where the model or the judge could not be asked, `preference` and `margin` are null.
    """
    before: Sequence[Any] = [None] * len(answers) if untrained is None else untrained
    judge = partial(instruments.judged, calibration)
    other = partial(instruments.margins, settings.second) if settings.second else None

    def make(part: Sequence[tuple[Any, Any, Any]]) -> list[dict[str, Any]]:
        nothing: list[Any] = [None] * len(part)
        to_reference, to_untrained = [(r, m) for r, m, _ in part], [(u, m) for _, m, u in part]
        margins = _margins(judge, to_reference)
        gains = _margins(judge, to_untrained) if untrained else nothing
        second = _margins(other, to_reference) if other else nothing
        second_gains = _margins(other, to_untrained) if other and untrained else nothing
        return [
            {
                "instruction": m["instruction"],
                "output_1": r["output"],
                "generator_1": r["generator"],
                "output_2": m["output"],
                "generator_2": m["generator"],
                "annotator": calibration["chosen"],
                "preference": None if margin is None else preference(margin, settings.verdict),
                "margin": margin,
                "margin_untrained": gain,
                "second": second_margin,
                "second_untrained": second_gain,
            }
            for (r, m, _), margin, gain, second_margin, second_gain in zip(
                part, margins, gains, second, second_gains, strict=True
            )
        ]

    return in_chunks(run, "annotations.jsonl", list(zip(reference, answers, before, strict=True)), make, settings.chunk)


def preference(margin: float, verdict: str) -> float:
    """A margin as alpaca_eval's preference in [1, 2]: its sign, a tie near zero, or `weighted` as log-odds."""
    if verdict == "weighted":
        return 2 - 1 / (1 + math.exp(min(margin, 700.0)))
    return {1: 2.0, 2: 1.0, None: 1.5}[sign(margin)]


def _margins(
    read: Callable[[Sequence[Triple]], list[float]], part: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> list[float | None]:
    """An instrument's margins; equal answers are ties and are not asked, an empty answer loses.

    None for an answer that could not be asked for and where the judge could not be asked.
    """
    different = [(r, m) for r, m in part if r["output"] != m["output"] and r["output"] and m["output"]]
    triples: list[Triple] = [(m["instruction"], r["output"], m["output"]) for r, m in different]
    found = dict(zip(triples, read(triples), strict=True)) if triples else {}
    margins = [
        found.get((m["instruction"], r["output"], m["output"]), 100.0 * (bool(m["output"]) - bool(r["output"])))
        for r, m in part
    ]
    return [
        None if r.get("reason") or m.get("reason") or not was_asked(margin) else margin
        for (r, m), margin in zip(part, margins, strict=True)
    ]


def win_rates(annotations: Sequence[dict[str, Any]], length_term: str | None) -> dict[str, float | None]:
    """wr, se, lc, lc_se (percent) and n, by alpaca_eval's own metrics, and `left_out` where there were any.

    Annotations without a preference are left out.
    `length_term` "alpaca_eval" is the official length-controlled regression, whose difficulty table comes from the hub.
    Null: lc and lc_se are null, because an instruction set of one's own has no difficulty to control for.
    """
    import pandas as pd
    from alpaca_eval.metrics import glm_winrate

    judged = decided(annotations)
    frame = pd.DataFrame(judged)
    frame["generator_2"] = frame["generator_2"] + " "  # a model may carry the reference's name
    plain = glm_winrate.get_winrate(frame)
    wr, se = float(plain["win_rate"]), float(plain["standard_error"])
    lc, lc_se = (None, None) if length_term is None else _length_controlled(frame, wr, se)
    left_out = {"left_out": len(annotations) - len(judged)} if len(judged) < len(annotations) else {}
    return {"wr": wr, "se": se, "lc": lc, "lc_se": lc_se, "n": len(frame), **left_out}


def decided(annotations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The annotations that say something: without those of requests that could not be asked."""
    return [a for a in annotations if a["preference"] is not None]


def _length_controlled(frame: Any, wr: float, se: float) -> tuple[float, float]:
    """The official LC and its standard error; the win rate where no length differs, as there is nothing to fit."""
    from alpaca_eval.metrics import glm_winrate

    if (frame["output_1"].str.len() == frame["output_2"].str.len()).all():
        return wr, se
    found = glm_winrate.get_length_controlled_winrate(
        frame.copy(),
        glm_name="length_controlled_v1",
        save_weights_dir=None,
        is_warn_extreme_changes=False,
        is_add_glm_preference_inplace=False,
    )
    return float(found["length_controlled_winrate"]), float(found["lc_standard_error"])


def against_untrained(
    annotations: Sequence[dict[str, Any]], margin: str = "margin_untrained"
) -> dict[str, float | None]:
    """{direct, direct_se, margin, margin_se}: wins against the untrained model's answers to the same instructions.

    `direct` is percent, a tie counting one half; `margin` is the mean margin in the instrument's unit. All null where
    annotations hold no such `margin`. Standard errors are of the mean over instructions.
    """
    margins = [a[margin] for a in annotations if a.get(margin) is not None]
    if len(margins) < 2:
        return {"direct": None, "direct_se": None, "margin": None, "margin_se": None}
    wins = [100 * (preference(m, "discrete") - 1) for m in margins]
    (direct, direct_se), (mean, mean_se) = ((fmean(v), stdev(v) / len(v) ** 0.5) for v in (wins, margins))
    return {"direct": direct, "direct_se": direct_se, "margin": mean, "margin_se": mean_se}


def mean_length(rows: Sequence[dict[str, Any]]) -> float:
    """Mean length in characters, as alpaca_eval's avg_length, of the answers that could be asked for."""
    return fmean([len(row["output"]) for row in rows if not row.get("reason")] or [0])
