"""Memory layouts of weight matrices for decoding, where products have few rows and no gradient.

A product with few rows spends more time reading its matrix than computing, so its time depends on
the layout of the matrix. In bfloat16 the matrix is converted once and rearranged once into the
block layout of oneDNN; done at every step, this would take up to half of the time. The same is done
in float32 if oneDNN computes its products as well (``matmul.py``). Otherwise the matrix is stored
by columns, which also saves up to half of the time; a gap after each column prevents columns of
2,048 values from competing for the same cache lines.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from captioner.models.matmul import PLAIN, by_onednn
from captioner.models.torch_internals import (
    has_hooks,
    has_packed_weights,
    onednn_linear,
    onednn_multiplies_bf16,
    pack_weight,
)

SomeModule = TypeVar("SomeModule", bound=nn.Module)

GAP = 16
"""Values between two columns of a matrix: one cache line in float32."""


@torch.no_grad()
def laid_out(module: SomeModule) -> SomeModule:
    """A copy without gradients that gives the same results; under autocast, in its dtype.

    Weights whose layout stays the same are shared with the module.
    """
    shared = {id(w): nn.Parameter(w.detach(), requires_grad=False) for w in module.parameters()}
    copied = copy.deepcopy(module, shared)
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
            linear.weight = nn.Parameter(_by_columns(linear.weight), requires_grad=False)
    return copied


def _by_columns(weight: Tensor) -> Tensor:
    """The same matrix [output, input], stored column by column with gaps between them."""
    output, inputs = weight.shape
    # Copying directly into the columns with gaps would take four times as long.
    columns = weight.t().contiguous()  # [input, output]
    return weight.new_empty(inputs, output + GAP)[:, :output].copy_(columns).t()


class Packed(nn.Module):
    """W x + b with W in the block layout of oneDNN: [..., input] -> [..., output].

    Args:
        linear: a layer in any dtype.
        dtype: the dtype of the product.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = linear.weight.detach().to(dtype)  # unpacked, for code that reads it
        self.packed = pack_weight(self.weight)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return onednn_linear(x.to(self.weight.dtype), self.packed, self.bias)


def _packs(linear: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether packing is possible and faster: there are no hooks, and oneDNN is used."""
    if linear.weight.device.type != "cpu" or has_hooks(linear) or not has_packed_weights():
        return False
    if dtype == torch.float32:
        return by_onednn()
    return dtype == torch.bfloat16 and onednn_multiplies_bf16()
