"""Products in a loop over time, with one product for the gradient of each weight.

Autograd multiplies out ∂W at every step and adds the results up: T small products, and T times the
traffic of the whole matrix. Inside ``deferred`` the steps' own gradients D_t are gathered instead,
beside the inputs X_t that they belong to, and after the loop there is one product:

    y_t = X_t W^T + b           ∂X_t = D_t W            each step, as ever
    ∂W  = D^T X                 ∂b   = Σ D              once, D and X all steps' rows

The same holds for what belongs to rows, such as the values V_r that attention reads at every step:
of x_t V_r and x_t V_r^T the gradients are outer products, which one batched product adds up.

The loop itself is not changed: ``torch.nn.Linear`` is intercepted where it multiplies, and ``@``
where its right side is one of the named tensors. A test holds all gradients equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from captioner.models.matmul import affine, product
from captioner.models.torch_internals import is_transformed


@contextmanager
def deferred(
    sizes: tuple[int, ...], device: torch.device, of_rows: Sequence[Tensor] = ()
) -> Iterator[None]:
    """Within, each linear layer is called once a step, with so many rows; T steps.

    Without gradient, on other devices than CPUs, and where a model is compiled or transformed,
    nothing is changed.

    Args:
        sizes: how many rows each step has; falling.
        device: where the loop computes.
        of_rows: tensors [B, I, O], a matrix a row, contiguous; each step multiplies vectors with
            the first rows, as they are or transposed, each way once a step.
    """
    compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
    transformed = is_transformed()
    if not torch.is_grad_enabled() or device.type != "cpu" or compiled or transformed:
        yield
        return
    with _Intercept(sizes, of_rows):
        yield


class _Intercept(TorchFunctionMode):
    """Gives each call of a linear layer, or of a row's matrix, its slot; other functions pass."""

    def __init__(self, sizes: tuple[int, ...], of_rows: Sequence[Tensor]) -> None:
        super().__init__()
        self.sizes = sizes
        self.layers: dict[Tensor, _Layer | None] = {}  # None: left as it is
        self.held = {one.data_ptr(): one for one in of_rows if _may_be_held(one)}
        self.matrices: dict[tuple[int, bool], _Matrices] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear and not kwargs:
            x, weight = args[:2]
            if weight not in self.layers:
                pays = _pays(x, weight)
                self.layers[weight] = _Layer(*args, sizes=self.sizes) if pays else None
            layer = self.layers[weight]
            if layer is not None:
                return layer(x)
        if func in _MATMUL and self.held and len(args) == 2 and args[1].data_ptr() in self.held:
            x, matrices = args
            turned = not matrices.is_contiguous()
            place = (matrices.data_ptr(), turned)
            if place not in self.matrices:
                self.matrices[place] = _Matrices(self.held[place[0]], turned, self.sizes)
            return self.matrices[place](x, matrices)
        return func(*args, **(kwargs or {}))


_MATMUL = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


def _may_be_held(matrices: Tensor) -> bool:
    """Whether its products would not be cast, and its gradient is wanted."""
    device = matrices.device.type
    cast = torch.is_autocast_enabled(device) and matrices.dtype != torch.get_autocast_dtype(device)
    return matrices.requires_grad and matrices.is_contiguous() and not cast


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the weight is what there is most of: for few rows of a matrix that learns."""
    return x.ndim == 2 and weight.is_leaf and weight.requires_grad and weight.numel() > x.numel()


class _Layer:
    """One weight within one loop: rounded once, and its inputs gathered."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *, sizes: tuple[int, ...]
    ) -> None:
        device = x.device.type
        half = torch.is_autocast_enabled(device) and weight.dtype == torch.float32
        dtype = torch.get_autocast_dtype(device) if half else weight.dtype
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.inputs: list[Tensor] = []
        slots = _Gather.apply(weight, bias, self.inputs, sum(sizes), dtype)  # [N, out]
        self.slots = slots.split(sizes)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        slot = self.slots[len(self.inputs)]
        self.inputs.append(x.detach())
        return _Step.apply(x, slot, self.weight, self.bias)


class _Gather(torch.autograd.Function):
    """Of no value: a place for each step's gradient, all of which come to it when it goes back."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, inputs: list[Tensor], rows: int, dtype: Any
    ) -> Tensor:
        ctx.inputs, ctx.dtype = inputs, weight.dtype
        return weight.new_zeros((), dtype=dtype).expand(rows, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        with torch.autocast(gradients.device.type, enabled=False):
            of_weight = product(gradients.t(), torch.cat(ctx.inputs)) if wanted[0] else None
            of_bias = gradients.sum(0) if wanted[1] else None
        found = (one if one is None else one.to(ctx.dtype) for one in (of_weight, of_bias))
        return (*found, None, None, None)


class _Matrices:
    """A matrix of each row within one loop, read one way: the vectors it meets are gathered."""

    def __init__(self, base: Tensor, turned: bool, sizes: tuple[int, ...]) -> None:
        self.inputs: list[Tensor] = []
        slots = _GatherRows.apply(base, self.inputs, turned, sizes)  # [N, out]
        self.slots = slots.split(sizes)

    def __call__(self, x: Tensor, matrices: Tensor) -> Tensor:
        """x [R, 1, in], matrices [R, in, out] -> [R, 1, out]."""
        x = x.to(matrices.dtype)
        slot = self.slots[len(self.inputs)]
        self.inputs.append(x.detach().squeeze(1))
        return _RowsStep.apply(x, slot, matrices.detach())


class _GatherRows(torch.autograd.Function):
    """As ``_Gather``: ∂V_r = Σ_t x_tr^T d_tr, for rows that are there in the first steps."""

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, inputs: list[Tensor], turned: bool, sizes: tuple[int, ...]
    ) -> Tensor:
        ctx.inputs, ctx.turned, ctx.sizes, ctx.rows = inputs, turned, sizes, len(base)
        return base.new_zeros(()).expand(sum(sizes), base.shape[1 if turned else 2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, d = (
            _side_by_side(parts, ctx.rows) for parts in (ctx.inputs, gradients.split(ctx.sizes))
        )
        first, second = (d, x) if ctx.turned else (x, d)
        with torch.autocast(gradients.device.type, enabled=False):
            return first.transpose(1, 2) @ second, None, None, None


def _side_by_side(parts: Sequence[Tensor], rows: int) -> Tensor:
    """T times [R, W], R falling -> [B, T, W], zeros where a row has ended."""
    found = parts[0].new_zeros(rows, len(parts), parts[0].shape[1])
    for place, part in enumerate(parts):
        found[: len(part), place] = part
    return found


class _RowsStep(torch.autograd.Function):
    """x V_r; what comes back is handed on to the slot."""

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


class _Step(torch.autograd.Function):
    """x W^T + b; what comes back is handed on to the slot."""

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
