"""The files of one encoder's feature cache: an index, and features in float16.

    index          24 bytes a row: the identity of the image, and a checksum of identity and row
    pooled.f16     D float16 values a row
    grid.f16       P x D float16 values a row, if grids are cached
    encoder.json   a description of the encoder, for ``captioner cache``
    grid-*.f16     P x components principal components of the grids (`CachedFeatures.components`)
    sums-*         the CRC-32 of each row of pooled, grid and grid-*, 4 bytes a row

The files of rows only grow. A row is valid when its index entry is written, after the values: the
unfinished rows of a killed process are removed by the next process that writes. Its values are
compared with their checksum when they are first read; caches of earlier versions have none.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captioner.data import cache
from captioner.files import format_bytes
from captioner.models.features import Features

KEY_BYTES, CHECKSUM_BYTES = 16, 8  # of an index entry
SUM_BYTES = 4
ENTRY_BYTES = cache.ENTRY_BYTES
assert ENTRY_BYTES == KEY_BYTES + CHECKSUM_BYTES
_WORTH_A_LINE = 10**6  # bytes
_LOG = logging.getLogger(__name__)


class FeatureStore:
    """The files of one encoder's cache; only one process at a time may call repair and append.

    Args:
        folder: of the files.
        feature_size: D.
        positions: P; 0 if only pooled features are cached.
    """

    def __init__(self, folder: Path, feature_size: int, positions: int) -> None:
        self.folder = folder
        self.widths = {cache.INDEX: ENTRY_BYTES, "pooled.f16": 2 * feature_size}  # bytes a row
        if positions:
            self.widths["grid.f16"] = 2 * positions * feature_size

    def rows(self) -> dict[bytes, int]:
        """Map each identity to its row; damaged entries and unfinished rows are left out."""
        count = self._count()
        if not count:
            return {}
        index = (self.folder / cache.INDEX).read_bytes()[: count * ENTRY_BYTES]
        entries = (index[at : at + ENTRY_BYTES] for at in range(0, len(index), ENTRY_BYTES))
        keys = ((entry[:KEY_BYTES], entry, row) for row, entry in enumerate(entries))
        return {key: row for key, entry, row in keys if entry == _index_entry(row, key)}

    def _count(self) -> int:
        files = ((self.folder / name, width) for name, width in self.widths.items())
        return min(file.stat().st_size // width if file.exists() else 0 for file, width in files)

    def repair(self) -> dict[bytes, int]:
        """Remove unfinished rows of an interrupted process, and return the rows."""
        count = self._count()
        for name, width in self.widths.items():
            with open(self.folder / name, "ab") as file:
                file.truncate(count * width)
            if name != cache.INDEX:
                self._complete_sums(name, count)
        return self.rows()

    def _complete_sums(self, name: str, count: int) -> None:
        """Remove the checksums of unfinished rows, and add those that earlier versions lack."""
        width, sums = self.widths[name], sums_file(self.folder / name)
        present = min(sums.stat().st_size // SUM_BYTES if sums.exists() else 0, count)
        with open(sums, "ab") as file, open(self.folder / name, "rb") as values:
            file.truncate(present * SUM_BYTES)
            values.seek(present * width)
            for _ in range(present, count):
                file.write(row_sums(values.read(width), width))

    def require_room(self, count: int, reserved: int = 0) -> None:
        """Say what this number of additional rows takes; ValueError if the disk cannot hold it."""
        require_room(self.folder, count, sum(self.widths.values()), reserved)

    def append(self, batches: Sequence[tuple[Sequence[bytes], Features]]) -> None:
        """Write the rows of some batches, and then their index entries.

        Args:
            batches: the identities of each, and their features.
        """
        first = self._count()
        for name in self.widths.keys() - {cache.INDEX}:
            field = name.removesuffix(".f16")
            parts = (to_float16(getattr(features, field)) for _, features in batches)
            values = b"".join(parts)
            self._write(name, values)
            self._write(sums_file(Path(name)).name, row_sums(values, self.widths[name]))
        keys = enumerate((key for batch, _ in batches for key in batch), first)
        self._write(cache.INDEX, b"".join(_index_entry(row, key) for row, key in keys))

    def _write(self, name: str, data: bytes) -> None:
        try:
            with open(self.folder / name, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # a power cut must not keep the index and lose the values
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder / name)) from None


class CheckedRows:
    """The rows of a memory-mapped file of float16; each is checked when it is first read.

    Args:
        file: of the values; rows without a checksum beside it are not checked.
        count: number of rows.
        shape: of a row.
    """

    def __init__(self, file: Path, count: int, shape: tuple[int, ...]) -> None:
        self._file = file
        self._values = np.memmap(file, "<f2", "r", shape=(count, *shape))
        sums = sums_file(file)
        self._sums = np.fromfile(sums, "<u4", count) if sums.is_file() else np.empty(0, "<u4")
        self._unchecked = np.arange(count) < len(self._sums)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """A copy of some rows.

        Raises:
            ValueError: the values of a row have changed since they were written.
        """
        values = self._values[rows]
        for place in np.flatnonzero(self._unchecked[rows]):
            if zlib.crc32(values[place]) != self._sums[rows[place]]:
                raise ValueError(
                    f"{self._file}: damaged (row {rows[place]} has another checksum); delete "
                    f"{self._file.parent}, and its features are computed again"
                )
        self._unchecked[rows] = False
        return values


def sums_file(file: Path) -> Path:
    """The file with the checksums of the rows of a file of values."""
    return file.with_name(f"sums-{file.stem}")


def row_sums(values: bytes, width: int) -> bytes:
    """The checksums of rows.

    Args:
        values: of the rows.
        width: bytes a row.
    """
    rows = (values[at : at + width] for at in range(0, len(values), width))
    return b"".join(zlib.crc32(row).to_bytes(SUM_BYTES, "little") for row in rows)


def _index_entry(row: int, key: bytes) -> bytes:
    """Make an index entry; its checksum makes it valid for this key in this row only."""
    checksum = hashlib.blake2b(row.to_bytes(8, "little") + key, digest_size=CHECKSUM_BYTES)
    return key + checksum.digest()


def require_room(folder: Path, count: int, width: int, reserved: int = 0) -> None:
    """Check that the disk has space for the features of images, and log what they take, from 1 MB.

    Args:
        folder: of the features.
        count: number of images.
        width: bytes per image.
        reserved: bytes that must stay free, for checkpoints.

    Raises:
        ValueError: the disk has less free space.
    """
    needed, free = count * width, shutil.disk_usage(folder).free
    room = f"{format_bytes(needed)} in {folder}"
    if needed + reserved > free:
        more = f", and the checkpoints {format_bytes(reserved)}" if reserved else ""
        raise ValueError(
            f"the features of {count} images need {room}{more}, but {format_bytes(free)} are free; "
            "free some space, choose another folder (loader.cache_folder or $CAPTIONER_CACHE), or "
            "read the images each time (loader.cache=false)"
        )
    if needed >= _WORTH_A_LINE:
        _LOG.info("the features of %d images take %s, %s are free", count, room, format_bytes(free))


def to_float16(values: Tensor | None) -> bytes:
    """Convert features to little-endian float16.

    Raises:
        ValueError: they overflow, or are not finite, or would all be rounded to 0.
    """
    assert values is not None
    halves = values.half()
    largest = values.abs().max().item()
    # An untrained deep network may give 1e-8, which float16 rounds to 0.
    if not halves.isfinite().all() or 0 < largest < torch.finfo(torch.float16).smallest_normal:
        raise ValueError(
            f"features up to {largest:.3g} do not fit into the cache's float16; "
            "set loader.cache=false, or choose another encoder"
        )
    return halves.cpu().contiguous().numpy().astype("<f2", copy=False).tobytes()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it when the process ends or is killed."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / cache.LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("waiting for another process that writes to %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
