"""Builds a dataset from the captions that a reader finds: cleaned, assigned to splits, and counted.

Published datasets contain errors: captions of missing images, repeated lines, byte-order marks. A
`RecordBuilder` repairs what it can, skips the rest, counts both as warnings, and builds a
`Dataset`. If a whole file cannot be read (an unknown encoding, invalid JSON), an error is raised.

**Held-out images.** If the data names no splits, the split of an image depends on its name: the
SHA-1 of `image_id`, read as a number u in [0, 1), gives dev for u < holdout, test for u < 2
holdout, and train otherwise. It depends neither on the order nor on the other images, so other
images do not change their splits when images are added. If this leaves very few
for dev (fewer than ten, and fewer than a fifth of the images), the training images with the
smallest u move to dev: of forty images, eight are in dev. holdout=0 holds out none. If the data
names splits but no dev, dev images are chosen from the training images in the same way, and test is
unchanged. If only some images have a split, an image without one is a training image if no image is
named for training, and is skipped otherwise.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from captioner.data.encodings import decode, remove_surrogates
from captioner.data.layout import ImageFolders
from captioner.data.records import Dataset, Record
from captioner.metrics.tokenize import composed

# Warnings that other modules look up in a Dataset.
ABSENT = "caption of an absent image"
ABSENT_IMAGE = "absent image, listed without a caption"
BLANK = "blank caption"
UNCAPTIONED = "image without captions"

SURROGATE = "lone surrogate in a caption, removed"
REPLACEMENT = "caption with characters of a wrong encoding, kept"
COLUMNS = "row with too many or too few columns"
NO_TAB = "line without a tab"
UNCLOSED_QUOTE = "quote that is never closed, ended with its line"
UNLISTED = "caption of an image_id that the file does not list"
DAMAGED = (SURROGATE, REPLACEMENT, COLUMNS, NO_TAB, UNCLOSED_QUOTE, UNLISTED)
"""Warnings about lost captions, or lost parts of captions: the file should be repaired."""

DEV_IMAGES = 10  # minimum number held out for dev, but at most a fifth of the images
# Flickr8k.token.txt has captions of 2258277193_586949ec62.jpg.1
_NUMBERED_SUFFIX = re.compile(r"(\.(?:jpe?g|png))\.\d+$", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WRONG_ENCODING = re.compile("[\ufffd\x80-\x9f]")


def hash_fraction(image_id: str) -> float:
    """Map the name of an image to [0, 1) by its SHA-1."""
    digest = hashlib.sha1(image_id.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def held_out_split(image_id: str, holdout: float, splits: Sequence[str] = ("dev", "test")) -> str:
    """Choose the split of an image from its name only.

    Args:
        image_id: the name.
        holdout: fraction of the images for each held-out split, in [0, 0.5).
        splits: the held-out splits.

    Returns:
        one of the held-out splits, or "train".
    """
    fraction = hash_fraction(image_id)
    for number, split in enumerate(splits, start=1):
        if fraction < number * holdout:
            return split
    return "train"


@dataclass
class _ImageEntry:
    path: str
    split: str | None = None
    captions: list[str] = field(default_factory=list)
    numbered: set[tuple[str, str]] = field(default_factory=set)  # (number, caption)


class RecordBuilder:
    """Collects captions by image, in the order in which the images are first mentioned.

    Args:
        images: the folders of the images.
        holdout: fraction of the images for dev, and for test, if the data names no splits; in
            [0, 0.5).
        encoding: of the text files of the dataset.

    Raises:
        ValueError: holdout is out of its range.
    """

    def __init__(self, images: ImageFolders, *, holdout: float, encoding: str) -> None:
        if not 0 <= holdout < 0.5:
            raise ValueError(f"data.holdout={holdout} is out of range: choose 0 <= holdout < 0.5")
        self.images = images
        self.holdout = holdout
        self.encoding = encoding
        self._entries: dict[str, _ImageEntry] = {}
        self._warnings: Counter[str] = Counter()
        self._places: dict[str, dict[str, None]] = {}

    def warn(self, warning: str, place: str, times: int = 1) -> None:
        """Count a warning.

        Args:
            warning: its text.
            place: the image, or the file and line.
            times: number of occurrences there.
        """
        self._warnings[warning] += times
        printable = _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", place)
        self._places.setdefault(warning, {})[printable] = None

    def read_text(self, path: Path) -> str:
        r"""Read a text file of the dataset, without byte-order mark and with \n as line end.

        Raises:
            ValueError: the file is not in the expected encoding, or no such encoding is known.
        """
        text = decode(path.read_bytes(), self.encoding, path, "data.encoding")
        if text.startswith("\ufeff"):
            self.warn("byte-order mark", path.name)
            text = text.removeprefix("\ufeff")
        text = text.replace("\r\n", "\n")  # the standard of CSV, RFC 4180
        if "\r" in text:
            self.warn("line end of old Mac OS", path.name, text.count("\r"))
            text = text.replace("\r", "\n")
        return text

    def add(
        self,
        name: str,
        captions: Collection[str],
        *,
        split: str | None = None,
        number: object = None,
    ) -> None:
        """Add captions of an image.

        Args:
            name: the image as the file names it, relative to the images folder.
            captions: texts as in the file; may be empty.
            split: "train", "dev" or "test"; None if the file names none.
            number: number of the caption in the file. The same text with two numbers is kept twice
                (two people can write the same); with the same number it is a repeated line and is
                skipped. Without numbers both are kept.
        """
        if (entry := self._entry(name, len(captions))) is None:
            return
        if split is not None and entry.split not in (None, split):
            self.warn("image in two splits, the first is used", name)
        entry.split = entry.split or split
        for caption in captions:
            lines = [line.strip() for line in caption.strip().splitlines()]
            if len(lines) > 1:
                self.warn("caption of several lines, joined", name)
            text = " ".join(filter(None, lines))
            self._append(entry, text if text.isascii() else self._clean(text, name), name, number)

    def _clean(self, text: str, name: str) -> str:
        """Remove lone surrogates from a caption and compose its accented letters (NFC)."""
        if (cleaned := remove_surrogates(text)) != text:
            self.warn(SURROGATE, name)
            text = cleaned
        if _WRONG_ENCODING.search(text):
            self.warn(REPLACEMENT, name)
        if not unicodedata.is_normalized("NFC", text):
            text = composed(text)
        return text

    def _append(self, entry: _ImageEntry, text: str, name: str, number: object) -> None:
        if not text:
            self.warn(BLANK, name)
        elif number is not None and (str(number), text) in entry.numbered:
            self.warn("repeated caption line, skipped", name)
        else:
            if number is None and text in entry.captions:
                self.warn("caption given twice for its image, kept", name)
            entry.captions.append(text)
            entry.numbered.add((str(number), text))

    def _entry(self, name: str, captions: int) -> _ImageEntry | None:
        """Return the entry of an image; None, with a warning, if there is no such image."""
        image_id = posixpath.normpath(name.strip().replace("\\", "/"))
        if image_id in self._entries:
            return self._entries[image_id]
        if not self.images.allows(image_id):
            self.warn("image outside the images folder, refused", name, max(captions, 1))
            return None
        path = self.images.locate(image_id)
        if path is None and (shortened := _NUMBERED_SUFFIX.sub(r"\1", image_id)) != image_id:
            image_id, path = shortened, self.images.locate(shortened)
            outcome = "skipped" if path is None else "repaired"
            self.warn(f"image name followed by a number, {outcome}", name, max(captions, 1))
        elif path is None:
            self.warn(ABSENT if captions else ABSENT_IMAGE, name, max(captions, 1))
        if path is None:
            return None
        return self._entries.setdefault(image_id, _ImageEntry(path))

    def build(self, source: Path) -> Dataset:
        """Assign the images to splits and return the dataset.

        Args:
            source: the file or folder that was read, for the error message.

        Raises:
            ValueError: no image has a caption.
        """
        captioned = {name: entry for name, entry in self._entries.items() if entry.captions}
        for name in self._entries:
            if name not in captioned:
                self.warn(UNCAPTIONED, name)
        records = []
        for name, split in self._assign_splits(captioned).items():
            if split is None:
                self.warn("image in none of the named splits", name)
            else:
                entry = captioned[name]
                records.append(Record(entry.path, name, tuple(entry.captions), split))
        warnings = dict(self._warnings)
        if not records:
            counts = ", ".join(f"{warning}: {times}" for warning, times in warnings.items())
            raise ValueError(
                f"{source} has no image with a caption ({counts or 'it is empty'}); "
                "check data.captions=... and data.images=..."
            )
        places = {warning: tuple(places) for warning, places in self._places.items()}
        return Dataset(tuple(records), warnings, places)

    def _assign_splits(self, entries: Mapping[str, _ImageEntry]) -> dict[str, str | None]:
        named = {entry.split for entry in entries.values() if entry.split}
        splits = {name: self._split(name, entry.split, named) for name, entry in entries.items()}
        if self.holdout and "dev" not in named:
            unassigned = [
                name
                for name, entry in entries.items()
                if entry.split in (None, "train") and splits[name]
            ]
            for name in _more_for_dev(unassigned, splits):
                splits[name] = "dev"
        return splits

    def _split(self, name: str, split: str | None, named: Collection[str | None]) -> str | None:
        """The split of one image, given those that the data names; None if it is skipped."""
        if not named:
            return held_out_split(name, self.holdout)
        if split is None and "train" in named:
            return None
        if split in (None, "train") and "dev" not in named:
            return held_out_split(name, self.holdout, ("dev",))
        return split or "train"


def _more_for_dev(names: Sequence[str], splits: Mapping[str, str | None]) -> list[str]:
    """The images that move from train, or else from test, to dev if dev has too few."""
    least = min(DEV_IMAGES, max(1, len(names) // 5)) if len(names) > 1 else 0
    lacking = max(0, least - sum(splits[name] == "dev" for name in names))
    train, test = (
        sorted((name for name in names if splits[name] == split), key=hash_fraction)
        for split in ("train", "test")
    )
    return (train[:-1] or test)[:lacking]  # at least one training image is left
