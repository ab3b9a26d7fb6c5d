"""Reads features from the files of a feature cache, which are memory-mapped."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.data import cache
from captioner.data.feature_store import (
    ENTRY_BYTES,
    CheckedRows,
    exclusive,
    require_room,
    row_sums,
    sums_file,
    to_float16,
)
from captioner.files import write_whole
from captioner.models.decoders.standardize import Standardize
from captioner.models.features import Features
from captioner.progress import progress_bar

_REDUCED_AT_ONCE = 64  # grids


class CachedFeatures:
    """Features of images, read from the files of the cache.

    It can be pickled for another process: it contains paths and row numbers, but no features.

    Args:
        folder: of one encoder's cache.
        rows: image -> the rows of its views, view 0 first.
        feature_size: D.
        positions: P; 0 if only pooled features are cached.
        encoded: number of rows that were not in the cache and have been computed.
        use: prevents `captioner cache clear` from removing the files while this object exists.
    """

    def __init__(
        self,
        folder: Path,
        rows: Mapping[str, Sequence[int]],
        *,
        feature_size: int,
        positions: int,
        encoded: int = 0,
        use: cache.Use | None = None,
    ) -> None:
        self.folder = folder
        self.feature_size = feature_size
        self.positions = positions
        self.encoded = encoded
        self._rows = rows
        self._use = use
        self._used = 1 + max((max(views) for views in rows.values()), default=-1)  # rows of files
        self._maps: dict[str, CheckedRows] = {}
        self._grid = ("grid", feature_size)  # name of the file, and size of a position
        self._reduced_rows: np.ndarray | None = None  # those in a file of components, ascending

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the maps: pickled, they would become copies of the whole files."""
        return {**self.__dict__, "_maps": {}, "_use": None}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image: str) -> bool:
        return image in self._rows

    @property
    def size(self) -> int:
        """Size of the features on disk, in bytes."""
        rows = sum(map(len, self._rows.values()))
        return rows * (ENTRY_BYTES + 2 * (self.feature_size + self.positions * self._grid[1]))

    def get(self, images: Sequence[str], views: Sequence[int] | None = None) -> Features:
        """Read the features of images.

        Args:
            images: B paths as given to cache_features, in any order, possibly repeated.
            views: the number of the view of each image; None reads view 0.

        Returns:
            float32 features: pooled [B, D], and grid [B, P, D], or [B, P, components], or None.

        Raises:
            ValueError: an image was not cached, or its features are damaged.
        """
        numbers = [0] * len(images) if views is None else views
        try:
            rows = np.array([self._rows[i][n] for i, n in zip(images, numbers)], dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"{error.args[0]}: not among the cached images") from None
        pooled = self._read("pooled", rows, (self.feature_size,))
        if not self.positions:
            return Features(pooled)
        name, width = self._grid
        rows = rows if self._reduced_rows is None else np.searchsorted(self._reduced_rows, rows)
        return Features(pooled, self._read(name, rows, (self.positions, width)))

    def components(self, whitening: Standardize, *, progress: bool = True) -> CachedFeatures:
        """The same features with principal components of each position instead of D dimensions.

        They are computed once, stored next to the grids, and read D / components times as fast. The
        name of their file is a hash of the images and the statistics; it may be deleted at any
        time.

        Args:
            whitening: [P, D] -> [P, components].
            progress: show a progress bar.

        Raises:
            ValueError: no grids are cached, or the disk has too little space.
        """
        if not self.positions:
            raise ValueError(f"{self.folder}: has no grids")
        reduced = copy.copy(self)
        reduced._maps = {}
        reduced._reduced_rows = np.unique([row for rows in self._rows.values() for row in rows])
        index = np.fromfile(self.folder / cache.INDEX, np.uint8, self._used * ENTRY_BYTES)
        entries = index.reshape(-1, ENTRY_BYTES)[reduced._reduced_rows]
        digest = hashlib.blake2b(entries.tobytes(), digest_size=8)
        for tensor in (whitening.mean, whitening.scale):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
        reduced._grid = (f"grid-{digest.hexdigest()}", whitening.width)
        file = self.folder / f"{reduced._grid[0]}.f16"
        if not file.exists():
            with exclusive(self.folder):
                if not file.exists():  # another process has written it meanwhile
                    self._reduce(reduced._reduced_rows, whitening, file, progress)
        return reduced

    def _reduce(self, rows: np.ndarray, whitening: Standardize, file: Path, progress: bool) -> None:
        width, sums = 2 * self.positions * whitening.width, list[bytes]()
        require_room(self.folder, len(rows), width)
        for temporary in self.folder.glob(".*.tmp"):  # of a killed process
            temporary.unlink()
        device = whitening.mean.device

        def reduce(first: int) -> bytes:
            part = rows[first : first + _REDUCED_AT_ONCE]
            with torch.inference_mode():
                grid = self._read("grid", part, (self.positions, self.feature_size))
                advance(len(part))
                values = to_float16(whitening(grid.to(device)))
            sums.append(row_sums(values, width))
            return values

        with progress_bar("reducing grids", len(rows), wanted=progress) as advance:
            write_whole(file, map(reduce, range(0, len(rows), _REDUCED_AT_ONCE)))
        write_whole(sums_file(file), sums)

    def _read(self, name: str, rows: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        if not len(rows):
            return torch.empty(0, *shape)
        if name not in self._maps:
            count = self._used
            if self._reduced_rows is not None and name != "pooled":
                count = len(self._reduced_rows)
            file = self.folder / f"{name}.f16"
            self._maps[name] = CheckedRows(file, count, shape)
        return torch.from_numpy(self._maps[name].read(rows)).float()
