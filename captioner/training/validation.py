"""Validation: the dev captions that a model generates, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from captioner.data.batches import Batch
from captioner.data.records import Record
from captioner.decoding.search import Hypothesis
from captioner.metrics.diversity import repeated_bigrams
from captioner.metrics.scores import score
from captioner.models.decoders.decoder import Decoder
from captioner.models.features import Features
from captioner.tokenizers import Tokenizer
from captioner.training.losses import cross_entropy

AT_ONCE = 320  # number of captions whose loss is computed at once: 64 images with five captions


class DevBatch(NamedTuple):
    """The results of a validation for B images.

    Attributes:
        losses: as returned by `dev_losses`.
        tokens: the number of tokens over which they are summed.
        captions: the best hypothesis for each image.
        records: the images.
    """

    losses: list[float]
    tokens: int
    captions: list[Hypothesis]
    records: list[Record]


def dev_losses(
    decoder: Decoder, features: Features, batch: Batch, captions: int = AT_ONCE
) -> tuple[list[float], int]:
    """The cross-entropy of captions with their own image, and with the next image of the batch.

    It is computed in parts, because all captions need much memory if an image has fifty.

    Args:
        decoder: the decoder.
        features: the features of B images.
        batch: the batch of those images and R captions.
        captions: number of captions in a part, from 1.

    Returns:
        the two sums over all tokens, for a single image only the first; and the number of tokens.
    """
    images = len(batch.records)
    losses, tokens = [0.0] * min(images, 2), 0
    for first in range(0, len(batch.rows), captions):
        part = slice(first, first + captions)
        packing = batch.packing(part)
        targets = packing.pack(batch.targets[part])  # [N], without padding
        for shift in range(len(losses)):
            rows = (batch.rows[part] + shift) % images
            logits = decoder(features.rows(rows), batch.inputs[part], packing)
            total = cross_entropy(logits, targets, label_smoothing=0.0, reduction="sum")
            losses[shift] += total.item()
        tokens += len(targets)
    return losses, tokens


def dev_scores(batches: Sequence[DevBatch], tokenizer: Tokenizer) -> dict[str, float]:
    """The scores of a validation.

    Args:
        batches: the results for all dev images.
        tokenizer: the tokenizer of the captions.

    Returns:
        dev_bleu4 and dev_bleu1, 0 to 100; dev_cider, from 0; dev_loss and, for several images,
        dev_loss_shuffled, per token; dev_distinct, dev_repeats and dev_endless, in percent.
    """
    hypotheses = [caption for batch in batches for caption in batch.captions]
    captions = [tokenizer.decode(caption.tokens) for caption in hypotheses]
    references = [record.captions for batch in batches for record in batch.records]
    scores = score(captions, references, tokenize=tokenizer.scored_by, metrics=("bleu", "cider-d"))
    percent, tokens = 100 / len(captions), sum(batch.tokens for batch in batches)
    own, *shuffled = (sum(losses) for losses in zip(*(batch.losses for batch in batches)))
    return {
        "dev_bleu4": scores.values["BLEU-4"],
        "dev_bleu1": scores.values["BLEU-1"],
        "dev_cider": scores.values["CIDEr-D"],
        "dev_loss": own / tokens,
        **dict(zip(["dev_loss_shuffled"], [total / tokens for total in shuffled])),
        "dev_distinct": percent * len(set(captions)),
        "dev_repeats": 100 * repeated_bigrams([caption.tokens for caption in hypotheses]),
        "dev_endless": percent * sum(not caption.finished for caption in hypotheses),
    }
