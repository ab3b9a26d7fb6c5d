"""Common to all decoding strategies: states, hypotheses, and reading one token per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.decoding.constraints import Constraints

State = dict[str, Tensor]
Step = Callable[[Tensor, State], tuple[Tensor, State]]


IMAGE = "image."
"""The prefix of the names of tensors that belong to images. These have one row per image, [A,
...]; all other tensors of a state have one row per hypothesis, [A * K, ...], and the rows of an
image are consecutive."""


class Hypothesis(NamedTuple):
    """One caption of one image.

    Attributes:
        tokens: its token ids, without <start> and <end>.
        log_probs: log p of each token, and of <end> if it was reached.
        score: the value it is ranked by: the sum of log_probs over a power of their number, or its
            agreement with the others (``consensus.py``).
        finished: whether <end> was reached within max_length.
        missing: the required phrases that it does not have, as indices of the list.
        broken: the options that it violates, because no token was left otherwise.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
    finished: bool
    missing: tuple[int, ...] = ()
    broken: tuple[str, ...] = ()


class Reader:
    """Reads one token per row: the model as a strategy sees it.

    Args:
        step: tokens [R] and a state of R hypotheses -> logits [R, V] and the next state.
        start: the token that is read first.
        constraints: which tokens may come next.
    """

    def __init__(self, step: Step, start: int, constraints: Constraints) -> None:
        self.step, self.start, self.constraints = step, start, constraints

    def __call__(
        self, history: Tensor, state: State, *, scores: Tensor | None = None, width: int = 1
    ) -> tuple[Tensor, State]:
        """Log probabilities of the next token.

        Args:
            history: the tokens so far, [R, t]; the last one is read.
            state: of R hypotheses.
            scores: of the hypotheses, [R]; rows at -inf are ignored. None: none are.
            width: consecutive rows per image.

        Returns:
            log_probs [R, V] in float32, -inf for excluded tokens, the others not renormalized; and
            the next state.
        """
        tokens = (
            history[:, -1] if history.shape[1] else history.new_full((len(history),), self.start)
        )
        logits, state = self.step(tokens, state)
        log_probs = torch.log_softmax(logits.float(), dim=-1)  # [R, V]
        return self.constraints.filter(log_probs, history, scores=scores, width=width), state


def rows(state: State, index: Tensor, images: Tensor | None = None) -> State:
    """The state of some hypotheses, in any order, with repetitions.

    Args:
        index: the rows of the hypotheses, the same number of consecutive rows per image.
        images: the rows of their images; None: all, in the same order.
    """
    of_images = {name: tensor for name, tensor in state.items() if name.startswith(IMAGE)}
    moved = {n: tensor.index_select(0, index) for n, tensor in state.items() if n not in of_images}
    if images is not None:
        of_images = {name: tensor.index_select(0, images) for name, tensor in of_images.items()}
    return {**of_images, **moved}


def count(state: State) -> int:
    """The number of images of a state before the first token."""
    return len(next(iter(state.values())))


def device(state: State) -> torch.device:
    """The device of a state."""
    return next(iter(state.values())).device
