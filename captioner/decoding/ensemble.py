"""Several models that decode together: each step averages what they expect next.

p = 1/M Σ_m p_m                 "probability": the mixture, any model may bring a word in
log p = 1/M Σ_m log p_m + const "log_probability": the geometric mean, any may veto a word
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.decoding.search import State, Step


def together(steps: Sequence[Step], states: Sequence[State], *, average: str) -> tuple[Step, State]:
    """Make one step and one state of M models over the same vocabulary.

    Args:
        steps: of each model.
        states: of each model, the same rows in each.
        average: "probability" or "log_probability".

    Returns:
        a step whose logits are the logarithm of the average, and the state it starts from.
    """
    if len(steps) == 1:
        return steps[0], states[0]

    def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        found, after = [], []
        for model, one in enumerate(steps):
            suffix = f"@{model}"
            own = {n.removesuffix(suffix): t for n, t in state.items() if n.endswith(suffix)}
            logits, own = one(tokens, own)
            found.append(torch.log_softmax(logits.float(), dim=-1))
            after.append(own)
        log_probs = torch.stack(found)  # [M, R, V]
        if average == "probability":
            return log_probs.logsumexp(dim=0) - math.log(len(steps)), _named(after)
        return log_probs.mean(dim=0), _named(after)

    return step, _named(states)


def _named(states: Sequence[State]) -> State:
    return {
        f"{name}@{m}": tensor for m, state in enumerate(states) for name, tensor in state.items()
    }
