"""Views: augmented variants of an image, whose features are cached to train on a frozen encoder.

    view 0          the evaluation transform
    view 1          its mirror image
    view 2, 3, ...  random resized crops (``Augmentation``: at least half of the area, 3:4 to 4:3)
                    seeded by the file name and the number; those with odd numbers are mirrored

An image whose captions mention left or right is never mirrored, as its mirror image would teach the
wrong word; its view 1 is another crop.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from captioner.data.records import Record
from captioner.transforms import Augmentation, Transform, open_image, to_pixels

SIDES_ENGLISH = ("left", "right", "clockwise", "counterclockwise", "anticlockwise")
"""Words that a mirror image makes wrong, in addition to those that begin with left or right
(leftmost, right-handed). Other meanings of left and right only cost a mirror image."""

SIDES_CHINESE = "左右"
"""Characters that a mirror image makes wrong, anywhere in a caption."""

_SIDES = re.compile(
    rf"\b({'|'.join(SIDES_ENGLISH)})(most|wards?|y|ies)?\b|[{SIDES_CHINESE}]", re.IGNORECASE
)
_LAYOUT = 1  # increased when views of the same number change
_CROPS = Augmentation(seed=0)


def names_a_side(captions: Iterable[str]) -> bool:
    """Whether any caption of an image mentions left or right, in English or Chinese."""
    return any(_SIDES.search(caption) for caption in captions)


@dataclass(frozen=True)
class View:
    """One view of an image.

    Args:
        image: its path.
        number: 0 is the evaluation transform.
        mirrors: whether it may be mirrored.
    """

    image: str
    number: int = 0
    mirrors: bool = False

    @property
    def kind(self) -> str:
        """A text with everything that determines the view, except image and transform; "" for 0."""
        if self.number == 0:
            return ""
        return f"view {_LAYOUT}/{self.number}/{self._mirrored}/{_CROPS.scale}/{_CROPS.ratio}"

    @property
    def _mirrored(self) -> bool:
        return self.mirrors and self.number % 2 == 1

    @property
    def _whole(self) -> bool:
        return self.number == 0 or (self.number == 1 and self.mirrors)

    def pixels(self, transform: Transform) -> Tensor:
        """Read the image and compute the view, uint8 [3, S, S].

        Raises:
            FileNotFoundError, ValueError: see ``open_image``.
        """
        # The smallest crop of a reduced JPEG, 0.61 of the shorter side, still has S pixels.
        shorter = transform.shorter if self._whole else 2 * transform.size
        image = open_image(self.image, shorter=shorter)
        if self._whole:
            picture = transform.center_crop(image)
        else:
            source = random.Random(f"{Path(self.image).name}/{self.number}")
            picture = np.asarray(_CROPS.random_crop(image, transform, source))  # [S, S, 3]
        return to_pixels(picture[:, ::-1] if self._mirrored else picture)


def other_views(records: Iterable[Record], count: int) -> list[View]:
    """The views 1 to count - 1 of each image."""
    mirrors: dict[str, bool] = {}
    for record in records:
        allowed = mirrors.get(record.image, True) and not names_a_side(record.captions)
        mirrors[record.image] = allowed
    return [View(image, n, allowed) for image, allowed in mirrors.items() for n in range(1, count)]


def sample_view(seed: int, epoch: int, place: int, count: int) -> int:
    """Sample the view for a training caption uniformly from 0 to count - 1.

    It is a function of the seed, the epoch and the index of the caption, as augmentation is.
    """
    return int(count * random.Random(f"{seed}/{epoch}/{place}/view").random())
