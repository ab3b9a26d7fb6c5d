"""What every decoding strategy shares: hypotheses, and the reading of one token for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.decoding.constraints import Constraints

State = dict[str, Tensor]
Step = Callable[[Tensor, State], tuple[Tensor, State]]


IMAGE = "image."
"""How the names of what belongs to images begin. It has a row an image, A of them; all else in a
state has a row a hypothesis, R = A * K, those of an image side by side."""


class Hypothesis(NamedTuple):
    """One caption of one image.

    Attributes:
        tokens: its words, without <start> and <end>.
        log_probs: log p of each word, and of <end> where it was reached.
        score: what it was ranked by: the sum of log_probs over a power of their number, or its
            agreement with the others (``consensus.py``).
        finished: whether <end> was reached within max_length.
        missing: the required phrases that it does not hold, by their places in the list.
        broken: the options that it could not keep, because no word was left to say.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
    finished: bool
    missing: tuple[int, ...] = ()
    broken: tuple[str, ...] = ()


class Reader:
    """Reads one token a row: what a strategy sees of a model.

    Args:
        step: tokens [R] and a state of R hypotheses -> logits [R, V] and the state after.
        start: the token read first.
        constraints: what may be said.
    """

    def __init__(self, step: Step, start: int, constraints: Constraints) -> None:
        self.step, self.start, self.constraints = step, start, constraints

    def __call__(
        self, history: Tensor, state: State, *, scores: Tensor | None = None, width: int = 1
    ) -> tuple[Tensor, State]:
        """Log probabilities of the next word.

        Args:
            history: the words so far, [R, t]; the last is read.
            state: of R hypotheses.
            scores: of the words so far, [R]; rows at -inf do not count. None: all count.
            width: rows that belong to one image, side by side.

        Returns:
            log_probs [R, V] in float32, -inf where a word may not be said; the others are not
            rescaled. And the state after.
        """
        tokens = (
            history[:, -1] if history.shape[1] else history.new_full((len(history),), self.start)
        )
        logits, state = self.step(tokens, state)
        log_probs = torch.log_softmax(logits.float(), dim=-1)  # [R, V]
        return self.constraints.filter(log_probs, history, scores=scores, width=width), state


def rows(state: State, index: Tensor, images: Tensor | None = None) -> State:
    """The state of some hypotheses, in any order, repeated where `index` repeats them.

    Args:
        index: these hypotheses, as many of each image, side by side.
        images: their images; None: all, in the order they are in.
    """
    kept = {name: tensor for name, tensor in state.items() if name.startswith(IMAGE)}
    moved = {n: tensor.index_select(0, index) for n, tensor in state.items() if n not in kept}
    if images is not None:
        kept = {name: tensor.index_select(0, images) for name, tensor in kept.items()}
    return {**kept, **moved}


def count(state: State) -> int:
    """How many images there are, of a state before the first token."""
    return len(next(iter(state.values())))


def device(state: State) -> torch.device:
    """Where a state lives."""
    return next(iter(state.values())).device
