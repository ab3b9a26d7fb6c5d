"""The pixels of an image as its features: for small worlds whose inputs need no network.

    pooled = a x          x: the gray values in [0, 1], row by row, [D] with D = S * S
    grid_p = a x m_p      m_p: 1 in column p of the image, 0 elsewhere, [P, D] with P = S

Each position of the grid is one column of the image in its place, so that a decoder that attends
to it knows where the column was; the positions add up to the pooled feature. An image whose side
is S is read without loss. The gain a is 1: the only weight, which is trained if
``encoder.trainable`` is set.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captioner.config import unknown
from captioner.models.encoders.encoder import Encoder
from captioner.models.features import Features
from captioner.transforms import Transform

SIDE = 16
"""S in pixels, where ``encoder.image_size`` is null."""


def unchanged(side: int) -> Transform:
    """A transform that changes no pixel of an image of this side."""
    return Transform(size=side, crop=1.0, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)


class Gain(nn.Module):
    """Multiplies by a number, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, values: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return self.weight * values


class PixelEncoder(Encoder):
    """Gray values; the only network is ``gray``."""

    def build(
        self, network: str, *, weights: bool, image_size: int | None
    ) -> tuple[nn.Module, int, Transform]:
        """Return the gain, D, and a transform that changes no pixel of an image of side S."""
        if network != "gray":
            raise unknown("encoder.library=pixels encoder.network", network, ["gray"])
        side = image_size or SIDE
        return Gain(), side * side, unchanged(side)

    def extract(self, network: Any, images: Tensor) -> Features:
        """Compute the features of images [B, 3, S, S]."""
        gray = network(images.mean(1))  # [B, S, S]
        side = gray.shape[2]
        columns = gray.unsqueeze(1) * torch.eye(side).to(gray)[:, None, :]  # [B, P, S, S]
        return Features(gray.flatten(1), columns.flatten(2))  # [B, D], [B, P, D]
