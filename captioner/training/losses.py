"""The losses of training, and of a look at dev; a penalty for decoders that attend.

    cross-entropy       -Σ_n Σ_v q_nv log p_nv / N      p = softmax(logits)
                        q_nv = 1 - ε at the target, and ε / V everywhere
    policy gradient     -Σ_n A_n log p_n / S            p_n of the word that was sampled

over the N real words and <end>s, of S captions; ε is the label smoothing (Szegedy et al., 2016),
A_n the advantage of the caption that word n belongs to (Williams, 1992).
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


# How many numbers are looked at together: 1 MiB of float32 stays in a core's cache.
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
    """Cross-entropy over real targets; positions past <end> contribute nothing.

    Args:
        logits: [R, T, V], or [N, V] of real words only.
        targets: [R, T] or [N]; IGNORED past <end>.
        label_smoothing: [0, 1).
        reduction: "mean" over words, or "sum".
        divisor: of a mean, another number of words than there are: of a share of a batch.
        in_place: the mean's gradient may take the place of the logits, which nobody reads again; no
            target is IGNORED. It saves two more tensors of their size.
    """
    logits, targets = logits.flatten(0, -2), targets.flatten()
    if in_place and reduction == "mean" and logits.device.type == "cpu" and len(targets):
        words = len(targets) if divisor is None else divisor
        return _InPlace.apply(logits, targets, label_smoothing, None, words)
    if in_place:
        log.debug("the loss keeps the logits: %s, %d words", logits.device, len(targets))
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
    words: Tensor,
    advantages: Tensor,
    *,
    captions: float,
    in_place: bool = False,
) -> Tensor:
    """A loss whose gradient is that of the expected reward, its sign turned (REINFORCE).

    Args:
        logits: of N words, [N, V]; -inf where a word could not be sampled.
        words: those that were sampled, [N].
        advantages: reward less baseline of each word's caption, [N].
        captions: S, how many captions the words belong to; of a share of a batch another number.
        in_place: the gradient may take the place of the logits, which nobody reads again.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    advantages = advantages.to(exact)
    if in_place and logits.device.type == "cpu":
        return _InPlace.apply(logits, words, 0.0, advantages, captions)
    surprise = functional.cross_entropy(logits.to(exact), words, reduction="none")  # -log p, [N]
    return (advantages * surprise).sum() / captions


class _InPlace(torch.autograd.Function):
    """Loss and gradient in one visit to the logits: ∂loss/∂logits = w (p - q) / n replaces them."""

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
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # Most often the loss is what is differentiated: then it is done already.
        gradient = gradient if of_loss == 1 else gradient * of_loss.to(gradient.dtype)
        return gradient, None, None, None, None


def doubly_stochastic(
    weights: Tensor, packing: Packing, *, captions: float | None = None
) -> Tensor:
    """The mean of (1 - Σ_t α_ti)² over captions and positions: look everywhere once in a caption.

    Of Xu et al., 2015, who sum over positions beside a log-likelihood summed over words.

    Args:
        weights: of the real words, [N, P], each row's sum being 1 (or less, beside a sentinel).
        packing: the captions that they belong to.
        captions: another number of them to divide by: of a share of a batch.
    """
    sums = weights.new_zeros(len(packing.order), weights.shape[1])  # [B, P]
    penalty = (1 - sums.index_add(0, packing.rows, weights)).square().mean()
    return penalty if captions is None else penalty * (len(sums) / captions)
