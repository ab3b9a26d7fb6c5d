"""What a training learns from: one table, from which ``training.objective`` chooses.

An objective makes a loss of a batch, by the model's ``encode`` and its decoder's contract alone, so
each goes with any encoder and any decoder. Its options stand in the group ``training`` beside those
of the optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from captioner.config import pick
from captioner.training.objectives.cross_entropy import CrossEntropy
from captioner.training.objectives.objective import Degenerate, Objective, Outcome
from captioner.training.objectives.self_critical import SelfCritical

__all__ = [
    "OBJECTIVES",
    "CrossEntropy",
    "Degenerate",
    "Objective",
    "Outcome",
    "SelfCritical",
    "chosen",
]

OBJECTIVES: Mapping[str, type[Objective]] = MappingProxyType(
    {"cross_entropy": CrossEntropy, "scst": SelfCritical}
)
"""Name of an objective -> its class."""


def chosen(training: Mapping[str, Any]) -> type[Objective]:
    """The objective that the group ``training`` names; cross-entropy in one without a name."""
    return pick(OBJECTIVES, training.get("objective", "cross_entropy"), "training.objective")
