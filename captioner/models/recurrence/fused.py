"""A whole sequence of the three cells with explicit gradients, on CPUs and on CUDA.

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

The loops are in ``loops.py``, the equations in ``cells.py``; a test checks that outputs and all
gradients are equal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captioner.models.matmul import add_product, product
from captioner.models.recurrence import graphs
from captioner.models.recurrence.cells import Cell, State
from captioner.models.recurrence.loops import LOOPS, before_each
from captioner.models.sites import Observe, unobserved
from captioner.models.torch_internals import has_hooks, is_transformed

Unrolled = Callable[[Cell, Tensor, State, tuple[int, ...]], tuple[Tensor, State]]
"""A loop: cell, packed inputs [N, input_size], state, sizes -> h [N, H], the last state."""

DEVICES = ("cpu", "cuda", "meta")
"""Kinds of devices on which the loops run; tensors on "meta" have a shape and no values."""


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
    if inputs.device.type not in DEVICES:
        return f"the loops are for CPUs and CUDA, the inputs are on {inputs.device}"
    if dtype not in (torch.float32, torch.float64, torch.bfloat16) or dtypes - accepted:
        return f"dtypes are {', '.join(sorted(map(str, dtypes)))}"
    if any(type(linear) is not nn.Linear or has_hooks(linear) for linear in linears):
        return "of_input or of_hidden is changed or has hooks"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "the model is being compiled or exported"
    if is_transformed():
        return "torch.func transforms it"
    return None


CHOICE = "CAPTIONER_CUDA_LOOP"
"""The environment variable that selects the loop on CUDA: a name in ``CHOICES``."""

CHOICES = ("plain", "triton", "graphs")
"""The loops on CUDA: of ``loops.py``; with Triton, where it is installed; and the latter, or else
the former, as CUDA graphs in training. The first is the default until a GPU has measured them."""


def loop_of(cell: Cell, tensor: Tensor) -> Any:
    """The loop that computes a cell, for the device and the dtype of a tensor.

    Raises:
        ValueError: ``CHOICE`` is not in ``CHOICES``.
    """
    if tensor.device.type == "cuda" and _chosen() != "plain" and find_spec("triton"):
        from captioner.models.recurrence import triton_loops

        if tensor.dtype in triton_loops.DTYPES:
            return triton_loops.LOOPS[type(cell)]
    return LOOPS[type(cell)]


def _chosen() -> str:
    chosen = os.environ.get(CHOICE, CHOICES[0])
    if chosen not in CHOICES:
        raise ValueError(f"{CHOICE}={chosen!r} is not known; choose {', '.join(CHOICES)}")
    return chosen


def loop_for(setting: _Setting, learns: bool, *given: Any) -> Any:
    """The loop for a sequence: that of the cell, or a CUDA graph of it.

    Args:
        setting: of the sequence.
        learns: whether a gradient is needed.
        given: sums, w_h, b_h and the state.
    """
    cell, sums = setting.cell, given[0]
    loop = loop_of(cell, sums)
    if not graphs_on(sums, learns=learns):
        return loop
    return graphs.GRAPHS.loop(loop, type(cell), given, setting.sizes)


def graphs_on(tensor: Tensor, *, learns: bool | None = None) -> bool:
    """Whether the loop over these inputs is to be a CUDA graph.

    Args:
        tensor: of the inputs.
        learns: whether a gradient is needed; None: if gradients are enabled.
    """
    if tensor.device.type != "cuda" or _chosen() != "graphs" or torch.is_inference_mode_enabled():
        return False
    if not (torch.is_grad_enabled() if learns is None else learns):
        return False
    return not torch.cuda.is_current_stream_capturing()  # the whole step is being captured


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
        device = tensors[0].device.type
        with torch.autocast(device, enabled=False), torch.cuda.device_of(tensors[0]):
            x, w_x, b_x, w_h, b_h = (t if t is None else t.to(setting.dtype) for t in tensors[:5])
            sums = add_product(b_x, x, w_x.t())  # [N, gates * H]
            given = (sums, w_h, b_h, tensors[5:])
            ctx.loop = loop_for(setting, any(ctx.needs_input_grad), *given)
            outputs, last, kept = ctx.loop.forward(*given, setting.sizes)
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
            of_x, of_h, of_state = ctx.loop.backward(
                kept, outputs, w_h, tensors[5:], gradients, setting.sizes
            )
            before = before_each(tensors[5], outputs, setting.sizes)
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
