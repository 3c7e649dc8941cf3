"""Choosing an evaluation judge by what it does on labelled pairs, and refusing those that a parrot beats.

Half of the questions choose (and fit what is fitted), the other half report. Agreement on the choosing half is
out of fold for fitted instruments, so that fitting does not flatter them. A parrot is an answer that says nothing but
its question: a policy that trains on a judge which likes that learns to echo.
"""

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from sao_lib.engines import was_asked
from sao_lib.errors import SaoError
from sao_lib.evaluate.instruments import FITTED, Instruments, combine, simple_parts
from sao_lib.method.judge import TOLERANCE
from sao_lib.method.labelled import ECHOES, PROBES, LabelledPair, echo_pairs, labelled_pairs, question_of
from sao_lib.standard_errors import clustered_se

PARROT_LIMIT = 0.05  # share of echoes that may beat the good answer
FEWEST_ECHOES = 20  # fewer cannot show one time in twenty
FOLDS = 5

Share = dict[str, float | int | None]  # {agreement, n, se}


def calibrate(
    instruments: Instruments, names: Sequence[str], pairs: Sequence[LabelledPair], echoes: Sequence[LabelledPair] = ()
) -> dict[str, Any]:
    """Measure instruments on labelled pairs and choose the one whose worst fault is least bad.

    `echoes` are pairs against echoes in other words, which refuse a judge and neither fit nor choose one.

    Returns {chosen, blind, scale, weights, refused, candidates, agreement, se, pairs, questions, by_fault, left_out}.
    `candidates` has for each name what chose (choice, worst, worst_fault, parrot, by_hand). `blind` are the faults that
    no candidate tells from chance, which therefore choose nothing. `refused` has a sentence for each candidate that a
    parrot beats. The rest is of the chosen one on the other questions; `left_out` is its agreement on faults that its
    fit had not seen. A share is {agreement, n, se}, its SE clustered by question and null with fewer than two; a tie is
    wrong. Raises SaoError if every candidate is refused.
    """
    found = _Measured(instruments, names, pairs)
    blind = found.blind(names)
    candidates = {name: {**found.candidate(name, blind), **found.by_hand(name, echoes)} for name in names}
    refused = {name: why for name, c in candidates.items() if (why := _refusal(name, c))}
    passed = [name for name in names if name not in refused]
    if names and not passed:
        raise SaoError(f"No evaluation judge is left. {' '.join(refused.values())} Add another to evaluate.judges.")
    chosen = max(passed, key=lambda name: (candidates[name]["worst"], candidates[name]["choice"]))
    return {
        "chosen": chosen,
        "blind": blind,
        "scale": found.scale,
        "weights": {name: [float(v) for v in w] for name, w in found.weights.items()},
        "refused": refused,
        "candidates": candidates,
        **{k if k != "n" else "pairs": v for k, v in found.share(chosen).items()},
        "questions": len({question_of(p) for p in found.reporting}),
        "by_fault": {fault: found.share(chosen, fault) for fault in found.faults},
        "left_out": {fault: found.left_out(chosen, fault) for fault in found.faults if chosen.startswith(FITTED)},
    }


def opinion(
    instruments: Instruments, name: str, pairs: Sequence[LabelledPair], echoes: Sequence[LabelledPair]
) -> dict[str, Any]:
    """What a second reading, which decides nothing and is not refused, does on the same labelled pairs.

    {name, agreement, se, pairs, parrot, parrot_pairs, by_hand, by_hand_pairs}, each as in `calibrate`.
    """
    found = _Measured(instruments, [name], pairs)
    share, own = found.share(name), {**found.candidate(name, ()), **found.by_hand(name, echoes)}
    kept = {key: own[key] for key in ("parrot", "parrot_pairs", "by_hand", "by_hand_pairs")}
    return {"name": name, "agreement": share["agreement"], "se": share["se"], "pairs": share["n"], **kept}


def _refusal(name: str, candidate: dict[str, Any]) -> str | None:
    """Why a candidate is refused, in a sentence; None if no parrot beats it, or labelled pairs are too few to tell."""
    if candidate["parrot_pairs"] < FEWEST_ECHOES:
        return None
    for kind, said in (("parrot", "only repeat their question"), ("by_hand", "say their question in other words")):
        share, pairs = candidate[kind], candidate[f"{kind}_pairs"]
        if pairs and share > PARROT_LIMIT:
            return f"`{name}` is refused: answers that {said} beat the good one in {100 * share:.0f}% of {pairs} pairs."
    return None


