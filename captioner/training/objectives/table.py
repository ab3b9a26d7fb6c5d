"""The objectives, by name: ``objective=NAME``.

An objective computes the loss of a batch through the model's ``encode`` and the decoder's
interface only, so every objective works with every encoder and decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from captioner.config import make, pick
from captioner.decoding.options import DecodingOptions
from captioner.tokenizers import Tokenizer
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
    "build_objective",
    "objective_class",
]

OBJECTIVES: Mapping[str, type[Objective]] = MappingProxyType(
    {"cross_entropy": CrossEntropy, "scst": SelfCritical}
)
"""Name of an objective -> its class."""


def objective_class(group: Mapping[str, Any]) -> type[Objective]:
    """The class that the group ``objective`` names; cross-entropy if it has no name."""
    return pick(OBJECTIVES, group.get("name", "cross_entropy"), "objective.name")


def build_objective(
    group: Mapping[str, Any], tokenizer: Tokenizer, decoding: DecodingOptions
) -> Objective:
    """The objective of the group ``objective``.

    Args:
        group: ``name``, a key of OBJECTIVES, and its arguments.
        tokenizer: the tokenizer of the captions.
        decoding: how dev captions are decoded.

    Raises:
        ValueError: an unknown name or option, or a value out of range.
    """
    options = {key: value for key, value in group.items() if key != "name"}
    return make(objective_class(group), "objective", options, tokenizer, decoding)
