"""The feature cache: features of a frozen encoder, computed once per image and kept on disk.

Each encoder has its own folder in the cache's folder, named by its fingerprint; its files are those
of `captioner.data.feature_store`. They are memory-mapped (`CachedFeatures`), so memory does not
grow with the number of images.

The identity of an image is its absolute path, size and modification time, and the view of it that
was encoded (``captioner.data.views``). It is computed in microseconds; a changed or moved file is
encoded again. (A hash of the content would find moved files, but each start would read all images.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from captioner.data import cache
from captioner.data.cached_features import CachedFeatures
from captioner.data.feature_store import KEY_BYTES, FeatureStore, exclusive
from captioner.data.pipeline import encoding_pipeline
from captioner.data.views import View
from captioner.models.encoders.encoder import Encoder
from captioner.models.features import Features, on_device
from captioner.progress import progress_bar
from captioner.transforms import stack_pixels

__all__ = ["CachedFeatures", "cache_features", "fingerprint"]

_LAYOUT = 3  # increased when stored values change, so that older caches are not read; 2: since
# large JPEGs are decoded at reduced size, 3: since torch resizes, which differs by a level or two
_WRITTEN_AT_ONCE = 64  # minimum number of images


def fingerprint(encoder: Encoder) -> str:
    """Hash everything that the features of an encoder depend on.

    Args:
        encoder: its network, weights, transform and dtype are hashed, but not its device.

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


def cache_features(
    encoder: Encoder,
    images: Sequence[str],
    folder: Path,
    *,
    others: Iterable[View] = (),
    grid: bool = False,
    batch_size: int | None = None,
    progress: bool = True,
    reserved: int = 0,
) -> CachedFeatures:
    """Encode the images that are not in the cache yet, and open the cache.

    It may be killed at any time and called again. If several processes call it, one encodes while
    the others wait and then read the cached features.

    Args:
        encoder: used in eval mode and without gradients, on its device.
        images: paths.
        folder: of the cache; this encoder has a folder in it.
        others: views other than view 0 of some of the images; of each image in the order of their
            numbers.
        grid: cache the grids as well: P times the space, 125 kB per image for efficientnet_lite0.
        batch_size: images in a batch; None: 8 on a CPU, where they are fastest because their maps
            stay in its cache, and 64 on other devices.
        progress: show a progress bar.
        reserved: bytes on the disk that must stay free.

    Returns:
        the features of all images.

    Raises:
        ValueError: images cannot be read (all of them are listed, and the others are cached), or
            the features do not fit into float16, or the disk has too little space.
    """
    positions = _count_positions(encoder) if grid else 0
    keys, unreadable = _identities([*(View(image) for image in images), *others])
    store = _choose_store(encoder, folder, positions, set(keys.values()))
    use = cache.Use(store.folder)
    on_cpu = next(encoder.parameters()).device.type == "cpu"
    size = batch_size or (8 if on_cpu else 64)
    encoded, errors = _complete(encoder, keys, store, size, progress, reserved)
    unreadable += errors
    if unreadable:
        raise ValueError(_list_unreadable(list(dict.fromkeys(unreadable))))
    cache.describe(store.folder, _describe(encoder))
    return CachedFeatures(
        store.folder,
        _rows_of_images(keys, store.rows()),
        feature_size=encoder.feature_size,
        positions=positions,
        encoded=encoded,
        use=use,
    )


def _complete(
    encoder: Encoder,
    keys: Mapping[View, bytes],
    store: FeatureStore,
    batch_size: int,
    progress: bool,
    reserved: int,
) -> tuple[int, list[str]]:
    """Encode the views that a store does not have.

    Returns:
        how many these were, and a line for each of them that cannot be read.
    """
    if store.rows().keys() >= set(keys.values()):
        return 0, []
    with exclusive(store.folder):
        rows = store.repair()
        missing = {key: view for view, key in keys.items() if key not in rows}
        store.require_room(len(missing), reserved)
        return len(missing), _encode(encoder, missing, store, batch_size, progress)


def _rows_of_images(keys: Mapping[View, bytes], rows: Mapping[bytes, int]) -> dict[str, list[int]]:
    """The rows of the views of each image, in the order of the views."""
    result: dict[str, list[int]] = {}
    for view, key in keys.items():
        result.setdefault(view.image, []).append(rows[key])
    return result


