"""Memory layouts of weight matrices for decoding, where products have few rows and no gradient.

A product with few rows spends more time reading its matrix than computing, so its time depends on
the layout of the matrix. In bfloat16 the matrix is converted once and rearranged once into the
block layout of oneDNN; done at every step, this would take up to half of the time. The same is done
in float32 if oneDNN computes its products as well (``matmul.py``). Otherwise the matrix is stored
by columns, which also saves up to half of the time; a gap after each column prevents columns of
2,048 values from competing for the same cache lines.

Each matrix is rearranged when it is first used: some are not, because the products of all words
with them are kept (``word_table.py``).
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

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
AT_ONCE = 512
"""Rows of a matrix that are stored by columns together."""


@torch.no_grad()
def laid_out(module: SomeModule) -> SomeModule:
    """A copy without gradients that gives the same results; under autocast, in its dtype.

    Weights whose layout stays the same, buffers, and weights that a hook computes (pruning, weight
    normalization) are shared with the module.
    """
    others = (value for part in module.modules() for value in vars(part).values())
    shared = {id(value): value for value in others if isinstance(value, Tensor)}
    shared |= {id(buffer): buffer for buffer in module.buffers()}
    for weight in module.parameters():
        shared[id(weight)] = nn.Parameter(weight.detach(), requires_grad=False)
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
        elif not has_hooks(linear):
            copied.set_submodule(name, ByColumns(linear))
    return copied


class ByColumns(nn.Module):
    """W x + b with W stored column by column: [..., input] -> [..., output].

    Args:
        linear: a layer in any dtype.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self._rows = linear.weight.detach()
        self._columns: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """W, [output, input]."""
        if self._columns is None:
            self._columns = _by_columns(self._rows)
        return self._columns

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


def _by_columns(weight: Tensor) -> Tensor:
    """The same matrix [output, input], stored column by column with gaps between them."""
    output, inputs = weight.shape
    columns = weight.new_empty(inputs, output + GAP)[:, :output]
    # Some rows at a time: copying directly into the columns with gaps would take four times as
    # long, and to transpose all of them first, twice the memory.
    for part, rows in zip(columns.split(AT_ONCE, dim=1), weight.split(AT_ONCE)):
        part.copy_(rows.t().contiguous())
    return columns.t()


class Packed(nn.Module):
    """W x + b with W in the block layout of oneDNN: [..., input] -> [..., output].

    Args:
        linear: a layer in any dtype.
        dtype: the dtype of the product.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = linear.weight.detach().to(dtype)  # unpacked, for code that reads it
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is None:
            self._packed = pack_weight(self.weight)
        return onednn_linear(x.to(self.weight.dtype), self._packed, self.bias)


def _packs(linear: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether packing is possible and faster: there are no hooks, and oneDNN is used."""
    if linear.weight.device.type != "cpu" or has_hooks(linear) or not has_packed_weights():
        return False
    if dtype == torch.float32:
        return by_onednn()
    return dtype == torch.bfloat16 and onednn_multiplies_bf16()
