"""What every data set becomes: records of one image and its captions, each in one split.

A reader (`captioner.data.readers`) turns files into a `Reading`; everything after it - tokenizers,
feature caches, batches, statistics - sees records only and never asks where they came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Record:
    """One image and what people said about it.

    Args:
        image: path of the image file.
        image_id: unique in its data set; in most formats the file name below the images folder.
        captions: N texts as they stand in the file, stripped, never blank; may be empty only where
            no captions are needed.
        split: "train", "dev" or "test".
    """

    image: str
    image_id: str
    captions: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class Reading:
    """What a reader found: the records, and what it had to pass over or mend on the way.

    Args:
        records: in the order of the file.
        oddities: what was passed over or mended, in words, and how often;
            `{"caption of an absent image": 5}`.
        places: for each oddity the images or lines where it was seen, each once.
    """

    records: tuple[Record, ...]
    oddities: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def split(self, name: str) -> tuple[Record, ...]:
        """Return the records of one split, in the order of the file.

        Args:
            name: "train", "dev" or "test".

        Raises:
            ValueError: the name is not a split, or the data set has no image in it.
        """
        chosen = tuple(record for record in self.records if record.split == name)
        if not chosen:
            counts = Counter(record.split for record in self.records)
            there = ", ".join(f"{split} ({counts[split]} images)" for split in SPLITS)
            if name not in SPLITS:
                raise ValueError(f"split={name!r} is not known: the data set has {there}")
            raise ValueError(
                f"split={name!r} is empty: the data set has {there}; {_ways_out(name)}"
            )
        return chosen


def _ways_out(split: str) -> str:
    """What gives a data set the split that it lacks."""
    if split == "train":
        return "name training images in the data, or lower data.holdout"
    return (
        "data.holdout=0.1 holds images out where the data name no splits; else name "
        f"{split} images in the data (a column or key `split`), or choose a split that is there"
    )
