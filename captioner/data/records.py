"""A dataset: records of one image and its captions, each in one split.

A reader (`captioner.data.readers`) turns files into a `Dataset`. All later steps (tokenizers,
feature cache, batches, statistics) use its records, whatever layout the files have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Record:
    """One image and its captions.

    Args:
        image: path of the image file.
        image_id: unique in its dataset; in most formats its path relative to the images folder.
        captions: N texts as in the file, stripped, never blank; empty only if no captions are
            needed.
        split: "train", "dev" or "test".
    """

    image: str
    image_id: str
    captions: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class Dataset:
    """The records of a dataset, and what its reader skipped or repaired.

    Args:
        records: in the order of the file.
        warnings: what was skipped or repaired, and how often: `{"caption of an absent image": 5}`.
        places: for each warning the images or lines where it occurred, each once.
        unreadable: for each split its images that could not be read, with the reasons, if they are
            skipped (data.on_bad_image).
    """

    records: tuple[Record, ...]
    warnings: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unreadable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def split(self, name: str) -> tuple[Record, ...]:
        """Return the records of one split, in the order of the file.

        Args:
            name: "train", "dev" or "test".

        Raises:
            ValueError: the name is not a split, or the dataset has no image in it.
        """
        records = tuple(record for record in self.records if record.split == name)
        if not records:
            counts = Counter(record.split for record in self.records)
            sizes = ", ".join(f"{split} ({counts[split]} images)" for split in SPLITS)
            if name not in SPLITS:
                raise ValueError(f"split={name!r} is not known: the dataset has {sizes}")
            raise ValueError(f"split={name!r} is empty: the dataset has {sizes}; {_advice(name)}")
        return records


def _advice(split: str) -> str:
    """How to add a missing split to a dataset."""
    if split == "train":
        return "name training images in the data, or lower data.holdout"
    return (
        "data.holdout=0.1 holds out images if the data names no splits; otherwise name "
        f"{split} images in the data (a column or key `split`), or choose another split"
    )
