"""Statistics of a dataset, for ``captioner data stats``: images, captions, words, coverage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from captioner.config import pick
from captioner.data.fit_warnings import fit_warnings
from captioner.data.records import SPLITS, Dataset, Record
from captioner.tokenizers import TOKENIZERS

MIN_COUNTS = (1, 2, 5)


def statistics(
    dataset: Dataset,
    tokenizer_name: str = "word",
    max_words: int = 40,
    max_length: int = 30,
) -> dict[str, Any]:
    """Count images, captions and words of each split, and the coverage of the training vocabulary.

    Args:
        dataset: any.
        tokenizer_name: splits captions into words; a key of TOKENIZERS.
        max_words: longer training captions are truncated, `loader.max_words`.
        max_length: decoded captions have at most this number of words, `decoding.max_length`.

    Returns:
        plain data: `splits` (images, captions, captions per image, captions that repeat another one
        of the same image, words per caption, vocabulary size), `vocabulary` (number of words that
        occur at least 1, 2, 5 times in training captions), `coverage` (fraction of the words of dev
        and test that are in that vocabulary, in [0, 1]), `oddities` (the warnings of the
        dataset), `warnings` (those of `fit_warnings`).

    Raises:
        ValueError: the tokenizer is not known.
    """
    split_words = pick(TOKENIZERS, tokenizer_name, "tokenizer.name").split
    splits: dict[str, Any] = {}
    counts: dict[str, Counter[str]] = {}
    for split in SPLITS:
        records = [record for record in dataset.records if record.split == split]
        if records:
            captions = [split_words(text) for record in records for text in record.captions]
            counts[split] = Counter(word for words in captions for word in words)
            splits[split] = _count_split(records, [len(words) for words in captions], counts[split])
    return {
        "tokenizer": tokenizer_name,
        "splits": splits,
        **_coverage(counts),
        "oddities": dict(dataset.warnings),
        "warnings": fit_warnings(dataset, tokenizer_name, max_words, max_length),
    }


def _count_split(
    records: Sequence[Record], lengths: Sequence[int], words: Counter[str]
) -> dict[str, Any]:
    per_image = [len(record.captions) for record in records]
    return {
        "images": len(records),
        "captions": len(lengths),
        "captions_per_image": _summarize(per_image, ("min", "mean", "max")),
        "repeated_captions": len(lengths) - sum(len(set(record.captions)) for record in records),
        "words_per_caption": _summarize(lengths, ("min", "mean", "median", "p95", "max")),
        "vocabulary": len(words),
    }


def _summarize(values: Sequence[int], names: Iterable[str]) -> dict[str, float]:
    if not values:
        return dict.fromkeys(names, 0)
    ordered = sorted(values)
    spread = {
        "min": ordered[0],
        "mean": fmean(ordered),
        "median": median(ordered),
        # nearest rank: the smallest length that at least 95 % of the captions do not exceed
        "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "max": ordered[-1],
    }
    return {name: spread[name] for name in names}


def _coverage(counts: Mapping[str, Counter[str]]) -> dict[str, Any]:
    """Return the size of the training vocabulary, and the fraction of words that it covers."""
    if "train" not in counts:
        return {"vocabulary": {}, "coverage": {}}
    kept = {
        str(least): {word for word, count in counts["train"].items() if count >= least}
        for least in MIN_COUNTS
    }
    coverage = {
        split: {
            least: sum(count for word, count in words.items() if word in vocabulary)
            / max(words.total(), 1)
            for least, vocabulary in kept.items()
        }
        for split, words in counts.items()
        if split != "train"
    }
    return {
        "vocabulary": {least: len(words) for least, words in kept.items()},
        "coverage": coverage,
    }
