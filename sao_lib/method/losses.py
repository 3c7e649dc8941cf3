"""The losses there are, by the name that parameters and folders of runs use.

A loss is a function of summed log-probabilities of the completions (nats) and their token counts, all of shape
[pairs], that returns the loss of every pair, [pairs]. To add one, write the function and give it an entry in LOSSES.
A plan reads this file, so torch is imported where it computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sao_lib.errors import SaoError

if TYPE_CHECKING:
    from torch import Tensor

    from sao_lib.settings import Train

SUREST = -(2.0**-23)  # float32's spacing at 1: a log p is a difference of logits near 1 or more, and known no better


@dataclass(frozen=True)
class Loss:
    """One entry: the printed name, the loss of every pair, and whether training needs the reference model's log p.

    `per_pair` takes the log p of chosen and rejected, their token counts and the settings. None: TRL's DPOTrainer
    computes the loss, which alone is given the reference's log p; so a loss that needs them is one of TRL's.
    """

    name: str
    per_pair: Callable[[Tensor, Tensor, Tensor, Tensor, Train], Tensor] | None
    needs_reference: bool = False


def simpo_reward(logp: Tensor, tokens: Tensor, beta: float) -> Tensor:
    """Length-normalised reward, SAO eq. 5: beta / |y| * log p(y|x)."""
    return beta * logp / tokens


def simpo_loss(
    chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, beta: float, gamma: float
) -> Tensor:
    """SAO eq. 7: -log sigmoid(r(y_w) - r(y_l) - gamma), gamma subtracted as it stands.

    The SimPO code writes beta * (difference - gamma/beta): its `gamma_beta_ratio` is our gamma / beta.
    """
    import torch.nn.functional as F

    margin = simpo_reward(chosen, chosen_tokens, beta) - simpo_reward(rejected, rejected_tokens, beta)
    return -F.logsigmoid(margin - gamma)


def orpo_loss(
    chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, weight: float
) -> Tensor:
    """ORPO (Hong et al. 2024, eq. 6): NLL of the chosen response + weight * L_OR.

    The likelihoods are length-normalised, log p = mean token log-probability. The paper's `lambda` is `weight`.
    TRL's trainer puts the prompt's tokens into the NLL too; the ORPO paper does not, and neither do we.
    """
    import torch.nn.functional as F

    w, l = chosen / chosen_tokens, rejected / rejected_tokens
    log_odds = (w - l) - (_log_not(w) - _log_not(l))
    return -w - weight * F.logsigmoid(log_odds)


def _log_not(logp: Tensor) -> Tensor:
    """log(1 - p) of a log p in nats, with a finite gradient at every log p, also at 0, where p is 1.

    1 - exp(log p) is 0 in float32 from -3e-8 on, its logarithm minus infinity and its gradient nan, which would reach
    all weights: expm1 keeps the digits, and a log p above SUREST, which rounding may even lift above 0, counts as that.
    """
    import torch

    return torch.log(-torch.expm1(logp.clamp(max=SUREST)))


LOSSES: dict[str, Loss] = {
    "simpo": Loss("SimPO", lambda w, l, n_w, n_l, s: simpo_loss(w, l, n_w, n_l, s.beta, s.gamma)),
    "orpo": Loss("ORPO", lambda w, l, n_w, n_l, s: orpo_loss(w, l, n_w, n_l, s.beta)),
    "dpo": Loss("DPO", None, needs_reference=True),
}


def loss_named(name: str) -> Loss:
    """The entry of that name; raises SaoError naming those there are."""
    if name not in LOSSES:
        raise SaoError(f"There is no loss '{name}'; there are: {', '.join(sorted(LOSSES))}.")
    return LOSSES[name]
