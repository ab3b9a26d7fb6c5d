"""Whether weights have changed since something was made from them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Snapshot:
    """The weights of modules at one time, to be compared with those of a later time.

    torch counts most changes of a tensor, but not those by way of ``.data``, by numpy or by fused
    optimisers; ``same`` compares the values as well, which takes about as long as reading them.

    Args:
        modules: their parameters and buffers count.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._tensors = _tensors(modules)  # held, so that no other tensor takes their places
        self._counts = [_count(one) for one in self._tensors]
        self._values: list[Tensor] = []

    def keep(self) -> Snapshot:
        """Keep the values too, for ``same``; once is enough."""
        if not self._values:
            self._values = [one.detach().clone() for one in self._tensors]
        return self

    def counted(self, modules: Iterable[nn.Module]) -> bool:
        """Whether the modules hold the same tensors, none with a change that torch counts."""
        tensors = _tensors(modules)
        return (
            len(tensors) == len(self._tensors)
            and all(one is other for one, other in zip(tensors, self._tensors))
            and [_count(one) for one in tensors] == self._counts
        )

    @torch.no_grad()
    def same(self, modules: Iterable[nn.Module]) -> bool:
        """Whether nothing has changed at all since ``keep``."""
        modules = list(modules)
        values = zip(self._tensors, self._values)
        return self.counted(modules) and all(_equal(one, kept) for one, kept in values)


def _tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [one for m in modules for one in (*m.parameters(), *m.buffers())]


def _count(tensor: Tensor) -> tuple[int, int, torch.dtype, torch.device]:
    """What changes with a tensor; one made for inference is not counted."""
    version = 0 if tensor.is_inference() else tensor._version
    return version, tensor.data_ptr(), tensor.dtype, tensor.device


def _equal(one: Tensor, kept: Tensor) -> bool:
    return torch.equal(one, kept) or bool(((one == kept) | (one.isnan() & kept.isnan())).all())
