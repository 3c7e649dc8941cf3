"""Our losses against hand-computed values and against TRL's own trainers, in fp32."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_training import SMOL, tiny
from transformers import AutoTokenizer, get_cosine_schedule_with_warmup

from sao_lib.engines.models import resolve
from sao_lib.errors import SaoError
from sao_lib.method.logps import completion_logps
from sao_lib.method.losses import LOSSES, loss_named, orpo_loss, simpo_loss
from sao_lib.method.trainer import PreferenceTrainer, held_out_margins, rate
from sao_lib.settings import Train

t = torch.tensor

# (log p chosen, log p rejected, tokens chosen, tokens rejected, beta, gamma, loss computed by hand)
SIMPO = [
    (-12.0, -60.0, 10, 40, 10.0, 3.0, math.log(1 + math.exp(-(10 * 0.3 - 3)))),  # margin 3 = gamma: log 2
    (-20.0, -20.0, 20, 10, 10.0, 3.0, math.log(1 + math.exp(-(10 * 1.0 - 3)))),
    (-30.0, -10.0, 10, 10, 2.5, 1.375, math.log(1 + math.exp(2.5 * 2 + 1.375))),  # SimPO's gamma_beta_ratio 0.55
    (-5.0, -5.0, 10, 10, 10.0, 0.0, math.log(2)),
]


@pytest.mark.parametrize(("w", "l", "n_w", "n_l", "beta", "gamma", "by_hand"), SIMPO)
def test_simpo_is_equation_7(w: float, l: float, n_w: int, n_l: int, beta: float, gamma: float, by_hand: float) -> None:
    loss = simpo_loss(t([w]), t([l]), t([n_w]), t([n_l]), beta, gamma)
    assert loss.item() == pytest.approx(by_hand, abs=1e-5)


def test_simpo_in_the_ratio_convention_is_the_same_loss() -> None:
    w, l, beta, ratio = -0.8, -1.1, 10.0, 0.3
    simpo_code = -torch.nn.functional.logsigmoid(t(beta * ((w - l) - ratio)))
    assert simpo_loss(t([w]), t([l]), t([1]), t([1]), beta, ratio * beta).item() == pytest.approx(
        simpo_code.item(), abs=1e-6
    )


# Mean log p of chosen and rejected: usual, far apart, and as sure as a collapsing model's
ORPO = [(-0.5, -1.0), (-1.0, -0.5), (-4.0, -0.01), (-0.01, -30.0), (-1e-3, -1e-4), (-1e-6, -2.0), (-2.0, -1e-6)]


@pytest.mark.parametrize(("w", "l"), ORPO)
def test_orpo_is_equation_6(w: float, l: float) -> None:
    log_odds = (w - math.log(-math.expm1(w))) - (l - math.log(-math.expm1(l)))
    by_hand = -w + 0.1 * math.log1p(math.exp(-log_odds))
    assert orpo_loss(t([10 * w]), t([20 * l]), t([10]), t([20]), 0.1).item() == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("sure", [-1e-8, -1e-12, 0.0, 1e-7])  # rounding can lift a log p above 0
@pytest.mark.parametrize("other", [-1.0, -1e-8])
def test_orpo_of_a_response_that_is_all_but_certain_has_a_gradient(sure: float, other: float) -> None:
    for pair in ((sure, other), (other, sure)):
        w, l = (t([value], requires_grad=True) for value in pair)
        loss = orpo_loss(w, l, t([1]), t([1]), 0.1)
        loss.backward()
        assert torch.isfinite(torch.cat([loss, w.grad, l.grad])).all()
        assert w.grad < 0 < l.grad  # a step still raises the chosen and lowers the rejected


def test_a_loss_that_does_not_exist_names_those_that_do() -> None:
    assert loss_named("orpo") is LOSSES["orpo"]
    with pytest.raises(SaoError, match="no loss 'spin'; there are: dpo.*simpo"):
        loss_named("spin")


def test_a_plan_reads_the_losses_without_torch() -> None:
    code = "import sys; from sao_lib.method.losses import LOSSES; assert LOSSES and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


PAIRS = [
    {"prompt_ids": [1, 5, 9, 30], "chosen_ids": [40, 41, 42, 2], "rejected_ids": [50, 51, 52, 53, 54, 55, 2]},
    {"prompt_ids": [1, 7], "chosen_ids": list(range(60, 80)), "rejected_ids": [81, 2]},
]


def settings(loss: str, **changes: Any) -> Train:
    values: dict[str, Any] = {
        "loss": loss, "beta": 10 if loss == "simpo" else 0.1, "gamma": 3, "learning_rate": 1e-3, "epochs": 1,
        "global_batch": 2, "micro_batch": 2, "warmup": 0.0, "max_length": 128, "min_completion": 1, "held_out": 0,
        "processes": 1, **changes,
    }  # fmt: skip
    return Train.model_validate(values)


def trainer_for(kind: str, folder: Path, **changes: Any) -> PreferenceTrainer:
    from trl import DPOConfig

    chosen = settings(kind, **changes)
    args = DPOConfig(
        output_dir=str(folder),
        beta=chosen.beta,
        precompute_ref_log_probs=True,
        bf16=False,
        use_cpu=True,
        max_length=None,
        per_device_train_batch_size=chosen.micro_batch,
        gradient_accumulation_steps=chosen.accumulation,
        gradient_checkpointing=False,
        learning_rate=chosen.learning_rate,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )
    tokenizer = AutoTokenizer.from_pretrained(resolve(SMOL))
    return PreferenceTrainer(
        tiny(), args=args, train_dataset=Dataset.from_list(PAIRS * 2), processing_class=tokenizer, preference=chosen
    )


def by_hand(trainer: PreferenceTrainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log p and token counts computed pair by pair without padding, in float64."""
    sums, counts = [], []
    for side in ("chosen_ids", "rejected_ids"):
        for row in PAIRS:
            ids = torch.tensor([row["prompt_ids"] + row[side]])
            logp = trainer.model(ids).logits[0, :-1].double().log_softmax(-1)
            taken = logp.gather(1, ids[0, 1:, None])[:, 0][len(row["prompt_ids"]) - 1 :]
            sums.append(taken.sum())
            counts.append(len(row[side]))
    return torch.stack(sums), torch.tensor(counts)


