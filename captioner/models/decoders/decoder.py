"""What a decoder is: the contract that training, decoding and looking inside rely on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from captioner.models.features import Features
from captioner.models.recurrence.cells import State


class Stepper(NamedTuple):
    """A decoder for many calls without gradient, in evaluation mode; it gives the same.

    Attributes:
        start: as the decoder's.
        step: as the decoder's.
    """

    start: Callable[[Features], State]
    step: Callable[[Tensor, State], tuple[Tensor, State]]
