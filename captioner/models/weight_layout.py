"""Matrices laid out for decoding, where products have few rows and nothing is learned.

A product with few rows waits for its matrix more than it computes, so how the matrix lies decides
how long it takes. In bfloat16 it is converted once, and brought once into the blocks that oneDNN
multiplies, which it would do at every step: that takes up to half of the time. The same is done in
float32 where oneDNN multiplies that as well (``products.py``). Elsewhere it lies with a row for
each input, which takes up to half, too; a gap after each row keeps rows of 2,048 values from
sharing lines of the cache.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from captioner.models.matmul import PLAIN, by_onednn
from captioner.models.recurrence.fused import hooked

SomeModule = TypeVar("SomeModule", bound=nn.Module)

GAP = 16
"""Values between two rows of a matrix: a line of the cache in float32."""


@torch.no_grad()
def laid_out(module: SomeModule) -> SomeModule:
    """A copy that gives the same and does not learn; under autocast, in its dtype."""
    copied = copy.deepcopy(module).requires_grad_(False)
    for name, linear in list(copied.named_modules()):
        if type(linear) not in PLAIN:
            continue
        device = linear.weight.device.type
        cast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if cast else linear.weight.dtype
        if _packs(linear, dtype):
            copied.set_submodule(name, Packed(linear, dtype))
        elif cast:
            linear.to(dtype)
        else:
            linear.weight.data = _by_input(linear.weight.data)
    return copied


def _by_input(weight: Tensor) -> Tensor:
    """The same matrix [output, input], lying with a row for each input."""
    output, inputs = weight.shape
    rows = weight.t().contiguous()  # turned first: to turn into gaps takes four times as long
    return weight.new_empty(inputs, output + GAP)[:, :output].copy_(rows).t()


class Packed(nn.Module):
    """W x + b with W in oneDNN's blocks: [..., input] -> [..., output].

    Args:
        linear: in any dtype.
        dtype: in which it multiplies.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        # The operations behind torch.compile's linear layers.
        self.weight = linear.weight.detach().to(dtype)  # as it is elsewhere, for who reads it
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        pointwise = torch.ops.mkldnn._linear_pointwise
        return pointwise(x.to(self.weight.dtype), self.packed, self.bias, "none", [], "")


def _packs(linear: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether it can be and pays: no hooks see it, and oneDNN multiplies fastest here."""
    if linear.weight.device.type != "cpu" or hooked(linear):
        return False
    if dtype == torch.float32:
        return by_onednn() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return (
        dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
