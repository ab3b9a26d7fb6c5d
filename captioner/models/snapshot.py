"""Detect whether weights have changed since a copy or a table was made from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from captioner.models.torch_internals import version


class HasTensors(Protocol):
    """The methods of a module that a snapshot uses."""

    def parameters(self) -> Iterator[Tensor]: ...
    def buffers(self) -> Iterator[Tensor]: ...


class Snapshot:
    """The weights of modules at one time, to compare with those of a later time.

    torch counts most changes of a tensor, but not those through ``.data``, numpy or fused
    optimizers; ``same`` compares the values as well, which takes about as long as reading them.

    Args:
        modules: whose parameters and buffers are compared.
    """

    def __init__(self, modules: Iterable[HasTensors]) -> None:
        self._tensors = _tensors(modules)  # keeps them alive: no other tensor gets their addresses
        self._counts = [_count(tensor) for tensor in self._tensors]
        self._values: list[np.ndarray] = []

    def keep(self) -> Snapshot:
        """Store the values as well, for ``same``; must be called before any change."""
        if not self._values:
            self._values = [_bits(tensor).copy() for tensor in self._tensors]
        return self

    def counted(self, modules: Iterable[HasTensors]) -> bool:
        """Whether the modules have the same tensors, without a change that torch counts."""
        tensors = _tensors(modules)
        return (
            len(tensors) == len(self._tensors)
            and all(now is before for now, before in zip(tensors, self._tensors))
            and [_count(tensor) for tensor in tensors] == self._counts
        )

    def same(self, modules: Iterable[HasTensors]) -> bool:
        """Whether no value has changed since ``keep``."""
        if not self.counted(list(modules)) or len(self._values) != len(self._tensors):
            return False
        # In numpy: torch would synchronize its threads after each of some hundred tensors.
        return all((_bits(t) == kept).all() for t, kept in zip(self._tensors, self._values))


def _tensors(modules: Iterable[HasTensors]) -> list[Tensor]:
    return [tensor for m in modules for tensor in (*m.parameters(), *m.buffers())]


def _count(tensor: Tensor) -> tuple[int, int, torch.dtype, torch.device]:
    """Values of which at least one differs after a tensor is changed or replaced."""
    return version(tensor), tensor.data_ptr(), tensor.dtype, tensor.device


def _bits(tensor: Tensor) -> np.ndarray:
    """The bits of a tensor as integers; nothing is copied if it is dense and on the CPU."""
    tensor = tensor.detach()
    if not tensor.is_contiguous() and tensor.ndim == 4:
        tensor = tensor.permute(0, 2, 3, 1)  # the memory order of channels_last
    values = tensor.reshape(-1).cpu()
    return values.view(_INTEGERS[values.element_size()]).numpy()


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
