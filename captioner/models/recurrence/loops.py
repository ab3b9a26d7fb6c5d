"""The loops over time of the three cells, forward and backward, in plain torch with ``out=``.

Each cell has four functions of a whole packed sequence, or of one step of it:

    step        one step without gradient, for decoding
    forward     sums A without W_h h -> h of all steps, the last state, and what backward needs
    backward    ∂loss/∂h and ∂loss/∂(last state) -> G = ∂loss/∂A, and the gradients of the state

They run on CPUs and on CUDA, and read nothing from the device: every size is known beforehand.
The equations are those of ``cells.py``; ``fused.py`` has the products that surround the loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captioner.models.matmul import add_product, product
from captioner.models.recurrence.cells import GRU, LSTM, RNN, Cell, State
from captioner.models.sites import Observe
from captioner.models.torch_internals import sigmoid_backward, tanh_backward


def before_each(start: Tensor, outputs: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """h_{t-1} of each step, [N, H]."""
    earlier = [h[:rows] for h, rows in zip(outputs.split(sizes), sizes[1:])]
    return torch.cat([start.to(outputs.dtype), *earlier])


def _tanh_(x: Tensor) -> Tensor:
    """tanh in place; on CPUs tanh_ takes four times as long in bfloat16, with equal results."""
    slow = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    return x.copy_(x.float().tanh_()) if slow else x.tanh_()


def _with_hidden(sums: Tensor, cell: Cell, state: State) -> Tensor:
    """Add W_h h + b_h to sums [B, gates * H], in place."""
    hidden = cell.of_hidden
    if hidden.bias is None and type(hidden) is nn.Linear:
        return add_product(sums, state["h"].to(sums.dtype), hidden.weight.t(), out=sums)
    return sums.add_(hidden(state["h"]))


def ended_each(steps: Sequence[Tensor], sizes: tuple[int, ...]) -> Tensor:
    """The last h of each row, [B, H]."""
    if len(sizes) == 1:
        return steps[0]
    after = [*sizes[1:], 0]
    return torch.cat([step[rows:] for step, rows in zip(steps, after)][::-1])


# The cells ----------------------------------------------------------------------------------------


class Gradients(NamedTuple):
    """The gradients that a backward loop returns.

    Attributes:
        of_input: gradient of W_x x + b_x, [N, gates * H].
        of_hidden: gradient of W_h h + b_h, [N, gates * H]; the same tensor if the two are added.
        of_state: gradients of the initial state, [B, H] each.
    """

    of_input: Tensor
    of_hidden: Tensor
    of_state: list[Tensor]


class _RNN:
    """h_t = tanh(A_t); only h is stored."""

    @staticmethod
    def step(cell: Cell, sums: Tensor, state: State, observe: Observe) -> State:
        candidate = observe("candidate", _tanh_(_with_hidden(sums, cell, state)))
        return {"h": observe("hidden", candidate)}

    @staticmethod
    def forward(sums: Tensor, w_h: Tensor, b_h: Tensor, state: Any, sizes: Any) -> Any:
        steps = sums.add_(b_h).split(sizes)
        h = state[0].to(sums.dtype)
        for rows, step in zip(sizes, steps):
            h = _tanh_(add_product(step, h[:rows], w_h.t(), out=step))
        return sums, [ended_each(steps, sizes)], []

    @staticmethod
    def backward(
        kept: Any, outputs: Tensor, w_h: Tensor, state: Any, gradients: Any, sizes: Any
    ) -> Gradients:
        of_sums = torch.empty_like(outputs)
        hs, of_outputs, gs = (x.split(sizes) for x in (outputs, gradients[0], of_sums))
        of_h = gradients[1].clone()
        for t, rows in reversed([*enumerate(sizes)]):
            now = of_h[:rows].add_(of_outputs[t])
            tanh_backward(now, hs[t], out=gs[t])
            product(gs[t], w_h, out=now)
        return Gradients(of_sums, of_sums, [of_h])


class _GRU:
    """Stores the gates, and W_hn h + b_hn, by which the reset gate is multiplied."""

    @staticmethod
    def step(cell: Cell, sums: Tensor, state: State, observe: Observe) -> State:
        h, width = state["h"], cell.hidden_size
        of_hidden = cell.of_hidden(h)
        r_and_z = sums[:, : 2 * width].add_(of_hidden[:, : 2 * width]).sigmoid_()
        r, z = r_and_z.chunk(2, dim=1)
        r, z = observe("reset_gate", r), observe("update_gate", z)
        n = _tanh_(sums[:, 2 * width :].addcmul_(r, of_hidden[:, 2 * width :]))
        n = observe("candidate", n)
        return {"h": observe("hidden", (h - n).mul_(z).add_(n))}

    @staticmethod
    def forward(sums: Tensor, w_h: Tensor, b_h: Tensor, state: Any, sizes: Any) -> Any:
        width = w_h.shape[1]
        outputs, inside = sums.new_empty(2, len(sums), width)
        hs, insides, r_and_zs = (x.split(sizes) for x in (outputs, inside, sums[:, : 2 * width]))
        rs, zs, ns = (gate.split(sizes) for gate in sums.chunk(3, dim=1))
        products = sums.new_empty(len(state[0]), 3 * width)
        h, running = state[0].to(sums.dtype), state[0].clone()  # rounded; not rounded
        for t, rows in enumerate(sizes):
            of_hidden = add_product(b_h, h[:rows], w_h.t(), out=products[:rows])
            r_and_zs[t].add_(of_hidden[:, : 2 * width]).sigmoid_()
            insides[t].copy_(of_hidden[:, 2 * width :])
            _tanh_(ns[t].addcmul_(rs[t], insides[t]))
            running[:rows].sub_(ns[t]).mul_(zs[t]).add_(ns[t])  # n + z * (h - n)
            h = hs[t].copy_(running[:rows])
        return outputs, [running], [sums, inside]

    @staticmethod
    def backward(
        kept: Any, outputs: Tensor, w_h: Tensor, state: Any, gradients: Any, sizes: Any
    ) -> Gradients:
        gates, inside = kept
        width = w_h.shape[1]
        of_hidden, of_n = torch.empty_like(gates), torch.empty_like(inside)
        befores, insides, of_outputs, gs, of_ns = (
            x.split(sizes)
            for x in (before_each(state[0], outputs, sizes), inside, gradients[0], of_hidden, of_n)
        )
        rs, zs, ns = (gate.split(sizes) for gate in gates.chunk(3, dim=1))
        of_rs, of_zs, of_products = (gate.split(sizes) for gate in of_hidden.chunk(3, dim=1))
        of_h = gradients[1].to(outputs.dtype, copy=True)
        spare = torch.empty_like(of_h)
        for t, rows in reversed([*enumerate(sizes)]):
            now = of_h[:rows].add_(of_outputs[t])
            torch.sub(befores[t], ns[t], out=of_zs[t]).mul_(now)
            sigmoid_backward(of_zs[t], zs[t], out=of_zs[t])
            through = torch.mul(now, zs[t], out=spare[:rows])
            torch.sub(now, through, out=of_ns[t])
            tanh_backward(of_ns[t], ns[t], out=of_ns[t])
            torch.mul(of_ns[t], insides[t], out=of_rs[t])
            sigmoid_backward(of_rs[t], rs[t], out=of_rs[t])
            torch.mul(of_ns[t], rs[t], out=of_products[t])
            add_product(through, gs[t], w_h, out=now)
        of_input = torch.cat([of_hidden[:, : 2 * width], of_n], dim=1)
        return Gradients(of_input, of_hidden, [of_h])


class _LSTM:
    """Stores the gates, c and tanh(c); f and i are adjacent and are computed together."""

    @staticmethod
    def step(cell: Cell, sums: Tensor, state: State, observe: Observe) -> State:
        width = cell.hidden_size
        sums = _with_hidden(sums, cell, state)
        f, i = sums[:, : 2 * width].sigmoid_().chunk(2, dim=1)
        candidate, o = _tanh_(sums[:, 2 * width : 3 * width]), sums[:, 3 * width :].sigmoid_()
        f, i = observe("forget_gate", f), observe("input_gate", i)
        candidate, o = observe("candidate", candidate), observe("output_gate", o)
        c = observe("memory", (f * state["c"]).add_(i * candidate))
        return {"h": observe("hidden", torch.tanh(c).to(o.dtype).mul_(o)), "c": c}

    @staticmethod
    def forward(sums: Tensor, w_h: Tensor, b_h: None, state: Any, sizes: Any) -> Any:
        width = w_h.shape[1]
        outputs, memory, tanh_memory = sums.new_empty(3, len(sums), width)
        hs, cs, tanh_cs = (x.split(sizes) for x in (outputs, memory, tanh_memory))
        steps, f_and_is = (x.split(sizes) for x in (sums, sums[:, : 2 * width]))
        fs, is_, candidates, os = (gate.split(sizes) for gate in sums.chunk(4, dim=1))
        h, c = state[0].to(sums.dtype), state[1].clone()  # c is never rounded
        for t, rows in enumerate(sizes):
            add_product(steps[t], h[:rows], w_h.t(), out=steps[t])
            f_and_is[t].sigmoid_()
            _tanh_(candidates[t])
            os[t].sigmoid_()
            torch.mul(is_[t], candidates[t], out=cs[t])
            now = c[:rows].mul_(fs[t]).add_(cs[t])
            cs[t].copy_(now)
            torch.tanh(now, out=tanh_cs[t])
            h = torch.mul(os[t], tanh_cs[t], out=hs[t])
        return outputs, [ended_each(hs, sizes), c], [sums, memory, tanh_memory]

    @staticmethod
    def backward(
        kept: Any, outputs: Tensor, w_h: Tensor, state: Any, gradients: Any, sizes: Any
    ) -> Gradients:
        gates, memory, tanh_memory = kept
        width = w_h.shape[1]
        of_sums = torch.empty_like(gates)
        cs, tanh_cs, of_outputs, gs = (
            x.split(sizes) for x in (memory, tanh_memory, gradients[0], of_sums)
        )
        fs, is_, candidates, os = (gate.split(sizes) for gate in gates.chunk(4, dim=1))
        of_fs, of_is, of_candidates, of_os = (g.split(sizes) for g in of_sums.chunk(4, dim=1))
        f_and_is, of_f_and_is = (x[:, : 2 * width].split(sizes) for x in (gates, of_sums))
        of_h, of_c = (gradient.clone() for gradient in gradients[1:])
        spare = torch.empty_like(of_h)
        for t, rows in reversed([*enumerate(sizes)]):
            now = of_h[:rows].add_(of_outputs[t])
            torch.mul(now, tanh_cs[t], out=of_os[t])
            sigmoid_backward(of_os[t], os[t], out=of_os[t])
            through = torch.mul(now, os[t], out=spare[:rows])
            tanh_backward(through, tanh_cs[t], out=through)
            through.copy_(of_c[:rows].add_(through))
            torch.mul(through, cs[t - 1][:rows] if t else state[1], out=of_fs[t])
            torch.mul(through, candidates[t], out=of_is[t])
            sigmoid_backward(of_f_and_is[t], f_and_is[t], out=of_f_and_is[t])
            torch.mul(through, is_[t], out=of_candidates[t])
            tanh_backward(of_candidates[t], candidates[t], out=of_candidates[t])
            of_c[:rows].mul_(fs[t])
            product(gs[t], w_h, out=now)
        return Gradients(of_sums, of_sums, [of_h, of_c])


LOOPS: dict[type[Cell], Any] = {RNN: _RNN, GRU: _GRU, LSTM: _LSTM}
"""The loop of each class of cell that has one."""
