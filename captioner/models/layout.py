"""Matrices laid out for decoding, where products have few rows and nothing is learned.

A product with few rows waits for its matrix more than it computes, so how the matrix lies decides
how long it takes. In float32 it lies with a row for each input, which takes up to half of the time;
a gap after each row keeps rows of 2,048 values from sharing lines of the cache. In bfloat16 it is
converted once, and brought once into the blocks that oneDNN multiplies, which it would do at every
step: that, too, takes up to half.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from captioner.models.cells import State
from captioner.models.encoders import Features
from captioner.models.fused import hooked

SomeModule = TypeVar("SomeModule", bound=nn.Module)

GAP = 16
"""Values between two rows of a matrix: a line of the cache in float32."""


class Stepper(NamedTuple):
    """A decoder for many calls without gradient, in evaluation mode; it gives the same.

    Attributes:
        start: as the decoder's.
        step: as the decoder's.
    """

    start: Callable[[Features], State]
    step: Callable[[Tensor, State], tuple[Tensor, State]]


@torch.no_grad()
def laid_out(module: SomeModule) -> SomeModule:
    """A copy that gives the same and does not learn; under autocast, in its dtype."""
    copied = copy.deepcopy(module).requires_grad_(False)
    for name, linear in list(copied.named_modules()):
        if type(linear) is not nn.Linear:
            continue
        device = linear.weight.device.type
        if not torch.is_autocast_enabled(device):
            linear.weight.data = _by_input(linear.weight.data)
        elif _packs(linear, torch.get_autocast_dtype(device)):
            copied.set_submodule(name, Packed(linear))
        else:
            linear.to(torch.get_autocast_dtype(device))
    return copied


def _by_input(weight: Tensor) -> Tensor:
    """The same matrix [output, input], lying with a row for each input."""
    output, inputs = weight.shape
    rows = weight.t().contiguous()  # turned first: to turn into gaps takes four times as long
    return weight.new_empty(inputs, output + GAP)[:, :output].copy_(rows).t()


class Packed(nn.Module):
    """W x + b in bfloat16, with W in oneDNN's blocks: [..., input] -> [..., output].

    Args:
        linear: in any dtype.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # The operations behind torch.compile's linear layers.
        self.weight = linear.weight.bfloat16()  # as it is elsewhere, for who reads it
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
        self.bias = None if linear.bias is None else linear.bias.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        pointwise = torch.ops.mkldnn._linear_pointwise
        return pointwise(x.bfloat16(), self.packed, self.bias, "none", [], "")


def _packs(linear: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether it can be: no hooks see it, and this torch and this processor have what it takes."""
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return (
        dtype == torch.bfloat16
        and linear.weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and not hooked(linear)
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
