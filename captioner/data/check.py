"""The check of a dataset's files, for ``captioner data check``: every image is opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captioner.data.record_builder import ABSENT, ABSENT_IMAGE, BLANK, DAMAGED, UNCAPTIONED
from captioner.data.records import Dataset, Record
from captioner.data.worlds import is_world
from captioner.progress import progress_bar


@dataclass(frozen=True)
class Report:
    """The result of `check`.

    Args:
        images: number of images that were opened.
        broken: image -> the reason why it cannot be read.
        missing: images that occur in caption files or split lists but do not exist.
        uncaptioned: images without a caption, or with a blank one among others.
        leaks: groups of byte-identical images in different splits, each named `split/image`;
            scores on such images measure memorization.
        duplicates: groups of byte-identical images within one split: harmless, but counted twice.
        repeated: images of a drawn world that are equal to another one, as intended: they are
            neither leaks nor duplicates.
        damaged: places in the caption file where a caption, or a part of one, was lost.
        reader_warnings: what the reader skipped or repaired, and how often; "oddities" in JSON.
        places: for each of these warnings, the images or lines where it occurred.
        fit_warnings: captions that do not fit the tokenizer or the lengths; "warnings" in JSON.
    """

    images: int
    broken: Mapping[str, str]
    missing: tuple[str, ...]
    uncaptioned: tuple[str, ...]
    leaks: tuple[tuple[str, ...], ...]
    duplicates: tuple[tuple[str, ...], ...]
    damaged: tuple[str, ...]
    reader_warnings: Mapping[str, int]
    places: Mapping[str, tuple[str, ...]]
    fit_warnings: tuple[str, ...] = ()
    repeated: int = 0

    @property
    def sound(self) -> bool:
        """Whether no image or caption is broken, missing, damaged, leaked or does not fit."""
        faults = (self.broken, self.missing, self.leaks, self.damaged, self.fit_warnings)
        return not any(faults)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `sound` as plain data that JSON can hold."""
        names = {"reader_warnings": "oddities", "fit_warnings": "warnings"}
        values = {names.get(name, name): value for name, value in asdict(self).items()}
        return {"sound": self.sound, **values}


def check(dataset: Dataset, *, fit_warnings: Sequence[str] = (), progress: bool = True) -> Report:
    """Open every image of a dataset, and compare the files.

    Args:
        dataset: any.
        fit_warnings: the result of that function, for the report.
        progress: show a progress bar on standard error.

    Returns:
        which images are broken, missing, without captions, or duplicates. Images are the same when
        their files are byte-identical; a copy that was re-encoded is not recognized.
    """
    paths = [record.image for record in dataset.records]
    broken: dict[str, str] = {}
    same: dict[bytes, list[Record]] = {}
    # Decoding releases the GIL, so threads share the work without copying images.
    bar = progress_bar("opening images", len(paths), wanted=progress)
    with bar as advance, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for record, (digest, fault) in zip(dataset.records, pool.map(_inspect, paths)):
            advance(1)
            if fault:
                broken[record.image_id] = fault
            else:
                same.setdefault(digest, []).append(record)
    groups = [group for group in same.values() if len(group) > 1]
    repeated = 0
    if is_world(dataset.records):
        repeated, groups = sum(map(len, groups)), []
    leaks = [group for group in groups if len({record.split for record in group}) > 1]
    return Report(
        images=len(paths),
        broken=broken,
        missing=_collect_places(dataset, ABSENT, ABSENT_IMAGE),
        uncaptioned=_collect_places(dataset, UNCAPTIONED, BLANK),
        leaks=_name_images(leaks),
        duplicates=_name_images(group for group in groups if group not in leaks),
        damaged=_collect_places(dataset, *DAMAGED),
        reader_warnings=dict(dataset.warnings),
        places=dict(dataset.places),
        fit_warnings=tuple(fit_warnings),
        repeated=repeated,
    )


def _collect_places(dataset: Dataset, *warnings: str) -> tuple[str, ...]:
    """Return the places of any of the warnings, each once."""
    places = (place for warning in warnings for place in dataset.places.get(warning, ()))
    return tuple(dict.fromkeys(places))


def _inspect(path: str) -> tuple[bytes, str]:
    """Return the digest of an image file, and the reason why it cannot be read or ""."""
    from captioner.images import find_fault

    fault = find_fault(path)
    content = b"" if fault else Path(path).read_bytes()
    return hashlib.sha1(content, usedforsecurity=False).digest(), fault


def _name_images(groups: Iterable[Sequence[Record]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{record.split}/{record.image_id}" for record in group) for group in groups)
