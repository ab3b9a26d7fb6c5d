"""An encoder of one convolution that counts what it encodes, and pictures for it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from captioner.models.encoders.encoder import Encoder
from captioner.models.features import Features
from captioner.transforms import Transform

SIDE, SIZE = 12, 6  # S, D


class Small(Encoder):
    """A convolution over 2 x 2 patches; counts the images it encodes."""

    def build(
        self, network: str, *, weights: bool, image_size: int | None
    ) -> tuple[nn.Module, int, Transform]:
        self.encoded: list[int] = []
        transform = Transform(
            size=SIDE, crop=0.75, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
        )
        patches = nn.Conv2d(3, SIZE, SIDE // 2, stride=SIDE // 2)
        source = torch.Generator().manual_seed(len(network))
        for parameter in patches.parameters():
            nn.init.normal_(parameter, generator=source)
        return patches, SIZE, transform

    def extract(self, network: nn.Module, images: Tensor) -> Features:
        self.encoded.append(len(images))
        grid = network(images).flatten(2).transpose(1, 2)  # [B, P, D]
        return Features(grid.mean(1), grid)


def draw(folder: Path, count: int, first: int = 0) -> list[str]:
    paths = [folder / f"{number}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, start=first):
        pixels = np.random.default_rng(number).integers(0, 256, (15, 19, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return [str(path) for path in paths]
