"""The processes of a training on several devices: which one this is, and how they communicate.

Each process is a rank; rank 0 prints and writes. In a training of one process every function
returns its argument. Ranks exchange plain data and tensors of their own, never a file's content.
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
    """Whether this process has joined a group of several."""
    return group.is_available() and group.is_initialized()


def count() -> int:
    """How many ranks there are."""
    return group.get_world_size() if joined() else 1


def number() -> int:
    """Which rank this is, from 0."""
    return group.get_rank() if joined() else 0


def first() -> bool:
    """Whether this is rank 0, also before the ranks have met."""
    if joined():
        return number() == 0
    return is_first()


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Within the block, ranks other than the first print nothing and do not warn."""
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
    """Fill tensors with the values of rank 0; all are on the rank's own device."""
    if joined():
        for tensor in tensors:
            group.broadcast(tensor.detach(), 0)


@torch.no_grad()
def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the ranks, on the rank's own device."""
    if not joined():
        return values
    total = values.detach().clone()
    group.all_reduce(total)
    return total / count()


def in_turn(dealt: Sequence[Sequence[_Value]]) -> list[_Value]:
    """Values that were distributed to the ranks in turn, in their original order.

    Args:
        dealt: the values of each rank.
    """
    boxed = ([(value,) for value in of_rank] for of_rank in dealt)
    turns = zip_longest(*boxed, fillvalue=())
    return [value for turn in turns for box in turn for value in box]
