"""The loop over time around the equations of a cell, in one or several layers.

``Recurrence.step`` computes one step of all layers, for decoding, where each word depends on the
previous one. ``Recurrence.forward`` computes a whole caption, for training: it is equal to repeated
steps, but computes W_x x_t for all T steps in one product before the loop. ``readable`` is this
loop; ``fused.py`` computes the same faster for the cells that have a loop there, if nothing
observes the steps. The cells themselves are as in the textbook.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from captioner.config import pick
from captioner.models.recurrence import fused
from captioner.models.recurrence.cells import Cell, State
from captioner.models.recurrence.table import CELLS
from captioner.models.sites import Observe, takes_observer, unobserved, within

log = logging.getLogger(__name__)

OneStep = Callable[[Cell, Tensor, State, Observe], State]
"""One step of one cell: its projected input [B, gates * H] and the previous state -> the next."""

_OFF = "Recurrence.fused is False"


class Recurrence(nn.Module):
    """L layers of one kind of cell; the input of each layer is the h of the layer below.

    Args:
        cell: a name in ``CELLS``.
        input_size: width of the input of the first layer.
        hidden_size: H.
        layers: L, at least 1.
        dropout: probability of dropout for h between layers, [0, 1).

    Raises:
        ValueError: no layers.
    """

    fused = True
    """Whether ``fused.py`` may be used; False: always the readable loop."""

    def __init__(
        self, *, cell: str, input_size: int, hidden_size: int, layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers} is not accepted; choose 1 or more")
        sizes = [input_size] + [hidden_size] * (layers - 1)
        kind = pick(CELLS, cell, "decoder.cell", Cell)
        self.cells = nn.ModuleList(kind(input_size=size, hidden_size=hidden_size) for size in sizes)
        self.dropout = nn.Dropout(dropout)

    def zeros(self, rows: int) -> State:
        """The initial state: each tensor [rows, L, H], all zero.

        Under autocast the state is in float32 or better, even if the weights are in bfloat16 for
        decoding: states are not rounded.
        """
        zeros = _stack([cell.zeros(rows) for cell in self._layers()])
        if not torch.is_autocast_enabled(zeros["h"].device.type):
            return zeros
        wide = torch.promote_types(zeros["h"].dtype, torch.float32)
        return {name: zero.to(wide) for name, zero in zeros.items()}

    def filled(self, values: Tensor) -> State:
        """A state with these values, [rows, tensors * L * H], in the order of ``zeros``."""
        zeros = self.zeros(len(values))
        parts = values.chunk(len(zeros), dim=1)  # [rows, L * H] each
        return {
            name: part.reshape(zero.shape).to(zero.dtype)
            for (name, zero), part in zip(zeros.items(), parts)
        }

    def own(self, state: State) -> State:
        """The tensors of a decoder's state that belong to this recurrence."""
        return {name: state[name] for name in self.first.state_names}

    @property
    def first(self) -> Cell:
        """The cell of the first layer."""
        return self._layers()[0]

    @property
    def state_size(self) -> int:
        """Number of values in a row of the state: tensors * L * H."""
        return len(self.first.state_names) * len(self.cells) * self.first.hidden_size

    def project(self, inputs: Tensor) -> Tensor:
        """The first layer's W_x x + b: [..., input_size] -> [..., gates * H]."""
        return self.first.project(inputs)

    def step(self, x: Tensor, state: State, observe: Observe = unobserved) -> tuple[Tensor, State]:
        """One step: x [B, input_size] -> h of the last layer [B, H], and the next state."""
        return self.advance(self.project(x), state, observe)

    def advance(
        self,
        projected: Tensor,
        state: State,
        observe: Observe = unobserved,
        *,
        step_cell: OneStep | None = None,
    ) -> tuple[Tensor, State]:
        """As ``step``, for an input that is already projected, [B, gates * H].

        Args:
            observe: is called with the values of every layer (``sites.py``), as those of "cell".
            step_cell: computes the step of one cell; None: the methods of the cell.
        """
        states: list[State] = []
        for layer, cell in enumerate(self._layers()):
            before = _of_layer(state, layer)
            projected = projected if layer == 0 else cell.project(self.dropout(states[-1]["h"]))
            of_layer = within(observe, "cell", layer)
            if observe is not unobserved:  # then a copy: a fast step overwrites its input
                projected = of_layer("input", projected).clone()
            states.append((step_cell or step_as_written)(cell, projected, before, of_layer))
        return states[-1]["h"], _stack(states)

    def quickest(self) -> OneStep | None:
        """The fastest step without gradient, for ``advance`` of a copy made by ``laid_out``.

        It overwrites the projected input. None: the readable step.
        """
        for cell in self._layers():
            obstacle = fused.obstacle(cell, cell.of_hidden.weight) if self.fused else _OFF
            if obstacle is not None:
                log.debug("the readable step runs: %s", obstacle)
                return None
        return fused.step

    def forward(
        self, inputs: Tensor, state: State, *, sizes: tuple[int, ...] | None = None
    ) -> tuple[Tensor, State]:
        """A sequence: inputs [B, T, input_size] -> h of the last layer [B, T, H], the last state.

        Args:
            inputs: padded; or, with `sizes`, only the N real tokens, [N, input_size], packed step
                by step (``packing.py``); h is then packed in the same way.
            state: before the first step; with `sizes` its rows are sorted, longest first.
            sizes: number of rows of each step; non-increasing, the first is B.
        """
        if sizes is None:
            rows, steps = inputs.shape[:2]
            inputs = inputs.transpose(0, 1).flatten(0, 1)  # [T * B, input_size]
            h, last = self.forward(inputs, state, sizes=(rows,) * steps)
            return h.unflatten(0, (steps, rows)).transpose(0, 1), last  # [B, T, H]
        states = []
        for layer, cell in enumerate(self._layers()):
            inputs = inputs if layer == 0 else self.dropout(inputs)
            inputs, last = self._one_layer(cell, inputs, _of_layer(state, layer), sizes)  # [N, H]
            states.append(last)
        return inputs, _stack(states)

    def _one_layer(
        self, cell: Cell, inputs: Tensor, state: State, sizes: tuple[int, ...]
    ) -> tuple[Tensor, State]:
        obstacle = fused.obstacle(cell, inputs) if self.fused else _OFF
        if obstacle is None:
            return fused.run(cell, inputs, state, sizes, readable=readable)
        log.debug("the readable loop runs: %s", obstacle)
        return readable(cell, inputs, state, sizes)

    def _layers(self) -> list[Cell]:
        return list(self.cells)  # type: ignore[arg-type]


