"""Matrix products in float32, computed by the library that is fastest on this processor.

torch computes float32 products with MKL, which on AMD processors uses vectors of only half the
width. oneDNN, which torch also contains, uses the full width: on a Zen 5 a product takes less than
half the time. On these processors oneDNN computes the products of the loops in ``fused.py`` and
``deferred_gradients.py``, of the matrices of ``weight_layout.py`` and of the layers of class
``Linear``. On other processors, and in other dtypes, all products are computed by torch as usual.
The two libraries sum in different orders, so results may differ in their last digits.
"""

from __future__ import annotations

import functools
import logging
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.models.precision import BELOW_AVX512, instructions
from captioner.models.torch_internals import has_onednn_linear, is_intercepted, onednn_linear

log = logging.getLogger(__name__)


@functools.cache
def by_onednn() -> bool:
    """Whether float32 products are computed by oneDNN on this processor."""
    faster = (
        has_onednn_linear()
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and instructions() not in BELOW_AVX512
        and "AuthenticAMD" in _vendor()
    )
    log.debug("products of float32 are computed by %s", "oneDNN" if faster else "torch's default")
    return faster


def _vendor() -> str:
    """The line of /proc/cpuinfo with the manufacturer of the processor; "" if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()  # on Windows it contains the manufacturer
    return next((line for line in lines if line.startswith("vendor_id")), "")


def product(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """a b, without gradient: [rows, inner] [inner, columns] -> [rows, columns].

    Args:
        out: filled and returned, if given.
    """
    if not _uses_onednn(a):
        return torch.mm(a, b, out=out)
    if (
        a.stride(0) == 1 and a.numel() > b.numel()
    ):  # oneDNN would transpose a; transposing b is faster
        result = onednn_linear(b.t(), a, None).t()
    else:
        result = onednn_linear(a, b.t(), None)
    return result.contiguous() if out is None else out.copy_(result)


def add_product(c: Tensor, a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """c + a b, without gradient: [rows, inner] [inner, columns] -> [rows, columns].

    Args:
        c: [columns] or [rows, columns].
        out: filled and returned, if given; may be c.
    """
    if not _uses_onednn(a):
        return torch.addmm(c, a, b, out=out)
    if c.ndim == 1:
        result = onednn_linear(a, b.t(), c)
        return result if out is None else out.copy_(result)
    return torch.add(c, onednn_linear(a, b.t(), None), out=out)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, without gradient: [rows, input] [output, input] [output] -> [rows, output]."""
    compute = onednn_linear if _uses_onednn(x) else functional.linear
    return compute(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear whose products the fastest library computes: [..., input] -> [..., output]."""

    def forward(self, input: Tensor) -> Tensor:
        """W x + b; computed by nn.Linear if oneDNN is not faster or the operations are observed."""
        if not _uses_onednn(input) or not self._is_plain(input) or _is_observed():
            return super().forward(input)
        rows = input.reshape(-1, self.in_features)  # [rows, input]
        result = _Affine.apply(rows, self.weight, self.bias)
        return result.view(*input.shape[:-1], self.out_features)  # [..., output]

    def _is_plain(self, input: Tensor) -> bool:
        """Whether nothing is cast and the input fits; otherwise nn.Linear computes or raises."""
        weight = self.weight
        return (
            type(weight) is nn.Parameter
            and weight.dtype == input.dtype
            and weight.device == input.device
            and input.shape[-1] == self.in_features
        )


def _is_observed() -> bool:
    """Whether something casts, counts, intercepts, transforms or traces what is computed."""
    return (
        torch.is_autocast_enabled("cpu")
        or is_intercepted()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    )


PLAIN = (nn.Linear, Linear)
"""The layers that compute W x + b and nothing else."""


class _Affine(torch.autograd.Function):
    """x W^T + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x_learns, weight_learns = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if weight_learns else None, weight if x_learns else None)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        multiply = torch.mm if torch.is_grad_enabled() else product  # gradients of gradients
        needed = ctx.needs_input_grad
        return (
            multiply(gradient, weight) if needed[0] else None,
            multiply(gradient.t(), x) if needed[1] else None,
            gradient.sum(0) if needed[2] else None,  # [output]
        )


def _uses_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and by_onednn() and x.device.type == "cpu" and x.numel() > 0
