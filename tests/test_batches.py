"""The order in which a training takes its rows, and the model that it leaves, read back."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from tiny_training import rows

from sao_lib.errors import SaoError
from sao_lib.method import batches
from sao_lib.method.saving import check_saved
from sao_lib.method.trainer import PreferenceTrainer
from sao_lib.settings import Settings

STEP = 128


def answer_lengths(count: int) -> list[int]:
    """Spread as the paper's: a prompt of some 90 tokens, the longer of two answers of some 450, a long tail."""
    draw = random.Random(0)
    return [90 + min(4000, int(draw.lognormvariate(6.1, 0.6))) for _ in range(count)]


def test_each_global_step_has_the_rows_that_it_had_sorted() -> None:
    lengths = answer_lengths(5 * STEP + 40)
    sampler = batches.SortedInSteps(lengths, STEP, 42)
    for epoch in range(2):
        sampler.random.set_epoch(epoch)
        unsorted = list(sampler.random)
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(len(sampler)))
        for start in range(0, len(order), STEP):
            step = order[start : start + STEP]
            assert set(step) == set(unsorted[start : start + STEP])
            assert [lengths[row] for row in step] == sorted((lengths[row] for row in step), reverse=True)
    assert order != list(batches.SortedInSteps(lengths, STEP, 7))


def test_a_training_with_several_rows_at_once_takes_them_in_that_order(cpu: Settings) -> None:
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    data = Dataset.from_list([{c: row[c] for c in columns} for row in rows(20, 3)])
    training = object.__new__(PreferenceTrainer)  # without a model, which it does not ask for its order
    training.preference = cpu.train.model_copy(update={"micro_batch": 2, "processes": 2, "global_batch": 8})
    training.args = SimpleNamespace(data_seed=42)  # type: ignore[assignment]
    expected = batches.SortedInSteps(batches.lengths(data), 8, 42)
    assert list(training._get_train_sampler(data)) == list(expected) != list(expected.random)


def test_little_of_what_four_cards_compute_is_padding() -> None:
    lengths = answer_lengths(20 * STEP)
    sampler = batches.SortedInSteps(lengths, STEP, 42)
    in_random_order, in_order = (batches.padded_per_real(list(s), lengths, 2, 4) for s in (sampler.random, sampler))
    assert in_random_order > 1.7
    assert in_order < 1.2
    assert batches.padded_per_real([0, 1, 2], [4, 2, 6], 2, 1) == pytest.approx((2 * 4 + 2 * 6) / 12)


def test_a_row_is_as_long_as_its_prompt_with_the_longer_completion() -> None:
    found = rows(20, 3)
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    data = Dataset.from_list([{c: row[c] for c in columns} for row in found])
    assert batches.lengths(data) == [
        len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in found
    ]


@pytest.mark.parametrize("fault", ["none", "other", "lacking", "no number"])
def test_a_model_that_is_not_whole_on_disk_is_noticed(fault: str, tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.zeros(5)}
    if fault == "no number":
        weights["b"][0] = float("nan")
    there = {name: weight.clone() for name, weight in weights.items()}
    if fault == "other":
        there["a"][1, 1] += 1
    if fault == "lacking":
        del there["b"]
    save_file(there, tmp_path / "model.safetensors")
    if fault in ("none", "no number"):
        check_saved(tmp_path, weights)
        return
    with pytest.raises(SaoError, match="is not what was saved|-5 numbers compared with what was saved"):
        check_saved(tmp_path, weights)
