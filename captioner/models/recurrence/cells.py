"""Recurrent cells: the equations of one step, as the textbook writes them.

A recurrent network passes a state from step to step and combines it with the input x_t. Cells
differ only inside a step; the loop around them is the same (``unroll.py``). All other cells
(``variants.py``) are variants of these three.

RNN (Elman, 1990):

    h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

LSTM (Hochreiter & Schmidhuber, 1997; forget gate: Gers et al., 2000), with a second state, C:

    f_t  = σ(W_f [h_{t-1}, x_t] + b_f)          what to keep of C_{t-1}
    i_t  = σ(W_i [h_{t-1}, x_t] + b_i)          what to write
    C~_t = tanh(W_C [h_{t-1}, x_t] + b_C)       what could be written
    C_t  = f_t * C_{t-1} + i_t * C~_t
    o_t  = σ(W_o [h_{t-1}, x_t] + b_o)          what to output
    h_t  = o_t * tanh(C_t)

GRU (Cho et al., 2014; the candidate as in cuDNN, with its bias inside the reset):

    r_t  = σ(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
    z_t  = σ(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
    n_t  = tanh(W_in x_t + b_in + r_t * (W_hn h_{t-1} + b_hn))
    h_t  = (1 - z_t) * n_t + z_t * h_{t-1}

A product with a concatenation is a sum of products: W [h, x] = W_h h + W_x x. The cells store W_x
(``of_input``) and W_h (``of_hidden``) separately, all gates stacked, because W_x x_t needs no
earlier step: ``project`` computes it for a whole sentence at once. Each gate and each part of the
state is observed as soon as it is computed (``sites.py``), so that inspecting or changing a trained
model needs no hooks.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from captioner.models.sites import Observe, unobserved

State = dict[str, Tensor]
"""The tensors that a cell passes to its next step, by name: h [B, H], and c [B, H] in an LSTM."""


class RNNGates(NamedTuple):
    """The RNN has no gates; its candidate is the new h. [B, H]"""

    candidate: Tensor


class LSTMGates(NamedTuple):
    """f, i, C~ and o of one step, each [B, H]; f, i, o in (0, 1), the candidate in (-1, 1)."""

    f: Tensor
    i: Tensor
    candidate: Tensor
    o: Tensor


class GRUGates(NamedTuple):
    """r, z and the candidate n of one step, each [B, H]; r, z in (0, 1), n in (-1, 1)."""

    r: Tensor
    z: Tensor
    candidate: Tensor


class Cell(nn.Module):
    """One step of a recurrence: ``project`` the input, compute the ``gates``, ``step`` the state.

    ``gate_names`` are the gates that have weights, in the order in which these are stacked;
    ``state_names`` are the tensors that a step passes to the next. ``captioner.testing.check_cell``
    tests a class against this contract.

    Args:
        input_size: width of x_t.
        hidden_size: H, width of h_t.
        hidden_bias: whether W_h h_{t-1} has a bias of its own (b_hh).
        hidden_gates: number of gates, from the first on, that multiply h_{t-1} by W_h; None: all.
    """

    gate_names: ClassVar[tuple[str, ...]]
    state_names: ClassVar[tuple[str, ...]] = ("h",)

    def __init__(
        self,
        *,
        input_size: int,
        hidden_size: int,
        hidden_bias: bool = False,
        hidden_gates: int | None = None,
    ) -> None:
        super().__init__()
        gates = len(self.gate_names)
        self.hidden_size = hidden_size
        self.of_input = nn.Linear(input_size, gates * hidden_size)
        self.of_hidden = nn.Linear(
            hidden_size, (hidden_gates or gates) * hidden_size, bias=hidden_bias
        )
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def project(self, inputs: Tensor) -> Tensor:
        """W_x x + b for any number of steps at once: [..., input_size] -> [..., gates * H].

        The result is linear in x: decoders add the terms of other inputs to it before the gates.
        """
        return self.of_input(inputs)

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> Any:
        """The gates of one step, from the projected input [B, gates * H] and the previous state.

        Args:
            observe: is called with each gate, by the name of its site without "cell.".

        Returns:
            a NamedTuple with everything that ``step`` needs, [B, H] each.
        """
        raise NotImplementedError

    def step(self, gates: Any, state: State, observe: Observe = unobserved) -> State:
        """The next state, from the gates and the previous state.

        Args:
            observe: is called with "memory", C_t, if there is one, then with "hidden", h_t.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, state: State) -> State:
        """One whole step: x_t [B, input_size] and the previous state -> the next state."""
        return self.step(self.gates(self.project(x), state), state)

    def zeros(self, rows: int) -> State:
        """The initial state: h (and c) at zero, [rows, H]."""
        weight = self.of_hidden.weight
        return {name: weight.new_zeros(rows, self.hidden_size) for name in self.state_names}


class RNN(Cell):
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) (Elman, 1990)."""

    gate_names = ("candidate",)

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size, hidden_bias=True)

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> RNNGates:
        candidate = torch.tanh(projected + self.of_hidden(state["h"]))
        return RNNGates(observe("candidate", candidate))

    def step(self, gates: RNNGates, state: State, observe: Observe = unobserved) -> State:
        return {"h": observe("hidden", gates.candidate)}


class LSTM(Cell):
    """The LSTM with a forget gate (Hochreiter & Schmidhuber, 1997; Gers et al., 2000).

    The bias of the forget gate is initialized to 1, so that the cell remembers from the start
    (Jozefowicz et al., 2015).
    """

    gate_names: ClassVar[tuple[str, ...]] = ("f", "i", "candidate", "o")
    state_names = ("h", "c")

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size)
        if self.gate_names[0] == "f":
            nn.init.ones_(self.of_input.bias[:hidden_size])

    def sums(self, projected: Tensor, state: State) -> tuple[Tensor, ...]:
        """The pre-activations W [h_{t-1}, x_t] + b of the gates, [B, H] each."""
        return (projected + self.of_hidden(state["h"])).chunk(len(self.gate_names), dim=-1)

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> LSTMGates:
        f, i, candidate, o = self.sums(projected, state)
        f = observe("forget_gate", torch.sigmoid(f))
        i = observe("input_gate", torch.sigmoid(i))
        candidate = observe("candidate", torch.tanh(candidate))
        o = observe("output_gate", torch.sigmoid(o))
        return LSTMGates(f, i, candidate, o)

    def step(self, gates: LSTMGates, state: State, observe: Observe = unobserved) -> State:
        f, i, candidate, o = gates
        c = observe("memory", f * state["c"] + i * candidate)
        h = observe("hidden", o * self.output(c))
        return {"h": h, "c": c}

    def output(self, c: Tensor) -> Tensor:
        """What the output gate multiplies: tanh(C_t)."""
        return torch.tanh(c)


class GRU(Cell):
    """The gated recurrent unit (Cho et al., 2014)."""

    gate_names = ("r", "z", "candidate")

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size, hidden_bias=True)

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> GRUGates:
        r_input, z_input, n_input = projected.chunk(3, dim=-1)
        r_hidden, z_hidden, n_hidden = self.of_hidden(state["h"]).chunk(3, dim=-1)
        r = observe("reset_gate", torch.sigmoid(r_input + r_hidden))
        z = observe("update_gate", torch.sigmoid(z_input + z_hidden))
        return GRUGates(r, z, observe("candidate", torch.tanh(n_input + r * n_hidden)))

    def step(self, gates: GRUGates, state: State, observe: Observe = unobserved) -> State:
        h = (1 - gates.z) * gates.candidate + gates.z * state["h"]
        return {"h": observe("hidden", h)}
