"""A recurrence over the columns of an image: for sentences, sounds, drawings.

    h_p    = cell(x_p, h_{p-1})      x_p: the gray values of column p in [0, 1], [S]
    grid_p = h_p                     for decoders that attend (Bahdanau et al., 2015), [P, D], P = S
    pooled = mean of the h_p         what was read, as one vector, [D]

A column is a word (one white pixel), a moment of a spectrogram, or a part of a picture. The mean is
taken rather than the last h (Sutskever et al., 2014), which at first depends on the last columns
alone. The weights are random at first: set ``encoder.trainable``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from captioner.config import unknown
from captioner.models.encoders.encoder import Encoder
from captioner.models.encoders.pixels import SIDE, unchanged
from captioner.models.features import Features
from captioner.models.recurrence.table import CELLS
from captioner.models.recurrence.unroll import Recurrence
from captioner.transforms import Transform

FEATURE_SIZE = 128
"""D: the units of the cell."""


class ColumnEncoder(Encoder):
    """Reads an image from left to right; the networks are the cells in ``CELLS``."""

    def build(
        self, network: str, *, weights: bool, image_size: int | None
    ) -> tuple[nn.Module, int, Transform]:
        """Return the recurrence, D, and a transform that changes no pixel of an image of side S."""
        if network not in CELLS:
            raise unknown("encoder.library=columns encoder.network", network, list(CELLS))
        side = image_size or SIDE
        recurrence = Recurrence(cell=network, input_size=side, hidden_size=FEATURE_SIZE)
        nn.init.normal_(recurrence.first.of_input.weight)  # as of nn.Embedding: a word is one pixel
        return recurrence, FEATURE_SIZE, unchanged(side)

    def extract(self, network: Any, images: Tensor) -> Features:
        """Compute the features of images [B, 3, S, S]."""
        columns = images.mean(1).transpose(1, 2)  # [B, P, S]
        h, _ = network(columns, network.zeros(len(columns)))  # [B, P, D]
        return Features(h.mean(1), h)
