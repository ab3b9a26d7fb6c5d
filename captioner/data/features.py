"""The feature cache: what a frozen encoder says of each image, computed once and kept on disk.

Below the cache's folder each encoder has one of its own, named by its fingerprint, with

    index          24 bytes a row: the image's identity and a check of it
    pooled.f16     D float16 values a row
    grid.f16       P x D float16 values a row, where grids were asked for
    grid-*.f16     P x K principal components of the same, as a decoder reads them
    encoder.json   whose features these are, for people (``captioner cache``)

The first three only grow, and a row counts once its index entry is written, after the values:
whatever a kill leaves behind is cut off by the next writer. Readers map the files, so memory does
not grow with the number of images. An identity is the image's absolute path, size and modification
time, and which view of it was encoded (``captioner.data.views``): asking for these takes
microseconds, and a changed or moved file is encoded anew. (A hash of the content would survive
moving, but reads every image at every start.) Principal components are named by what they were
computed from, and may be deleted at any time.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.data import cache
from captioner.data.threads import READERS, batched, in_order, side_by_side, threads
from captioner.data.views import View
from captioner.files import write_whole
from captioner.models.decoders.standardize import Standardise
from captioner.models.encoders.encoder import Encoder
from captioner.models.features import Features
from captioner.transforms import stack_pixels

_LAYOUT = 3  # raised when what is stored changes, so that older caches are not read; 2: since
# large JPEGs are decoded at reduced size, 3: since torch resizes, which differs by a level or two
_KEY, _CHECK = 16, 8  # bytes of an index entry
_ENTRY = cache.ENTRY_BYTES
assert _ENTRY == _KEY + _CHECK
_AT_ONCE = 64  # images that are written, or grids that are reduced, at once


def fingerprint(encoder: Encoder) -> str:
    """Name an encoder by everything its features depend on.

    Args:
        encoder: any; its network, weights and transform count, and whether it computes in bfloat16
            here; its device does not.

    Returns:
        16 hexadecimal digits.
    """
    kind = [_LAYOUT, type(encoder).__name__, encoder.network, encoder.transform.as_dict()]
    if encoder.computes_in != torch.float32:
        kind.append(str(encoder.computes_in))
    digest = hashlib.blake2b(json.dumps(kind, sort_keys=True).encode(), digest_size=8)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()


class CachedFeatures:
    """Features of images, read from the cache's files.

    It can be sent to another process: it holds paths and row numbers, no features.

    Args:
        folder: of one encoder's cache.
        rows: of each image the rows of its views, view 0 first.
        feature_size: D.
        positions: P; 0 where only pooled features are kept.
        encoded: how many rows were missing.
        use: keeps the files while it lives; the process that computed the features holds it.
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
        self._used = 1 + max((max(one) for one in rows.values()), default=-1)
        self._maps: dict[str, np.ndarray] = {}
        self._grid = ("grid", feature_size)  # the file, and the width of what it holds
        self._kept: np.ndarray | None = None  # the rows that a file of components holds, rising

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps out: pickled, they would become copies of the whole files."""
        return {**self.__dict__, "_maps": {}, "_use": None}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image: str) -> bool:
        return image in self._rows

    @property
    def size(self) -> int:
        """Bytes that the features take on disk."""
        rows = sum(len(one) for one in self._rows.values())
        return rows * (_ENTRY + 2 * (self.feature_size + self.positions * self._grid[1]))

    def get(self, images: Sequence[str], views: Sequence[int] | None = None) -> Features:
        """Look images up.

        Args:
            images: B paths as they were given to cache_features, in any order and number.
            views: the number of the view of each; None takes view 0.

        Returns:
            float32 features: pooled [B, D], and grid [B, P, D], or [B, P, K] of components, or
            None.

        Raises:
            ValueError: an image is not among those that were cached.
        """
        numbers = [0] * len(images) if views is None else views
        try:
            found = [self._rows[image][number] for image, number in zip(images, numbers)]
            rows = np.array(found, dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"{error.args[0]}: not among the images that were cached") from None
        pooled = self._take("pooled", rows, (self.feature_size,))
        if not self.positions:
            return Features(pooled)
        name, width = self._grid
        rows = rows if self._kept is None else np.searchsorted(self._kept, rows)
        return Features(pooled, self._take(name, rows, (self.positions, width)))

    def components(self, whitening: Standardise, *, progress: bool = True) -> CachedFeatures:
        """The same features with K principal components of each position instead of D dimensions.

        They are computed once, kept beside the grids, and read D / K times as fast.

        Args:
            whitening: [P, D] -> [P, K].
            progress: show a bar.

        Raises:
            ValueError: the disk has too little room.
        """
        if not self.positions:
            raise ValueError(f"{self.folder}: holds no grids")
        found = copy.copy(self)
        found._maps = {}
        found._kept = np.unique([row for rows in self._rows.values() for row in rows])
        index = np.fromfile(self.folder / "index", np.uint8, self._used * _ENTRY)
        digest = hashlib.blake2b(index.reshape(-1, _ENTRY)[found._kept].tobytes(), digest_size=8)
        for tensor in (whitening.mean, whitening.scale):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
        found._grid = (f"grid-{digest.hexdigest()}", whitening.width)
        file = self.folder / f"{found._grid[0]}.f16"
        if not file.exists():
            with _alone(self.folder):
                if not file.exists():  # another process has written it meanwhile
                    self._reduce(found._kept, whitening, file, progress)
        return found

    def _reduce(self, rows: np.ndarray, whitening: Standardise, file: Path, progress: bool) -> None:
        _require_room(self.folder, len(rows), 2 * self.positions * whitening.width)
        for left in self.folder.glob(".*.tmp"):  # by a process that was killed here
            left.unlink()
        device = whitening.mean.device

        def reduced(first: int) -> bytes:
            some = rows[first : first + _AT_ONCE]
            with torch.inference_mode():
                grid = self._take("grid", some, (self.positions, self.feature_size))
                advance(len(some))
                return _halves(whitening(grid.to(device)))

        with _bar(len(rows), progress, "reducing grids") as advance:
            write_whole(file, map(reduced, range(0, len(rows), _AT_ONCE)))

    def _take(self, name: str, rows: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        if not len(rows):
            return torch.empty(0, *shape)
        if name not in self._maps:
            count = self._used
            if self._kept is not None and name != "pooled":
                count = len(self._kept)
            file = self.folder / f"{name}.f16"
            self._maps[name] = np.memmap(file, "<f2", "r", shape=(count, *shape))
        return torch.from_numpy(self._maps[name][rows]).float()


def cache_features(
    encoder: Encoder,
    images: Sequence[str],
    folder: Path,
    *,
    others: Iterable[View] = (),
    grid: bool = False,
    batch_size: int = 8,
    progress: bool = True,
) -> CachedFeatures:
    """Encode the images that are not in the cache yet, and open it.

    It may be killed at any time and called again. Of several processes one encodes, while the
    others wait and then find everything there.

    Args:
        encoder: used in eval mode and without gradients, on the device where it lies.
        images: paths.
        folder: of all caches; one below it is this encoder's.
        others: views besides view 0 of some of the images, of each image the next number first.
        grid: keep the grid as well: P times the space, 125 kB an image for efficientnet_lite0.
        batch_size: images encoded at once; on a CPU 8 are fastest: their maps stay in its cache.
        progress: show a bar with images per second.

    Returns:
        the features of all images.

    Raises:
        ValueError: images cannot be read: all are listed, after the others were cached; or the
            features do not fit into float16; or the disk has too little room.
    """
    positions = _count_positions(encoder) if grid else 0
    home = Path(os.path.expanduser(folder)) / fingerprint(encoder)
    with_grid = home.with_name(f"{home.name}-grid")
    keys, broken = _identities([*(View(image) for image in images), *others])
    store = _Store(with_grid if grid else home, encoder.feature_size, positions)
    if not grid:  # where grids were kept of all of them, their pooled features were as well
        other = _Store(with_grid, encoder.feature_size, 0)
        store = other if other.rows().keys() >= set(keys.values()) else store
    use = cache.Use(store.folder)
    rows, encoded, home = store.rows(), 0, store.folder
    if any(key not in rows for key in keys.values()):
        with _alone(home):
            rows = store.mend()
            missing = {key: view for view, key in keys.items() if key not in rows}
            encoded = len(missing)
            store.require_room(encoded)
            broken += _encode(encoder, missing, store, batch_size, progress)
            rows = store.rows()
    if broken:
        raise ValueError(_complaint(list(dict.fromkeys(broken))))
    found: dict[str, list[int]] = {}
    for view, key in keys.items():
        found.setdefault(view.image, []).append(rows[key])
    sizes = {"feature_size": encoder.feature_size, "positions": positions}
    cache.describe(home, _told(encoder))
    return CachedFeatures(home, found, encoded=encoded, use=use, **sizes)


def _told(encoder: Encoder) -> list[str]:
    """An encoder in a few words, for ``captioner cache``."""
    transform = encoder.transform
    words = [encoder.network, f"{transform.size} px, crop {transform.crop:.3g}"]
    words += [] if encoder.stage is None else [f"stage {encoder.stage}"]
    words += [] if encoder.pretrained else ["random weights"]
    kept = encoder.computes_in
    return [*words, *([] if kept == torch.float32 else [str(kept).removeprefix("torch.")])]


class _Store:
    """The files of one encoder's cache; only one process at a time may call mend and append."""

    def __init__(self, folder: Path, feature_size: int, positions: int) -> None:
        self.folder = folder
        self.widths = {"index": _ENTRY, "pooled.f16": 2 * feature_size}  # bytes a row
        if positions:
            self.widths["grid.f16"] = 2 * positions * feature_size

    def rows(self) -> dict[bytes, int]:
        """Return the row of each identity; damaged entries and unfinished rows do not count."""
        count = self._count()
        if not count:
            return {}
        index = (self.folder / "index").read_bytes()[: count * _ENTRY]
        entries = (index[at : at + _ENTRY] for at in range(0, len(index), _ENTRY))
        return {e[:_KEY]: row for row, e in enumerate(entries) if e == _entry(row, e[:_KEY])}

    def _count(self) -> int:
        files = ((self.folder / name, width) for name, width in self.widths.items())
        return min(file.stat().st_size // width if file.exists() else 0 for file, width in files)

    def mend(self) -> dict[bytes, int]:
        """Cut off what an interrupted writer left, and return the rows."""
        count = self._count()
        for name, width in self.widths.items():
            with open(self.folder / name, "ab") as file:
                file.truncate(count * width)
        return self.rows()

    def require_room(self, count: int) -> None:
        """Refuse to begin what the disk cannot hold."""
        _require_room(self.folder, count, sum(self.widths.values()))

    def append(self, batches: Sequence[tuple[Sequence[bytes], Features]]) -> None:
        """Write the keys and rows of some batches, and last their index entries."""
        first = self._count()
        for name in self.widths.keys() - {"index"}:
            field = name.removesuffix(".f16")
            self._write(name, b"".join(_halves(getattr(one, field)) for _, one in batches))
        keys = enumerate((key for some, _ in batches for key in some), first)
        self._write("index", b"".join(_entry(row, key) for row, key in keys))

    def _write(self, name: str, data: bytes) -> None:
        with open(self.folder / name, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the index and lose the values


def _require_room(folder: Path, count: int, width: int) -> None:
    needed, free = count * width, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder}: {count} images need {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are "
            "free; make room, or put the cache elsewhere"
        )


def _entry(row: int, key: bytes) -> bytes:
    """Make an index entry; with its check it is valid for one key in one row only."""
    return key + hashlib.blake2b(row.to_bytes(8, "little") + key, digest_size=_CHECK).digest()


def _halves(values: Tensor | None) -> bytes:
    assert values is not None
    halves = values.half()
    largest = values.abs().max().item()
    # An untrained deep network may give 1e-8, which float16 rounds to nothing.
    if not halves.isfinite().all() or 0 < largest < torch.finfo(torch.float16).smallest_normal:
        raise ValueError(
            f"features up to {largest:.3g} do not fit into the cache's float16; "
            "set loader.cache=false, or take another encoder"
        )
    return halves.cpu().contiguous().numpy().astype("<f2", copy=False).tobytes()


def _identities(views: Iterable[View]) -> tuple[dict[View, bytes], list[str]]:
    """Return each view's identity, and a line for each file that is not there."""
    keys, broken = {}, []
    for view in dict.fromkeys(views):
        try:
            status = os.stat(view.image)
        except OSError:
            broken.append(f"{view.image}: no such file")
            continue
        identity = f"{os.path.abspath(view.image)}\0{status.st_size}\0{status.st_mtime_ns}"
        identity += f"\0{view.kind}" if view.kind else ""
        digest = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=_KEY)
        keys[view] = digest.digest()
    return keys, broken


