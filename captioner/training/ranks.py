"""The processes of a training on several devices: which one this is, and how they communicate.

Each process is a rank; rank 0 prints and writes. With a single process these functions return their
argument unchanged. Ranks exchange only data that they have computed, never the content of a file.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as group
from torch import Tensor

from captioner.process import is_first

_Value = TypeVar("_Value")


def joined() -> bool:
    """Whether this process has joined a process group."""
    return group.is_available() and group.is_initialized()


def count() -> int:
    """How many ranks there are."""
    return group.get_world_size() if joined() else 1


def number() -> int:
    """Which rank this is, from 0."""
    return group.get_rank() if joined() else 0


def first() -> bool:
    """Whether this is rank 0; it may be called before the ranks have joined."""
    if joined():
        return number() == 0
    return is_first()


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Within the block, all ranks except the first print nothing and do not warn."""
    if first():
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def gather(value: _Value) -> list[_Value]:
    """The values of all ranks, in their order, on every rank; they must be picklable."""
    if not joined():
        return [value]
    values: list[Any] = [None] * count()
    group.all_gather_object(values, value)
    return values


def from_first(value: _Value) -> _Value:
    """Rank 0's value, on every rank; it must be picklable."""
    if not joined():
        return value
    values = [value]
    group.broadcast_object_list(values)
    return values[0]


@torch.no_grad()
def align(tensors: Iterable[Tensor]) -> None:
    """Copy the values of rank 0 into tensors, which are on the device of their rank."""
    if joined():
        for tensor in tensors:
            group.broadcast(tensor.detach(), 0)


@torch.no_grad()
def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over all ranks; each is on the device of its rank."""
    if not joined():
        return values
    total = values.detach().clone()
    group.all_reduce(total)
    return total / count()


def interleave(by_rank: Sequence[Sequence[_Value]]) -> list[_Value]:
    """The values of all ranks: the first of each rank, then the second of each rank, and so on.

    Args:
        by_rank: the values of each rank.
    """
    boxed = ([(value,) for value in values] for values in by_rank)
    rows = zip_longest(*boxed, fillvalue=())
    return [value for row in rows for box in row for value in box]
