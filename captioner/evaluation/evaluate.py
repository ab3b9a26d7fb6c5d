"""Evaluation: decode a split freely, score the captions, and write both to disk.

Nothing is teacher-forced: each word is predicted from the model's own previous words, as in
``captioner caption``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from captioner import runs
from captioner.api import Caption, Captioner, image_key
from captioner.checkpoints.bundle import MODEL
from captioner.checkpoints.checkpoint import run_folder
from captioner.checkpoints.places import anchored, data_name
from captioner.config import Config, make, to_yaml
from captioner.data.cache import cache_home
from captioner.data.features import CachedFeatures, cache_features
from captioner.data.loaders import DEV_BATCH
from captioner.data.pipeline import encoding_pipeline
from captioner.data.read import read_records
from captioner.data.records import Dataset, Record
from captioner.data.views import View
from captioner.evaluation.contact_sheet import Rows, contact_sheet, missing_letters
from captioner.files import to_json, write_whole
from captioner.metrics.diversity import NOVELTY
from captioner.metrics.novelty import CaptionHashes
from captioner.metrics.scores import Scores, score
from captioner.metrics.signature import image_hash
from captioner.metrics.table import METRICS
from captioner.metrics.tokenize import TOKENIZE
from captioner.models.features import Features
from captioner.progress import progress_bar
from captioner.transforms import stack_pixels

Result = TypeVar("Result")

_UNKNOWN = "unknown: this checkpoint has no hashes of its training captions"


@dataclass(frozen=True)
class Evaluation:
    """The captions of a split and what they score.

    Attributes:
        records: the images, with their references.
        captions: one per image.
        scores: with their signature.
        seconds: duration of the captioning.
        config: data, split and decoding.
        skipped: images of the split that could not be read, with the reasons
            (data.on_bad_image=skip).
    """

    records: Sequence[Record]
    captions: Sequence[Caption]
    scores: Scores
    seconds: float
    config: Config = field(default_factory=dict)
    skipped: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """The content of scores.json."""
        skipped = {"skipped_images": list(self.skipped)} if self.skipped else {}
        return {**self.scores.as_dict(), **skipped}

    def write(self, folder: Path, *, sheet: int = 12) -> list[Path]:
        """Write scores.json, captions.jsonl, statistics.npz, config.yaml and a contact sheet."""
        rows = [_row(record, caption) for record, caption in zip(self.records, self.captions)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return [
            write_whole(folder / runs.SCORES, to_json(self.as_dict(), indent=2) + "\n"),
            write_whole(folder / runs.CAPTIONS, lines),
            self.scores.statistics.save(folder / runs.STATISTICS),
            write_whole(folder / runs.CONFIG, to_yaml(self.config)),
            write_whole(folder / runs.SHEET, contact_sheet(self._cells(sheet))),
        ]

    def missing_letters(self, *, sheet: int = 12) -> str | None:
        """A line about letters that the contact sheet shows as boxes; None if there are none."""
        return missing_letters(self._cells(sheet))

    def _cells(self, count: int) -> Rows:
        pairs = list(zip(self.records, self.captions))
        pairs = pairs[:: max(1, len(pairs) // count)][:count]
        return [(record.image, caption.text, record.captions) for record, caption in pairs]


def evaluate(
    captioner: Captioner,
    *,
    data: Config,
    decoding: Config,
    loader: Config,
    split: str = "dev",
    metrics: Sequence[str] = tuple(METRICS),
    progress: bool = True,
) -> Evaluation:
    """Caption every image of a split and score the captions.

    Args:
        captioner: the model.
        data: the arguments of ``read_records``.
        decoding: the options of ``DecodingOptions``.
        loader: the loader options, of which cache and cache_folder are used.
        split: "train", "dev" or "test".
        metrics: keys of METRICS.
        progress: show a progress bar if the output is a terminal.

    Raises:
        ValueError: an option or split does not exist, or the split has no captions.
        FileNotFoundError: the configured data do not exist.
    """
    dataset = make(read_records, "data", data)
    records = dataset.split(split)
    captions, seconds = _caption_all(captioner, records, loader, decoding, progress=progress)
    scores = score(
        [caption.text for caption in captions],
        [record.captions for record in records],
        tokenize=captioner.tokenizer.scored_by,
        metrics=metrics,
        images=[record.image_id for record in records],
        several=[[caption.text for caption in (best, *best.alternatives)] for best in captions],
        training=_training(captioner, data, dataset),
        pictures=[record.image for record in records],
        context=signature_context(captioner, decoding, data, split, records),
    )
    if NOVELTY in scores.missing:
        scores = replace(scores, missing={**scores.missing, NOVELTY: _UNKNOWN})
    config = anchored({"data": dict(data), "split": split, "decoding": dict(decoding)})
    skipped = dataset.unreadable.get(split, ())
    return Evaluation(records, captions, scores, seconds, config, skipped)


def _caption_all(
    captioner: Captioner,
    records: Sequence[Record],
    loader: Config,
    decoding: Config,
    *,
    progress: bool,
) -> tuple[list[Caption], float]:
    """The captions of all images, and the seconds that it took without caching features."""
    cached = cached_features(captioner, records, loader)

    def work(features: list[Features], keys: list[int]) -> list[Caption]:
        return captioner.caption_features(features, keys=keys, **decoding)

    started = time.monotonic()
    captions: list[Caption] = []
    with progress_bar("captioning", len(records), wanted=progress) as advance:
        for batch in over_records(captioner, records, cached, work):
            captions += batch
            advance(len(batch))
    return captions, time.monotonic() - started


def _training(captioner: Captioner, data: Config, dataset: Dataset) -> CaptionHashes | None:
    """Hashes of the training captions, from the checkpoint or from the model's own dataset."""
    trained, evaluated = (anchored({"data": group}) for group in (captioner.config["data"], data))
    own = len(captioner.paths) == 1 and trained == evaluated
    if captioner.training is not None or not own:
        return captioner.training
    texts = [
        text for record in dataset.records if record.split == "train" for text in record.captions
    ]
    return CaptionHashes.of(TOKENIZE[captioner.tokenizer.scored_by](texts))