def _count_positions(encoder: Encoder) -> int:
    side = encoder.transform.size
    with _evaluating(encoder) as device:
        grid = encoder(torch.zeros(1, 3, side, side, device=device)).grid
    if grid is None:
        raise ValueError(f"encoder.network={encoder.network} gives no grid to cache")
    return grid.shape[1]


@contextmanager
def _evaluating(encoder: Encoder) -> Iterator[torch.device]:
    """Run an encoder in eval mode and without gradients; give its device."""
    training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode():
            yield next(encoder.parameters()).device
    finally:
        encoder.train(training)


def _encode(
    encoder: Encoder, missing: dict[bytes, View], store: _Store, batch_size: int, progress: bool
) -> list[str]:
    """Encode and append the missing views; return a line for each that cannot be read.

    While some batches are encoded, one on each core, threads read the next.
    """
    broken: list[str] = []
    with _bar(len(missing), progress) as advance, _evaluating(encoder) as device:
        encoder.make_ready()  # otherwise each of the threads would

        def picture(view: View) -> Tensor | Exception:
            try:
                return view.pixels(encoder.transform)
            except (ValueError, OSError) as error:
                return error

        def encode(pixels: list[Tensor | Exception]) -> tuple[list[Any], Features | None]:
            good = [one for one in pixels if isinstance(one, Tensor)]
            with torch.inference_mode():  # of this thread
                return pixels, encoder(stack_pixels(good).to(device)) if good else None

        with threads(READERS) as readers, side_by_side(device) as (encoders, count, rest):
            pixels = in_order(readers, picture, missing.values(), ahead=(1 + count) * batch_size)
            batches = in_order(encoders, encode, batched(pixels, batch_size), ahead=count)
            keys, done = iter(missing), list[tuple[list[bytes], Features]]()

            def write() -> None:
                taken = [*done]
                done.clear()  # first, so that nothing is written twice
                if taken:
                    rest.submit(store.append, taken).result()

            try:
                for pictures, features in batches:
                    read = zip(islice(keys, len(pictures)), pictures)
                    good = [key for key, one in read if isinstance(one, Tensor)]
                    if features is not None:
                        done.append((good, features))
                    broken += [str(one) for one in pictures if isinstance(one, Exception)]
                    advance(len(pictures))
                    if len(done) * batch_size >= _AT_ONCE:
                        write()
            finally:
                write()  # also what an interrupt finds
    return broken


@contextmanager
def _bar(total: int, shown: bool, what: str = "encoding images") -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("", total=total, speed="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            bar.update(task, speed=f"{speed:.0f} images/s" if speed else "")

        yield advance


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when the process ends, however that happens."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / cache.LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that fills {folder}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _complaint(broken: list[str], most: int = 20) -> str:
    count = "1 image" if len(broken) == 1 else f"{len(broken)} images"
    more = [f"... and {len(broken) - most} more"] if len(broken) > most else []
    first = f"{count} cannot be read (all others are cached); mend or remove:"
    return "\n  ".join([first, *broken[:most], *more])
