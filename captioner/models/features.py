"""The features of images: what a decoder reads, computed now or read from a cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Features(NamedTuple):
    """The output of an encoder for B images.

    Args:
        pooled: one vector per image, [B, D].
        grid: one vector per position, [B, P, D]; None if only pooled features are stored.
    """

    pooled: Tensor
    grid: Tensor | None = None

    def rows(self, index: Tensor | slice) -> Features:
        """The features of some images, selected by a LongTensor or a slice."""
        return Features(self.pooled[index], None if self.grid is None else self.grid[index])

    def to(self, device: torch.device | str) -> Features:
        """The features on another device."""
        return Features(self.pooled.to(device), None if self.grid is None else self.grid.to(device))
