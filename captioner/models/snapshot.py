"""Detect whether weights have changed since a copy or a table was made from them."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captioner.models.torch_internals import version


class Snapshot:
    """The weights of modules at one time, to compare with those of a later time.

    torch counts most changes of a tensor, but not those through ``.data``, numpy or fused
    optimizers; ``same`` compares the values as well, which takes about as long as reading them.

    Args:
        modules: whose parameters and buffers are compared.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)
        # What the modules consist of, in torch's own dictionaries: to walk through a network with
        # parameters() takes as long as some of its layers.
        self._entries = [
            (entries, list(entries.values()))
            for root in modules
            for module in root.modules()
            for entries in (module._modules, module._parameters, module._buffers)
        ]
        # Keeps them alive: no other tensor gets their addresses.
        self._tensors = [tensor for m in modules for tensor in (*m.parameters(), *m.buffers())]
        self._counts = _counts(self._tensors)
        self._values: list[np.ndarray] = []
        self._views: list[_Words | None] = []  # in memory: to make a thousand of them takes longer

    def keep(self) -> Snapshot:
        """Store sums of the values as well, for ``same``; must be called before any change."""
        if not self._values:
            words = [_words(tensor) for tensor in self._tensors]
            self._values = [_sums(word) for word in words]
            self._views = [
                word if word.address == tensor.data_ptr() else None
                for word, tensor in zip(words, self._tensors)
            ]
        return self

    @property
    def checksum(self) -> str | None:
        """Of all values, if ``keep`` was called."""
        return checksum(self._values) if len(self._values) == len(self._tensors) else None

    def counted(self, modules: Sequence[nn.Module]) -> bool:
        """Whether the modules have the same tensors, without a change that torch counts."""
        return (
            _are(modules, self._modules)
            and all(_are(entries.values(), before) for entries, before in self._entries)
            and _counts(self._tensors) == self._counts
        )

    def same(self, modules: Sequence[nn.Module]) -> bool:
        """Whether no value has changed since ``keep``."""
        if not self.counted(modules) or len(self._values) != len(self._tensors):
            return False
        # In numpy: torch would synchronize its threads after each of some hundred tensors.
        return all(
            np.array_equal(_sums(view or _words(tensor)), kept)
            for tensor, view, kept in zip(self._tensors, self._views, self._values)
        )


def _are(now: Collection[object], before: Collection[object]) -> bool:
    """Whether two collections contain the same objects in the same order."""
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _counts(tensors: Iterable[Tensor]) -> list[tuple[int, int, torch.dtype, torch.device]]:
    """Values of which at least one differs after a tensor is changed or replaced."""
    return [(version(t), t.data_ptr(), t.dtype, t.device) for t in tensors]


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
    return _sums(_words(tensor))


class _Words(NamedTuple):
    """The bits of a tensor, in its own memory if it is dense and on the CPU, otherwise in a copy.

    Attributes:
        square: 64-bit words, about as many rows as columns.
        rest: bytes that do not fill a row.
        address: of the first byte.
    """

    square: np.ndarray
    rest: np.ndarray
    address: int


def _words(tensor: Tensor) -> _Words:
    tensor = tensor.detach()
    if not tensor.is_contiguous() and tensor.ndim == 4:
        tensor = tensor.permute(0, 2, 3, 1)  # the memory order of channels_last: nothing is copied
    data = tensor.reshape(-1).cpu().view(torch.uint8).numpy()
    words = data[: len(data) // 8 * 8].view(np.int64)
    width = max(1, math.isqrt(len(words)))
    square = words[: len(words) // width * width].reshape(-1, width)
    return _Words(square, data[square.size * 8 :], data.ctypes.data)


def _sums(words: _Words) -> np.ndarray:
    square, rest, _ = words
    return np.concatenate([square.sum(0), square.sum(1), rest.astype(np.int64)])
