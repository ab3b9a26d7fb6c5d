"""Matrix products in float32, by the library that is fastest on this processor.

torch multiplies float32 by MKL, which on AMD's processors uses vectors of half the width that they
have. oneDNN, which torch brings as well, uses all of it: on a Zen 5 a product takes less than half
the time. There the loops of ``fused.py`` and ``deferred.py``, the matrices of ``layout.py`` and the
layers of class ``Linear`` multiply by oneDNN; on other processors and in other dtypes, as all else,
they are torch's own. Sums are added up in another order, so that results may differ in their last
digits.
"""

from __future__ import annotations

import functools
import logging
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from captioner.models.precision import BELOW_AVX512, instructions

log = logging.getLogger(__name__)


@functools.cache
def by_onednn() -> bool:
    """Whether float32 products go to oneDNN here."""
    found = (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and instructions() not in BELOW_AVX512
        and "AuthenticAMD" in _vendor()
    )
    log.debug("products of float32 are %s", "oneDNN's" if found else "torch's own")
    return found


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()  # Windows names it there
    return next((line for line in lines if line.startswith("vendor_id")), "")


def product(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """a b, [M, K] [K, N] -> [M, N], without gradient; into out where it is given."""
    if not _quick(a):
        return torch.mm(a, b, out=out)
    if a.stride(0) == 1 and a.numel() > b.numel():  # it would be turned; b^T is less to turn
        found = _multiply(b.t(), a, None).t()
    else:
        found = _multiply(a, b.t(), None)
    return found.contiguous() if out is None else out.copy_(found)


def add_product(c: Tensor, a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """c + a b, [N] or [M, N] and [M, K] [K, N] -> [M, N], without gradient; out may be c."""
    if not _quick(a):
        return torch.addmm(c, a, b, out=out)
    if c.ndim == 1:
        found = _multiply(a, b.t(), c)
        return found if out is None else out.copy_(found)
    return torch.add(c, _multiply(a, b.t(), None), out=out)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, [M, K] [N, K] [N] -> [M, N], without gradient."""
    return _multiply(x, weight, bias) if _quick(x) else functional.linear(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear, with products by the fastest library: [..., input] -> [..., output]."""

    def forward(self, input: Tensor) -> Tensor:
        """W x + b; as nn.Linear does it where oneDNN is not faster or something else looks on."""
        if not _quick(input) or not self._is_plain(input) or _watched():
            return super().forward(input)
        rows = input.reshape(-1, self.in_features)
        found = _Affine.apply(rows, self.weight, self.bias)
        return found.view(*input.shape[:-1], self.out_features)

    def _is_plain(self, input: Tensor) -> bool:
        """Whether nothing is cast, and the input fits; else nn.Linear says what is wrong."""
        weight = self.weight
        return (
            type(weight) is nn.Parameter
            and weight.dtype == input.dtype
            and weight.device == input.device
            and input.shape[-1] == self.in_features
        )


def _watched() -> bool:
    """Whether something casts, counts, intercepts, transforms or traces what is computed."""
    return (
        torch.is_autocast_enabled("cpu")
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    )


PLAIN = (nn.Linear, Linear)
"""The layers that compute W x + b and nothing else."""


class _Affine(torch.autograd.Function):
    """x W^T + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        multiply = torch.mm if torch.is_grad_enabled() else product  # gradients of gradients
        wanted = ctx.needs_input_grad
        return (
            multiply(gradient, weight) if wanted[0] else None,
            multiply(gradient.t(), x) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )


def _quick(x: Tensor) -> bool:
    return x.dtype == torch.float32 and by_onednn() and x.device.type == "cpu" and x.numel() > 0


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The operation behind torch.compile's linear layers; it takes any strides.
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
