"""An ensemble: several models decode together, and each step averages their predictions.

p = 1/M Σ_m p_m                 "probability": the arithmetic mean
log p = 1/M Σ_m log p_m + const "log_probability": the geometric mean, low if one model's p is low
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.decoding.search import State, Step


def together(steps: Sequence[Step], states: Sequence[State], *, average: str) -> tuple[Step, State]:
    """One step and one state from those of M models with the same vocabulary.

    Args:
        steps: the step of each model.
        states: the state of each model, with the same rows.
        average: "probability" or "log_probability".

    Returns:
        a step whose logits are the logarithm of the average, and the state that it starts from.
    """
    if len(steps) == 1:
        return steps[0], states[0]

    def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        predictions, after = [], []
        for model, model_step in enumerate(steps):
            suffix = f"@{model}"
            own = {n.removesuffix(suffix): t for n, t in state.items() if n.endswith(suffix)}
            logits, own = model_step(tokens, own)
            predictions.append(torch.log_softmax(logits.float(), dim=-1))
            after.append(own)
        return combined(predictions, average), _named(after)

    return step, _named(states)


def combined(predictions: Sequence[Tensor], kind: str) -> Tensor:
    """The logarithm of the average of M predictions, up to a constant: [R, V] each -> [R, V].

    Args:
        predictions: the log probabilities of each model.
        kind: "probability" or "log_probability".
    """
    log_probs = torch.stack(list(predictions))  # [M, R, V]
    if kind == "probability":
        return log_probs.logsumexp(dim=0) - math.log(len(predictions))
    return log_probs.mean(dim=0)


def _named(states: Sequence[State]) -> State:
    return {
        f"{name}@{m}": tensor for m, state in enumerate(states) for name, tensor in state.items()
    }
