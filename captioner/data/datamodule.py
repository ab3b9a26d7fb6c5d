"""The Lightning data module: training and validation batches of a dataset.

The order of the batches is a function of (seed, epoch), augmentation a function of (seed, epoch,
pair), and the training loader counts the batches that it has returned. So an interrupted run
resumes with the batch that would have been next.

On several devices the order is the same: each training batch is divided among the ranks row by row,
and validation batch by batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader

from captioner.data.batches import Batch
from captioner.data.cache import cache_home
from captioner.data.features import CachedFeatures, cache_features
from captioner.data.loaders import (
    DEV_BATCH,
    Pictures,
    RankBatches,
    TrainingImages,
    TrainingLoader,
    TrainingPairs,
    image_loader,
)
from captioner.data.records import Dataset, Record
from captioner.data.samplers import Bucketed, InOrder
from captioner.data.views import other_views
from captioner.data.worker_files import explained
from captioner.models.decoders.standardize import Standardize
from captioner.models.encoders.encoder import Encoder
from captioner.models.features import Features
from captioner.tokenizers import Tokenizer
from captioner.transforms import Augmentation


@dataclass(frozen=True)
class CachingSummary:
    """The size and the time of the cached features of a dataset.

    Attributes:
        images: number of images.
        views: cached views of each training image.
        encoded: images and views that were not in the cache yet.
        size: of the features on disk, in bytes.
        folder: of the cache.
        seconds: wall-clock time.
    """

    images: int
    views: int
    encoded: int
    size: int
    folder: Path
    seconds: float

    def __str__(self) -> str:
        views = f", {self.views} views of those for training" if self.views > 1 else ""
        return (
            f"features: {self.images:,} images{views}, {self.size / 1e6:,.1f} MB in {self.folder}; "
            f"{self.encoded:,} encoded, in {self.seconds:.1f} s"
        )


def _require_between(name: str, value: int, least: int, most: int) -> None:
    if value < least:
        raise ValueError(f"loader.{name}={value} is not accepted; choose {least} or more")
    if value > most:
        raise ValueError(f"loader.{name}={value} is not accepted; choose {most} or less")


def _require_same_images(caches: bool, views: int, augment: bool) -> None:
    """Refuse to cache the features of images that change, and several views without a cache."""
    if augment and caches:
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


class CaptionDataModule(lightning.LightningDataModule):
    """Training and validation batches of a dataset.

    Args:
        dataset: has the splits train and dev.
        tokenizer: built from the training captions.
        encoder: its transform is used; if features are cached, it computes them.
        grid: whether the decoder reads the grid.
        seed: random seed of the order of the batches, the views and the augmentation.
        unfreezes: whether the encoder is frozen only until `read_live` is called.
        by_image: whether a training batch has images with all their captions, each image once per
            epoch, instead of captions.
        repeats: whether every epoch has the batches of the first one.
        batch_size: captions in a training batch, or images, over all devices.
        workers: processes that read images; 0 reads in the main process.
        cache: compute the features of a frozen encoder once and keep them on disk.
        cache_folder: of the cache; None: see `captioner.data.cache.cache_home`.
        views: number of views of each training image whose features are cached
            (``captioner.data.views``); each caption gets one of them, sampled again in every epoch.
        augment: random crops and flips of training images that are read from their files.
        max_words: longer training captions are truncated.

    Attributes:
        caching: what `setup` has cached; None if nothing is cached.
        reserved: bytes on the disk that the cached features must leave free.

    Raises:
        ValueError: a value is out of range, or options exclude each other.
    """

    def __init__(
        self,
        dataset: Dataset,
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
        _require_between("batch_size", batch_size, 1, 100_000)  # more would not fit into memory
        _require_between("workers", workers, 0, 1_000)
        _require_between("views", views, 1, 1_000)
        _require_between("max_words", max_words, 1, 10_000)
        caches = cache and not encoder.trainable
        _require_same_images(caches, views, augment and not unfreezes)
        self.tokenizer, self.encoder, self.seed = tokenizer, encoder, seed
        self.batch_size, self.workers = batch_size, workers
        self.caches, self.grid, self.repeats = caches, grid, repeats
        self.cache_folder = cache_folder
        self.caching: CachingSummary | None = None
        self.reserved = 0
        self.dev = dataset.split("dev")
        self.dev_pictures = Pictures(encoder, workers=workers)
        augmentation = Augmentation(seed=seed) if augment else None
        self.train_pictures = Pictures(
            encoder, augmentation, views=views, seed=seed, workers=workers
        )
        self.pairs = TrainingPairs(
            dataset.split("train"), tokenizer, self.train_pictures, max_words=max_words
        )
        self.training = TrainingImages(self.pairs) if by_image else self.pairs

    @property
    def batches(self) -> int:
        """Number of training batches per epoch."""
        return -(-len(self.training.lengths) // self.batch_size)

    @property
    def training_records(self) -> list[Record]:
        """The records of the training pairs, each image once."""
        return list({record.image: record for record, _ in self.pairs.pairs}.values())

    def setup(self, stage: str) -> None:
        """Cache the features, unless images are read from their files."""
        if not self.caches or self.dev_pictures.cached is not None:
            return
        started = time.monotonic()
        train = dict.fromkeys(record for record, _ in self.pairs.pairs)
        images = list(dict.fromkeys(record.image for record in [*train, *self.dev]))
        views = self.train_pictures.views
        cached = cache_features(
            self.encoder,
            images,
            cache_home(self.cache_folder),
            others=other_views(train, views) if views > 1 else [],
            grid=self.grid,
            reserved=self.reserved,
        )
        self._read_from(cached)
        seconds = time.monotonic() - started
        self.caching = CachingSummary(
            len(images), views, cached.encoded, cached.size, cached.folder, seconds
        )

    def reduce(self, whitening: Standardize) -> CachedFeatures | None:
        """Read principal components of the cached grids from now on, instead of the grids.

        Args:
            whitening: [P, D] -> [P, components].

        Returns:
            the components; None if nothing is cached.
        """
        if self.dev_pictures.cached is None:
            return None
        cached = self.dev_pictures.cached.components(whitening)
        self._read_from(cached)
        return cached

    def explained(self, error: RuntimeError) -> Exception:
        """The error of a dead worker process as one that names the image that it was reading."""
        return explained(error, [self.train_pictures.files, self.dev_pictures.files])

    def read_live(self) -> None:
        """Read images from their files from now on, for an encoder that is now trained."""
        self.caches = False
        self._read_from(None)

    def _read_from(self, cached: CachedFeatures | None) -> None:
        self.train_pictures.cached = self.dev_pictures.cached = cached

    def training_features(self, count: int = 5000) -> Features:
        """Features of training images that are spread evenly over the split.

        Args:
            count: maximum number of images; grids are also limited to 1 GiB.

        Returns:
            pooled [B, D], and grid [B, P, D] if the decoder reads it; on the CPU.
        """
        records = self.training_records
        if self.grid:
            grid = self._features(records[:1]).grid
            assert grid is not None
            count = min(count, max(1, 2**28 // grid.numel()))
        sample = records[:: max(1, len(records) // count)][:count]
        parts = [self._features(sample[first : first + 64]) for first in range(0, len(sample), 64)]
        grid = torch.cat([part.grid for part in parts]) if self.grid else None  # type: ignore[misc]
        return Features(torch.cat([part.pooled for part in parts]), grid)

    def _features(self, records: Sequence[Record]) -> Features:
        source = self.dev_pictures(records, [])
        if isinstance(source, Features):
            return source
        device = next(self.encoder.parameters()).device
        with torch.no_grad():
            features: Features = self.encoder(source.to(device))
        return features.to("cpu")

    def train_dataloader(self) -> TrainingLoader:
        order = Bucketed(
            self.training.lengths, self.batch_size, seed=self.seed, repeats=self.repeats
        )
        rank, ranks = self._place()
        batches = self.training if ranks == 1 else RankBatches(self.training, rank, ranks)
        return TrainingLoader(batches, order, workers=self.workers, pins=self._pins())

    def val_dataloader(self) -> DataLoader[Batch]:
        rank, ranks = self._place()
        limit = None
        if ranks > 1 and self.trainer is not None:
            # The limit is for the batches of all ranks: Lightning must not apply it to each rank.
            limit = self.dev_batches(self.trainer.limit_val_batches)
            self.trainer.limit_val_batches = limit
        order = InOrder(len(self.dev), DEV_BATCH, rank=rank, ranks=ranks, limit=limit)
        return image_loader(
            self.dev,
            self.tokenizer,
            self.dev_pictures,
            order=order,
            workers=self.workers,
            pins=self._pins(),
        )

    def dev_batches(self, limit: int | float = 1.0) -> int:
        """Number of validation batches of all ranks, after applying Lightning's limit.

        Args:
            limit: `trainer.limit_val_batches`: a number of batches, or a fraction of them.

        Raises:
            ValueError: the limit leaves less than one batch.
        """
        batches = len(InOrder(len(self.dev), DEV_BATCH))
        limited = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        if limit and not limited:
            raise ValueError(
                f"trainer.limit_val_batches={limit} of {batches} dev batches is less than one; "
                "choose a whole number of batches"
            )
        return limited

    def _pins(self) -> bool:
        """Whether batches are copied to a GPU."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _place(self) -> tuple[int, int]:
        """The rank of this process, and the number of ranks."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
