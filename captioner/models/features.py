"""The features of images: what a decoder reads, computed now or read from a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def on_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; the CPU does not wait for a copy to a GPU.

    Such a copy is made from memory that the system cannot move (pinned), while the GPU computes.
    """
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Features(NamedTuple):
    """The output of an encoder for B images.

    Args:
        pooled: one vector per image, [B, D].
        grid: one vector per position, [B, P, D]; None if only pooled features are stored.
    """

    pooled: Tensor
    grid: Tensor | None = None

    @staticmethod
    def concatenated(parts: Sequence[Features]) -> Features:
        """The features of several networks of the same images: [B, ΣD] and [B, P, ΣD]."""
        if len(parts) == 1:
            return parts[0]
        grids = [part.grid for part in parts if part.grid is not None]
        pooled = torch.cat([part.pooled for part in parts], dim=1)
        return Features(pooled, torch.cat(grids, dim=2) if grids else None)

    def rows(self, index: Tensor | slice) -> Features:
        """The features of some images, selected by a LongTensor or a slice."""
        return Features(self.pooled[index], None if self.grid is None else self.grid[index])

    def to(self, device: torch.device | str) -> Features:
        """The features on another device."""
        grid = None if self.grid is None else on_device(self.grid, device)
        return Features(on_device(self.pooled, device), grid)

    def pin_memory(self) -> Features:
        """The features in pinned memory, from which they are copied to a GPU."""
        grid = None if self.grid is None else self.grid.pin_memory()
        return Features(self.pooled.pin_memory(), grid)
