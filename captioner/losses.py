"""The loss of training, and of a look at dev; a penalty for decoders that attend.

    loss = -Σ_n Σ_v q_nv log p_nv / N      p = softmax(logits)
    q_nv = 1 - ε at the target, and ε / V everywhere

over the N real words and <end>s; ε is the label smoothing (Szegedy et al., 2016).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

if TYPE_CHECKING:
    from captioner.models.packing import Packing

log = logging.getLogger(__name__)

IGNORED = -100
"""The target past a caption's <end>: it takes no part in the loss."""

# How many numbers are looked at together: 1 MiB of float32 stays in a core's cache.
AT_ONCE = 2**18


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float,
    reduction: str = "mean",
    in_place: bool = False,
) -> Tensor:
    """Cross-entropy over real targets; positions past <end> contribute nothing.

    Args:
        logits: [R, T, V], or [N, V] of real words only.
        targets: [R, T] or [N]; IGNORED past <end>.
        label_smoothing: [0, 1).
        reduction: "mean" over words, or "sum".
        in_place: the mean's gradient may take the place of the logits, which nobody reads again; no
            target is IGNORED. It saves two more tensors of their size.
    """
    logits, targets = logits.flatten(0, -2), targets.flatten()
    if in_place and reduction == "mean" and logits.device.type == "cpu" and len(targets):
        return _InPlace.apply(logits, targets, label_smoothing)
    if in_place:
        log.debug("the loss keeps the logits: %s, %d words", logits.device, len(targets))
    return functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
        targets,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


class _InPlace(torch.autograd.Function):
    """Loss and gradient in one visit to the logits: ∂loss/∂logits = (p - q) / N replaces them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        words, vocabulary = logits.shape
        exact = torch.promote_types(logits.dtype, torch.float32)
        rows = max(1, AT_ONCE // vocabulary)
        losses = []
        for part, target in zip(logits.split(rows), targets.unsqueeze(1).split(rows)):
            log_p = torch.log_softmax(part.to(exact), dim=1)
            chosen = log_p.gather(1, target).sum()
            losses.append((smoothing - 1) * chosen)
            if smoothing:
                losses.append(-smoothing / vocabulary * log_p.sum())
            gradient = log_p.exp_().sub_(smoothing / vocabulary) if smoothing else log_p.exp_()
            gradient.scatter_add_(1, target, gradient.new_full(target.shape, smoothing - 1))
            part.copy_(gradient.mul_(1 / words))
        ctx.save_for_backward(logits)
        return torch.stack(losses).sum() / words

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        # Most often the loss is what is differentiated: then it is done already.
        return (gradient if of_loss == 1 else gradient * of_loss.to(gradient.dtype)), None, None


def doubly_stochastic(weights: Tensor, packing: Packing) -> Tensor:
    """The mean of (1 - Σ_t α_ti)² over captions and positions: look everywhere once in a caption.

    Of Xu et al., 2015, who sum over positions beside a log-likelihood summed over words.

    Args:
        weights: of the real words, [N, P], each row's sum being 1 (or less, beside a sentinel).
        packing: the captions that they belong to.
    """
    sums = weights.new_zeros(len(packing.order), weights.shape[1])  # [B, P]
    return (1 - sums.index_add(0, packing.rows, weights)).square().mean()
