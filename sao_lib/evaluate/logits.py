"""Distribution of logits over responses (SAO appendix D, figure 4): moments and a histogram in one pass.

A response of 600 tokens by a model with 256,000 tokens has 154 million logits (eq. 8). They are never held together:
each response leaves a row of sums in logits.jsonl, and rows merge to what all logits at once would give (eq. 9).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sao_lib.engines.models import attention_for
from sao_lib.errors import SaoError
from sao_lib.files import append_rows, resume_rows
from sao_lib.machine import has_gpu
from sao_lib.progress import Progress, quiet
from sao_lib.sources import load_rows

FILE = "logits.jsonl"
CHUNK = 16  # tokens whose logits are in memory at once: 16 x 256,000 x 8 bytes = 33 MB
NAN = float("nan")


@dataclass
class Moments:
    """Count, mean, and sums of squared (m2) and cubed (m3) deviations from it, in float64."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0

    def update(self, values: Any) -> None:
        """Take in a torch tensor or array of any shape; raises SaoError when a value is not finite."""
        x = _flat(values)
        if not len(x):
            return
        mean = float(x.mean())
        deviation = x - mean
        squares = deviation * deviation
        batch = Moments(len(x), mean, float(squares.sum()), float((squares * deviation).sum()))
        if not abs(batch.m3) < float("inf"):
            raise SaoError("The model's logits are not all finite; load it in another dtype (logits.dtype).")
        self.merge(batch)

    def merge(self, other: "Moments") -> None:
        """Take in another set's moments (Chan et al. 1979; Pebay 2008, equations 1.1 to 1.3)."""
        n = self.n + other.n
        if not other.n:
            return
        delta = other.mean - self.mean
        self.m3 += (
            other.m3
            + delta**3 * self.n * other.n * (self.n - other.n) / n**2
            + 3 * delta * (self.n * other.m2 - other.n * self.m2) / n
        )
        self.m2 += other.m2 + delta**2 * self.n * other.n / n
        self.mean += delta * other.n / n
        self.n = n

    @property
    def std(self) -> float:
        """Standard deviation over all values (divided by n), sigma in eq. 9."""
        return float((self.m2 / self.n) ** 0.5) if self.n else NAN

    @property
    def skewness(self) -> float:
        """Mean of ((z - mean) / std)^3, SAO eq. 9; nan without spread."""
        return float(self.m3 / self.n / self.std**3) if self.m2 else NAN


@dataclass
class Histogram:
    """Counts in `bins` equal bins from `low` to `high`, the last closed as in numpy; `under` and `over` lie outside."""

    low: float
    high: float
    bins: int
    counts: list[int] = field(default_factory=list)
    under: int = 0
    over: int = 0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise SaoError(f"logits.low = {self.low} must be smaller than logits.high = {self.high}.")
        self.counts = self.counts or [0] * self.bins

    @property
    def edges(self) -> list[float]:
        import numpy as np

        return [float(edge) for edge in np.linspace(self.low, self.high, self.bins + 1)]

    def update(self, values: Any) -> None:
        """Take in a torch tensor or array of any shape."""
        import torch

        x = _flat(values)
        at = torch.bucketize(x, torch.tensor(self.edges, dtype=torch.float64, device=x.device), right=True)
        at[x == self.high] = self.bins
        found = torch.bincount(at, minlength=self.bins + 2).tolist()
        self._add(found[1:-1], found[0], found[-1])

    def merge(self, other: "Histogram") -> None:
        """Take in another histogram; raises SaoError when its bins are not these."""
        if (self.low, self.high, self.bins) != (other.low, other.high, other.bins):
            raise SaoError(
                f"{FILE} holds histograms with different bins; move it elsewhere and run the same command again."
            )
        self._add(other.counts, other.under, other.over)

    def _add(self, counts: Sequence[int], under: int, over: int) -> None:
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.under += under
        self.over += over


def _flat(values: Any) -> Any:
    import torch

    return torch.as_tensor(values).detach().reshape(-1).to(torch.float64)


def draw_prompts(source: str, column: str, n: int, seed: int) -> list[str]:
    """`n` texts of `column` in `source`, drawn without replacement; raises SaoError when there are fewer."""
    texts = [str(row[column]) for row in load_rows(source, texts=[column]) if row.get(column)]
    if len(texts) < n:
        raise SaoError(f"{source} has {len(texts)} rows with '{column}', fewer than logits.prompts = {n}.")
    return random.Random(seed).sample(texts, n)


def softcap_of(folder: Path, settings: Any) -> dict[str, Any]:
    """{cap, logits}: the model's final soft-cap c in c tanh(z / c), and whether logits are taken before or after it.

    Without a cap before and after are the same, and `logits` says "no cap".
    """
    from transformers import AutoConfig

    cap = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "final_logit_softcapping", None)
    return {"cap": cap, "logits": settings.softcap if cap else "no cap"}


