"""In which order the items of a split are read: shuffled for training, as they come for dev."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch.utils.data import Sampler

Key = tuple[int, list[int]]
"""What a sampler asks of a dataset: the epoch, and the places of one batch."""


class InOrder(Sampler[Key]):
    """All places, in order, `batch_size` at a time; the batches are dealt out to ranks in turn.

    No batch has a single place where others have more: what compares images needs two of them.
    Every rank has as many batches, the last of which may be empty.

    Args:
        count: of places.
        batch_size: of all batches but the last two.
        rank: from 0.
        ranks: how many share the batches.
        limit: the most batches that are dealt out; None is all of them.
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
            firsts[-2] -= 1  # the last image has the one before for company
        return [range(*ends) for ends in pairwise(firsts)][: self.limit]


class Bucketed(Sampler[Key]):
    """Shuffled batches of captions of like length, so that little is computed for padding.

    The pairs are shuffled, cut into pools of `pool` batches, sorted by length within a pool and cut
    into batches, which are shuffled: the order depends on seed and epoch alone. Where it `repeats`,
    every epoch is the first one again.
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
        """Choose the epoch whose order comes next; Lightning calls it."""
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
            for one in pools
            for batch in one[self.lengths[one].argsort(stable=True)].split(self.batch_size)
        ]
        return [batches[k].tolist() for k in torch.randperm(len(batches), generator=generator)]
