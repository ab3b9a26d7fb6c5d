"""The only pipeline from image files to features, for captioning, caching and evaluation.

Threads read the files ahead, batches are encoded in parallel, and the features are returned in
the order of the images:

    with encoding_pipeline(device) as pipeline:
        for batch in pipeline.encode(images, read, [encode], batch_size=8):
            pipeline.call(write, batch.keys, batch.features)

Reading images and the large operations of a network release the GIL, so threads are sufficient. On
a CPU each encoding thread uses one core: parallel batches use the cores better than one batch that
uses all of them, and features do not depend on the number of cores. `call` runs the next stage in a
thread of its own, with the remaining cores: if there are more OpenMP threads than cores, they wait
actively for each other.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import torch

from captioner.process import ForkedLock

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Cores that this process may use."""
READERS = min(4, CORES)
"""Threads that read images for encoders on the CPU."""
READERS_FOR_GPU = min(16, CORES)
"""Threads that read images for an encoder on another device, which does not use the cores."""
MOST_ENCODERS = 4
"""Maximum number of batches that are encoded in parallel on a CPU."""

Item = TypeVar("Item")
Key = TypeVar("Key")
Pixels = TypeVar("Pixels")
Encoded = TypeVar("Encoded")
Result = TypeVar("Result")


@dataclass(frozen=True)
class EncodedBatch(Generic[Key, Encoded]):
    """The features of a batch of images.

    Args:
        results: for each image its key, or the error if it cannot be read.
        features: of the readable images, one row per key, from each of the functions that encode;
            empty if no image is readable.
    """

    results: list[Key | ValueError | OSError]
    features: list[Encoded]

    @property
    def keys(self) -> list[Key]:
        """The keys of the readable images."""
        return [key for key in self.results if not isinstance(key, (ValueError, OSError))]

    @property
    def errors(self) -> list[ValueError | OSError]:
        """The errors of the other images."""
        return [error for error in self.results if isinstance(error, (ValueError, OSError))]


class EncodingPipeline:
    """Threads that read and encode images; made by `encoding_pipeline`.

    Args:
        readers: threads that read images.
        encoders: threads that encode batches.
        consumer: one thread for the next stage.
        side_by_side: number of the encoders.
    """

    def __init__(
        self,
        readers: ThreadPoolExecutor,
        encoders: ThreadPoolExecutor,
        consumer: ThreadPoolExecutor,
        *,
        side_by_side: int,
    ) -> None:
        self._readers, self._encoders, self._consumer = readers, encoders, consumer
        self._side_by_side = side_by_side

    def encode(
        self,
        items: Iterable[Item],
        read: Callable[[Item], tuple[Key, Pixels]],
        encode: Sequence[Callable[[list[Pixels]], Encoded]],
        *,
        batch_size: int,
    ) -> Iterator[EncodedBatch[Key, Encoded]]:
        """Read and encode images.

        Args:
            items: any number; they are taken a few batches ahead, in the caller's thread.
            read: returns the key that identifies an image, and its pixels; a ValueError or OSError
                that it raises becomes the result instead of the key.
            encode: functions, at least one, each of which computes features of a batch of pixels;
                they set their own gradient mode, and run at the same time.
            batch_size: images in a batch, at least 1; the last batch has the rest.

        Yields:
            the batches, in the order of the items.

        Raises:
            Exception: any other that `read` or `encode` raises.
        """
        count = self._side_by_side
        images = _map_ahead(
            self._readers, partial(_read, read), items, ahead=(1 + count) * batch_size
        )
        batches = _split_batches(images, batch_size)
        tasks = ((function, batch) for batch in batches for function in encode)
        encoded = _map_ahead(self._encoders, _encode, tasks, ahead=count)
        while parts := list(islice(encoded, len(encode))):
            features = [part for _, part in parts if part is not None]
            yield EncodedBatch(parts[0][0], features)

    def call(self, function: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """Call a function with the cores that the encoders do not use, and return its result."""
        return self._consumer.submit(function, *arguments, **options).result()


@contextmanager
def encoding_pipeline(device: torch.device, *, cached: bool = False) -> Iterator[EncodingPipeline]:
    """Start the threads of a pipeline; at the end of the block they stop, without pending tasks.

    The number of cores that torch uses in the caller's thread, and in new threads, does not change.

    Args:
        device: of the encoders; on a CPU several batches are encoded in parallel.
        cached: whether features are only read from the cache; `call` then uses all cores.
    """
    encoders, cores_left = 1, torch.get_num_threads()
    if device.type == "cpu" and not cached:
        encoders = min(MOST_ENCODERS, CORES)
        cores_left = max(1, min(cores_left, CORES - encoders))
    with ExitStack() as stack:

        def start(count: int) -> ThreadPoolExecutor:
            pool = ThreadPoolExecutor(count)
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            return pool

        read_by = READERS if device.type == "cpu" else READERS_FOR_GPU
        readers, encoding, consumer = start(read_by), start(encoders), start(1)
        _limit_cores({encoding: (encoders, 1), consumer: (1, cores_left)})
        yield EncodingPipeline(readers, encoding, consumer, side_by_side=encoders)


_LIMITING = ForkedLock()


def _limit_cores(pools: dict[ThreadPoolExecutor, tuple[int, int]]) -> None:
    """Start all threads of the pools, and set the number of cores that torch uses in each.

    ``torch.set_num_threads`` sets the number for the calling thread, and the default of all threads
    that use torch for the first time later. This default belongs to the caller: a new thread reads
    it here, and another one restores it.

    Args:
        pools: for each pool, the number of its threads and the cores of each thread.
    """
    with _LIMITING:
        default = _in_new_thread(torch.get_num_threads)
        try:
            for pool, (count, cores) in pools.items():
                started = threading.Barrier(count)  # so that each thread runs exactly one task
                tasks = [pool.submit(_limit_thread, cores, started) for _ in range(count)]
                for task in tasks:
                    task.result()
        finally:
            _in_new_thread(partial(torch.set_num_threads, default))


def _limit_thread(cores: int, started: threading.Barrier) -> None:
    torch.set_num_threads(cores)
    torch.get_num_threads()  # at its first use, a thread adopts the number that was set last
    torch.ones(1 << 16).add_(1)
    started.wait()


def _in_new_thread(function: Callable[[], Result]) -> Result:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def _read(
    read: Callable[[Item], tuple[Key, Pixels]], item: Item
) -> tuple[Key | ValueError | OSError, Pixels | None]:
    try:
        return read(item)
    except (ValueError, OSError) as error:
        return error, None


def _encode(
    task: tuple[
        Callable[[list[Pixels]], Encoded],
        list[tuple[Key | ValueError | OSError, Pixels | None]],
    ],
) -> tuple[list[Key | ValueError | OSError], Encoded | None]:
    """The keys, or errors, of a batch, and its features from one of the functions."""
    encode, images = task
    pixels = [pixels for _, pixels in images if pixels is not None]
    return [key for key, _ in images], encode(pixels) if pixels else None


def _map_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
) -> Iterator[Result]:
    """Map a function over items in threads.

    Args:
        pool: the threads.
        function: called with each item; its exceptions are raised here.
        items: any number; they are taken as they are needed.
        ahead: number of results that are computed in advance.

    Yields:
        the results, in the order of the items.
    """
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _split_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
