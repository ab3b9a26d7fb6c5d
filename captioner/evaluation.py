"""Evaluation: decode a split freely, score it, and leave what was said beside the score.

Nothing here is teacher-forced: each word is chosen from the words that the model itself has chosen
before, as in ``captioner caption``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.api import Caption, Captioner
from captioner.checkpoint import run_folder
from captioner.config import Config, make
from captioner.data import read_records
from captioner.data.datamodule import Batch, Pictures, cached_features, image_loader
from captioner.data.records import Record, write_whole
from captioner.inspection.sheets import contact_sheet
from captioner.metrics import METRICS, Scores, score
from captioner.metrics.statistics import FILE


@dataclass(frozen=True)
class Evaluation:
    """The captions of a split and what they score.

    Attributes:
        records: the images, with their references.
        captions: one an image.
        scores: with their signature.
        seconds: spent on decoding, features not included.
    """

    records: Sequence[Record]
    captions: Sequence[Caption]
    scores: Scores
    seconds: float

    def write(self, folder: Path, *, sheet: int = 12) -> list[Path]:
        """Write scores.json, captions.jsonl, statistics.npz and a contact sheet."""
        rows = [
            {
                "image": record.image_id,
                "caption": caption.text,
                "log_prob": round(caption.log_prob, 6),
                "references": list(record.captions),
            }
            for record, caption in zip(self.records, self.captions)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        scores = json.dumps(self.scores.as_dict(), indent=2, ensure_ascii=False) + "\n"
        shown = list(zip(self.records, self.captions))[:: max(1, len(rows) // sheet)][:sheet]
        picture = contact_sheet([(r.image, c.text, r.captions) for r, c in shown])
        return [
            write_whole(folder / "scores.json", scores),
            write_whole(folder / "captions.jsonl", lines),
            self.scores.statistics.save(folder / FILE),
            write_whole(folder / "sheet.png", picture),
        ]


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
        loader: of it, cache, cache_folder and workers are used.
        split: "train", "dev" or "test".
        metrics: keys of METRICS.
        progress: a progress bar, where the output is a terminal.

    Raises:
        ValueError: an option or split that does not exist, or a split without captions.
        FileNotFoundError: the data are not where the configuration says.
    """
    records = make(read_records, "data", data).split(split)
    batches = _batches(captioner, records, loader)
    started = time.monotonic()
    captions: list[Caption] = []
    for batch in _shown(batches, progress):
        features = captioner.model.encode(batch.source.to(captioner.device))
        captions += captioner.caption_features(features, **decoding)
    seconds = time.monotonic() - started
    characters = captioner.tokenizer.name == "character"
    scores = score(
        [caption.text for caption in captions],
        [record.captions for record in records],
        tokenize="character" if characters else "ptb",
        metrics=metrics,
        images=[record.image_id for record in records],
        context=signature_context(captioner, decoding, data, split, records),
    )
    return Evaluation(records, captions, scores, seconds)


def signature_context(
    captioner: Captioner, decoding: Config, data: Config, split: str, records: Sequence[Record]
) -> dict[str, str]:
    """What a score depends on besides the texts: decoding, data, split and the list of images."""
    images = "\n".join(sorted(record.image_id for record in records))
    return {
        "decoding": captioner.decoding(**decoding).label,
        "data": Path(data["root"]).expanduser().resolve().name,
        "split": split,
        "images": hashlib.sha256(images.encode()).hexdigest()[:8],
    }


def result_folder(captioner: Captioner, decoding: Config, data: Config, split: str) -> Path:
    """Where an evaluation is written: in the run folder, by data and split, then by decoding."""
    name = Path(data["root"]).expanduser().resolve().name
    return (
        run_folder(captioner.path)
        / "evaluation"
        / f"{name}-{split}"
        / captioner.decoding(**decoding).label
    )


def _batches(captioner: Captioner, records: Sequence[Record], loader: Config) -> Iterable[Batch]:
    encoder = captioner.model.encoder
    pictures = Pictures(encoder)
    if loader["cache"] and not encoder.trainable:
        images = [record.image for record in records]
        grid = captioner.model.decoder.uses_grid
        pictures.cached = cached_features(encoder, images, loader["cache_folder"], grid=grid)
    return image_loader(records, captioner.tokenizer, pictures, workers=loader["workers"])


def _shown(batches: Iterable[Batch], progress: bool) -> Iterable[Batch]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not (progress and console.is_terminal):
        return batches
    return track(batches, description="captioning", console=console, transient=True)
