"""What every decoding strategy shares: hypotheses, and the reading of one token for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]
Step = Callable[[Tensor, State], tuple[Tensor, State]]


class Hypothesis(NamedTuple):
    """One caption of one image.

    Attributes:
        tokens: its words, without <start> and <end>.
        log_probs: log p of each word, and of <end> where it was reached.
        score: what it was ranked by: the sum of log_probs over (their number)^length_penalty.
        finished: whether <end> was reached within max_length.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
    finished: bool


def hypothesis(
    tokens: list[int], log_probs: list[float], *, end: int, length_penalty: float
) -> Hypothesis:
    """Make a Hypothesis of emitted tokens, with or without <end> at their end."""
    finished = tokens[-1] == end
    score = sum(log_probs) / len(tokens) ** length_penalty
    words = tokens[:-1] if finished else tokens
    return Hypothesis(tuple(words), tuple(log_probs), score, finished)


def read(step: Step, tokens: Tensor, state: State, banned: tuple[int, ...]) -> tuple[Tensor, State]:
    """Read one token a row: tokens [R] -> log_probs of the next [R, V] in float32, the state."""
    logits, state = step(tokens, state)
    log_probs = torch.log_softmax(logits.float(), dim=-1)  # [R, V]
    if banned:
        log_probs[:, list(banned)] = -torch.inf
    return log_probs, state


def rows(state: State, index: Tensor) -> State:
    """The state of some rows, in any order, repeated where `index` repeats them."""
    return {name: tensor[index] for name, tensor in state.items()}


def count(state: State) -> int:
    """How many rows a state has."""
    return len(next(iter(state.values())))


def device(state: State) -> torch.device:
    """Where a state lives."""
    return next(iter(state.values())).device
