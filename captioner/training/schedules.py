"""The learning rate during a training, as a fraction of its peak.

After n of N steps, where the first w N steps are the warm-up and d = (n - wN) / (N - wN):

    warm-up     (n + 1) / (wN + 1)
    constant    1
    linear      1 - d
    cosine      (1 + cos π d) / 2              (Loshchilov & Hutter, ICLR 2017)
    plateau     factor^k    (k: number of times that `patience` validations did not improve)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from captioner.config import Config, check_range, make, pick

ENDLESS = 2**62
"""N of a training without a limit on its steps."""


class Schedule(ABC):
    """The learning rate at each step.

    Args:
        total_steps: N; ENDLESS only for schedules that do not end, without a warm-up.
        warmup: w, the fraction of the steps in which the rate rises linearly from 0, [0, 1].

    Raises:
        ValueError: a value out of range.
    """

    ends: ClassVar[bool] = True
    """Whether the rate depends on N after the warm-up."""

    def __init__(self, total_steps: int, *, warmup: float = 0.05) -> None:
        check_range("schedule.warmup", warmup, 1.0)
        self.total_steps, self.warmup = total_steps, warmup

    def rate(self, step: int, *, first: int = 0) -> float:
        """The learning rate at a step as a fraction of its peak, [0, 1]; 0 before step `first`."""
        step, total = step - first, self.total_steps - first
        rising = self.warmup * total
        if step < 0:
            return 0.0
        if step < rising:
            return (step + 1) / (rising + 1)
        return self.after_warmup((step - rising) / max(1.0, total - rising))

    @abstractmethod
    def after_warmup(self, done: float) -> float:
        """The fraction of the peak after a fraction `done` of the steps that follow the warm-up."""

    def validated(self, rank: tuple[float, ...]) -> None:
        """Receive the rank of a validation (``selection.py``); higher is better."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The state that the rate depends on in addition to the step, as plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        return None


class Constant(Schedule):
    """The rate stays at its peak."""

    ends = False

    def after_warmup(self, done: float) -> float:
        return 1.0


class Linear(Schedule):
    """The rate falls to 0 linearly."""

    def after_warmup(self, done: float) -> float:
        return max(0.0, 1.0 - done)


class Cosine(Schedule):
    """The rate falls to 0 along half a cosine."""

    def after_warmup(self, done: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


class Plateau(Schedule):
    """The rate falls whenever validations have stopped improving.

    Args:
        total_steps: see Schedule.
        warmup: see Schedule.
        factor: the rate is multiplied by this, (0, 1).
        patience: validations without a better score before the rate falls, from 1.

    Raises:
        ValueError: a value out of range.
    """

    ends = False

    def __init__(
        self, total_steps: int, *, warmup: float = 0.05, factor: float = 0.5, patience: int = 2
    ) -> None:
        super().__init__(total_steps, warmup=warmup)
        if not 0 < factor < 1:
            raise ValueError(
                f"schedule.factor={factor} is not accepted; choose a number between 0 and 1"
            )
        if patience < 1:
            raise ValueError(f"schedule.patience={patience} is not accepted; choose 1 or more")
        self.factor, self.patience = factor, patience
        self.best: tuple[float, ...] | None = None
        self.worse = 0  # validations since the best one, or since the rate fell
        self.falls = 0

    def after_warmup(self, done: float) -> float:
        return self.factor**self.falls

    def validated(self, rank: tuple[float, ...]) -> None:
        if self.best is None or rank > self.best:
            self.best, self.worse = rank, 0
            return
        self.worse += 1
        if self.worse >= self.patience:
            self.falls, self.worse = self.falls + 1, 0

    def state_dict(self) -> dict[str, Any]:
        best = None if self.best is None else list(self.best)
        return {"best": best, "worse": self.worse, "falls": self.falls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        best, self.worse, self.falls = state["best"], state["worse"], state["falls"]
        if best is not None:  # captioner 0.1 stored only the score
            best = (best,) if isinstance(best, float) else tuple(best)
        self.best = best


SCHEDULES: Mapping[str, type[Schedule]] = MappingProxyType(
    {"constant": Constant, "linear": Linear, "cosine": Cosine, "plateau": Plateau}
)
"""Name of a schedule -> its class."""


def schedule_class(group: Config) -> type[Schedule]:
    """The class that the group ``schedule`` names."""
    return pick(SCHEDULES, group.get("name", "cosine"), "schedule.name")


def build_schedule(group: Config, total_steps: int) -> Schedule:
    """The schedule of the group ``schedule``.

    Args:
        group: ``name``, a key of SCHEDULES, and its arguments.
        total_steps: N, the number of steps of the training.

    Raises:
        ValueError: an unknown name or option, or a value out of range.
    """
    options = {key: value for key, value in group.items() if key != "name"}
    return make(schedule_class(group), "schedule", options, total_steps)