def load_model(folder: Path, settings: Any, log: Path) -> Any:
    """The model in `settings.dtype`, without its final soft-cap if `settings.softcap` is "before"."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if has_gpu() else "cpu"
    if device == "cpu":
        torch.set_num_threads(settings.threads)
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    attention = attention_for(folder, "sdpa")[0]
    if settings.softcap == "before" and getattr(text, "final_logit_softcapping", None):
        text.final_logit_softcapping = None
    with quiet(log):
        dtype = getattr(torch, settings.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, attn_implementation=attention
        )
    return model.to(device).eval()


def response_logits(
    model: Any, prompt_ids: Sequence[int], response_ids: Sequence[int], chunk: int = CHUNK
) -> Iterator[Any]:
    """float32 [at most `chunk`, vocabulary] at the positions that predict the response's tokens, in order.

    Each position is the model's own forward pass over prompt and response (teacher forcing), with a key-value cache.
    """
    import torch

    if not prompt_ids or not response_ids:
        raise SaoError("Logits need a prompt and a response of at least one token each.")

    def forward(ids: Sequence[int], cache: Any, **options: Any) -> Any:
        with torch.no_grad():
            return model(torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True, **options)

    cache = forward(prompt_ids[:-1], None, logits_to_keep=1).past_key_values if len(prompt_ids) > 1 else None
    inputs = [prompt_ids[-1], *response_ids[:-1]]
    for start in range(0, len(inputs), chunk):
        out = forward(inputs[start : start + chunk], cache)
        cache = out.past_key_values
        yield out.logits[0].float()


def logit_stats(
    model_folder: Path, rows: Sequence[dict[str, Any]], settings: Any, folder: Path
) -> list[dict[str, Any]]:
    """Write logits.jsonl for rows {id, set, prompt_ids, response_ids}; rows already there are kept.

    Written per response: {id, set, tokens, n, mean, std, skewness}, what merges (m2, m3, low, high, counts, under,
    over), and softcap: "before", "after" or "no cap".
    """
    path = folder / FILE
    done = {(row["set"], row["id"]): row for row in resume_rows(path, 1)}
    todo = [row for row in rows if (row["set"], row["id"]) not in done]
    if todo:
        softcap = softcap_of(model_folder, settings)["logits"]
        model = load_model(model_folder, settings, folder / "engine.log")
        progress = Progress(folder, "logits", len(rows), len(rows) - len(todo))
        for row in todo:
            found = {**_measure(model, row, settings), "softcap": softcap}
            append_rows(path, [found])
            done[row["set"], row["id"]] = found
            progress.update(1)
    return [done[row["set"], row["id"]] for row in rows]


def _measure(model: Any, row: dict[str, Any], settings: Any) -> dict[str, Any]:
    moments, histogram = Moments(), Histogram(settings.low, settings.high, settings.bins)
    for logits in response_logits(model, row["prompt_ids"], row["response_ids"]):
        moments.update(logits)
        histogram.update(logits)
    return {
        "id": row["id"],
        "set": row["set"],
        "tokens": len(row["response_ids"]),
        **{"n": moments.n, "mean": moments.mean, "std": moments.std, "skewness": moments.skewness},
        **{"m2": moments.m2, "m3": moments.m3, "low": histogram.low, "high": histogram.high},
        **{"counts": histogram.counts, "under": histogram.under, "over": histogram.over},
    }


def totals(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per set, over all logits of all its responses: n, mean, std, skewness (eq. 9), edges, counts, under, over.

    `skewness_mean` and `skewness_sd` are over responses, each with its own mean and deviation; sd is None for one.
    """
    out = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        part = [row for row in rows if row["set"] == name]
        moments = Moments()
        histogram = Histogram(part[0]["low"], part[0]["high"], len(part[0]["counts"]))
        for row in part:
            moments.merge(Moments(row["n"], row["mean"], row["m2"], row["m3"]))
            own = Histogram(row["low"], row["high"], len(row["counts"]), row["counts"], row["under"], row["over"])
            histogram.merge(own)
        each = [row["skewness"] for row in part]
        out[name] = {
            **{"n": moments.n, "mean": moments.mean, "std": moments.std, "skewness": moments.skewness},
            **{"skewness_mean": fmean(each), "skewness_sd": stdev(each) if len(each) > 1 else None},
            **{"responses": len(part), "tokens": sum(row["tokens"] for row in part)},
            **{"edges": histogram.edges, "counts": histogram.counts, "under": histogram.under, "over": histogram.over},
        }
    return out
