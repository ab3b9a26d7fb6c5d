"""Matrices laid out for decoding, where products have few rows and nothing is learned.

A product with few rows waits for its matrix more than it computes, so how the matrix lies decides
how long it takes. In float32 it lies with a row for each input, which takes up to half of the time.
In bfloat16 it is converted once, and brought once into the blocks that oneDNN multiplies, which it
would do at every step: that, too, takes up to half.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

SomeModule = TypeVar("SomeModule", bound=nn.Module)


@torch.no_grad()
def laid_out(module: SomeModule) -> SomeModule:
    """A copy that gives the same and does not learn; under autocast, in its dtype."""
    copied = copy.deepcopy(module).requires_grad_(False)
    for name, linear in list(copied.named_modules()):
        if type(linear) is not nn.Linear:
            continue
        device = linear.weight.device.type
        if not torch.is_autocast_enabled(device):
            linear.weight.data = linear.weight.data.t().contiguous().t()
        elif _packs(linear, torch.get_autocast_dtype(device)):
            copied.set_submodule(name, Packed(linear))
        else:
            linear.to(torch.get_autocast_dtype(device))
    return copied


class Packed(nn.Module):
    """W x + b in bfloat16, with W in oneDNN's blocks: [..., input] -> [..., output].

    Args:
        linear: in any dtype.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # The operations behind torch.compile's linear layers.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.bfloat16())
        self.bias = None if linear.bias is None else linear.bias.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        pointwise = torch.ops.mkldnn._linear_pointwise
        return pointwise(x.bfloat16(), self.weight, self.bias, "none", [], "")


def _packs(linear: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether this build of torch, and this processor, multiply packed matrices."""
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return (
        dtype == torch.bfloat16
        and linear.weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
