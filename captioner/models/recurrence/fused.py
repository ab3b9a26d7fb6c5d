"""The loops of the three cells with explicit gradients, which ``unroll.py`` uses on CPUs.

Autograd over the readable loop stores a dozen small tensors per step and computes the gradients of
the weights step by step. Here the gates overwrite their pre-activations, and the loop contains only
what depends on the previous step. X are all N inputs, A the pre-activations, and G = ∂loss/∂A:

    forward     A = X W_x^T + b                           one product for all steps
                A_t += h_{t-1} W_h^T, then the gates      one product per step
    backward    G_t from ∂h_t, then ∂h_{t-1} = G_t W_h    one product per step
                ∂X = G W_x, ∂W_x = G^T X, ∂W_h = G^T H    one product each for all, H = h_{t-1}

Rows are packed step by step, longest first, as in ``packing.py``: the batch shrinks as captions
end. In bfloat16 the products and the gates are rounded; the weights, the c of an LSTM and the
running h of a GRU remain in float32.

The equations are those of ``cells.py``; a test checks that outputs and all gradients are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captioner.models.matmul import add_product, product
from captioner.models.recurrence.cells import GRU, LSTM, RNN, Cell, State
from captioner.models.sites import Observe, unobserved
from captioner.models.torch_internals import (
    has_hooks,
    is_transformed,
    sigmoid_backward,
    tanh_backward,
)

Unrolled = Callable[[Cell, Tensor, State, tuple[int, ...]], tuple[Tensor, State]]
"""A loop: cell, packed inputs [N, input_size], state, sizes -> h [N, H], the last state."""


def run(
    cell: Cell, inputs: Tensor, state: State, sizes: tuple[int, ...], *, readable: Unrolled
) -> tuple[Tensor, State]:
    """A whole sequence: packed inputs [N, input_size] -> h [N, H], and the last state of each row.

    Under autocast the outputs have its dtype, like those of a linear layer.

    Args:
        cell: its class must be in ``LOOPS``.
        inputs: packed step by step, rows sorted, longest first.
        state: before the first step, [B, H] each, rows in the same order.
        sizes: number of rows of each step; non-increasing, the first is B.
        readable: the same loop under autograd, for gradients of gradients.
    """
    x, h = cell.of_input, cell.of_hidden
    before = [state[name] for name in cell.state_names]
    setting = _Setting(cell, sizes, _dtype(inputs), readable)
    outputs, *last = _Sequence.apply(setting, inputs, x.weight, x.bias, h.weight, h.bias, *before)
    return outputs, dict(zip(cell.state_names, last))


@torch.no_grad()
def step(cell: Cell, projected: Tensor, state: State, observe: Observe = unobserved) -> State:
    """One step without gradient; it overwrites the projected input [B, gates * H]."""
    return LOOPS[type(cell)].step(cell, projected, state, observe)


def obstacle(cell: Cell, inputs: Tensor) -> str | None:
    """Why these loops cannot replace the readable one here; None if they can."""
    linears = (cell.of_input, cell.of_hidden)
    dtype = _dtype(inputs)
    autocast = torch.is_autocast_enabled(inputs.device.type)
    accepted = {dtype, torch.float32} if autocast else {dtype}
    dtypes = {inputs.dtype, *(parameter.dtype for parameter in cell.parameters())}
    if type(cell) not in LOOPS:
        return f"{type(cell).__name__} has no loop of its own"
    if inputs.device.type != "cpu":
        return f"the loops are for CPUs, the inputs are on {inputs.device}"
    if dtype not in (torch.float32, torch.float64, torch.bfloat16) or dtypes - accepted:
        return f"dtypes are {', '.join(sorted(map(str, dtypes)))}"
    if any(type(linear) is not nn.Linear or has_hooks(linear) for linear in linears):
        return "of_input or of_hidden is changed or has hooks"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "the model is being compiled or exported"
    if is_transformed():
        return "torch.func transforms it"
    return None


def _dtype(inputs: Tensor) -> torch.dtype:
    """The dtype of the products: that of the inputs, or autocast's."""
    device = inputs.device.type
    if inputs.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return inputs.dtype


class _Setting(NamedTuple):
    """The arguments of a sequence that are not tensors."""

    cell: Cell
    sizes: tuple[int, ...]
    dtype: torch.dtype
    readable: Unrolled


