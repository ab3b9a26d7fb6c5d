"""Products in a loop over time, with one product for the gradient of each weight.

Autograd computes ∂W at every step and adds up the results: T small products, and T times the memory
traffic of the whole matrix. Within ``deferred`` the gradients G_t of the results y_t are collected
instead, together with the inputs X_t, and after the loop there is one product:

    y_t = X_t W^T + b           ∂X_t = G_t W            at each step, as usual
    ∂W  = G^T X                 ∂b   = Σ G              once; G and X have the rows of all steps

The same holds if each row has a matrix of its own, such as the values V_r that attention reads at
every step: the gradients of x_t V_r and x_t V_r^T are outer products, and one batched product
computes their sum.

The code of the loop does not change: the product of ``torch.nn.Linear`` is intercepted, and so is
``@`` if its right operand is one of the given tensors. A test checks that all gradients are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from captioner.models.matmul import affine, product
from captioner.models.torch_internals import is_transformed

_Calls = TypeVar("_Calls", "_LayerCalls", "_MatrixCalls")


@contextmanager
def deferred(
    sizes: tuple[int, ...], device: torch.device, matrices: Sequence[Tensor] = ()
) -> Iterator[None]:
    """Defer the gradients of the weights in a loop of T steps.

    A layer may be called any number of times in a step. torch computes a call as usual if it has
    another number of rows than the step, without gradients, on devices other than CPUs, and if the
    model is compiled or transformed.

    Args:
        sizes: number of rows of each step; non-increasing.
        device: the device of the loop.
        matrices: contiguous tensors [B, input, output] with one matrix per row; a step multiplies
            vectors by the matrices of its rows (the first ones), as they are or transposed.
    """
    compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not torch.is_grad_enabled() or device.type != "cpu" or compiled or is_transformed():
        yield
        return
    with _Intercept(sizes, matrices):
        yield


class _Intercept(TorchFunctionMode):
    """Gives each product with a layer, or with the matrices of rows, a slot for its gradient.

    All other functions are computed as usual.
    """

    def __init__(self, sizes: tuple[int, ...], matrices: Sequence[Tensor]) -> None:
        super().__init__()
        self.sizes = sizes
        self.layers: dict[Tensor, list[_LayerCalls] | None] = {}  # None: not deferred
        self.matrices = {base.data_ptr(): base for base in matrices if _is_deferrable(base)}
        self.matrix_calls: dict[tuple[int, bool], list[_MatrixCalls]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result: Tensor | None = None
        if func is functional.linear and not kwargs:
            result = self._linear(*args)
        elif func in _MATMUL and self.matrices and len(args) == 2:
            result = self._matmul(*args)
        return func(*args, **(kwargs or {})) if result is None else result

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """x W^T + b with deferred gradient; None if that is not possible."""
        if weight not in self.layers:
            self.layers[weight] = [] if _pays(x, weight) else None
        series = self.layers[weight]
        if series is None or x.ndim != 2:
            return None
        calls = _with_slot(series, len(x), partial(_LayerCalls, x, weight, bias, self.sizes))
        return None if calls is None else calls(x)

    def _matmul(self, x: Tensor, matrices: Tensor) -> Tensor | None:
        """x V_r of each row with deferred gradient of V; None if that is not possible."""
        base = self.matrices.get(matrices.data_ptr())
        if base is None or x.shape[:-1] != (len(matrices), 1):
            return None
        # A transposed matrix with a single row or column is contiguous as well.
        transposed = not matrices.is_contiguous() or matrices.shape[1:] != base.shape[1:]
        series = self.matrix_calls.setdefault((matrices.data_ptr(), transposed), [])
        calls = _with_slot(series, len(x), partial(_MatrixCalls, base, transposed, self.sizes))
        return None if calls is None else calls(x, matrices)


_MATMUL = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


def _is_deferrable(matrices: Tensor) -> bool:
    """Whether products with these matrices are not cast, and their gradient is needed."""
    device = matrices.device.type
    cast = torch.is_autocast_enabled(device) and matrices.dtype != torch.get_autocast_dtype(device)
    return matrices.requires_grad and matrices.is_contiguous() and not cast


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether deferring is faster: for few rows, and a large matrix that learns."""
    return x.ndim == 2 and weight.is_leaf and weight.requires_grad and weight.numel() > x.numel()


def _with_slot(series: list[_Calls], rows: int, make: Callable[[], _Calls]) -> _Calls | None:
    """The first series of T slots whose next slot has this number of rows.

    A layer that is called n times per step fills n series. None if the first slot of a new series
    has another number of rows.
    """
    for calls in series:
        if calls.next_rows == rows:
            return calls
    new = make()
    if new.next_rows != rows:
        return None
    series.append(new)
    return new


