"""What a decoder reads of an image, whether its encoder ran now or its features were cached."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Features(NamedTuple):
    """What an encoder knows of B images.

    Args:
        pooled: one vector an image, [B, D].
        grid: one vector a position, [B, P, D], or None where only pooled features are kept.
    """

    pooled: Tensor
    grid: Tensor | None = None

    def rows(self, index: Tensor | slice) -> Features:
        """Return the images chosen by a LongTensor or a slice, from both fields."""
        return Features(self.pooled[index], None if self.grid is None else self.grid[index])

    def to(self, device: torch.device | str) -> Features:
        """Return the features on another device."""
        return Features(self.pooled.to(device), None if self.grid is None else self.grid.to(device))