class _Measured:
    """Margins of every instrument on every labelled pair, positive where the good answer is preferred."""

    def __init__(self, instruments: Instruments, names: Sequence[str], pairs: Sequence[LabelledPair]) -> None:
        self.instruments, self.pairs = instruments, list(pairs)
        triples = [(p["prompt"], *p["responses"]) for p in pairs]
        parts = {name: simple_parts([name]) for name in names}
        raw = {p: instruments.margins(p, triples) for p in dict.fromkeys(p for ps in parts.values() for p in ps)}
        if not all(was_asked(m) for margins in raw.values() for m in margins):
            raise SaoError(
                f"Labelled pairs are too long for the evaluation judge {instruments.model}, which can then not be "
                "measured; raise max_model_len of its engine."
            )
        questions = list(dict.fromkeys(question_of(p) for p in pairs))
        self.choosing = set(questions[::2])
        self.reporting = [p for p in pairs if question_of(p) not in self.choosing]
        self.faults = list(dict.fromkeys(p["fault"] for p in pairs))
        self.scale = {part: spread(values) for part, values in raw.items()}
        self.weights: dict[str, list[float]] = {}
        self.margins: dict[str, dict[str, float]] = {}  # instrument -> pair's id -> margin for the good answer
        for name in names:
            margins = self._fitted(name) if name.startswith(FITTED) else combine(name, raw, self.scale)
            self.margins[name] = {
                p["id"]: m if p["good"] == 2 else -m for p, m in zip(self.pairs, margins, strict=True)
            }

    def _differences(self, name: str, pairs: Sequence[LabelledPair]) -> Any:
        """[pairs, features]: the second answer's less the first's."""
        import numpy as np

        one, two = (
            np.asarray(self.instruments.features(name, [(p["prompt"], p["responses"][k]) for p in pairs]))
            for k in (0, 1)
        )
        return two - one

    def _fitted(self, name: str) -> list[float]:
        """Margins by a fit to the choosing half; on that half itself by fits to the rest of it."""
        chose = [p for p in self.pairs if question_of(p) in self.choosing]
        x, good = self._differences(name, chose), [p["good"] for p in chose]
        self.weights[name] = fit(x, good)
        inside = dict(zip((p["id"] for p in chose), out_of_fold(x, good, [question_of(p) for p in chose]), strict=True))
        outside = self._differences(name, self.pairs) @ self.weights[name]
        return [inside.get(p["id"], float(m)) for p, m in zip(self.pairs, outside, strict=True)]

    def share(self, name: str, fault: str | None = None) -> Share:
        """Agreement on the reporting half, of one fault or of all."""
        pairs = [p for p in self.reporting if fault in (None, p["fault"])]
        return agreement(pairs, [self.margins[name][p["id"]] for p in pairs])

    def _chose(self, name: str) -> dict[str, list[bool]]:
        """Right or wrong on the pairs of the choosing half, by fault."""
        chose = [p for p in self.pairs if question_of(p) in self.choosing]
        right = {f: [self.margins[name][p["id"]] > TOLERANCE for p in chose if p["fault"] == f] for f in self.faults}
        return {f: rows for f, rows in right.items() if rows}

    def blind(self, names: Sequence[str]) -> list[str]:
        """Faults that no instrument sees: the best is within two standard errors of a coin, on the choosing half."""
        found = [self._chose(name) for name in names]
        best = {f: max(fmean(rows[f]) for rows in found) for f in (found[0] if found else {})}
        return [f for f, share in best.items() if share <= 0.5 + 2 * 0.5 / len(found[0][f]) ** 0.5]

    def candidate(self, name: str, blind: Sequence[str]) -> dict[str, Any]:
        """What chooses: agreement on the choosing half, the worst fault's there, and how often an echo wins."""
        right = self._chose(name)
        shares = {f: fmean(rows) for f, rows in right.items() if f not in blind} or {"none": 0.0}
        worst = min(shares, key=lambda f: shares[f])
        echoes = [r for f in ECHOES for r in right.get(f, [])]
        return {
            "choice": fmean([r for rows in right.values() for r in rows]) if right else 0.0,
            "agreement": self.share(name)["agreement"],
            "worst": shares[worst],
            "worst_fault": worst,
            "parrot": 1 - fmean(echoes) if echoes else None,
            "parrot_pairs": len(echoes),
        }

    def by_hand(self, name: str, echoes: Sequence[LabelledPair]) -> dict[str, Any]:
        """How often an echo in other words wins, {by_hand, by_hand_pairs}."""
        if not echoes:
            return {"by_hand": None, "by_hand_pairs": 0}
        chosen = {"chosen": name, "scale": self.scale, "weights": self.weights}
        margins = self.instruments.judged(chosen, [(p["prompt"], *p["responses"]) for p in echoes])
        lost = [(m if p["good"] == 2 else -m) <= TOLERANCE for p, m in zip(echoes, margins, strict=True)]
        return {"by_hand": fmean(lost), "by_hand_pairs": len(lost)}

    def left_out(self, name: str, fault: str) -> Share:
        """Agreement on the reporting pairs of a fault by a fit without it; without all echoes where it is one."""
        unseen = ECHOES if fault in ECHOES else (fault,)
        seen = [p for p in self.pairs if question_of(p) in self.choosing and p["fault"] not in unseen]
        asked = [p for p in self.reporting if p["fault"] == fault]
        if not seen or not asked:
            return agreement([], [])
        margins = self._differences(name, asked) @ fit(self._differences(name, seen), [p["good"] for p in seen])
        return agreement(asked, [m if p["good"] == 2 else -m for p, m in zip(asked, margins.tolist(), strict=True)])


