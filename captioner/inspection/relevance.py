"""Layer-wise relevance propagation (LRP) through recurrent cells.

Relevance flows from f back to the inputs, and each sum passes it on in proportion to its terms
(Bach et al., 2015). Where a gate multiplies a signal, the signal takes all: the gate only decides
how much passes (Arras et al., "Explaining Recurrent Neural Network Predictions in Sentiment
Analysis", 2017; "Explaining and Interpreting LSTMs", 2019). A nonlinearity passes on what it gets:

    z_j = sum_i w_ij x_i + b_j      R_i = x_i sum_j w_ij R_j / z_j          the bias keeps its share
    p = gate * s                    R_s = R_p,  R_gate = 0
    y = tanh(z)                     R_z = R_y

Without the stabilizer of the sum's rule (ε = 0) this is the input times a gradient in which gates
are constants and tanh has the slope tanh(z) / z instead of 1 - tanh(z)^2, so that autograd computes
it (Montavon et al., "Layer-Wise Relevance Propagation: An Overview", 2019). Attention weights and
the gate on the context are gates as well. The log probability begins with its gradient, for which
the softmax is replaced by its tangent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captioner.inspection.reading import Rule
from captioner.models.decoders.decoder import Decoder, State
from captioner.models.decoders.show_attend_tell import ShowAttendTell
from captioner.models.decoders.show_tell import ShowTell
from captioner.models.recurrence.cells import GRU, LSTM, RNN
from captioner.tracing.edits import Add, AnyEdit, Swap

CELLS = (RNN, LSTM, GRU)
GATES = (
    *("cell.forget_gate", "cell.input_gate", "cell.output_gate"),
    *("cell.reset_gate", "cell.update_gate", "attention.weights", "attention.gate"),
)


class SignalTakesAll(Rule):
    """Reads a decoder so that its gradient times the input is the relevance.

    Args:
        decoder: ``show_tell`` or ``show_attend_tell`` with the cell ``rnn``, ``lstm`` or ``gru``.

    Raises:
        ValueError: another decoder, cell or place of the image.
    """

    def __init__(self, decoder: Decoder) -> None:
        cell = type(getattr(getattr(decoder, "recurrence", None), "first", None))
        if type(decoder) not in (ShowTell, ShowAttendTell) or cell not in CELLS:
            name = f"{type(decoder).__name__} with {cell.__name__}"
            raise ValueError(
                f"there is no rule of relevance for {name}; choose another method, or show_tell or "
                "show_attend_tell with the cell rnn, lstm or gru"
            )
        if getattr(decoder, "enters", None) == "merge":
            raise ValueError(
                "there is no rule of relevance for decoder.image=merge; choose another method"
            )
        self.starts_with_tanh = getattr(decoder, "enters", "h0") == "h0"
        self.memories: dict[int | None, Tensor] = {}

    def require(self, edits: Sequence[AnyEdit]) -> None:
        """Refuse values of another image, and a candidate that is no longer a tanh.

        Raises:
            ValueError: with the edit.
        """
        for edit in edits:
            added = isinstance(edit, Add) and edit.site == "cell.candidate"
            if added or isinstance(edit, Swap):
                what = "a Swap" if isinstance(edit, Swap) else "an Add to cell.candidate"
                raise ValueError(
                    f"there is no rule of relevance for {what}; choose another method, or edit"
                    " with Set, Zero or Reset"
                )

    def begin(self, state: State) -> State:
        """The state before <start>: if it is a tanh of the image, with the slope tanh(z) / z."""
        if not self.starts_with_tanh:
            return state
        return {
            name: _with_slope(value, _of_result(value)) if name in ("h", "c") else value
            for name, value in state.items()
        }

    def observe(self, site: str, value: Tensor, layer: int | None = None) -> Tensor:
        """Make gates constant, and give each tanh its slope."""
        if site in GATES:
            return value.detach()
        if site == "cell.candidate":
            return _with_slope(value, _of_result(value))
        if site == "cell.memory":
            self.memories[layer] = value.detach()
        if site == "cell.hidden" and layer in self.memories:  # o * tanh(C)
            memory = self.memories.pop(layer)
            return _with_slope(value, _of(memory, torch.tanh(memory)))
        return value


def _with_slope(value: Tensor, factor: Tensor) -> Tensor:
    """The same value, whose gradient is multiplied by a factor."""
    fixed: Any = value.detach()
    return fixed + factor * (value - fixed)


def _of_result(result: Tensor) -> Tensor:
    """By how much the slope of tanh changes, from tanh(z)."""
    y = result.detach()
    return _of(torch.atanh(y.clamp(-1 + 1e-15, 1 - 1e-15)), y)


def _of(z: Tensor, y: Tensor) -> Tensor:
    """(y / z) / (1 - y^2) with y = tanh(z); 1 at 0."""
    chord = torch.where(z.abs() < 1e-9, 1.0, y / torch.where(z == 0, 1.0, z))
    return chord / (1 - y.square()).clamp_min(1e-30)