def _row(record: Record, caption: Caption) -> dict[str, Any]:
    """A line of captions.jsonl."""
    row: dict[str, Any] = {
        "image": record.image_id,
        "caption": caption.text,
        "log_prob": round(caption.log_prob, 6),
        "references": list(record.captions),
    }
    if caption.alternatives:
        row["captions"] = [
            {"caption": ranked.text, "log_prob": round(ranked.log_prob, 6)}
            for ranked in (caption, *caption.alternatives)
        ]
    return row


def signature_context(
    captioner: Captioner, decoding: Config, data: Config, split: str, records: Sequence[Record]
) -> dict[str, Any]:
    """The fields of a signature that only the evaluation knows, see ``metrics.score``."""
    options = captioner.decoding(**decoding)
    return {
        "decoding": options.label,
        "options": options.as_dict(),
        "data": data_name(data),
        "split": split,
        "images": image_hash([record.image_id for record in records]),
    }


def result_folder(captioner: Captioner, decoding: Config, data: Config, split: str) -> Path:
    """The folder of an evaluation: in the run folder, by data and split, then by decoding.

    The run folder of a bundled model is runs/bundled-NAME in the current directory. The name
    of a checkpoint other than the best one, or of an ensemble (in the run folder of its first
    model), follows the decoding, after an @.
    """
    label = captioner.decoding(**decoding).label[:180]
    if len(captioner.paths) > 1:
        label = f"{label}@{ensemble_name(captioner.paths)}"
    elif captioner.paths[0].name not in (runs.BEST, MODEL):
        label = f"{label}@{captioner.paths[0].stem}"
    run = run_folder(captioner.paths[0])
    return runs.evaluation_folder(run, data=data_name(data), split=split, decoding=label)


def ensemble_name(paths: Sequence[Path]) -> str:
    """Identifies an ensemble by its size and a digest of its paths."""
    places = "\n".join(str(path.resolve()) for path in paths)
    digest = hashlib.sha256(places.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return f"ensemble{len(paths)}-{digest}"


def write_config(captioner: Captioner) -> list[Path]:
    """Write a bundled model's configuration next to its evaluations, as for a run, for reports.

    Args:
        captioner: the model; for other models nothing is written.
    """
    path = captioner.paths[0]
    if path.name != MODEL:
        return []
    return [write_whole(run_folder(path) / runs.CONFIG, to_yaml(captioner.config))]


def cached_features(
    captioner: Captioner, records: Sequence[Record], loader: Config
) -> list[CachedFeatures | None]:
    """The cached features for each of the encoders; None if its images are encoded every time."""
    images, home = [record.image for record in records], cache_home(loader["cache_folder"])
    return [
        cache_features(encoder, images, home, grid=grid)
        if loader["cache"] and not encoder.trainable
        else None
        for encoder, grid in zip(captioner.encoders, captioner.uses_grid)
    ]


def over_records(
    captioner: Captioner,
    records: Sequence[Record],
    cached: Sequence[CachedFeatures | None],
    work: Callable[[list[Features], list[int]], Result],
) -> Iterator[Result]:
    """Call a function with the features of records, DEV_BATCH at a time, and yield its results.

    Args:
        captioner: whose encoders compute them.
        records: in the order in which they are worked on.
        cached: a result of ``cached_features``.
        work: is called with the features from each of the encoders, and the keys of the images.

    Raises:
        ValueError, OSError: an image cannot be read.
    """
    sources = list(zip(captioner.encoders, cached))

    def read(record: Record) -> tuple[int, tuple[str, list[Tensor]]]:
        view = View(record.image)
        pixels = [view.pixels(encoder.transform) for encoder, known in sources if known is None]
        return image_key(record.image_id, 0), (record.image, pixels)

    @torch.no_grad()
    def encode(images: list[tuple[str, list[Tensor]]]) -> list[Features]:
        paths = [path for path, _ in images]
        live = zip(*(pixels for _, pixels in images))
        return [
            encoder(stack_pixels(next(live)).to(captioner.device))
            if known is None
            else known.get(paths)
            for encoder, known in sources
        ]

    captioner.make_ready()
    with encoding_pipeline(captioner.device, cached=None not in cached) as pipeline:
        for batch in pipeline.encode(records, read, [encode], batch_size=DEV_BATCH):
            for error in batch.errors:
                raise error
            for features in batch.features:
                yield pipeline.call(work, features, batch.keys)
