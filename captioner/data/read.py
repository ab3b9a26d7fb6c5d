"""The table of dataset layouts, and the function that reads a dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from captioner.config import pick, unknown
from captioner.data import readers, tables
from captioner.data.records import SPLITS, Dataset, Record
from captioner.data.unreadable import without_unreadable

__all__ = ["DATASETS", "SPLITS", "Dataset", "Reader", "Record", "read_records"]


STOP, SKIP = "stop", "skip"
ON_BAD_IMAGE = ("stop", "skip")
"""What to do about an image that cannot be read."""


class Reader(Protocol):
    """A function that reads the files of one layout, with the arguments of `read_records`."""

    def __call__(
        self,
        root: Path,
        *,
        captions: readers.Captions,
        images: str | None,
        holdout: float,
        encoding: str,
    ) -> Dataset:
        """Return the dataset; `captioner.testing.check_data_layout` checks a reader."""
        ...


DATASETS: dict[str, Reader] = {
    "flickr": readers.read_flickr,
    "kaggle": tables.read_kaggle,
    "karpathy": readers.read_karpathy,
    "coco": readers.read_coco,
    "table": tables.read_table,
    "json": readers.read_json,
    "folder": readers.read_folder,
    "shapes": readers.read_shapes,
    "worlds": readers.read_worlds,
}


def read_records(
    *,
    format: str,
    root: str,
    captions: str | list[str] | None = None,
    images: str | None = None,
    holdout: float = 0.1,
    encoding: str = "utf-8",
    on_bad_image: str = STOP,
) -> Dataset:
    """Read a dataset.

    Args:
        format: name of its layout, a key of DATASETS.
        root: its folder; ~ is the home folder.
        captions: the caption file relative to root, or absolute; None looks for the usual names.
            For coco, json and table also several, or a glob pattern.
        images: the images folder relative to root, or absolute; None looks for the usual names.
        holdout: fraction of images for dev, and for test, if the data names no splits, in
            [0, 0.5); a hash of the image's id decides, and small datasets always have a few dev
            images: see `captioner.data.record_builder`.
        encoding: of the caption files.
        on_bad_image: "stop" at an image that cannot be read, when it is needed; or "skip" it: all
            images are opened now, and those that cannot be read are not among the records.

    Returns:
        the records, and warnings about the files.

    Raises:
        FileNotFoundError: the root, the caption file or the images folder does not exist.
        ValueError: an argument is not known, or a file has the wrong content.
    """
    reader, folder = pick(DATASETS, format, "data.format"), Path(os.path.expanduser(root))
    if on_bad_image not in ON_BAD_IMAGE:
        raise unknown("data.on_bad_image", on_bad_image, ON_BAD_IMAGE)
    dataset = reader(folder, captions=captions, images=images, holdout=holdout, encoding=encoding)
    return without_unreadable(dataset) if on_bad_image == SKIP else dataset
