"""Captions of different lengths in one batch, without their padding.

The rows are sorted, longest first, and packed step by step: the first tokens of all captions, then
the second tokens of those that have one, and so on. The rows of a step are then the first rows of
the step before: the batch shrinks as captions end, and nothing is computed for padding.

    a b c          order   2 0 1
    d              sizes   3 2 2 1
    e f g h        packed  e a d | f b | g c | h

This is the layout of ``torch.nn.utils.rnn.PackedSequence``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captioner.models.features import on_device


class Packing(NamedTuple):
    """The positions of the N real tokens of B captions in a padded batch, in packed order.

    Attributes:
        order: the rows, longest first, [B].
        sizes: how many captions have a first, a second, ... token; non-increasing; their sum is N.
        rows: the row of each token in the padded batch, [N].
        steps: its position in that row, [N].
    """

    order: Tensor
    sizes: tuple[int, ...]
    rows: Tensor
    steps: Tensor

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device | None = None) -> Packing:
        """The packing of captions with these lengths, [B], each at least 1.

        Args:
            lengths: on the CPU, if nothing is to wait for a GPU: the sizes are computed from them.
            device: of the tensors of the packing; None: that of the lengths.

        Raises:
            ValueError: a caption without tokens.
        """
        if lengths.numel() == 0 or int(lengths.min()) < 1:
            raise ValueError(
                f"lengths={lengths.tolist()} are not accepted; each must be at least 1"
            )
        lengths, order = lengths.sort(descending=True, stable=True)
        real = torch.arange(int(lengths[0]), device=lengths.device)[:, None] < lengths  # [T, B]
        steps, places = real.nonzero(as_tuple=True)  # [N], step by step
        packing = cls(order, tuple(real.sum(1).tolist()), order[places], steps)
        return packing if device is None else packing.to(device)

    def to(self, device: torch.device) -> Packing:
        """The packing on another device, with a single copy."""
        if self.order.device == device:
            return self
        tensors = torch.cat([self.order, self.rows, self.steps])  # [B + 2 N]
        parts = on_device(tensors, device).split([len(self.order), *2 * [len(self.rows)]])
        return Packing(parts[0], self.sizes, parts[1], parts[2])

    @classmethod
    def whole(cls, inputs: Tensor) -> Packing:
        """The packing of inputs [B, T] in which every token is real."""
        rows, steps = inputs.shape
        order = torch.arange(rows, device=inputs.device)
        times = torch.arange(steps, device=inputs.device)
        return cls(order, (rows,) * steps, order.repeat(steps), times.repeat_interleave(rows))

    def pack(self, padded: Tensor) -> Tensor:
        """The real tokens of a padded batch: [B, T, ...] -> [N, ...]."""
        return padded.flatten(0, 1).index_select(0, self.rows * padded.shape[1] + self.steps)

    def pad(self, packed: Tensor) -> Tensor:
        """Back to rows in their original order, with zeros as padding: [N, ...] -> [B, T, ...]."""
        padded = packed.new_zeros(len(self.order), len(self.sizes), *packed.shape[1:])
        return padded.index_put((self.rows, self.steps), packed)

    def unflatten(self, packed: Tensor) -> Tensor:
        """``pad`` for a ``whole`` packing, as a view: [T * B, ...] -> [B, T, ...]."""
        return packed.unflatten(0, (len(self.sizes), len(self.order))).transpose(0, 1)


IGNORED = -100
"""The target after a caption's <end>, which the loss ignores."""
