"""Data loaders: an item of each dataset is a whole batch, whose indices a sampler returns.

Training batches are of captions (`TrainingPairs`) or of images with all their captions
(`TrainingImages`); validation and evaluation read whole images in order (`WholeImages`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioner.data.batches import Batch, Share, image_batch, pad
from captioner.data.features import CachedFeatures
from captioner.data.records import Record
from captioner.data.samplers import Bucketed, InOrder, Key
from captioner.data.views import names_a_side, sample_view
from captioner.data.worker_files import WorkerFiles
from captioner.images import open_image
from captioner.models.encoders.encoder import Encoder
from captioner.tokenizers import Tokenizer
from captioner.transforms import Augmentation, stack_pixels

DEV_BATCH = 64
"""Number of images in a batch of validation and evaluation."""


class Pictures:
    """Images by record: cached features if ``cached`` is set, otherwise read from their files.

    Args:
        encoder: its evaluation transform is used.
        augmentation: applied to images that are read for training.
        views: number of cached views of each image, one of which is sampled.
        seed: random seed of the sampling.
        workers: number of processes that read images.

    Attributes:
        files: the files that they read.
    """

    cached: CachedFeatures | None = None

    def __init__(
        self,
        encoder: Encoder,
        augmentation: Augmentation | None = None,
        *,
        views: int = 1,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self.files = WorkerFiles(workers)
        self.transform = encoder.transform
        self.augmentation = augmentation
        self.views, self.seed = views, seed

    def __call__(self, records: Sequence[Record], keys: Sequence[tuple[int, int]]) -> Any:
        """Images [B, 3, S, S] or their Features; `keys` are (epoch, place), for random choices."""
        if self.cached is not None:
            paths = [record.image for record in records]
            if self.views == 1:
                return self.cached.get(paths)
            views = [sample_view(self.seed, *key, self.views) for key in keys]
            return self.cached.get(paths, views)
        if self.augmentation is None:
            shorter = self.transform.shorter
            images = (self._open(record, shorter) for record in records)
            return stack_pixels([self.transform.pixels(image) for image in images])
        return torch.stack([self._augment(record, key) for record, key in zip(records, keys)])

    def _augment(self, record: Record, key: tuple[int, int]) -> Tensor:
        assert self.augmentation is not None
        mirrors = not names_a_side(record.captions)
        return self.augmentation(self._open(record), self.transform, *key, mirrors=mirrors)

    def _open(self, record: Record, shorter: int | None = None) -> Image.Image:
        self.files.note(record.image)
        image = open_image(record.image, shorter=shorter)
        self.files.note("")
        return image


class TrainingPairs(Dataset[Batch]):
    """The (image, caption) pairs of the training split; an item is a whole batch of them."""

    def __init__(
        self, records: Sequence[Record], tokenizer: Tokenizer, pictures: Pictures, *, max_words: int
    ) -> None:
        self.tokenizer, self.pictures = tokenizer, pictures
        pairs = [(record, tokenizer.encode(text)) for record in records for text in record.captions]
        self.whole_lengths = [len(ids) for _, ids in pairs]  # of all captions, before truncation
        self.pairs = [(record, ids[:max_words]) for record, ids in pairs if ids]
        self.lengths = [len(ids) for _, ids in self.pairs]

    def __getitem__(self, key: Key) -> Batch:
        epoch, places = key
        pairs = [self.pairs[place] for place in places]
        records = [record for record, _ in pairs]
        source = self.pictures(records, [(epoch, place) for place in places])
        inputs, targets = pad([ids for _, ids in pairs], self.tokenizer)
        return Batch(source, torch.arange(len(pairs)), inputs, targets, records)

    def counts(self, place: int) -> tuple[int, int, int]:
        """Number of tokens including <end>, captions and images of an item."""
        return self.lengths[place] + 1, 1, 1


class TrainingImages(Dataset[Batch]):
    """The images of the training pairs with their captions; an item is a batch of images."""

    def __init__(self, pairs: TrainingPairs) -> None:
        self.tokenizer, self.pictures = pairs.tokenizer, pairs.pictures
        images: dict[str, tuple[Record, list[list[int]]]] = {}
        for record, ids in pairs.pairs:
            images.setdefault(record.image_id, (record, []))[1].append(ids)
        self.images = list(images.values())
        self.lengths = [0] * len(self.images)  # equal, so that the order does not depend on lengths

    def __getitem__(self, key: Key) -> Batch:
        epoch, places = key
        records, captions = zip(*(self.images[place] for place in places))
        source = self.pictures(records, [(epoch, place) for place in places])
        return image_batch(source, records, captions, self.tokenizer)

    def counts(self, place: int) -> tuple[int, int, int]:
        """Number of tokens including <end>, captions and images of an item."""
        captions = self.images[place][1]
        return sum(len(ids) + 1 for ids in captions), len(captions), 1


class RankBatches(Dataset[Batch]):
    """The part of each training batch that one rank computes: items rank, rank + ranks, and so on.

    Neighboring items have similar lengths, so the parts of all ranks do as well.

    Args:
        whole: the dataset of whole batches.
        rank: from 0.
        ranks: number of ranks that share a batch.
    """

    def __init__(self, whole: TrainingPairs | TrainingImages, rank: int, ranks: int) -> None:
        self.whole, self.rank, self.ranks = whole, rank, ranks

    def __getitem__(self, key: Key) -> Batch:
        epoch, places = key
        own = range(self.rank, len(places), self.ranks)
        batch = self.whole[epoch, [places[item] for item in own] or places[:1]]
        if not own:
            return batch._replace(share=Share((0,), math.inf, math.inf, math.inf))
        totals = map(sum, zip(*map(self.whole.counts, places)))  # tokens, captions, images
        return batch._replace(share=Share(tuple(own), *(total / self.ranks for total in totals)))


class WholeImages(Dataset[Batch]):
    """Images with all their captions; an item is a batch of images."""

    def __init__(self, records: Sequence[Record], tokenizer: Tokenizer, pictures: Pictures) -> None:
        self.records, self.tokenizer, self.pictures = records, tokenizer, pictures

    def __getitem__(self, key: Key) -> Batch:
        epoch, places = key
        if not places:
            empty = torch.empty(0, 1, dtype=torch.long)
            return Batch(torch.empty(0), empty[:, 0], empty, empty, [])
        records = [self.records[place] for place in places]
        captions = [[self.tokenizer.encode(text) for text in r.captions] for r in records]
        source = self.pictures(records, [(epoch, place) for place in places])
        return image_batch(source, records, captions, self.tokenizer)


class TrainingLoader(DataLoader[Batch]):
    """A loader that counts the batches of an epoch that it has returned, and can resume there."""

    def __init__(
        self,
        pairs: TrainingPairs | TrainingImages | RankBatches,
        sampler: Bucketed,
        *,
        workers: int,
        pins: bool = False,
    ) -> None:
        # Without its own generator, every epoch would use the global one.
        super().__init__(
            pairs,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            pin_memory=pins,
            generator=torch.Generator().manual_seed(sampler.seed),
        )
        self.order = sampler
        self.served = 0
        self.resumed: dict[str, int] = {}

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        resumes = self.resumed.get("epoch") == self.order.epoch
        self.served = self.resumed["served"] % len(self.order) if resumes else 0
        self.resumed = {}
        self.order.first = self.served
        for batch in super().__iter__():
            self.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the number of its batches that were returned."""
        return {"epoch": self.order.epoch, "served": self.served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume after the batches that a `state_dict` counts."""
        self.resumed = dict(state)


def image_loader(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    pictures: Pictures,
    *,
    order: InOrder | None = None,
    workers: int = 0,
    pins: bool = False,
) -> DataLoader[Batch]:
    """Load batches of whole images.

    Args:
        records: of the images.
        tokenizer: for their captions.
        pictures: returns the images or features.
        order: of the batches; None: the order of the records, DEV_BATCH at a time.
        workers: processes that read images; 0 reads in the main process.
        pins: return batches in pinned memory, for a GPU.
    """
    return DataLoader(
        WholeImages(records, tokenizer, pictures),
        batch_size=None,
        sampler=order or InOrder(len(records), DEV_BATCH),
        num_workers=workers,
        pin_memory=pins,
        generator=torch.Generator(),
    )
