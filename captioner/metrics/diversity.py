"""Diversity of captions: how many are different, how many words they use, how many are new.

    length       mean number of words of a caption
    vocabulary   number of different words in all captions
    distinct     percentage of captions that are different from each other
    novelty      percentage of captions that are not among the training captions

and, if there are several captions for an image,

    distinct-n   number of different n-grams of an image's captions, divided by their number of
                 words; the mean over images (n = 1, 2)
    mBLEU-4      BLEU-4 of each caption against the others of its image: lower is more diverse

distinct-n and mBLEU-4 are multiplied by 100. Captions are compared by their words, so case and
punctuation make no difference.

Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", NAACL 2016;
Shetty et al., "Speaking the Same Language", ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

import numpy

from captioner.metrics.bleu import bleu_rows, from_bleu_rows
from captioner.metrics.corpus import Corpus, Metric, Result, mean_as
from captioner.metrics.ngrams import References, Words

_UNKNOWN_TRAINING = "needs the training captions: give training=, or captioner score --training"
NOVELTY = "novelty"


def measure(corpus: Corpus) -> Result:
    """The diversity of the captions of a corpus."""
    captions = [tuple(words) for words in corpus.candidates]
    lengths = numpy.array([[len(words)] for words in captions], dtype=numpy.float64)
    values = {
        "length": float(lengths.mean()),
        "vocabulary": float(len({word for words in captions for word in words})),
        "distinct": 100 * len(set(captions)) / len(captions),
    }
    parts, missing = {}, {}
    if corpus.training is None:
        missing[NOVELTY] = _UNKNOWN_TRAINING
    else:
        new = sum(words not in corpus.training for words in captions)
        values[NOVELTY] = 100 * new / len(captions)
        parts["training"] = f"{len(corpus.training)}-{corpus.training.digest}"
    sets = [texts for texts in corpus.several or () if len(texts) > 1]
    if sets:
        values.update(set_diversity(sets))
        parts["captions"] = str(max(len(texts) for texts in sets))
    return Result(values, "diversity", parts, {"length": lengths}, missing)


def set_diversity(sets: Sequence[Sequence[Words]]) -> dict[str, float]:
    """The diversity of the captions of one image, averaged over images.

    Args:
        sets: for each image the words of two or more captions.

    Returns:
        distinct-1, distinct-2 and mBLEU-4, 0 to 100.
    """
    values = {}
    for n in (1, 2):
        ratios = [_distinct(texts, n) for texts in sets]
        values[f"distinct-{n}"] = 100 * sum(ratios) / len(ratios)
    captions = [words for texts in sets for words in texts]
    references = [[*texts[:i], *texts[i + 1 :]] for texts in sets for i in range(len(texts))]
    rows = bleu_rows(References(references), captions)
    return {**values, "mBLEU-4": float(from_bleu_rows(rows.mean(axis=0))["BLEU-4"])}


def _distinct(texts: Sequence[Words], n: int) -> float:
    grams = {tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)}
    return len(grams) / max(1, sum(map(len, texts)))


def repeated_bigrams(texts: Sequence[Sequence[Hashable]]) -> float:
    """The fraction of bigrams that occur earlier in the same text, [0, 1]."""
    bigrams = [list(pairwise(text)) for text in texts]
    repeats = sum(len(pairs) - len(set(pairs)) for pairs in bigrams)
    return repeats / max(1, sum(map(len, bigrams)))


METRIC = Metric(
    measure,
    ("length", "vocabulary", "distinct", NOVELTY, "distinct-1", "distinct-2", "mBLEU-4"),
    {"length": mean_as("length")},
)
