"""A cell over time: the loop around the equations of ``cells.py``, in one layer or several.

``Recurrence.step`` is one step of all layers, as a decoder takes it when each word depends on the
last. ``Recurrence.forward`` is a whole sentence, as in training: it gives what repeated steps give,
but computes W_x x_t for all T steps in one product before the loop starts. Whatever is done for
speed is done here; the cells stay as the textbook has them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.models.cells import CELLS, Cell, State


class Recurrence(nn.Module):
    """L layers of one kind of cell; each layer reads the h of the layer below.

    Args:
        cell: a name in ``CELLS``.
        input_size: width of the input of the first layer.
        hidden_size: H.
        layers: L, at least 1.
        dropout: share of h dropped between layers while training, [0, 1).

    Raises:
        ValueError: no layers.
    """

    def __init__(
        self, *, cell: str, input_size: int, hidden_size: int, layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers} is not accepted; choose 1 or more")
        sizes = [input_size] + [hidden_size] * (layers - 1)
        self.cells = nn.ModuleList(
            CELLS[cell](input_size=size, hidden_size=hidden_size) for size in sizes
        )
        self.dropout = nn.Dropout(dropout)

    def zeros(self, rows: int) -> State:
        """The state before the first step: each tensor [rows, L, H], all zero."""
        return _stack([cell.zeros(rows) for cell in self._layers()])

    def project(self, inputs: Tensor) -> Tensor:
        """What the first layer makes of any inputs: [..., input_size] -> [..., gates * H]."""
        return self._layers()[0].project(inputs)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: x [B, input_size] -> h of the top layer [B, H], and the state after."""
        return self.advance(self.project(x), state)

    def advance(self, projected: Tensor, state: State) -> tuple[Tensor, State]:
        """One step from an input that is projected already, [B, gates * H]; as ``step``."""
        states: list[State] = []
        for layer, cell in enumerate(self._layers()):
            before = _of_layer(state, layer)
            projected = projected if layer == 0 else cell.project(self.dropout(states[-1]["h"]))
            states.append(cell.step(cell.gates(projected, before["h"]), before))
        return states[-1]["h"], _stack(states)

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """A sequence: inputs [B, T, input_size] -> h of the top layer [B, T, H], the last state."""
        states = []
        for layer, cell in enumerate(self._layers()):
            inputs = inputs if layer == 0 else self.dropout(inputs)
            inputs, last = _one_layer(cell, inputs, _of_layer(state, layer))  # [B, T, H]
            states.append(last)
        return inputs, _stack(states)

    def _layers(self) -> list[Cell]:
        return list(self.cells)  # type: ignore[arg-type]


def _one_layer(cell: Cell, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    projected = cell.project(inputs)  # [B, T, gates * H], one product for all T
    outputs = []
    for step_input in projected.unbind(dim=1):
        state = cell.step(cell.gates(step_input, state["h"]), state)
        outputs.append(state["h"])
    return torch.stack(outputs, dim=1), state


def _of_layer(state: State, layer: int) -> State:
    return {name: tensor[:, layer] for name, tensor in state.items()}


def _stack(states: list[State]) -> State:
    return {name: torch.stack([state[name] for state in states], dim=1) for name in states[0]}
