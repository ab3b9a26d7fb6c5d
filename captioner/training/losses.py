"""The losses of training and validation, and a penalty for decoders with attention.

    cross-entropy       -Σ_n Σ_v q_nv log p_nv / N      p = softmax(logits)
                        q_nv = ε / V, plus 1 - ε at the target
    policy gradient     -Σ_n A_n log p_n / S            p_n of the token that was sampled

where N tokens (words and <end>, no padding) belong to S captions; ε is the label smoothing (Szegedy
et al., 2016), A_n the advantage of the caption that token n belongs to (Williams, 1992).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from captioner.models.packing import IGNORED, Packing

log = logging.getLogger(__name__)


# Number of logits processed at once: 1 MiB of float32 fits into the cache of a core.
AT_ONCE = 2**18


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float,
    reduction: str = "mean",
    divisor: float | None = None,
    in_place: bool = False,
) -> Tensor:
    """Cross-entropy over targets; positions past <end> contribute nothing.

    Args:
        logits: [R, T, V], or [N, V] without padding.
        targets: [R, T] or [N]; IGNORED past <end>.
        label_smoothing: [0, 1).
        reduction: "mean" over tokens, or "sum".
        divisor: what the sum is divided by, instead of the number of tokens, if the batch is split
            over several ranks (``captioner.data.batches.Share``).
        in_place: write the gradient of the mean over the logits, which must not be read again; no
            target may be IGNORED. This saves the memory of two tensors of their size.
    """
    logits, targets = logits.flatten(0, -2), targets.flatten()
    if in_place and reduction == "mean" and logits.device.type == "cpu" and len(targets):
        tokens = len(targets) if divisor is None else divisor
        return _InPlace.apply(logits, targets, label_smoothing, None, tokens)
    if in_place:
        log.debug(
            "the loss does not overwrite the logits: %s, %d tokens", logits.device, len(targets)
        )
    loss = functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
        targets,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction=reduction if divisor is None else "sum",
    )
    return loss if divisor is None else loss / divisor


def policy_gradient(
    logits: Tensor,
    tokens: Tensor,
    advantages: Tensor,
    *,
    captions: float,
    in_place: bool = False,
) -> Tensor:
    """A loss whose gradient is the negative gradient of the expected reward (REINFORCE).

    Args:
        logits: of N tokens, [N, V]; -inf where a token could not be sampled.
        tokens: ids of the sampled tokens, [N].
        advantages: for each token the reward of its caption minus the baseline, [N].
        captions: S, or what replaces it if the batch is split over several ranks (see ``Share``).
        in_place: write the gradient over the logits, which must not be read again.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    advantages = advantages.to(exact)
    if in_place and logits.device.type == "cpu":
        return _InPlace.apply(logits, tokens, 0.0, advantages, captions)
    losses = functional.cross_entropy(logits.to(exact), tokens, reduction="none")  # -log p, [N]
    return (advantages * losses).sum() / captions


class _InPlace(torch.autograd.Function):
    """Loss and gradient in one pass: ∂loss/∂logits = w (p - q) / divisor replaces the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        smoothing: float,
        weights: Tensor | None,
        divisor: float,
    ) -> Tensor:
        vocabulary = logits.shape[1]
        exact = torch.promote_types(logits.dtype, torch.float32)
        rows = max(1, AT_ONCE // vocabulary)
        losses = []
        for first in range(0, len(logits), rows):
            part = logits[first : first + rows]
            target = targets[first : first + rows].unsqueeze(1)
            w = 1.0 if weights is None else weights[first : first + rows].unsqueeze(1)
            log_p = torch.log_softmax(part.to(exact), dim=1)
            losses.append(((smoothing - 1) * w * log_p.gather(1, target)).sum())
            if smoothing:
                losses.append(-smoothing / vocabulary * (w * log_p.sum(1, keepdim=True)).sum())
            gradient = log_p.exp_().sub_(smoothing / vocabulary) if smoothing else log_p.exp_()
            gradient.scatter_add_(1, target, gradient.new_full(target.shape, smoothing - 1))
            part.copy_(gradient.mul_(w / divisor))
        ctx.save_for_backward(logits)
        return torch.stack(losses).sum() / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        if loss_gradient != 1:  # it is 1 if backward starts at this loss
            gradient = gradient * loss_gradient.to(gradient.dtype)
        return gradient, None, None, None, None


def doubly_stochastic(
    weights: Tensor, packing: Packing, *, captions: float | None = None
) -> Tensor:
    """The mean of (1 - Σ_t α_ti)² over captions and positions: attend to each position once.

    From Xu et al., 2015, who sum over positions, and over the tokens of the log-likelihood.

    Args:
        weights: attention weights, [N, P]; each row sums to 1 (or less, with a sentinel).
        packing: of the captions that they belong to.
        captions: what the sum is divided by, if the batch is split over several ranks (see
            ``Share``); None: the number of captions in the packing.
    """
    sums = weights.new_zeros(len(packing.order), weights.shape[1])  # [B, P]
    penalty = (1 - sums.index_add(0, packing.rows, weights)).square().mean()
    return penalty if captions is None else penalty * (len(sums) / captions)
