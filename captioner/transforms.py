"""Images to tensors: the evaluation transform, and augmentation.

Images are 8-bit RGB (``captioner.images``). The evaluation transform is

    shorter side -> size / crop -> center crop of size x size -> (x / 255 - mean) / std

as ImageNet networks expect it. Up to the crop, pixels stay bytes, which torch resizes as Pillow
does (up to one or two of 255 levels, as its weights are rounded more) and several times as fast;
the encoder normalizes them on its device. Training may use the random resized crop of Szegedy et
al. (2015, "Going deeper with convolutions", section 6) and mirror images instead. Their randomness
is a function of (seed, epoch, index), so that a resumed run sees the same pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from captioner.images import open_image
from captioner.limits import IMAGE_SIDE
from captioner.plain_data import shortened

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


def _crop_strip(image: Image.Image, longest: int = 16) -> Image.Image:
    """Crop a very long image to its middle: resizing one of 1 x 5000 would take a gigabyte."""
    width, height = image.size
    across, down = min(width, height * longest), min(height, width * longest)
    if (across, down) == image.size:
        return image
    left, top = (width - across) // 2, (height - down) // 2
    return image.crop((left, top, left + across, top + down))


@dataclass(frozen=True)
class Transform:
    """The evaluation transform of a network, as plain data.

    Args:
        size: S, side of the square input in pixels, 1 to IMAGE_SIDE.
        crop: fraction of the resized shorter side that the center crop keeps, in (0, 1].
        interpolation: "bicubic" or "bilinear", with antialiasing as Pillow does it.
        mean: of red, green and blue in [0, 1].
        std: of red, green and blue in [0, 1], above 0.

    Raises:
        ValueError: a value is out of its range.
    """

    size: int
    crop: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size <= IMAGE_SIDE:
            raise ValueError(
                f"transform size={shortened(self.size)} is not accepted; "
                f"give 1 to {IMAGE_SIDE} pixels, say 224"
            )
        if not 0 < self.crop <= 1 or self.shorter > 2 * IMAGE_SIDE:
            raise ValueError(
                f"transform crop={shortened(self.crop)} is not in (0, 1], or very small; "
                "0.875 is usual"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"transform interpolation={shortened(self.interpolation)} is not known; "
                f"choose {' or '.join(INTERPOLATIONS)}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise ValueError(
                f"transform mean={shortened(self.mean)}, std={shortened(self.std)}: "
                "give three values each, std above 0"
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            mean, std = shortened(self.mean), shortened(self.std)
            raise ValueError(f"transform mean={mean}, std={std}: give finite values")

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform one image.

        Args:
            image: a Pillow image; one that is not RGB is converted as open_image does.

        Returns:
            float32 [3, S, S].
        """
        return self.normalise(self.center_crop(image))

    def pixels(self, image: Image.Image) -> Tensor:
        """Transform one image without normalizing it, which `normalise_batch` does.

        Args:
            image: as for a call.

        Returns:
            uint8 [3, S, S] in channels_last: a quarter of the memory.
        """
        return to_pixels(self.center_crop(image))

    def center_crop(self, image: Image.Image) -> np.ndarray:
        """The resized center crop, uint8 [S, S, 3]."""
        image = _crop_strip(image if image.mode == "RGB" else open_image(image))
        pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)  # [1, 3, H, W]
        size = self._resized(*image.size)
        # The fast kernel is the one for bytes in channels_last.
        resized = F.interpolate(pixels, size, mode=self.interpolation, antialias=True)
        top, left = (round((side - self.size) / 2) for side in size)
        rows, columns = slice(top, top + self.size), slice(left, left + self.size)
        return resized[0].permute(1, 2, 0).numpy()[rows, columns]

    @property
    def shorter(self) -> int:
        """The length in pixels to which the shorter side is resized."""
        # Rounded down, as torchvision and timm do; the tolerance is for a crop like 224 / 232.
        return math.floor(self.size / self.crop + 1e-6)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of the resized image."""
        shorter = self.shorter
        if width <= height:
            return int(shorter * height / width), shorter
        return shorter, int(shorter * width / height)

    def normalise(self, picture: Image.Image | np.ndarray) -> Tensor:
        """Normalize RGB pixels with the network's mean and std: float32 [3, H, W]."""
        # numpy, as torch would start its own threads in every thread that reads images
        pixels = np.asarray(picture).transpose(2, 0, 1).astype(np.float32, order="C")  # [3, H, W]
        pixels /= 255
        pixels -= np.array(self.mean, np.float32)[:, None, None]
        pixels /= np.array(self.std, np.float32)[:, None, None]
        return torch.from_numpy(pixels)

    def normalise_batch(self, pixels: Tensor) -> Tensor:
        """Normalize a batch of the result of `pixels`, on its device.

        Args:
            pixels: uint8 [B, 3, H, W].

        Returns:
            float32 [B, 3, H, W] in channels_last, identical to the result of `normalise`.
        """
        width = pixels.shape[3]
        # Rows of W x 3 values: broadcasting over the three colors would take three times as long.
        rows = pixels.permute(0, 2, 3, 1).flatten(2).float()  # [B, H, W * 3]
        mean, std = (
            torch.tensor(v, device=rows.device).repeat(width) for v in (self.mean, self.std)
        )
        rows.div_(torch.tensor(255.0, device=rows.device)).sub_(mean).div_(std)
        return rows.unflatten(2, (width, 3)).permute(0, 3, 1, 2)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain data that JSON can hold."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Transform:
        """Rebuild a transform from as_dict.

        Raises:
            ValueError: a field is missing, unknown or out of range.
        """
        expected = set(cls.__dataclass_fields__)
        if set(values) != expected:
            fields = shortened(sorted(values), 200)
            raise ValueError(f"transform has the fields {fields}; expected {sorted(expected)}")
        mean, std = (tuple(float(v) for v in values[name]) for name in ("mean", "std"))
        return cls(**{**values, "mean": mean, "std": std})


