"""Batches: records, tokenizer and encoder -> what a training or a dev step reads.

The order of the batches is a function of (seed, epoch), augmentation of (seed, epoch, pair), and
the training loader counts what it has served. A run that was interrupted can therefore go on with
exactly the batch that would have come next.

On several devices the order is the same: each training batch is dealt out to the ranks, row by row,
and dev is dealt out batch by batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioner.data.cache import cache_home
from captioner.data.features import CachedFeatures, cache_features
from captioner.data.records import Dataset as Records
from captioner.data.records import Record
from captioner.data.samplers import Bucketed, InOrder, Key
from captioner.data.views import View, drawn_view, names_a_side, other_views
from captioner.models.decoders.standardize import Standardise
from captioner.models.encoders.encoder import Encoder
from captioner.models.features import Features
from captioner.models.packing import IGNORED
from captioner.tokenizers import Tokenizer
from captioner.transforms import Augmentation, open_image, stack_pixels

DEV_BATCH = 64
"""Images that are captioned and scored at once."""


class Share(NamedTuple):
    """What a rank needs to know of a whole batch, to learn from its share of it.

    The mean of all ranks' losses is to be the loss of the whole batch. Their shares differ in size,
    so a rank divides sums by what falls to a rank on average instead of by what it has. All are
    infinite for a rank that nothing was left for: it repeats a row of others, and adds nothing.

    Attributes:
        places: where in the whole batch the rank's own items are.
        words: of the whole batch, <end> included, by the number of ranks.
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
        source: images [B, 3, S, S], as an encoder takes them, or the Features cached for them.
        rows: the image that each caption belongs to, [R].
        inputs: <start> and the words, [R, T].
        targets: the words and <end>, IGNORED past it, [R, T].
        records: where the images come from, B of them.
        share: where other ranks have the rest of the batch; None where this is all of it.
    """

    source: Tensor | Features
    rows: Tensor
    inputs: Tensor
    targets: Tensor
    records: list[Record]
    share: Share | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on another device."""
        return self._replace(
            source=self.source.to(device),
            rows=self.rows.to(device),
            inputs=self.inputs.to(device),
            targets=self.targets.to(device),
        )


