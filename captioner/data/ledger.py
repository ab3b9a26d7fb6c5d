"""The book that a reader keeps: captions entered, splits settled, oddities counted.

Released data sets are never quite clean: captions name images that are not there, lines repeat, an
editor has left a byte-order mark. A `Ledger` mends what can be mended, passes over the rest, counts
both, and closes to a `Reading`. What leaves doubt about the whole file (an unknown encoding, broken
JSON) is an error instead.

**Held-out images.** Where the data names no splits, an image's split follows from its name alone:
the SHA-1 of `image_id`, read as a fraction u of 1, gives dev for u < holdout, test for
u < 2 holdout, else train. Neither the order nor the company of an image matters, so adding images
later moves none from one split to another. Where the data names splits but no dev, dev is drawn
from its training images in the same way, and test stays as named. An image without a split beside
others with one trains if no image is named for training, and is passed over otherwise.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from captioner.data.files import ImageFolders
from captioner.data.records import Reading, Record

# oddities that others look up in a Reading
ABSENT = "caption of an absent image"
ABSENT_IMAGE = "absent image, named without a caption"
BLANK = "blank caption"
UNCAPTIONED = "image without captions"

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("dev", "development", "val", "valid", "validation"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Flickr8k.token.txt has captions of 2258277193_586949ec62.jpg.1
_COUNTED_SUFFIX = re.compile(r"(\.(?:jpe?g|png))\.\d+$", re.IGNORECASE)


def standard_split(name: str) -> str | None:
    """Return the split that a release means by a name: "train", "dev", "test", or None."""
    return _SPLIT_NAMES.get(name.strip().lower())


def held_out(image_id: str, holdout: float, splits: Sequence[str] = ("dev", "test")) -> str:
    """Choose the split of an image by its name alone.

    Args:
        image_id: the name.
        holdout: share of images for each held-out split, in [0, 0.5).
        splits: the held-out splits.

    Returns:
        one of the held-out splits, or "train".
    """
    digest = hashlib.sha1(image_id.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    for place, split in enumerate(splits, start=1):
        if fraction < place * holdout:
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
        self._places.setdefault(oddity, {})[place] = None

    def read(self, path: Path) -> str:
        r"""Read a text file of the data set, without byte-order mark and with \n as line ends.

        Raises:
            ValueError: the file is not in the expected encoding, or no such encoding is known.
        """
        raw = path.read_bytes()
        try:
            text = raw.decode(self.encoding)
        except LookupError:
            raise ValueError(
                f"data.encoding={self.encoding!r} is not known; choose utf-8, latin-1, gb18030 or "
                "another text encoding of Python"
            ) from None
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            likely = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
            raise ValueError(
                f"{path}, line {line}: not valid {self.encoding}; save the file as UTF-8, "
                f"or say what it is, perhaps data.encoding={likely}"
            ) from None
        if text.startswith("\ufeff"):
            self.note("byte-order mark", path.name)
            text = text.removeprefix("\ufeff")
        if "\r" in text:
            self.note("line end of Windows or old Mac OS", path.name, text.count("\r"))
            text = text.replace("\r\n", "\n").replace("\r", "\n")
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
            self._write(page, " ".join(filter(None, lines)), name, number)

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
        named = {page.split for page in captioned.values() if page.split}
        records = []
        for name, page in captioned.items():
            split = self._settle(name, page.split, named)
            if split is None:
                self.note("image in none of the named splits", name)
            else:
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

    def _settle(self, name: str, split: str | None, named: Collection[str | None]) -> str | None:
        if not named:
            return held_out(name, self.holdout)
        if split is None and "train" in named:
            return None
        if split in (None, "train") and "dev" not in named:
            return held_out(name, self.holdout, ("dev",))
        return split or "train"
