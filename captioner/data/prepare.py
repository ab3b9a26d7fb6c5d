"""Statistics of a dataset and a check of its files, for ``captioner data stats`` and ``check``.

`statistics` counts images, captions and words; `check` opens every image. Both results are plain
data (`Report.as_dict` for the check), which ``captioner.verbs.data`` prints.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from captioner.config import pick
from captioner.data.fit_warnings import fit_warnings
from captioner.data.record_builder import ABSENT, ABSENT_IMAGE, BLANK, DAMAGED, UNCAPTIONED
from captioner.data.records import SPLITS, Dataset, Record
from captioner.progress import progress_bar
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


@dataclass(frozen=True)
class Report:
    """The result of `check`.

    Args:
        images: number of images that were opened.
        broken: image -> the reason why it cannot be read.
        missing: images that occur in caption files or split lists but do not exist.
        uncaptioned: images without a caption, or with a blank one among others.
        leaks: groups of byte-identical images in different splits, each named `split/image`;
            scores on such images measure memorization.
        duplicates: groups of byte-identical images within one split: harmless, but counted twice.
        damaged: places in the caption file where a caption, or a part of one, was lost.
        reader_warnings: what the reader skipped or repaired, and how often; "oddities" in JSON.
        places: for each of these warnings, the images or lines where it occurred.
        fit_warnings: captions that do not fit the tokenizer or the lengths; "warnings" in JSON.
    """

    images: int
    broken: Mapping[str, str]
    missing: tuple[str, ...]
    uncaptioned: tuple[str, ...]
    leaks: tuple[tuple[str, ...], ...]
    duplicates: tuple[tuple[str, ...], ...]
    damaged: tuple[str, ...]
    reader_warnings: Mapping[str, int]
    places: Mapping[str, tuple[str, ...]]
    fit_warnings: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether no image or caption is broken, missing, damaged, leaked or does not fit."""
        faults = (self.broken, self.missing, self.leaks, self.damaged, self.fit_warnings)
        return not any(faults)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `sound` as plain data that JSON can hold."""
        names = {"reader_warnings": "oddities", "fit_warnings": "warnings"}
        values = {names.get(name, name): value for name, value in asdict(self).items()}
        return {"sound": self.sound, **values}


def check(dataset: Dataset, *, fit_warnings: Sequence[str] = (), progress: bool = True) -> Report:
    """Open every image of a dataset, and compare the files.

    Args:
        dataset: any.
        fit_warnings: the result of that function, for the report.
        progress: show a progress bar on standard error.

    Returns:
        which images are broken, missing, without captions, or duplicates. Images are the same when
        their files are byte-identical; a copy that was re-encoded is not recognized.
    """
    paths = [record.image for record in dataset.records]
    broken: dict[str, str] = {}
    same: dict[bytes, list[Record]] = {}
    # Decoding releases the GIL, so threads share the work without copying images.
    bar = progress_bar("opening images", len(paths), wanted=progress)
    with bar as advance, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for record, (digest, fault) in zip(dataset.records, pool.map(_inspect, paths)):
            advance(1)
            if fault:
                broken[record.image_id] = fault
            else:
                same.setdefault(digest, []).append(record)
    groups = [group for group in same.values() if len(group) > 1]
    leaks = [group for group in groups if len({record.split for record in group}) > 1]
    return Report(
        images=len(paths),
        broken=broken,
        missing=_collect_places(dataset, ABSENT, ABSENT_IMAGE),
        uncaptioned=_collect_places(dataset, UNCAPTIONED, BLANK),
        leaks=_name_images(leaks),
        duplicates=_name_images(group for group in groups if group not in leaks),
        damaged=_collect_places(dataset, *DAMAGED),
        reader_warnings=dict(dataset.warnings),
        places=dict(dataset.places),
        fit_warnings=tuple(fit_warnings),
    )


def _collect_places(dataset: Dataset, *warnings: str) -> tuple[str, ...]:
    """Return the places of any of the warnings, each once."""
    places = (place for warning in warnings for place in dataset.places.get(warning, ()))
    return tuple(dict.fromkeys(places))


def _inspect(path: str) -> tuple[bytes, str]:
    """Return the digest of an image file, and the reason why it cannot be read or ""."""
    from captioner.images import open_image

    try:
        open_image(path)
        return hashlib.sha1(Path(path).read_bytes(), usedforsecurity=False).digest(), ""
    except (OSError, ValueError) as error:
        return b"", str(error)


def _name_images(groups: Iterable[Sequence[Record]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{record.split}/{record.image_id}" for record in group) for group in groups)
