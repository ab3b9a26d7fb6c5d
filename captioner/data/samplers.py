"""The order of the items of a split: shuffled for training, unchanged for validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch.utils.data import Sampler

Key = tuple[int, list[int]]
"""A key that a sampler passes to a dataset: the epoch, and the indices of one batch."""


class InOrder(Sampler[Key]):
    """All indices in order, `batch_size` at a time; the batches alternate between the ranks.

    No batch has a single index if others have more, because images are compared with each other.
    All ranks have the same number of batches, the last of which may be empty.

    Args:
        count: number of indices.
        batch_size: of all batches except the last two.
        rank: from 0.
        ranks: number of ranks that share the batches.
        limit: maximum number of batches of all ranks; None: all of them.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        limit: int | None = None,
    ) -> None:
        self.count, self.batch_size = count, batch_size
        self.rank, self.ranks, self.limit = rank, ranks, limit

    def __len__(self) -> int:
        return -(-len(self.batches()) // self.ranks)

    def __iter__(self) -> Iterator[Key]:
        own = self.batches()[self.rank :: self.ranks]
        for batch in own:
            yield 0, list(batch)
        if len(own) < len(self):
            yield 0, []

    def batches(self) -> list[range]:
        """The batches of all ranks."""
        firsts = [*range(0, self.count, self.batch_size), self.count]
        if len(firsts) > 2 and self.batch_size > 2 and self.count - firsts[-2] == 1:
            firsts[-2] -= 1  # so that the last batch has two images
        return [range(*ends) for ends in pairwise(firsts)][: self.limit]


class Bucketed(Sampler[Key]):
    """Shuffled batches of captions of similar length, to reduce padding.

    The pairs are shuffled, divided into pools of `pool` batches, sorted by length within a pool and
    divided into batches, which are shuffled. The order depends on seed and epoch only; with
    `repeats`, every epoch has the order of the first.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        pool: int = 50,
        repeats: bool = False,
    ) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size, self.seed, self.pool, self.repeats = batch_size, seed, pool, repeats
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order is used next; Lightning calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Key]:
        for places in self.order()[self.first :]:
            yield 0 if self.repeats else self.epoch, places

    def order(self) -> list[list[int]]:
        """The batches of this epoch."""
        epoch = 0 if self.repeats else self.epoch
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(self.lengths), generator=generator)
        pools = shuffled.split(self.pool * self.batch_size)
        batches = [
            batch
            for pool in pools
            for batch in pool[self.lengths[pool].argsort(stable=True)].split(self.batch_size)
        ]
        return [batches[k].tolist() for k in torch.randperm(len(batches), generator=generator)]