def _choose_store(encoder: Encoder, folder: Path, positions: int, keys: set[bytes]) -> FeatureStore:
    """The files for an encoder; those with grids also if they contain all pooled features."""
    home = Path(os.path.expanduser(folder)) / fingerprint(encoder)
    with_grid = FeatureStore(home.with_name(f"{home.name}-grid"), encoder.feature_size, positions)
    if positions or with_grid.rows().keys() >= keys:
        return with_grid
    return FeatureStore(home, encoder.feature_size, 0)


def _describe(encoder: Encoder) -> list[str]:
    """A few words about an encoder, for ``captioner cache``."""
    transform = encoder.transform
    words = [encoder.network, f"{transform.size} px, crop {transform.crop:.3g}"]
    words += [] if encoder.stage is None else [f"stage {encoder.stage}"]
    words += [] if encoder.pretrained else ["random weights"]
    dtype = encoder.computes_in
    return [*words, *([] if dtype == torch.float32 else [str(dtype).removeprefix("torch.")])]


def _identities(views: Iterable[View]) -> tuple[dict[View, bytes], list[str]]:
    """Return the identity of each view, and a line for each missing file."""
    keys, unreadable = {}, []
    for view in dict.fromkeys(views):
        try:
            status = os.stat(view.image)
        except OSError:
            unreadable.append(f"{view.image}: no such file")
            continue
        identity = f"{os.path.abspath(view.image)}\0{status.st_size}\0{status.st_mtime_ns}"
        identity += f"\0{view.kind}" if view.kind else ""
        digest = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=KEY_BYTES)
        keys[view] = digest.digest()
    return keys, unreadable


def _count_positions(encoder: Encoder) -> int:
    side = encoder.transform.size
    with _evaluating(encoder) as device:
        grid = encoder(torch.zeros(1, 3, side, side, device=device)).grid
    if grid is None:
        raise ValueError(f"encoder.network={encoder.network} gives no grid to cache")
    return grid.shape[1]


@contextmanager
def _evaluating(encoder: Encoder) -> Iterator[torch.device]:
    """Put an encoder into eval mode and disable gradients; yields its device."""
    training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode():
            yield next(encoder.parameters()).device
    finally:
        encoder.train(training)


def _encode(
    encoder: Encoder,
    missing: Mapping[bytes, View],
    store: FeatureStore,
    batch_size: int,
    progress: bool,
) -> list[str]:
    """Encode the missing views and append them to the store.

    Returns:
        a line for each view that cannot be read.
    """
    unreadable: list[str] = []
    waiting: list[tuple[list[bytes], Features]] = []

    def read(entry: tuple[bytes, View]) -> tuple[bytes, Tensor]:
        key, view = entry
        return key, view.pixels(encoder.transform)

    def encode(pixels: list[Tensor]) -> Features:
        with torch.inference_mode():  # applies to this thread only
            return encoder(on_device(stack_pixels(pixels), device))

    def write() -> None:
        batches = [*waiting]
        waiting.clear()  # first, so that nothing is written twice
        if batches:
            pipeline.call(store.append, batches)

    bar = progress_bar("encoding images", len(missing), wanted=progress)
    with bar as advance, _evaluating(encoder) as device, encoding_pipeline(device) as pipeline:
        encoder.make_ready()  # otherwise each thread would wait for it
        try:
            for batch in pipeline.encode(missing.items(), read, [encode], batch_size=batch_size):
                waiting += [(batch.keys, features) for features in batch.features]
                unreadable += map(str, batch.errors)
                advance(len(batch.results))
                if len(waiting) * batch_size >= _WRITTEN_AT_ONCE:
                    write()
        finally:
            write()  # also what was encoded before an interruption
    return unreadable


def _list_unreadable(lines: list[str], most: int = 20) -> str:
    count = "1 image" if len(lines) == 1 else f"{len(lines)} images"
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    advice = "repair or remove, or skip with data.on_bad_image=skip"
    first = f"{count} cannot be read (all others are cached); {advice}:"
    return "\n  ".join([first, *lines[:most], *more])