def test_completion_logps_ignore_prompt_and_padding(tmp_path: Path) -> None:
    trainer = trainer_for("simpo", tmp_path)
    logp, tokens = completion_logps(trainer.model, trainer.data_collator(PAIRS))
    expected, counts = by_hand(trainer)
    assert tokens.tolist() == counts.tolist()
    assert torch.allclose(logp.double(), expected, atol=1e-4)


def test_simpo_trainer_agrees_with_trls(tmp_path: Path) -> None:
    """trl.experimental.cpo with loss_type simpo and cpo_alpha 0, on the same ids and weights."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    config = CPOConfig(
        output_dir=str(tmp_path),
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=10.0,
        simpo_gamma=3.0,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    ours = trainer_for("simpo", tmp_path)
    batch = ours.data_collator(PAIRS)
    loss = ours._compute_loss(ours.model, batch, False)
    theirs = CPOTrainer.__new__(CPOTrainer)  # its loss needs these and nothing else
    theirs.beta, theirs.loss_type, theirs.simpo_gamma, theirs.label_smoothing = 10.0, "simpo", config.simpo_gamma, 0
    theirs.__dict__["accelerator"] = ours.accelerator
    theirs.alpha, theirs.cpo_alpha = 0.0, config.cpo_alpha
    sums, counts = by_hand(ours)
    mean = (sums / counts).float()
    losses = theirs.cpo_loss(mean[:2], mean[2:])[0]
    assert loss.item() == pytest.approx(losses.mean().item(), abs=1e-5)


def test_dpo_trainer_is_dpos_equation_7(tmp_path: Path) -> None:
    """TRL computes it: log 2 while policy and reference are one model, then Rafailov et al. 2023, eq. 7, by hand."""
    ours = trainer_for("dpo", tmp_path, epochs=3)
    reference = by_hand(ours)[0].detach()
    ours.train()
    logged = [row["loss"] for row in ours.state.log_history if "loss" in row]
    assert logged[0] == pytest.approx(math.log(2), abs=1e-5)
    (w, l), (ref_w, ref_l) = by_hand(ours)[0].detach().chunk(2), reference.chunk(2)
    expected = -torch.nn.functional.logsigmoid(0.1 * ((w - ref_w) - (l - ref_l))).mean().item()
    assert abs(expected - math.log(2)) > 0.05, "the model must have moved, or nothing is shown"
    batch = ours.data_collator([ours.train_dataset[i] for i in range(2)])
    assert ours._compute_loss(ours.model, batch, False).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["simpo", "dpo", "orpo"])
def test_every_loss_trains(kind: str, tmp_path: Path) -> None:
    """Two pairs seen again and again: the chosen side must come out ahead by more than before."""
    trainer = trainer_for(kind, tmp_path, epochs=1)
    before = held_out_margins(trainer, PAIRS)
    trainer.args.num_train_epochs = 10
    trainer.train()
    after = held_out_margins(trainer, PAIRS)
    assert all(b > a for a, b in zip(before, after, strict=True))


def test_gradient_accumulation_does_not_change_training(tmp_path: Path) -> None:
    weights = []
    for micro in (1, 2):
        trainer = trainer_for("simpo", tmp_path / str(micro), micro_batch=micro)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in tiny().parameters()])
    assert (weights[0] - weights[1]).norm() < 1e-3 * (weights[0] - start).norm()


@pytest.mark.parametrize(("steps", "warmup"), [(6, 1), (79, 8), (1, 1), (5, 0)])
def test_the_first_step_learns_and_the_schedule_is_otherwise_transformers(steps: int, warmup: int) -> None:
    theirs = get_cosine_schedule_with_warmup(torch.optim.SGD([t([0.0])], 1.0), warmup, steps).lr_lambdas[0]
    ours = [rate(step, warmup, steps) for step in range(steps)]
    assert ours[0] > 0
    assert ours[warmup:] == pytest.approx([theirs(step) for step in range(warmup, steps)])
    assert ours[:warmup] == pytest.approx([(step + 1) / (warmup + 1) for step in range(min(warmup, steps))])
    assert steps == warmup or max(ours) == ours[warmup] == 1


def test_the_trainer_takes_its_steps_at_these_rates(tmp_path: Path) -> None:
    trainer = trainer_for("simpo", tmp_path)
    trainer.args.num_train_epochs, trainer.args.warmup_steps = 5, 0.4
    trainer.train()
    logged = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    assert logged == pytest.approx([1e-3 * rate(step, 4, 10) for step in range(10)])