class _LayerCalls:
    """T calls of one layer: its weight, cast once, and the inputs of the calls so far."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: tuple[int, ...]
    ) -> None:
        device = x.device.type
        half = torch.is_autocast_enabled(device) and weight.dtype == torch.float32
        dtype = torch.get_autocast_dtype(device) if half else weight.dtype
        self.sizes = sizes
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.inputs: list[Tensor] = []
        slots = _CollectLayer.apply(weight, bias, self.inputs, sum(sizes), dtype)  # [N, output]
        self.slots = slots.split(sizes)

    @property
    def next_rows(self) -> int:
        """Number of rows of the next slot; -1 after the last."""
        return self.sizes[len(self.inputs)] if len(self.inputs) < len(self.sizes) else -1

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        slot = self.slots[len(self.inputs)]
        self.inputs.append(x.detach())
        return _LayerStep.apply(x, slot, self.weight, self.bias)


class _LayerStep(torch.autograd.Function):
    """x W^T + b; backward passes the gradient of the result to the slot."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        with torch.autocast(x.device.type, enabled=False):
            return affine(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        of_x = product(gradient, weight) if ctx.needs_input_grad[0] else None
        return of_x, gradient, None, None


class _CollectLayer(torch.autograd.Function):
    """Creates the slots, zeros that are never read; backward receives the gradients of all steps.

    Slots are used in order, so the inputs belong to the first gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, inputs: list[Tensor], rows: int, dtype: Any
    ) -> Tensor:
        ctx.inputs, ctx.dtype = inputs, weight.dtype
        return weight.new_zeros((), dtype=dtype).expand(rows, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        inputs = torch.cat(ctx.inputs)
        gradients = gradients[: len(inputs)]
        with torch.autocast(gradients.device.type, enabled=False):
            of_weight = product(gradients.t(), inputs) if needed[0] else None
            of_bias = gradients.sum(0) if needed[1] else None
        results = (g if g is None else g.to(ctx.dtype) for g in (of_weight, of_bias))
        return (*results, None, None, None)


class _MatrixCalls:
    """T products with one matrix per row, transposed or not, and the vectors so far."""

    def __init__(self, base: Tensor, transposed: bool, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.inputs: list[Tensor] = []
        slots = _CollectMatrices.apply(base, self.inputs, transposed, sizes)  # [N, output]
        self.slots = slots.split(sizes)

    @property
    def next_rows(self) -> int:
        """Number of rows of the next slot; -1 after the last."""
        return self.sizes[len(self.inputs)] if len(self.inputs) < len(self.sizes) else -1

    def __call__(self, x: Tensor, matrices: Tensor) -> Tensor:
        """x [R, 1, input], matrices [R, input, output] -> [R, 1, output]."""
        x = x.to(matrices.dtype)
        slot = self.slots[len(self.inputs)]
        self.inputs.append(x.detach().squeeze(1))  # [R, input]
        return _MatrixStep.apply(x, slot, matrices.detach())


class _MatrixStep(torch.autograd.Function):
    """x V_r; backward passes the gradient of the result to the slot."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, matrices: Tensor) -> Tensor:
        ctx.save_for_backward(matrices)
        with torch.autocast(x.device.type, enabled=False):
            return torch.bmm(x, matrices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (matrices,) = ctx.saved_tensors
        of_x = gradient @ matrices.transpose(1, 2) if ctx.needs_input_grad[0] else None
        return of_x, gradient.squeeze(1), None


class _CollectMatrices(torch.autograd.Function):
    """As ``_CollectLayer``: ∂V_r = Σ_t x_tr^T g_tr, over the steps that have row r."""

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, inputs: list[Tensor], transposed: bool, sizes: tuple[int, ...]
    ) -> Tensor:
        ctx.inputs, ctx.transposed, ctx.sizes, ctx.rows = inputs, transposed, sizes, len(base)
        return base.new_zeros(()).expand(sum(sizes), base.shape[1 if transposed else 2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        steps = gradients.split(ctx.sizes)[: len(ctx.inputs)]
        x, g = (_padded(parts, ctx.rows) for parts in (ctx.inputs, steps))  # [B, T, width]
        first, second = (g, x) if ctx.transposed else (x, g)
        with torch.autocast(gradients.device.type, enabled=False):
            return first.transpose(1, 2) @ second, None, None, None  # [B, input, output]


def _padded(parts: Sequence[Tensor], rows: int) -> Tensor:
    """T tensors [R, width], R non-increasing -> [B, T, width], with zeros after a row has ended."""
    padded = parts[0].new_zeros(rows, len(parts), parts[0].shape[1])
    for step, part in enumerate(parts):
        padded[: len(part), step] = part
    return padded