def to_pixels(picture: Image.Image | np.ndarray) -> Tensor:
    """Convert an RGB image, or its bytes [H, W, 3], to uint8 [3, H, W] in channels_last."""
    # Copied by numpy, as torch would start its own threads in every thread that reads images.
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def stack_pixels(images: Sequence[Tensor]) -> Tensor:
    """Stack the results of `Transform.pixels` for B images: [B, 3, S, S] in channels_last."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Augmentation:
    """The training transform: a random resized crop and a mirror image.

    The result depends on (seed, epoch, index) only, not on the process or the order of calls.

    Args:
        seed: of the run.
        scale: smallest and largest fraction of the image's area, in (0, 1]. Captions also mention
            objects at the border, so crops are larger than the 0.08 usual for classification.
        ratio: smallest and largest width / height of the crop, above 0.
        flip: probability of a mirror image, in [0, 1].

    Raises:
        ValueError: a value is out of its range.
    """

    seed: int
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"augmentation scale={self.scale}: give 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"augmentation ratio={self.ratio}: give 0 < smallest <= largest")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augmentation flip={self.flip} is not a probability in [0, 1]")

    def __call__(
        self,
        image: Image.Image,
        transform: Transform,
        epoch: int,
        index: int,
        *,
        mirrors: bool = True,
    ) -> Tensor:
        """Transform one image.

        Args:
            image: a Pillow image; one that is not RGB is converted as open_image does.
            transform: gives side, interpolation, mean and std.
            epoch: counted from 0.
            index: of the item in its dataset.
            mirrors: False never mirrors, for captions that mention left or right.

        Returns:
            float32 [3, S, S], the same for the same image, seed, epoch and index.
        """
        # A seed string is hashed, so neighboring triples are independent; Python guarantees that
        # random() keeps its sequence.
        source = random.Random(f"{self.seed}/{epoch}/{index}")
        cropped = self.random_crop(image, transform, source)
        if source.random() < self.flip and mirrors:
            cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return transform.normalise(cropped)

    def random_crop(
        self, image: Image.Image, transform: Transform, source: random.Random
    ) -> Image.Image:
        """Crop a random part of an image and resize it to S x S pixels."""
        image = image if image.mode == "RGB" else open_image(image)
        box = self._box(source, *image.size)
        interpolation = INTERPOLATIONS[transform.interpolation]
        return image.resize((transform.size, transform.size), interpolation, box=box)

    def _box(self, source: random.Random, width: int, height: int) -> tuple[int, int, int, int]:
        """Draw a crop (left, top, right, bottom); after ten that do not fit, use the largest."""
        least, greatest = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = width * height * _between(source, *self.scale)
            ratio = math.exp(_between(source, least, greatest))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                left = int(source.random() * (width - across + 1))
                top = int(source.random() * (height - down + 1))
                return left, top, left + across, top + down
        across = min(width, max(1, round(height * self.ratio[1])))
        down = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - across) // 2, (height - down) // 2
        return left, top, left + across, top + down


def _between(source: random.Random, least: float, greatest: float) -> float:
    return least + (greatest - least) * source.random()
