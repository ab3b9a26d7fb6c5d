"""The book that a reader keeps: captions entered, splits settled, oddities counted.

Released data sets are never quite clean: captions name images that are not there, lines repeat, an
editor has left a byte-order mark. A `Ledger` mends what can be mended, passes over the rest, counts
both, and closes to a `Reading`. What leaves doubt about the whole file (an unknown encoding, broken
JSON) is an error instead.

**Held-out images.** Where the data names no splits, an image's split follows from its name alone:
the SHA-1 of `image_id`, read as a fraction u of 1, gives dev for u < holdout, test for
u < 2 holdout, else train. Neither the order nor the company of an image matters, so adding images
later moves none from one split to another. Only where that gives very few for dev (fewer than ten,
and than a fifth of the images), the training images with the least u join them: forty photographs
have eight for dev. holdout=0 holds none out. Where the data names splits but no dev, dev is drawn
from its training images in the same way, and test stays as named. An image without a split beside
others with one trains if no image is named for training, and is passed over otherwise.
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

from captioner.data.encodings import decode, without_halves
from captioner.data.layout import ImageFolders
from captioner.data.records import Reading, Record
from captioner.metrics.tokenize import composed

# oddities that others look up in a Reading
ABSENT = "caption of an absent image"
ABSENT_IMAGE = "absent image, named without a caption"
BLANK = "blank caption"
UNCAPTIONED = "image without captions"

HALF = "half a character (lone surrogate) in a caption, left out"
LOST = "caption with characters that a wrong encoding has spoilt, kept"
COLUMNS = "row with too many or too few columns"
NO_TAB = "line without a tab"
SWALLOWED = "quote that is never closed, ended with its line"
UNLISTED = "caption of an image_id that the file does not list"
DAMAGED = (HALF, LOST, COLUMNS, NO_TAB, SWALLOWED, UNLISTED)
"""Oddities that cost captions, or parts of them: the file wants mending."""

DEV_IMAGES = 10  # at least so many are held out for dev, where they are a fifth at most
# Flickr8k.token.txt has captions of 2258277193_586949ec62.jpg.1
_COUNTED_SUFFIX = re.compile(r"(\.(?:jpe?g|png))\.\d+$", re.IGNORECASE)
_HALF = re.compile("[\ud800-\udfff]")
_SPOILT = re.compile("[\ufffd\x80-\x9f]")


def fraction(image_id: str) -> float:
    """The place of an image's name in [0, 1): its SHA-1."""
    digest = hashlib.sha1(image_id.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def held_out(image_id: str, holdout: float, splits: Sequence[str] = ("dev", "test")) -> str:
    """Choose the split of an image by its name alone.

    Args:
        image_id: the name.
        holdout: share of images for each held-out split, in [0, 0.5).
        splits: the held-out splits.

    Returns:
        one of the held-out splits, or "train".
    """
    part = fraction(image_id)
    for place, split in enumerate(splits, start=1):
        if part < place * holdout:
            return split
    return "train"


@dataclass
class _Page:
    path: str
    split: str | None = None
    captions: list[str] = field(default_factory=list)
    numbered: set[tuple[str, str]] = field(default_factory=set)


class Ledger:
    """Collect captions by image, in the order of their first mention.

    Args:
        images: where the images lie.
        holdout: share of images for dev, and for test, where the data names no splits; in [0, 0.5).
        encoding: of the data set's text files.

    Raises:
        ValueError: holdout is out of its range.
    """

    def __init__(self, images: ImageFolders, *, holdout: float, encoding: str) -> None:
        if not 0 <= holdout < 0.5:
            raise ValueError(f"data.holdout={holdout} is out of range: choose 0 <= holdout < 0.5")
        self.images = images
        self.holdout = holdout
        self.encoding = encoding
        self._pages: dict[str, _Page] = {}
        self._oddities: Counter[str] = Counter()
        self._places: dict[str, dict[str, None]] = {}

    def note(self, oddity: str, place: str, times: int = 1) -> None:
        """Count something odd.

        Args:
            oddity: what, in words.
            place: the image, or the file and line.
            times: how often it was seen there.
        """
        self._oddities[oddity] += times
        place = _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", place)  # can be printed
        self._places.setdefault(oddity, {})[place] = None

    def read(self, path: Path) -> str:
        r"""Read a text file of the data set, without byte-order mark and with \n as line ends.

        Raises:
            ValueError: the file is not in the expected encoding, or no such encoding is known.
        """
        text = decode(path.read_bytes(), self.encoding, path, "data.encoding")
        if text.startswith("\ufeff"):
            self.note("byte-order mark", path.name)
            text = text.removeprefix("\ufeff")
        text = text.replace("\r\n", "\n")  # which CSV has by its standard, RFC 4180
        if "\r" in text:
            self.note("line end of old Mac OS", path.name, text.count("\r"))
            text = text.replace("\r", "\n")
        return text

    def enter(
        self,
        name: str,
        captions: Collection[str],
        *,
        split: str | None = None,
        number: object = None,
    ) -> None:
        """Enter captions of an image.

        Args:
            name: the image as the file names it, below the images folder.
            captions: texts as they stand in the file; may be empty.
            split: "train", "dev" or "test"; None where the file names none.
            number: what the file numbers the caption by. A text may come twice under two numbers
                (two people can write the same); the same text under the same number is a line
                repeated, and is passed over. Without numbers nobody can tell, and both stay.
        """
        if (page := self._page(name, len(captions))) is None:
            return
        if split is not None and page.split not in (None, split):
            self.note("image in two splits, the first taken", name)
        page.split = page.split or split
        for caption in captions:
            lines = [line.strip() for line in caption.strip().splitlines()]
            if len(lines) > 1:
                self.note("caption over several lines, joined", name)
            text = " ".join(filter(None, lines))
            self._write(page, text if text.isascii() else self._mended(text, name), name, number)

    def _mended(self, text: str, name: str) -> str:
        """A caption as it may be written to a file, letters with their accents as one character."""
        if (whole := without_halves(text)) != text:
            self.note(HALF, name)
            text = whole
        if _SPOILT.search(text):
            self.note(LOST, name)
        if not unicodedata.is_normalized("NFC", text):
            text = composed(text)
        return text

    def _write(self, page: _Page, text: str, name: str, number: object) -> None:
        if not text:
            self.note(BLANK, name)
        elif number is not None and (str(number), text) in page.numbered:
            self.note("caption line repeated, passed over", name)
        else:
            if number is None and text in page.captions:
                self.note("caption given twice for its image, kept", name)
            page.captions.append(text)
            page.numbered.add((str(number), text))

    def _page(self, name: str, captions: int) -> _Page | None:
        image_id = posixpath.normpath(name.strip().replace("\\", "/"))
        if image_id in self._pages:
            return self._pages[image_id]
        if not self.images.allows(image_id):
            self.note("image outside the images folder, refused", name, max(captions, 1))
            return None
        path = self.images.locate(image_id)
        if path is None and (mended := _COUNTED_SUFFIX.sub(r"\1", image_id)) != image_id:
            image_id, path = mended, self.images.locate(mended)
            fate = "passed over" if path is None else "mended"
            self.note(f"image name with a number behind it, {fate}", name, max(captions, 1))
        elif path is None:
            self.note(ABSENT if captions else ABSENT_IMAGE, name, max(captions, 1))
        if path is None:
            return None
        return self._pages.setdefault(image_id, _Page(path))

    def close(self, source: Path) -> Reading:
        """Settle the splits and return the records.

        Args:
            source: the file or folder that was read, for the message.

        Raises:
            ValueError: not one image has a caption.
        """
        captioned = {name: page for name, page in self._pages.items() if page.captions}
        for name in self._pages:
            if name not in captioned:
                self.note(UNCAPTIONED, name)
        records = []
        for name, split in self._splits(captioned).items():
            if split is None:
                self.note("image in none of the named splits", name)
            else:
                page = captioned[name]
                records.append(Record(page.path, name, tuple(page.captions), split))
        oddities = dict(self._oddities)
        if not records:
            seen = ", ".join(f"{oddity}: {times}" for oddity, times in oddities.items())
            raise ValueError(
                f"{source} gives no image with a caption ({seen or 'it is empty'}); "
                "check data.captions=... and data.images=..."
            )
        places = {oddity: tuple(places) for oddity, places in self._places.items()}
        return Reading(tuple(records), oddities, places)

    def _splits(self, pages: Mapping[str, _Page]) -> dict[str, str | None]:
        named = {page.split for page in pages.values() if page.split}
        splits = {name: self._settle(name, page.split, named) for name, page in pages.items()}
        if self.holdout and "dev" not in named:
            drawn = [n for n in pages if pages[n].split in (None, "train") and splits[n]]
            for name in _more_for_dev(drawn, splits):
                splits[name] = "dev"
        return splits

    def _settle(self, name: str, split: str | None, named: Collection[str | None]) -> str | None:
        if not named:
            return held_out(name, self.holdout)
        if split is None and "train" in named:
            return None
        if split in (None, "train") and "dev" not in named:
            return held_out(name, self.holdout, ("dev",))
        return split or "train"


def _more_for_dev(drawn: Sequence[str], splits: Mapping[str, str | None]) -> list[str]:
    """The images that dev takes from training, or else from test, because it has too few."""
    least = min(DEV_IMAGES, max(1, len(drawn) // 5)) if len(drawn) > 1 else 0
    short = max(0, least - sum(splits[name] == "dev" for name in drawn))
    train, test = (
        sorted((name for name in drawn if splits[name] == split), key=fraction)
        for split in ("train", "test")
    )
    return (train[:-1] or test)[:short]  # one at least goes on training