def pad(captions: Sequence[Sequence[int]], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Captions without special tokens -> inputs [R, T] and targets [R, T], shifted by one."""
    words = tokenizer.vocabulary
    width = 1 + max(len(caption) for caption in captions)
    inputs = torch.full((len(captions), width), words.pad)
    targets = torch.full((len(captions), width), IGNORED)
    for row, caption in enumerate(captions):
        inputs[row, : len(caption) + 1] = torch.tensor([words.start, *caption])
        targets[row, : len(caption) + 1] = torch.tensor([*caption, words.end])
    return inputs, targets


class Pictures:
    """Images by record: from ``cached`` features once it is set, live from the files before.

    Args:
        encoder: gives the evaluation transform.
        augmentation: applied to files read for training.
        views: of each image as many are cached, and one of them is drawn.
        seed: of the draws.
    """

    cached: CachedFeatures | None = None

    def __init__(
        self,
        encoder: Encoder,
        augmentation: Augmentation | None = None,
        *,
        views: int = 1,
        seed: int = 0,
    ) -> None:
        self.transform = encoder.transform
        self.augmentation = augmentation
        self.views, self.seed = views, seed

    def __call__(self, records: Sequence[Record], keys: Sequence[tuple[int, int]]) -> Any:
        """Images [B, 3, S, S] or Features; `keys` are (epoch, place), for what is random."""
        if self.cached is not None:
            paths = [record.image for record in records]
            if self.views == 1:
                return self.cached.get(paths)
            drawn = [drawn_view(self.seed, *key, self.views) for key in keys]
            return self.cached.get(paths, drawn)
        if self.augmentation is None:
            shorter = self.transform.shorter
            images = (open_image(record.image, shorter=shorter) for record in records)
            return stack_pixels([self.transform.pixels(image) for image in images])
        return torch.stack([self._augmented(*one) for one in zip(records, keys)])

    def _augmented(self, record: Record, key: tuple[int, int]) -> Tensor:
        assert self.augmentation is not None
        mirrors = not names_a_side(record.captions)
        return self.augmentation(open_image(record.image), self.transform, *key, mirrors=mirrors)


class TrainingPairs(Dataset[Batch]):
    """Every (image, caption) pair of the training split; an item is a whole batch of them."""

    def __init__(
        self, records: Sequence[Record], tokenizer: Tokenizer, pictures: Pictures, *, max_words: int
    ) -> None:
        self.tokenizer, self.pictures = tokenizer, pictures
        whole = [(record, tokenizer.encode(text)) for record in records for text in record.captions]
        self.whole_lengths = [len(words) for _, words in whole]  # of all captions, uncut
        self.pairs = [(record, words[:max_words]) for record, words in whole if words]
        self.lengths = [len(words) for _, words in self.pairs]

    def __getitem__(self, key: Key) -> Batch:
        epoch, places = key
        pairs = [self.pairs[place] for place in places]
        records = [record for record, _ in pairs]
        source = self.pictures(records, [(epoch, place) for place in places])
        inputs, targets = pad([words for _, words in pairs], self.tokenizer)
        return Batch(source, torch.arange(len(pairs)), inputs, targets, records)

    def counts(self, place: int) -> tuple[int, int, int]:
        """Words with <end>, captions and images of an item."""
        return self.lengths[place] + 1, 1, 1


class TrainingImages(Dataset[Batch]):
    """Every image of the training pairs once, with its captions; an item is a batch of images."""

    def __init__(self, pairs: TrainingPairs) -> None:
        self.tokenizer, self.pictures = pairs.tokenizer, pairs.pictures
        images: dict[str, tuple[Record, list[list[int]]]] = {}
        for record, words in pairs.pairs:
            images.setdefault(record.image_id, (record, []))[1].append(words)
        self.images = list(images.values())
        self.lengths = [0] * len(self.images)  # nothing to be sorted by

    def __getitem__(self, key: Key) -> Batch:
        epoch, places = key
        records, captions = zip(*(self.images[place] for place in places))
        source = self.pictures(records, [(epoch, place) for place in places])
        return image_batch(source, records, captions, self.tokenizer)

    def counts(self, place: int) -> tuple[int, int, int]:
        """Words with <end>, captions and images of an item."""
        captions = self.images[place][1]
        return sum(len(words) + 1 for words in captions), len(captions), 1


class Dealt(Dataset[Batch]):
    """A rank's share of each training batch: every so many-th item, so that lengths are alike.

    Args:
        whole: makes batches.
        rank: from 0.
        ranks: how many share a batch.
    """

    def __init__(self, whole: TrainingPairs | TrainingImages, rank: int, ranks: int) -> None:
        self.whole, self.rank, self.ranks = whole, rank, ranks

    def __getitem__(self, key: Key) -> Batch:
        epoch, places = key
        own = range(self.rank, len(places), self.ranks)
        batch = self.whole[epoch, [places[one] for one in own] or places[:1]]
        if not own:
            return batch._replace(share=Share((0,), math.inf, math.inf, math.inf))
        words, captions, images = map(sum, zip(*map(self.whole.counts, places)))
        sizes = (one / self.ranks for one in (words, captions, images))
        return batch._replace(share=Share(tuple(own), *sizes))


class WholeImages(Dataset[Batch]):
    """Images with all their captions, each image once; an item is a batch of images."""

    def __init__(self, records: Sequence[Record], tokenizer: Tokenizer, pictures: Pictures) -> None:
        self.records, self.tokenizer, self.pictures = records, tokenizer, pictures

    def __getitem__(self, key: Key) -> Batch:
        epoch, places = key
        if not places:
            nothing = torch.empty(0, dtype=torch.long)
            return Batch(torch.empty(0), nothing, nothing, nothing, [])
        records = [self.records[place] for place in places]
        captions = [[self.tokenizer.encode(text) for text in one.captions] for one in records]
        source = self.pictures(records, [(epoch, place) for place in places])
        return image_batch(source, records, captions, self.tokenizer)


def image_batch(
    source: Tensor | Features,
    records: Sequence[Record],
    captions: Sequence[Sequence[Sequence[int]]],
    tokenizer: Tokenizer,
) -> Batch:
    """B images and their captions, which may be none, as word numbers without special tokens."""
    counts = torch.tensor([len(texts) for texts in captions])
    rows = torch.arange(len(records)).repeat_interleave(counts)
    inputs, targets = pad([text for texts in captions for text in texts] or [[]], tokenizer)
    return Batch(source, rows, inputs[: len(rows)], targets[: len(rows)], list(records))


class TrainingLoader(DataLoader[Batch]):
    """A loader that says how many batches of an epoch it has served, and can go on from there."""

    def __init__(
        self, pairs: TrainingPairs | TrainingImages | Dealt, sampler: Bucketed, *, workers: int
    ) -> None:
        # A generator of its own: otherwise every epoch would draw from the global one.
        super().__init__(
            pairs,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            generator=torch.Generator().manual_seed(sampler.seed),
        )
        self.order = sampler
        self.served = 0
        self.resumed: dict[str, int] = {}

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        going_on = self.resumed.get("epoch") == self.order.epoch
        self.served = self.resumed["served"] % len(self.order) if going_on else 0
        self.resumed = {}
        self.order.first = self.served
        for batch in super().__iter__():
            self.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were served."""
        return {"epoch": self.order.epoch, "served": self.served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.resumed = dict(state)


class CaptionDataModule(lightning.LightningDataModule):
    """Training and dev batches of a data set.

    Args:
        dataset: the records.
        tokenizer: made from the training captions.
        encoder: its transform is used, and itself where features are cached.
        grid: whether the decoder reads the grid.
        seed: decides the order of the batches, the views and the augmentation.
        unfreezes: the encoder is frozen at first, until `read_live` is called.
        by_image: whether a training batch is of images with all their captions, each image once an
            epoch, rather than of captions.
        repeats: whether every epoch has the batches of the first one.
        batch_size: captions in a training batch, or images, of all devices together.
        workers: processes that read images; 0 reads in the main process.
        cache: compute the features of a frozen encoder once and keep them on disk.
        cache_folder: where; null is $CAPTIONER_CACHE, or captioner/ in $XDG_CACHE_HOME or ~/.cache.
        views: pictures of a training image whose features are cached (``captioner.data.views``);
            each caption is shown with one of them, drawn anew in every epoch.
        augment: random crops and flips of training images that are read live.
        max_words: longer training captions are cut.

    Raises:
        ValueError: a value out of range, or options that exclude each other.
    """

    def __init__(
        self,
        dataset: Records,
        tokenizer: Tokenizer,
        encoder: Encoder,
        *,
        grid: bool,
        seed: int,
        unfreezes: bool = False,
        by_image: bool = False,
        repeats: bool = False,
        batch_size: int = 128,
        workers: int = 0,
        cache: bool = True,
        cache_folder: str | None = None,
        views: int = 1,
        augment: bool = False,
        max_words: int = 40,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("workers", workers, 0),
            ("views", views, 1),
            ("max_words", max_words, 1),
        ):
            if value < least:
                raise ValueError(f"loader.{name}={value} is not accepted; choose {least} or more")
        caches = cache and not encoder.trainable
        if augment and caches and not unfreezes:
            raise ValueError(
                "loader.augment=true changes the images, so their features cannot be cached: set "
                "loader.cache=false, or loader.augment=false and loader.views=5"
            )
        if views > 1 and not caches:
            raise ValueError(
                f"loader.views={views} needs the cached features of a frozen encoder: "
                "loader.cache=true and encoder.trainable=false; else set loader.views=1 and "
                "loader.augment=true"
            )
        self.tokenizer, self.encoder, self.seed = tokenizer, encoder, seed
        self.batch_size, self.workers = batch_size, workers
        self.caches, self.grid, self.repeats = caches, grid, repeats
        self.cache_folder = cache_folder
        self.dev = dataset.split("dev")
        self.dev_pictures = Pictures(encoder)
        augmentation = Augmentation(seed=seed) if augment else None
        self.train_pictures = Pictures(encoder, augmentation, views=views, seed=seed)
        self.pairs = TrainingPairs(
            dataset.split("train"), tokenizer, self.train_pictures, max_words=max_words
        )
        self.training = TrainingImages(self.pairs) if by_image else self.pairs

    @property
    def batches(self) -> int:
        """Training batches in an epoch."""
        return -(-len(self.training.lengths) // self.batch_size)

    @property
    def training_records(self) -> list[Record]:
        """The images of the training pairs, each once."""
        return list({record.image: record for record, _ in self.pairs.pairs}.values())

    def setup(self, stage: str) -> None:
        """Cache the features, where they are to be cached."""
        if self.caches and self.dev_pictures.cached is None:
            train = dict.fromkeys(record for record, _ in self.pairs.pairs)
            images = list(dict.fromkeys(record.image for record in [*train, *self.dev]))
            count = self.train_pictures.views
            others = other_views(train, count) if count > 1 else []
            started = time.monotonic()
            cached = cached_features(
                self.encoder, images, self.cache_folder, others=others, grid=self.grid
            )
            self.train_pictures.cached = self.dev_pictures.cached = cached
            _tell(cached, len(images), count, time.monotonic() - started)

    def reduce(self, whitening: Standardise) -> None:
        """Read principal components of cached grids, computed once, instead of the grids."""
        if self.dev_pictures.cached is not None:
            cached = self.dev_pictures.cached.components(whitening)
            self.train_pictures.cached = self.dev_pictures.cached = cached
            print(
                f"features: {whitening.width} components of {cached.feature_size} dimensions are "
                f"read, {cached.size / 1e6:,.1f} MB",
                flush=True,
            )

    def read_live(self) -> None:
        """From now on read images from their files: the encoder has begun to learn."""
        self.caches = False
        self.train_pictures.cached = self.dev_pictures.cached = None

    def training_features(self, count: int = 5000) -> Features:
        """Features of training images spread evenly over the split.

        Args:
            count: of images, at most; with grids, as many as take 1 GiB.
        """
        records = self.training_records
        if self.grid:
            grid = self._features(records[:1]).grid
            assert grid is not None
            count = min(count, max(1, 2**28 // grid.numel()))
        chosen = records[:: max(1, len(records) // count)][:count]
        parts = [self._features(chosen[first : first + 64]) for first in range(0, len(chosen), 64)]
        grid = torch.cat([part.grid for part in parts]) if self.grid else None  # type: ignore[misc]
        return Features(torch.cat([part.pooled for part in parts]), grid)

    def _features(self, records: Sequence[Record]) -> Features:
        source = self.dev_pictures(records, [])
        if isinstance(source, Features):
            return source
        device = next(self.encoder.parameters()).device
        with torch.no_grad():
            found: Features = self.encoder(source.to(device))
        return found.to("cpu")

    def train_dataloader(self) -> TrainingLoader:
        order = Bucketed(
            self.training.lengths, self.batch_size, seed=self.seed, repeats=self.repeats
        )
        rank, ranks = self._place()
        batches = self.training if ranks == 1 else Dealt(self.training, rank, ranks)
        return TrainingLoader(batches, order, workers=self.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        rank, ranks = self._place()
        limit = None
        if ranks > 1 and self.trainer is not None:
            # Of the batches of all ranks; what is left for each is for Lightning no more to cut.
            limit = self.dev_batches(self.trainer.limit_val_batches)
            self.trainer.limit_val_batches = limit
        order = InOrder(len(self.dev), DEV_BATCH, rank=rank, ranks=ranks, limit=limit)
        return _loader(self.dev, self.tokenizer, self.dev_pictures, order, self.workers)

    def dev_batches(self, limit: int | float = 1.0) -> int:
        """Dev batches in all, or as many of them as Lightning makes of a limit."""
        batches = len(InOrder(len(self.dev), DEV_BATCH))
        found = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        if limit and not found:
            raise ValueError(
                f"trainer.limit_val_batches={limit} of {batches} dev batches is less than one; "
                "choose a whole number of batches"
            )
        return found

    def _place(self) -> tuple[int, int]:
        """The number of this rank, and how many there are."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def image_loader(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    pictures: Pictures,
    *,
    workers: int = 0,
) -> DataLoader[Batch]:
    """Batches of whole images, in the order of the records."""
    return _loader(records, tokenizer, pictures, InOrder(len(records), DEV_BATCH), workers)


def _loader(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    pictures: Pictures,
    order: InOrder,
    workers: int,
) -> DataLoader[Batch]:
    return DataLoader(
        WholeImages(records, tokenizer, pictures),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        generator=torch.Generator(),
    )


def _tell(cached: CachedFeatures, images: int, views: int, seconds: float) -> None:
    kept = f"{images:,} images" + (f", {views} views of those for training" if views > 1 else "")
    print(
        f"features: {kept}, {cached.size / 1e6:,.1f} MB in {cached.folder}; "
        f"{cached.encoded:,} encoded, in {seconds:.1f} s",
        flush=True,
    )


def cached_features(
    encoder: Encoder,
    images: Sequence[str],
    folder: str | None,
    *,
    others: Iterable[View] = (),
    grid: bool = False,
) -> CachedFeatures:
    """The features of images, computed where the cache lacks them."""
    return cache_features(encoder, images, cache_home(folder), others=others, grid=grid)
