"""Batches: images or their features, and captions as padded token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.data.records import Record
from captioner.models.features import Features, on_device
from captioner.models.packing import IGNORED, Packing
from captioner.tokenizers import Tokenizer


class Share(NamedTuple):
    """The sizes of a whole batch, which a rank needs to compute the loss of its share.

    The mean of the losses of all ranks is the loss of the whole batch. Shares differ in size, so a
    rank divides sums by the mean size of a share instead of that of its own. The sizes are infinite
    for a rank without items of its own: it repeats an item of another rank, with a loss of 0.

    Attributes:
        places: indices of the rank's items in the whole batch.
        words: tokens of the whole batch, including <end>, divided by the number of ranks.
        captions: likewise.
        images: likewise.
    """

    places: tuple[int, ...]
    words: float
    captions: float
    images: float


class Batch(NamedTuple):
    """B images and R captions of them.

    Attributes:
        source: images [B, 3, S, S], as an encoder takes them, or their cached Features.
        rows: [R], the index of each caption's image.
        inputs: [R, T], <start> and the token ids.
        targets: [R, T], the token ids and <end>, then IGNORED.
        records: of the images, B of them.
        share: the sizes of the whole batch if other ranks have the rest of it; None otherwise.
        lengths: number of targets of each caption, [R], on the CPU; None: counted when needed.
    """

    source: Tensor | Features
    rows: Tensor
    inputs: Tensor
    targets: Tensor
    records: list[Record]
    share: Share | None = None
    lengths: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Move the tensors to another device, except the lengths, which the CPU needs."""
        source = self.source
        return self._replace(
            source=source.to(device) if isinstance(source, Features) else on_device(source, device),
            rows=on_device(self.rows, device),
            inputs=on_device(self.inputs, device),
            targets=on_device(self.targets, device),
            lengths=self._lengths(),
        )

    def pin_memory(self) -> Batch:
        """The batch in pinned memory; the data loaders call it if the device is a GPU."""
        return self._replace(
            source=self.source.pin_memory(),
            rows=self.rows.pin_memory(),
            inputs=self.inputs.pin_memory(),
            targets=self.targets.pin_memory(),
        )

    def packing(self, part: slice = slice(None), *, left_out: int = 0) -> Packing:
        """The packing of the captions, or a part of them, without the last targets.

        Args:
            part: of the captions.
            left_out: number of targets that are left out at the end of each caption.
        """
        return Packing.of(self._lengths()[part] - left_out, self.targets.device)

    def _lengths(self) -> Tensor:
        """The number of targets of each caption, [R]."""
        return (self.targets != IGNORED).sum(1) if self.lengths is None else self.lengths


def pad(captions: Sequence[Sequence[int]], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Token ids without special tokens -> inputs [R, T] and targets [R, T], shifted by one."""
    vocabulary = tokenizer.vocabulary
    width = 1 + max(len(caption) for caption in captions)
    inputs = torch.full((len(captions), width), vocabulary.pad)
    targets = torch.full((len(captions), width), IGNORED)
    for row, caption in enumerate(captions):
        inputs[row, : len(caption) + 1] = torch.tensor([vocabulary.start, *caption])
        targets[row, : len(caption) + 1] = torch.tensor([*caption, vocabulary.end])
    return inputs, targets


def image_batch(
    source: Tensor | Features,
    records: Sequence[Record],
    captions: Sequence[Sequence[Sequence[int]]],
    tokenizer: Tokenizer,
) -> Batch:
    """Make a batch of B images and their captions (or none), token ids without special tokens."""
    counts = torch.tensor([len(texts) for texts in captions])
    rows = torch.arange(len(records)).repeat_interleave(counts)
    inputs, targets = pad([text for texts in captions for text in texts] or [[]], tokenizer)
    return Batch(source, rows, inputs[: len(rows)], targets[: len(rows)], list(records))