def agreement(pairs: Sequence[LabelledPair], margins: Sequence[float]) -> Share:
    """{agreement, n, se} of margins for the good answers; a margin within TOLERANCE of zero is a tie, and wrong."""
    right = [float(m > TOLERANCE) for m in margins]
    share = sum(right) / len(right) if right else None
    return {"agreement": share, "n": len(right), "se": clustered_se(right, [question_of(p) for p in pairs])}


def fit(differences: Any, good: Sequence[int]) -> Any:
    """Weights of a logistic regression of `good == 2` on differences [pairs, features], in the features' units.

    Without intercept, because which answer stands first says nothing; scikit-learn's penalty at its default, on
    features of spread one.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    spread = differences.std(axis=0)
    spread[spread == 0] = 1.0
    labels = np.asarray(good) == 2
    if len(set(labels.tolist())) < 2:
        return np.zeros(differences.shape[1])
    return LogisticRegression(fit_intercept=False, max_iter=1000).fit(differences / spread, labels).coef_[0] / spread


def out_of_fold(differences: Any, good: Sequence[int], questions: Sequence[str]) -> list[float]:
    """The margin of each pair by a fit to other questions' pairs."""
    import numpy as np

    numbers = {q: n % FOLDS for n, q in enumerate(dict.fromkeys(questions))}
    fold, labels, out = np.array([numbers[q] for q in questions]), np.asarray(good), np.zeros(len(good))
    for number in set(fold.tolist()):
        rest = fold != number
        if rest.any():
            out[~rest] = differences[~rest] @ fit(differences[rest], labels[rest].tolist())
    return [float(m) for m in out]


def spread(values: Sequence[float]) -> float:
    """The standard deviation, or 1 where there is none."""
    return pstdev(values) or 1.0 if values else 1.0


def held_out(instruments: Instruments, calibration: dict[str, Any], questions: int, seed: int) -> dict[str, Any]:
    """How the chosen instrument may be gamed next: {kind: {agreement, n, se}} on what neither chose nor fitted it.

    `echo by hand` are echoes in other words; the rest are `labelled.PROBES` of the reporting half.
    """
    probes = labelled_pairs(questions, seed, None, PROBES)
    reporting = set(list(dict.fromkeys(question_of(p) for p in probes))[1::2])
    asked = [*echo_pairs(seed), *(p for p in probes if question_of(p) in reporting)]
    triples = [(p["prompt"], *p["responses"]) for p in asked]
    margins = instruments.judged(calibration, triples)
    good = [m if p["good"] == 2 else -m for p, m in zip(asked, margins, strict=True)]
    kinds = list(dict.fromkeys(p["fault"] for p in asked))
    return {
        kind: agreement(*zip(*[(p, m) for p, m in zip(asked, good, strict=True) if p["fault"] == kind], strict=True))
        for kind in kinds
    }
