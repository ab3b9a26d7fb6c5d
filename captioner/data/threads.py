"""Work that threads do ahead: results in order, a bounded number of them waiting."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Cores that this process may use."""
READERS = min(4, CORES)
"""Threads that read pictures."""

Given = TypeVar("Given")
Made = TypeVar("Made")


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are let go at once where the work breaks off: what waits is not begun."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def side_by_side(device: torch.device) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Threads that encode, and how many: one for each core, four at most, and one off the CPU.

    Each has one core for its operations: batches side by side use cores better than one batch that
    all of them share, and features do not depend on the number of threads. Who waits for them has
    the cores that are left, or one: more would wait, awake, for those that encode.
    """
    count, before = 1, torch.get_num_threads()
    if device.type == "cpu":
        count = min(4, CORES)
        torch.set_num_threads(max(1, min(before, CORES - count)))
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool, count
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(before)  # MKL's number is one for all threads


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Given], Made], items: Iterable[Given], *, ahead: int
) -> Iterator[Made]:
    """What `work` makes of each item.

    Args:
        pool: threads that work.
        work: called with one item; what it raises is raised here.
        items: any number; they are taken as they are needed.
        ahead: results that may wait or be under way while another is used.

    Yields:
        the results, in the order of the items.
    """
    begun: deque[Future[Made]] = deque()
    for item in items:
        begun.append(pool.submit(work, item))
        if len(begun) > ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def batched(items: Iterable[Given], size: int) -> Iterator[list[Given]]:
    """Lists of `size` items, at least 1; the last one holds what is left."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
