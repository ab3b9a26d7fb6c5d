"""Variants of the three cells, which show the effect of each part of a recurrence.

Each class defines only what differs from the cell that it varies (``cells.py``). Most variants of
the LSTM are those of Greff et al., "LSTM: A Search Space Odyssey", 2017, who found that they all
perform about equally well, except those without the forget gate or the tanh before the output.
Their LSTM has peepholes; the LSTM here has none, as is common today.

A gate that a variant sets to 1 is returned as well, so that all LSTMs can be inspected equally.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioner.models.recurrence.cells import LSTM, RNN, Cell, GRUGates, LSTMGates, RNNGates, State
from captioner.models.sites import Observe, unobserved

# Without gates ------------------------------------------------------------------------------------


class IRNN(RNN):
    """An RNN that remembers from the start: ReLU, and W_hh the identity (Le et al., 2015).

        h_t = max(0, W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

    At first h is the sum of the inputs, and its gradient neither vanishes nor explodes. Biases are
    initialized to 0 and W_ih, as in the paper, close to 0.
    """

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size)
        nn.init.normal_(self.of_input.weight, std=0.001)
        nn.init.eye_(self.of_hidden.weight)
        nn.init.zeros_(self.of_input.bias)
        nn.init.zeros_(self.of_hidden.bias)

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> RNNGates:
        candidate = torch.relu(projected + self.of_hidden(state["h"]))
        return RNNGates(observe("candidate", candidate))


# A gate before the product ------------------------------------------------------------------------


class _GatesFirst(Cell):
    """A cell that applies a gate to h_{t-1} before the product (``of_gated``) of its candidate."""

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        gates = len(self.gate_names) - 1
        super().__init__(input_size=input_size, hidden_size=hidden_size, hidden_gates=gates)
        self.of_gated = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.uniform_(self.of_gated.weight, -(hidden_size**-0.5), hidden_size**-0.5)


class ResetFirstGRU(_GatesFirst):
    """The GRU as in the paper (Cho et al., 2014), which resets h before the product.

        r_t  = σ(W_r [h_{t-1}, x_t] + b_r)
        z_t  = σ(W_z [h_{t-1}, x_t] + b_z)
        n_t  = tanh(W_n [r_t * h_{t-1}, x_t] + b_n)
        h_t  = (1 - z_t) * n_t + z_t * h_{t-1}

    cuDNN resets after the product, so that one product serves all three.
    """

    gate_names = ("r", "z", "candidate")

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> GRUGates:
        h = state["h"]
        r_input, z_input, n_input = projected.chunk(3, dim=-1)
        r_hidden, z_hidden = self.of_hidden(h).chunk(2, dim=-1)
        r = observe("reset_gate", torch.sigmoid(r_input + r_hidden))
        z = observe("update_gate", torch.sigmoid(z_input + z_hidden))
        return GRUGates(r, z, observe("candidate", torch.tanh(n_input + self.of_gated(r * h))))

    def step(self, gates: GRUGates, state: State, observe: Observe = unobserved) -> State:
        h = (1 - gates.z) * gates.candidate + gates.z * state["h"]
        return {"h": observe("hidden", h)}


class MGUGates(NamedTuple):
    """f and the candidate of one step, each [B, H]; f in (0, 1), the candidate in (-1, 1)."""

    f: Tensor
    candidate: Tensor


class MGU(_GatesFirst):
    """The minimal gated unit: one gate both resets and updates (Zhou et al., 2016).

    f_t  = σ(W_f [h_{t-1}, x_t] + b_f)
    n_t  = tanh(W_n [f_t * h_{t-1}, x_t] + b_n)
    h_t  = (1 - f_t) * h_{t-1} + f_t * n_t
    """

    gate_names = ("f", "candidate")

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> MGUGates:
        h = state["h"]
        f_input, n_input = projected.chunk(2, dim=-1)
        f = observe("forget_gate", torch.sigmoid(f_input + self.of_hidden(h)))
        return MGUGates(f, observe("candidate", torch.tanh(n_input + self.of_gated(f * h))))

    def step(self, gates: MGUGates, state: State, observe: Observe = unobserved) -> State:
        h = (1 - gates.f) * state["h"] + gates.f * gates.candidate
        return {"h": observe("hidden", h)}


# LSTMs with more ----------------------------------------------------------------------------------


class PeepholeLSTM(LSTM):
    """The gates read the memory C as well (Gers & Schmidhuber, 2000).

        f_t  = σ(W_f [h_{t-1}, x_t] + p_f * C_{t-1} + b_f)
        i_t  = σ(W_i [h_{t-1}, x_t] + p_i * C_{t-1} + b_i)
        o_t  = σ(W_o [h_{t-1}, x_t] + p_o * C_t + b_o)

    A peephole is one weight for each of the H units: a gate reads only its own unit's memory.
    """

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size)
        self.peepholes = nn.Parameter(torch.empty(3 * hidden_size))  # of f, i and o
        nn.init.uniform_(self.peepholes, -(hidden_size**-0.5), hidden_size**-0.5)

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> LSTMGates:
        c = state["c"]
        f, i, candidate, o = self.sums(projected, state)
        p_f, p_i, p_o = self.peepholes.chunk(3)
        f = observe("forget_gate", torch.sigmoid(f + p_f * c))
        i = observe("input_gate", torch.sigmoid(i + p_i * c))
        candidate = observe("candidate", torch.tanh(candidate))
        o = torch.sigmoid(o + p_o * (f * c + i * candidate))  # C_t, as ``step`` will compute it
        return LSTMGates(f, i, candidate, observe("output_gate", o))


class LayerNormLSTM(LSTM):
    """Pre-activations are normalized over the units of the layer (Ba et al., 2016, eq. 20 to 22).

        sums  = g_x * norm(W_x x_t) + g_h * norm(W_h h_{t-1}) + b        inside f, i, C~ and o
        h_t   = o_t * tanh(g_C * norm(C_t) + b_C)

    norm(a) = (a - mean(a)) / sqrt(var(a) + 1e-5), over all 4 H sums together, as in the paper. The
    paper adds up three biases; here there is one.
    """

    def __init__(self, *, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size=input_size, hidden_size=hidden_size)
        self.bias = self.of_input.bias  # added after the norm, not before
        self.of_input.register_parameter("bias", None)
        self.norm_input = nn.LayerNorm(4 * hidden_size, bias=False)
        self.norm_hidden = nn.LayerNorm(4 * hidden_size, bias=False)
        self.norm_memory = nn.LayerNorm(hidden_size)

    def sums(self, projected: Tensor, state: State) -> tuple[Tensor, ...]:
        of_hidden = self.norm_hidden(self.of_hidden(state["h"]))
        return (self.norm_input(projected) + of_hidden + self.bias).chunk(4, dim=-1)

    def output(self, c: Tensor) -> Tensor:
        return torch.tanh(self.norm_memory(c))


# LSTMs with less ----------------------------------------------------------------------------------


class CoupledLSTM(LSTM):
    """Coupled input and forget gates: i_t = 1 - f_t (Greff et al., "CIFG").

        C_t = f_t * C_{t-1} + (1 - f_t) * C~_t

    C therefore stays between -1 and 1, as the h of a GRU does.
    """

    gate_names = ("f", "candidate", "o")

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> LSTMGates:
        f, candidate, o = self.sums(projected, state)
        f = observe("forget_gate", torch.sigmoid(f))
        i = observe("input_gate", 1 - f)
        candidate = observe("candidate", torch.tanh(candidate))
        return LSTMGates(f, i, candidate, observe("output_gate", torch.sigmoid(o)))


class NoForgetLSTM(LSTM):
    """f_t = 1: the LSTM of Hochreiter & Schmidhuber (1997), whose memory only accumulates.

    C_t = C_{t-1} + i_t * C~_t
    """

    gate_names = ("i", "candidate", "o")

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> LSTMGates:
        i, candidate, o = self.sums(projected, state)
        f = observe("forget_gate", torch.ones_like(i))
        i = observe("input_gate", torch.sigmoid(i))
        candidate = observe("candidate", torch.tanh(candidate))
        return LSTMGates(f, i, candidate, observe("output_gate", torch.sigmoid(o)))


class NoInputLSTM(LSTM):
    """i_t = 1: candidates are written without a gate (Greff et al., "NIG").

    C_t = f_t * C_{t-1} + C~_t
    """

    gate_names = ("f", "candidate", "o")

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> LSTMGates:
        f, candidate, o = self.sums(projected, state)
        f = observe("forget_gate", torch.sigmoid(f))
        i = observe("input_gate", torch.ones_like(f))
        candidate = observe("candidate", torch.tanh(candidate))
        return LSTMGates(f, i, candidate, observe("output_gate", torch.sigmoid(o)))


class NoOutputLSTM(LSTM):
    """o_t = 1: the memory is output without a gate (Greff et al., "NOG").

    h_t = tanh(C_t)
    """

    gate_names = ("f", "i", "candidate")

    def gates(self, projected: Tensor, state: State, observe: Observe = unobserved) -> LSTMGates:
        f, i, candidate = self.sums(projected, state)
        f = observe("forget_gate", torch.sigmoid(f))
        i = observe("input_gate", torch.sigmoid(i))
        candidate = observe("candidate", torch.tanh(candidate))
        return LSTMGates(f, i, candidate, observe("output_gate", torch.ones_like(f)))


class NoOutputTanhLSTM(LSTM):
    """The memory, which may be large, is output without tanh (Greff et al., "NOAF").

    h_t = o_t * C_t
    """

    def output(self, c: Tensor) -> Tensor:
        return c
