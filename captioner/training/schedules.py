"""The learning rate over a training, as a share of its peak.

With n steps done of N, of which the first w N warm up, and d = (n - wN) / (N - wN):

    warm-up     (n + 1) / (wN + 1)
    constant    1
    linear      1 - d
    cosine      (1 + cos π d) / 2              (Loshchilov & Hutter, ICLR 2017)
    plateau     factor^k, k the times that dev did not score better for `patience` looks
"""

from __future__ import annotations

import math
from typing import Any

from captioner.config import unknown

ENDLESS = 2**62
"""N of a training that something else than its length ends."""

SCHEDULES = ("constant", "linear", "cosine", "plateau")


class Schedule:
    """The learning rate at each step.

    Args:
        name: one of SCHEDULES: what follows the warm-up.
        total_steps: N; ENDLESS is for a constant rate or a plateau, without a warm-up.
        warmup: w, the share of the steps in which the rate rises linearly from 0, [0, 1].
        factor: of a plateau, by which the rate falls, (0, 1).
        patience: of a plateau, looks at dev without a better score before the rate falls, from 1.

    Raises:
        ValueError: an unknown name, or a value out of range.
    """

    def __init__(
        self, name: str, total_steps: int, *, warmup: float, factor: float, patience: int
    ) -> None:
        if name not in SCHEDULES:
            raise unknown("training.schedule", name, SCHEDULES)
        if not 0 < factor < 1:
            raise ValueError(
                f"training.plateau_factor={factor} is not accepted; choose a number between 0 and 1"
            )
        if patience < 1:
            raise ValueError(
                f"training.plateau_patience={patience} is not accepted; choose 1 or more"
            )
        self.name, self.total_steps, self.warmup = name, total_steps, warmup
        self.factor, self.patience = factor, patience
        self.best: tuple[float, ...] | None = None
        self.worse = 0  # looks since the best one, or since the rate fell
        self.falls = 0

    def rate(self, step: int, *, first: int = 0) -> float:
        """The learning rate at a step, as a share of its peak, [0, 1]; 0 before step `first`."""
        step, total = step - first, self.total_steps - first
        rising = self.warmup * total
        if step < 0:
            return 0.0
        if step < rising:
            return (step + 1) / (rising + 1)
        done = (step - rising) / max(1.0, total - rising)  # 0 .. 1
        if self.name == "linear":
            return max(0.0, 1.0 - done)
        if self.name == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return self.factor**self.falls

    def look(self, rank: tuple[float, ...]) -> None:
        """Take notice of a validation's rank (``selection.py``); only a plateau does."""
        if self.name != "plateau":
            return
        if self.best is None or rank > self.best:
            self.best, self.worse = rank, 0
            return
        self.worse += 1
        if self.worse >= self.patience:
            self.falls, self.worse = self.falls + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """What it has heard, as plain data."""
        best = None if self.best is None else list(self.best)
        return {"best": best, "worse": self.worse, "falls": self.falls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        best, self.worse, self.falls = state["best"], state["worse"], state["falls"]
        if best is not None:  # captioner 0.1 had the score alone
            best = (best,) if isinstance(best, float) else tuple(best)
        self.best = best
