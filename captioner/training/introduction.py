"""What is reported before a training begins: its data, its precision, its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from captioner.data.datamodule import CaptionDataModule
from captioner.data.fit_warnings import length_warnings, tokenizer_warnings
from captioner.data.records import Dataset
from captioner.data.unreadable import UNREADABLE
from captioner.models.precision import AUTO, BF16, device_of, resolve
from captioner.process import printable
from captioner.training import word_vectors
from captioner.training.module import LitCaptioner

_NAMED = 3
"""Number of skipped images that are named."""


def introduce(
    dataset: Dataset,
    data: CaptionDataModule,
    module: LitCaptioner,
    folder: Path,
    report: Callable[[str], None],
) -> None:
    """Report the data, the precision and the model, and options that do not fit the data.

    Args:
        dataset: the dataset, with the warnings from reading it.
        data: the training and dev batches.
        module: the module that is trained.
        folder: the run folder.
        report: called with each line to print.
    """
    for warning, count in dataset.warnings.items():
        report(f"data: {warning}: {count}")
        if warning == UNREADABLE:
            places = dataset.places[warning]
            for place in places[:_NAMED]:
                report(f"  {printable(place)}")
            if len(places) > _NAMED:
                report(f"  and {len(places) - _NAMED} more: `captioner data check` names them")
    texts = (text for record in dataset.split("train") for text in record.captions)
    lengths, max_words = data.pairs.whole_lengths, module.config["loader"]["max_words"]
    for line in (
        *tokenizer_warnings(texts, module.tokenizer.name),
        *length_warnings(lengths, max_words, module.decoding.max_length),
    ):
        report(f"warning: {line}")
    precisions = (module.config[group]["precision"] for group in ("trainer", "encoder", "decoding"))
    device = device_of(module.config["trainer"].get("accelerator", AUTO))
    has = "with" if resolve(AUTO, device) == BF16 else "without"
    line = "precision {}, encoder {}, decoding {}".format(*precisions)
    report(f"{line} ({device} {has} bfloat16)")
    counts = [f"{len(dataset.split(name))} {name}" for name in ("train", "dev")]
    learned = sum(p.numel() for p in module.parameters() if p.requires_grad)
    report(
        f"{' and '.join(counts)} images, {len(module.tokenizer.vocabulary)} words, "
        f"{learned / 1e6:.1f} million parameters to learn, into {folder}"
    )


def fill_embedding(
    module: LitCaptioner, data: CaptionDataModule, path: str | None, report: Callable[[str], None]
) -> None:
    """Copy pretrained word vectors into the decoder's embedding, and report what they cover.

    Args:
        module: its decoder has the embedding.
        data: the training captions, for the coverage.
        path: a file of word vectors; None: nothing is done.
        report: called with the line to print.
    """
    if path is None:
        return
    captions = (tokens for _, tokens in data.pairs.pairs)
    coverage = word_vectors.fill(module.model.decoder, module.tokenizer.vocabulary, path, captions)
    report(
        f"word vectors of {path}: {100 * coverage.words:.1f} % of the vocabulary, "
        f"{100 * coverage.tokens:.1f} % of the words of the training captions"
    )
