"""Work that threads do ahead: results in order, a bounded number of them waiting."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple, TypeVar

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


class Workers(NamedTuple):
    """Threads that encode, and one for what follows.

    Attributes:
        encoders: each has one core for its operations.
        several: how many those are.
        rest: one thread, with the cores that the encoders leave.
    """

    encoders: ThreadPoolExecutor
    several: int
    rest: ThreadPoolExecutor


@contextmanager
def side_by_side(device: torch.device) -> Iterator[Workers]:
    """Threads that encode, one for each core, four at most, and one off the CPU; and one more.

    Each that encodes has one core for its operations: batches side by side use cores better than
    one batch that all of them share, and features do not depend on the number of threads. What
    waits for them has the cores that are left, or one: more would wait, awake, for those that
    encode. It has a thread of its own, so that the caller's number of threads stays as it is.
    """
    count, left = 1, torch.get_num_threads()
    if device.type == "cpu":
        count = min(4, CORES)
        left = max(1, min(left, CORES - count))
    pools: list[ThreadPoolExecutor] = []
    try:
        with _SETTING:
            before = torch.get_num_threads()
            try:
                pools += [_pool(count, cores=1), _pool(1, cores=left)]
            finally:
                torch.set_num_threads(before)
        yield Workers(pools[0], count, pools[1])
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)


_SETTING = threading.Lock()


def _pool(count: int, *, cores: int) -> ThreadPoolExecutor:
    """Threads that compute with a number of cores each, all of them started.

    What a thread sets is its own, but a thread that has set nothing takes what was set last, in
    whatever thread: so all are set at once, and the caller then sets what it had before.
    """
    pool = ThreadPoolExecutor(count, initializer=_compute_with, initargs=(cores,))
    met = threading.Barrier(count)
    for done in [pool.submit(met.wait) for _ in range(count)]:  # none is idle: each starts one
        done.result()
    return pool


def _compute_with(cores: int) -> None:
    """Give this thread a number of cores, and use it: first used, it takes what was set last."""
    torch.set_num_threads(cores)
    torch.get_num_threads()
    torch.ones(1 << 16).add_(1)


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