class _Sequence(torch.autograd.Function):
    """The product with all inputs, a loop, and the products for the gradients."""

    @staticmethod
    def forward(ctx: Any, setting: _Setting, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(tensors[0].device.type, enabled=False):
            x, w_x, b_x, w_h, b_h = (t if t is None else t.to(setting.dtype) for t in tensors[:5])
            sums = add_product(b_x, x, w_x.t())  # [N, gates * H]
            loop = LOOPS[type(setting.cell)]
            outputs, last, kept = loop.forward(sums, w_h, b_h, tensors[5:], setting.sizes)
        ctx.setting, ctx.given = setting, len(tensors)
        ctx.save_for_backward(*tensors, x, w_x, w_h, outputs, *kept)
        return (outputs, *last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        setting, tensors = ctx.setting, ctx.saved_tensors[: ctx.given]
        needed = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # for gradients of gradients
            return (None, *_differentiable(setting, tensors, gradients, needed))
        x, w_x, w_h, outputs, *kept = ctx.saved_tensors[ctx.given :]
        with torch.autocast(x.device.type, enabled=False):
            loop = LOOPS[type(setting.cell)]
            of_x, of_h, of_state = loop.backward(
                kept, outputs, w_h, tensors[5:], gradients, setting.sizes
            )
            before = _before(tensors[5], outputs, setting.sizes)
            results = [
                product(of_x, w_x) if needed[0] else None,
                product(of_x.t(), x) if needed[1] else None,
                of_x.sum(0) if needed[2] else None,
                product(of_h.t(), before) if needed[3] else None,
                of_h.sum(0) if needed[4] else None,
                *of_state,
            ]
        return (None, *(g if g is None else g.to(t.dtype) for g, t in zip(results, tensors)))


def _differentiable(
    setting: _Setting,
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients by autograd from the readable loop, themselves differentiable."""
    state = dict(zip(setting.cell.state_names, tensors[5:]))
    half = setting.dtype != tensors[1].dtype  # the dtype of the weights
    with torch.autocast(tensors[0].device.type, setting.dtype if half else None, enabled=half):
        outputs, last = setting.readable(setting.cell, tensors[0], state, setting.sizes)
    gradients_needed = iter(
        torch.autograd.grad(
            (outputs, *last.values()),
            [tensor for tensor, is_needed in zip(tensors, needed) if is_needed],
            [g.to(o.dtype) for g, o in zip(gradients, (outputs, *last.values()))],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(gradients_needed) if is_needed else None for is_needed in needed]


def _before(start: Tensor, outputs: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """h_{t-1} of each step, [N, H]."""
    earlier = [h[:rows] for h, rows in zip(outputs.split(sizes), sizes[1:])]
    return torch.cat([start.to(outputs.dtype), *earlier])


def _tanh_(x: Tensor) -> Tensor:
    """tanh in place; torch's tanh_ takes four times as long in bfloat16, with equal results."""
    return x.copy_(x.float().tanh_()) if x.dtype == torch.bfloat16 else x.tanh_()


def _with_hidden(sums: Tensor, cell: Cell, state: State) -> Tensor:
    """Add W_h h + b_h to sums [B, gates * H], in place."""
    hidden = cell.of_hidden
    if hidden.bias is None and type(hidden) is nn.Linear:
        return add_product(sums, state["h"].to(sums.dtype), hidden.weight.t(), out=sums)
    return sums.add_(hidden(state["h"]))


def _ended(steps: Sequence[Tensor], sizes: tuple[int, ...]) -> Tensor:
    """The last h of each row, [B, H]."""
    if len(sizes) == 1:
        return steps[0]
    after = [*sizes[1:], 0]
    return torch.cat([step[rows:] for step, rows in zip(steps, after)][::-1])


# The cells ----------------------------------------------------------------------------------------


class _Gradients(NamedTuple):
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
        return sums, [_ended(steps, sizes)], []

    @staticmethod
    def backward(
        kept: Any, outputs: Tensor, w_h: Tensor, state: Any, gradients: Any, sizes: Any
    ) -> _Gradients:
        of_sums = torch.empty_like(outputs)
        hs, of_outputs, gs = (x.split(sizes) for x in (outputs, gradients[0], of_sums))
        of_h = gradients[1].clone()
        for t, rows in reversed([*enumerate(sizes)]):
            now = of_h[:rows].add_(of_outputs[t])
            tanh_backward(now, hs[t], out=gs[t])
            product(gs[t], w_h, out=now)
        return _Gradients(of_sums, of_sums, [of_h])


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
    ) -> _Gradients:
        gates, inside = kept
        width = w_h.shape[1]
        of_hidden, of_n = torch.empty_like(gates), torch.empty_like(inside)
        befores, insides, of_outputs, gs, of_ns = (
            x.split(sizes)
            for x in (_before(state[0], outputs, sizes), inside, gradients[0], of_hidden, of_n)
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
        return _Gradients(of_input, of_hidden, [of_h])


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
        return outputs, [_ended(hs, sizes), c], [sums, memory, tanh_memory]

    @staticmethod
    def backward(
        kept: Any, outputs: Tensor, w_h: Tensor, state: Any, gradients: Any, sizes: Any
    ) -> _Gradients:
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
        return _Gradients(of_sums, of_sums, [of_h, of_c])


LOOPS: dict[type[Cell], Any] = {RNN: _RNN, GRU: _GRU, LSTM: _LSTM}
"""The loop of each class of cell that has one."""
