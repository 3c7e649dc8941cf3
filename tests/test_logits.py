"""Streamed moments and histograms are those of all logits at once."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import SMOL
from scipy import stats

from sao_lib.engines.models import resolve
from sao_lib.errors import SaoError
from sao_lib.evaluate import logits
from sao_lib.evaluate.logits import Histogram, Moments, logit_stats, response_logits, softcap_of, totals
from sao_lib.files import append_rows, read_rows

SETTINGS = SimpleNamespace(softcap="after", low=-10.0, high=20.0, bins=30, dtype="float32", threads=1)


def with_(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(SETTINGS), **changes})


def skewed(n: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).gamma(2.0, 3.0, n) - 7


def uneven(values: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    return np.split(values, [1, 2, 5, 1000, 1001, 40_000])


def test_equation_nine_by_hand_on_five_numbers() -> None:
    """1, 2, 3, 4, 10: mean 4, squares 9 4 1 0 36, cubes -27 -8 -1 0 216; 180 / 5 over (50 / 5) to the 3/2."""
    moments = Moments()
    moments.update(np.array([1.0, 2, 3, 4, 10]))
    assert (moments.n, moments.mean, moments.m2, moments.m3) == (5, 4, 50, 180)
    assert moments.std == pytest.approx(10**0.5)
    assert moments.skewness == pytest.approx(36 / 10**1.5)
    assert moments.skewness == pytest.approx(1.138419957)


def test_moments_in_uneven_chunks_are_numpys_and_scipys() -> None:
    values, moments = skewed(100_000), Moments()
    for part in uneven(values):
        moments.update(part)
    assert moments.n == len(values)
    assert moments.mean == pytest.approx(values.mean(), rel=1e-9)
    assert moments.std == pytest.approx(values.std(), rel=1e-9)
    assert moments.skewness == pytest.approx(stats.skew(values), rel=1e-9)


def test_merged_moments_are_those_of_the_whole() -> None:
    """A large offset, where sums of raw powers would lose every digit."""
    values, total = skewed(10_000) + 1e6, Moments()
    for part in np.split(values, [3, 5000, 5001]):
        batch = Moments()
        batch.update(part)
        total.merge(batch)
    total.merge(Moments())
    assert total.std == pytest.approx(values.std(), rel=1e-9)
    assert total.skewness == pytest.approx(stats.skew(values), rel=1e-7)


def test_tensors_of_any_shape_and_precision_are_taken() -> None:
    import torch

    tensor = torch.from_numpy(skewed(600)).reshape(3, 200).to(torch.bfloat16)
    moments, histogram = Moments(), Histogram(-10, 20, 30)
    moments.update(tensor)
    histogram.update(tensor)
    assert moments.skewness == pytest.approx(stats.skew(tensor.double().numpy().ravel()), rel=1e-9)
    assert sum(histogram.counts) + histogram.under + histogram.over == 600


def test_no_spread_has_no_skewness_and_infinity_is_refused() -> None:
    moments = Moments()
    assert np.isnan(moments.skewness)
    moments.update([])
    moments.update([2.0, 2.0])
    assert (moments.n, moments.std) == (2, 0)
    assert np.isnan(moments.skewness)
    for bad in ([1.0, float("nan")], [1.0, float("-inf")]):
        with pytest.raises(SaoError, match="not all finite"):
            moments.update(bad)


def test_histogram_is_numpys_and_counts_what_lies_outside() -> None:
    values = np.concatenate([skewed(100_000), np.linspace(-6, 6, 25), [-6.0, 6.0, 6.0, 99.0]])
    histogram = Histogram(-6, 6, 24)
    for part in uneven(values):
        histogram.update(part)
    expected, edges = np.histogram(values, 24, (-6, 6))
    assert histogram.edges == list(edges)
    assert histogram.counts == list(expected)
    assert (histogram.under, histogram.over) == ((values < -6).sum(), (values > 6).sum())
    assert sum(histogram.counts) + histogram.under + histogram.over == len(values)


def test_histograms_with_other_bins_are_not_merged() -> None:
    with pytest.raises(SaoError, match="different bins"):
        Histogram(0, 1, 4).merge(Histogram(0, 2, 4))
    with pytest.raises(SaoError, match="must be smaller"):
        Histogram(1, 1, 4)


def test_prompts_are_drawn_by_seed_and_too_few_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    append_rows(path, [{"instruction": f"q{n}"} for n in range(9)])
    drawn = logits.draw_prompts(str(path), "instruction", 5, 0)
    assert (
        drawn
        == logits.draw_prompts(str(path), "instruction", 5, 0)
        != logits.draw_prompts(str(path), "instruction", 5, 1)
    )
    assert len(set(drawn)) == 5
    for column, n, wrong in (
        ("instruction", 10, "fewer than logits.prompts = 10"),
        ("problem", 1, "it has no problem"),
    ):
        with pytest.raises(SaoError, match=wrong):
            logits.draw_prompts(str(path), column, n, 0)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma-2 of two layers with random weights, large enough to reach both of its soft-caps."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 1}
    config = Gemma2Config(**sizes, **heads, attn_logit_softcapping=1.0, final_logit_softcapping=2.0, sliding_window=8)
    model = Gemma2ForCausalLM(config)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    folder = tmp_path_factory.mktemp("gemma2")
    model.save_pretrained(folder)
    return folder


ROWS = [
    {
        "id": f"q{n}",
        "set": "chat" if n < 3 else "math",
        "prompt_ids": [2, 5, 9, 4 + n],
        "response_ids": [7, 8, n, 3] * 6,
    }
    for n in range(5)
]


def test_before_and_after_the_softcap_are_its_two_sides(gemma: Path, tmp_path: Path) -> None:
    import torch

    sides = {}
    for side in ("before", "after"):
        model = logits.load_model(gemma, with_(softcap=side), tmp_path / "log")
        assert model.config._attn_implementation == "eager"
        sides[side] = torch.cat(list(response_logits(model, ROWS[0]["prompt_ids"], ROWS[0]["response_ids"], 5)))
    assert sides["before"].abs().max() > 2 > sides["after"].abs().max()
    assert torch.allclose(2 * torch.tanh(sides["before"] / 2), sides["after"], atol=1e-5)
    assert softcap_of(gemma, with_(softcap="before")) == {"cap": 2.0, "logits": "before"}


def test_chunks_with_a_cache_are_one_forward_pass(gemma: Path, tmp_path: Path) -> None:
    """Beyond the sliding window of 8 tokens, and with a prompt of one token."""
    import torch

    model = logits.load_model(gemma, SETTINGS, tmp_path / "log")
    for prompt, response, chunk in (([2, 5, 9, 4], ROWS[0]["response_ids"], 5), ([2], [7, 8, 3], 16)):
        chunks = torch.cat(list(response_logits(model, prompt, response, chunk)))
        with torch.no_grad():
            whole = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        assert torch.allclose(chunks, whole, atol=1e-5)


def test_a_resumed_run_has_the_totals_of_an_uninterrupted_one(gemma: Path, tmp_path: Path) -> None:
    whole = logit_stats(gemma, ROWS, SETTINGS, tmp_path / "whole")
    cut = tmp_path / "cut"
    append_rows(cut / logits.FILE, whole[:2])
    with (cut / logits.FILE).open("a") as file:
        file.write(json.dumps(whole[2])[:-9])  # killed while it wrote
    resumed = logit_stats(gemma, ROWS, SETTINGS, cut)
    assert resumed == whole == read_rows(cut / logits.FILE)
    assert totals(resumed) == totals(whole)
    assert {name: t["responses"] for name, t in totals(whole).items()} == {"chat": 3, "math": 2}
    each = [row["skewness"] for row in whole[:3]]
    assert totals(whole)["chat"]["skewness_mean"] == pytest.approx(np.mean(each))
    assert totals(whole)["chat"]["skewness_sd"] == pytest.approx(np.std(each, ddof=1))
    assert totals(whole[:1])["chat"]["skewness_sd"] is None
    assert {row["softcap"] for row in whole} == {"after"}


def test_a_finished_run_loads_no_model(gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = logit_stats(gemma, ROWS[:1], SETTINGS, tmp_path)
    monkeypatch.setattr(logits, "load_model", None)
    assert logit_stats(gemma, ROWS[:1], SETTINGS, tmp_path) == once


def test_an_empty_response_is_one_sentence(gemma: Path, tmp_path: Path) -> None:
    with pytest.raises(SaoError, match="at least one token"):
        logit_stats(gemma, [{**ROWS[0], "response_ids": []}], SETTINGS, tmp_path)


def test_a_real_models_logits_are_those_of_one_pass_over_everything(tmp_path: Path) -> None:
    """Two responses of SmolLM2, one longer than a chunk, against every logit flattened at once through scipy."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve(SMOL)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    texts = [("Why is the sky blue?", " Because light scatters."), ("Count.", " one two three four five six" * 3)]
    ids = [[tokenizer(text)["input_ids"] for text in pair] for pair in texts]
    rows = [{"id": str(n), "set": "chat", "prompt_ids": p, "response_ids": r} for n, (p, r) in enumerate(ids)]
    assert len(rows[1]["response_ids"]) > logits.CHUNK
    parts = []
    with torch.no_grad():
        for prompt, response in ids:
            everything = model.float()(torch.tensor([prompt + response])).logits[0]
            parts.append(everything[len(prompt) - 1 : -1].numpy().ravel())
    flat = np.concatenate(parts).astype(np.float64)

    found = totals(logit_stats(folder, rows, SETTINGS, tmp_path))["chat"]
    assert found["n"] == len(flat) == sum(len(r["response_ids"]) for r in rows) * model.config.vocab_size
    assert found["mean"] == pytest.approx(flat.mean(), rel=1e-4)
    assert found["std"] == pytest.approx(flat.std(), rel=1e-4)
    assert found["skewness"] == pytest.approx(stats.skew(flat), rel=1e-4)
    expected = np.histogram(flat, SETTINGS.bins, (SETTINGS.low, SETTINGS.high))[0]
    assert np.abs(np.subtract(found["counts"], expected)).sum() < 1e-3 * len(flat)
    assert softcap_of(folder, SETTINGS) == {"cap": None, "logits": "no cap"}
