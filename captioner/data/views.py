"""Views: several pictures of one image, whose features are cached for a frozen encoder to train on.

    view 0          what evaluation sees
    view 1          its mirror image
    view 2, 3, ...  a random resized crop (``Augmentation``: half of the area or more, 3:4 to 4:3),
                    where the file's name and the number decide; those with odd numbers mirrored

An image whose captions speak of left or right is never mirrored: its mirror image would teach the
wrong word. Its view 1 is one more crop.
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
"""Words that a mirror image makes wrong; so do those that begin with left or right, as leftmost or
right-handed. Left, of having gone, and right, of being so, cost a mirror image and no harm."""

SIDES_CHINESE = "左右"
"""Characters that a mirror image makes wrong, wherever they stand."""

_SIDES = re.compile(
    rf"\b({'|'.join(SIDES_ENGLISH)})(most|wards?|y|ies)?\b|[{SIDES_CHINESE}]", re.IGNORECASE
)
_LAYOUT = 1  # raised when views of the same number change
_CROPS = Augmentation(seed=0)


def names_a_side(captions: Iterable[str]) -> bool:
    """Whether any of an image's captions speaks of left or right, in English or Chinese."""
    return any(_SIDES.search(caption) for caption in captions)


@dataclass(frozen=True)
class View:
    """One picture of an image.

    Args:
        image: its path.
        number: 0 is what evaluation sees.
        mirrors: whether it may be a mirror image.
    """

    image: str
    number: int = 0
    mirrors: bool = False

    @property
    def kind(self) -> str:
        """All that the picture depends on besides the image and the transform; "" for view 0."""
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
        """Read the image and make the picture, uint8 [3, S, S].

        Raises:
            FileNotFoundError, ValueError: as of ``open_image``.
        """
        # Of a large JPEG the smallest crop, 0.61 of the shorter side, still has S pixels.
        shorter = transform.shorter if self._whole else 2 * transform.size
        image = open_image(self.image, shorter=shorter)
        if self._whole:
            picture = transform.crop_of(image)
        else:
            source = random.Random(f"{Path(self.image).name}/{self.number}")
            picture = np.asarray(_CROPS.crop_of(image, transform, source))  # [S, S, 3]
        return to_pixels(picture[:, ::-1] if self._mirrored else picture)


def other_views(records: Iterable[Record], count: int) -> list[View]:
    """The views 1 to count - 1 of every image."""
    mirrors: dict[str, bool] = {}
    for record in records:
        allowed = mirrors.get(record.image, True) and not names_a_side(record.captions)
        mirrors[record.image] = allowed
    return [View(image, n, allowed) for image, allowed in mirrors.items() for n in range(1, count)]


def drawn_view(seed: int, epoch: int, place: int, count: int) -> int:
    """The view that a training caption is shown with, 0 to count - 1, each as likely.

    It is a function of the seed, the epoch and the caption's place alone, as augmentation is.
    """
    return int(count * random.Random(f"{seed}/{epoch}/{place}/view").random())