def step_as_written(
    cell: Cell, projected: Tensor, state: State, observe: Observe = unobserved
) -> State:
    """The step of a cell by its own methods, as the textbook writes it.

    Raises:
        ValueError: the values of a cell are to be observed whose methods do not allow it.
    """
    if observe is unobserved:
        return cell.step(cell.gates(projected, state), state)
    if not (takes_observer(cell.gates) and takes_observer(cell.step)):
        raise ValueError(
            f"{type(cell).__name__} cannot be traced: gates and step must take `observe`, as those "
            "of captioner.models.recurrence.cells.LSTM do"
        )
    return cell.step(cell.gates(projected, state, observe), state, observe)


def readable(
    cell: Cell, inputs: Tensor, state: State, sizes: tuple[int, ...]
) -> tuple[Tensor, State]:
    """The loop: packed inputs [N, input_size] -> h [N, H], and the last state of each row."""
    outputs, ended = [], []
    for step_input in cell.project(inputs).split(sizes):  # [rows of this step, gates * H]
        rows = len(step_input)
        ended.append({name: tensor[rows:] for name, tensor in state.items()})
        state = {name: tensor[:rows] for name, tensor in state.items()}
        state = step_as_written(cell, step_input, state)
        outputs.append(state["h"])
    last = [state, *reversed(ended)]
    states = {name: torch.cat([part[name] for part in last]) for name in state}  # [B, H] each
    return torch.cat(outputs), states  # [N, H]


def _of_layer(state: State, layer: int) -> State:
    return {name: tensor[:, layer] for name, tensor in state.items()}


def _stack(states: list[State]) -> State:
    if len(states) == 1:
        return {name: tensor.unsqueeze(1) for name, tensor in states[0].items()}
    return {name: torch.stack([s[name] for s in states], dim=1) for name in states[0]}  # [B, L, H]
