"""The three losses, on summed log-probabilities of the completions (nats) and their token counts.

All take tensors of shape [pairs] and return the loss of every pair, shape [pairs].
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def simpo_reward(logp: Tensor, tokens: Tensor, beta: float) -> Tensor:
    """Length-normalised reward, SAO eq. 5: beta / |y| * log p(y|x)."""
    return beta * logp / tokens


def simpo_loss(
    chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, beta: float, gamma: float
) -> Tensor:
    """SAO eq. 7: -log sigmoid(r(y_w) - r(y_l) - gamma), gamma subtracted as it stands.

    The SimPO code writes beta * (difference - gamma/beta): its `gamma_beta_ratio` is our gamma / beta.
    """
    margin = simpo_reward(chosen, chosen_tokens, beta) - simpo_reward(rejected, rejected_tokens, beta)
    return -F.logsigmoid(margin - gamma)


def dpo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7), with the reference model's log-probabilities."""
    return -F.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def orpo_loss(
    chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, weight: float
) -> Tensor:
    """ORPO (Hong et al. 2024, eq. 6): NLL of the chosen response + weight * L_OR.

    The likelihoods are length-normalised, log p = mean token log-probability. The paper's `lambda` is `weight`.
    TRL's trainer puts the prompt's tokens into the NLL too; the ORPO paper does not, and neither do we.
    """
    w, l = chosen / chosen_tokens, rejected / rejected_tokens
    log_odds = (w - l) - (torch.log1p(-torch.exp(w)) - torch.log1p(-torch.exp(l)))
    return -w - weight * F.logsigmoid(log_odds)
