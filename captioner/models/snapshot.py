"""Detect whether weights or hooks have changed since a copy or a table was made from them."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captioner.models.torch_internals import forward_hooks, version


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
        self._parts = [
            part for root in modules for module in root.modules() for part in _parts(module)
        ]
        self._sizes, self._entries = list(map(len, self._parts)), _entries(self._parts)
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
        """Whether the modules have the same tensors and hooks, without a change torch counts."""
        return (
            _are(modules, self._modules)
            and list(map(len, self._parts)) == self._sizes
            and _are(_entries(self._parts), self._entries)
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


_VALUES = operator.methodcaller("values")


def _parts(module: nn.Module) -> list[dict[Any, Any]]:
    """The dictionaries with the parts of a module that decide what it computes."""
    parts: list[dict[Any, Any]] = [module._modules, module._parameters, module._buffers]
    return parts + forward_hooks(module)


def _entries(parts: Iterable[dict[Any, Any]]) -> list[Any]:
    return list(chain.from_iterable(map(_VALUES, parts)))


def _are(now: Collection[object], before: Collection[object]) -> bool:
    """Whether two collections contain the same objects in the same order."""
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _counts(tensors: Iterable[Tensor]) -> list[tuple[object, ...]]:
    """Values of which at least one differs after a tensor is changed or replaced."""
    return [(version(t), t.data_ptr(), t.dtype, t.device, t.shape, t.stride()) for t in tensors]


def checksum(values: Iterable[np.ndarray]) -> str:
    """One checksum of the ``sums`` of several tensors, in their order."""
    total = hashlib.blake2b(digest_size=16)
    for value in values:
        total.update(value.tobytes())
    return total.hexdigest()


def sums(tensor: Tensor) -> np.ndarray:
    """A hash of a tensor's bits: two sums per 16,384 words of 64 bits, and the bytes of the rest.

    Multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast", The Computer
    Journal 2014): each word is multiplied by a factor of its place, and the products are added
    modulo 2^64. As the highest bit of a word is only the highest bit of its product, the high
    halves are added once more by themselves. Another value in one word always changes a sum; with
    random factors, other values in several words do so with a probability of at least 1 - 2^-32.
    """
    return _sums(_words(tensor))


class _Words(NamedTuple):
    """The bits of a tensor, in its own memory if it is dense and on the CPU, otherwise in a copy.

    Attributes:
        words: of 64 bits.
        rest: bytes that do not fill a word.
        address: of the first byte.
    """

    words: np.ndarray
    rest: np.ndarray
    address: int


def _words(tensor: Tensor) -> _Words:
    tensor = tensor.detach()
    if not tensor.is_contiguous() and tensor.ndim == 4:
        tensor = tensor.permute(0, 2, 3, 1)  # the memory order of channels_last: nothing is copied
    data = tensor.reshape(-1).cpu().view(torch.uint8).numpy()
    whole = len(data) // 8 * 8
    return _Words(data[:whole].view(np.uint64), data[whole:], data.ctypes.data)


_BLOCK = 16_384
"""Words that are added: they, their factors and their products fit into the cache of a core."""


def _sums(of: _Words) -> np.ndarray:
    words, rest, _ = of
    totals = []
    products = np.empty(min(len(words), _BLOCK), np.uint64)
    for first in range(0, len(words), _BLOCK):
        block = words[first : first + _BLOCK]
        product, (of_word, of_half) = products[: len(block)], _factors()[:, : len(block)]
        np.multiply(block, of_word, out=product)
        totals.append(product.sum())
        np.right_shift(block, np.uint64(32), out=product)
        product *= of_half
        totals.append(product.sum())
    return np.concatenate([np.array(totals, np.uint64), rest.astype(np.uint64)])


@functools.cache
def _factors() -> np.ndarray:
    """Odd numbers of 64 random bits, the same ones on every machine, [2, _BLOCK].

    By splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    x = np.arange(1, 2 * _BLOCK + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) | np.uint64(1)).reshape(2, _BLOCK)
