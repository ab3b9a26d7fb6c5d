"""Detect whether weights have changed since a copy or a table was made from them."""

from __future__ import annotations

import hashlib
import math
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
        """Store sums of the values as well, for ``same``; must be called before any change."""
        if not self._values:
            self._values = [sums(tensor) for tensor in self._tensors]
        return self

    @property
    def checksum(self) -> str | None:
        """Of all values, if ``keep`` was called."""
        return checksum(self._values) if len(self._values) == len(self._tensors) else None

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
        return all((sums(t) == kept).all() for t, kept in zip(self._tensors, self._values))


def _tensors(modules: Iterable[HasTensors]) -> list[Tensor]:
    return [tensor for m in modules for tensor in (*m.parameters(), *m.buffers())]


def _count(tensor: Tensor) -> tuple[int, int, torch.dtype, torch.device]:
    """Values of which at least one differs after a tensor is changed or replaced."""
    return version(tensor), tensor.data_ptr(), tensor.dtype, tensor.device


def checksum(values: Iterable[np.ndarray]) -> str:
    """One checksum of the ``sums`` of several tensors, in their order."""
    total = hashlib.blake2b(digest_size=16)
    for value in values:
        total.update(value.tobytes())
    return total.hexdigest()


def sums(tensor: Tensor) -> np.ndarray:
    """The sums of the rows and of the columns of a tensor's bits, as 64-bit words in a square.

    Another value at one place changes both, and two values that change places at least one. They
    take little memory and are read at the speed of the memory.
    """
    tensor = tensor.detach()
    if not tensor.is_contiguous() and tensor.ndim == 4:
        tensor = tensor.permute(0, 2, 3, 1)  # the memory order of channels_last: nothing is copied
    data = tensor.reshape(-1).cpu().view(torch.uint8).numpy()
    words = data[: len(data) // 8 * 8].view(np.int64)
    width = max(1, math.isqrt(len(words)))
    square = words[: len(words) // width * width].reshape(-1, width)
    rest = data[square.size * 8 :].astype(np.int64)
    return np.concatenate([square.sum(0), square.sum(1), rest])
