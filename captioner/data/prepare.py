"""What the `data` verb says of a data set: its numbers, and whether its images can be trusted.

`statistics` counts words, `check` opens every image. Both results are plain data (`as_dict` of the
report) for `--format json`, and have a function that prints them as a table.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from types import MappingProxyType
from typing import Any

from rich.console import Console

from captioner.config import pick
from captioner.data.ledger import ABSENT, ABSENT_IMAGE, BLANK, DAMAGED, UNCAPTIONED
from captioner.data.records import SPLITS, Reading, Record
from captioner.data.warnings import length_warnings, tokenizer_warnings
from captioner.progress import progress_bar
from captioner.tokenizers import TOKENIZERS
from captioner.verbs.printing import print_rows

MIN_COUNTS = (1, 2, 5)
_PRINTED = 20  # names a table lists; the JSON form has them all


def statistics(
    reading: Reading,
    tokenizer_name: str = "word",
    max_words: int = 40,
    max_length: int = 30,
) -> dict[str, Any]:
    """Count images, captions and words of each split, and how far the training words reach.

    Args:
        reading: the data set.
        tokenizer_name: how captions are cut into words, a key of TOKENIZERS.
        max_words: longer training captions would be cut, `loader.max_words`.
        max_length: longer captions would not be decoded, `decoding.max_length`.

    Returns:
        plain data: `splits` (images, captions, captions per image, those that repeat
            another of the same image, words per caption, vocabulary),
        `vocabulary` (training words seen at least 1, 2, 5 times) and `coverage` (share of the
        running words of dev and test that are in that vocabulary, in [0, 1]), `oddities`,
        `warnings` (what does not fit the tokenizer and the lengths, in words).

    Raises:
        ValueError: the tokenizer is not known.
    """
    split_words = pick(TOKENIZERS, tokenizer_name, "tokenizer.name").split
    splits: dict[str, Any] = {}
    counts: dict[str, Counter[str]] = {}
    for split in SPLITS:
        records = [record for record in reading.records if record.split == split]
        if records:
            captions = [split_words(text) for record in records for text in record.captions]
            counts[split] = Counter(word for words in captions for word in words)
            splits[split] = _numbers(records, [len(words) for words in captions], counts[split])
    return {
        "tokenizer": tokenizer_name,
        "splits": splits,
        **_reach(counts),
        "oddities": dict(reading.oddities),
        "warnings": fit_warnings(reading, tokenizer_name, max_words, max_length),
    }


def fit_warnings(
    reading: Reading, tokenizer_name: str, max_words: int, max_length: int
) -> list[str]:
    """What of the training captions does not fit; arguments as of `statistics`."""
    split_words = pick(TOKENIZERS, tokenizer_name, "tokenizer.name").split
    texts = [text for one in reading.records if one.split == "train" for text in one.captions]
    lengths = [len(split_words(text)) for text in texts]
    return [
        *tokenizer_warnings(texts, tokenizer_name),
        *length_warnings(lengths, max_words, max_length),
    ]


def _numbers(
    records: Sequence[Record], lengths: Sequence[int], words: Counter[str]
) -> dict[str, Any]:
    per_image = [len(record.captions) for record in records]
    return {
        "images": len(records),
        "captions": len(lengths),
        "captions_per_image": _spread(per_image, ("min", "mean", "max")),
        "repeated_captions": len(lengths) - sum(len(set(one.captions)) for one in records),
        "words_per_caption": _spread(lengths, ("min", "mean", "median", "p95", "max")),
        "vocabulary": len(words),
    }


def _spread(values: Sequence[int], names: Iterable[str]) -> dict[str, float]:
    if not values:
        return dict.fromkeys(names, 0)
    ordered = sorted(values)
    spread = {
        "min": ordered[0],
        "mean": fmean(ordered),
        "median": median(ordered),
        # nearest rank: the least length that at least 95 of 100 captions do not pass
        "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "max": ordered[-1],
    }
    return {name: spread[name] for name in names}


def _reach(counts: Mapping[str, Counter[str]]) -> dict[str, Any]:
    """Return the sizes of the training vocabulary, and the running words that it covers."""
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


def print_statistics(numbers: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what `statistics` returned.

    Args:
        numbers: its result.
        console: where to; None is the standard output.
    """
    console = console or Console()
    rows = [(label, *cells) for label, cells in _rows(numbers)]
    headings = (f"words by the {numbers['tokenizer']} tokenizer", *numbers["splits"])
    print_rows(rows, headings, console=console)
    _print_oddities(numbers["oddities"], console)
    _print_warnings(numbers["warnings"], console)


def _rows(numbers: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    splits = numbers["splits"]
    for key in ("images", "captions", "repeated_captions"):
        yield key.replace("_", " "), [f"{split[key]:,}" for split in splits.values()]
    for key in ("captions_per_image", "words_per_caption"):
        names = next(iter(splits.values()))[key] if splits else {}
        label = f"{key.replace('_', ' ')} ({', '.join(names)})"
        yield (
            label,
            [", ".join(f"{n:.4g}" for n in split[key].values()) for split in splits.values()],
        )
    yield "different words", [f"{split['vocabulary']:,}" for split in splits.values()]
    for least, size in numbers["vocabulary"].items():
        covered = [numbers["coverage"].get(split, {}).get(least) for split in splits]
        cells = [f"{size:,} kept" if share is None else f"{share:.2%}" for share in covered]
        yield f"covered by training words seen {least}+ times", cells


def _print_oddities(
    oddities: Mapping[str, int],
    console: Console,
    places: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    for oddity, times in oddities.items():
        where = f" (first: {places[oddity][0]})" if places.get(oddity) else ""
        console.print(f"{times:,} x {oddity}{where}", markup=False, highlight=False, soft_wrap=True)


def _print_warnings(warnings: Iterable[str], console: Console) -> None:
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Args:
        images: how many images were opened.
        broken: image -> why it cannot be read.
        missing: images that captions or split lists name and that are not there.
        uncaptioned: images that have no caption, or a blank one among others.
        leaks: groups of byte-identical images in different splits, each named `split/image`.
            Scores on such images measure memory.
        duplicates: groups of byte-identical images inside one split: harmless, but counted double.
        damaged: places where a caption, or a part of one, was lost in the caption file.
        oddities: what the reader skipped or mended, and how often.
        places: where each oddity was seen.
        warnings: what does not fit the tokenizer and the lengths chosen.
    """

    images: int
    broken: Mapping[str, str]
    missing: tuple[str, ...]
    uncaptioned: tuple[str, ...]
    leaks: tuple[tuple[str, ...], ...]
    duplicates: tuple[tuple[str, ...], ...]
    damaged: tuple[str, ...]
    oddities: Mapping[str, int]
    places: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is broken, missing or damaged, no image leaks, and all fits."""
        return not (self.broken or self.missing or self.leaks or self.damaged or self.warnings)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `sound` as plain data that JSON can hold."""
        return {"sound": self.sound, **asdict(self)}


def check(reading: Reading, *, warnings: Sequence[str] = (), progress: bool = True) -> Report:
    """Open every image of a data set, and compare them all.

    Args:
        reading: the data set.
        warnings: of `fit_warnings`.
        progress: show a progress bar on the standard error.

    Returns:
        what is broken, missing, without captions, or there twice. Images count as the same when
        their files are the same byte for byte; a copy saved anew is not recognised.
    """
    paths = [record.image for record in reading.records]
    broken: dict[str, str] = {}
    same: dict[bytes, list[Record]] = {}
    # decoding leaves Python's lock, so threads share the work without copying images
    bar = progress_bar("opening images", len(paths), wanted=progress)
    with bar as advance, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for record, (digest, fault) in zip(reading.records, pool.map(_inspect, paths)):
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
        missing=_places(reading, ABSENT, ABSENT_IMAGE),
        uncaptioned=_places(reading, UNCAPTIONED, BLANK),
        leaks=_named(leaks),
        duplicates=_named(group for group in groups if group not in leaks),
        damaged=_places(reading, *DAMAGED),
        oddities=dict(reading.oddities),
        places=dict(reading.places),
        warnings=tuple(warnings),
    )


def _places(reading: Reading, *oddities: str) -> tuple[str, ...]:
    """Return where any of the oddities was seen, each place once."""
    places = (place for oddity in oddities for place in reading.places.get(oddity, ()))
    return tuple(dict.fromkeys(places))


def _inspect(path: str) -> tuple[bytes, str]:
    """Return the digest of an image file and why it cannot be read, or "" where it can."""
    from captioner.transforms import open_image

    try:
        open_image(path)
        return hashlib.sha1(Path(path).read_bytes(), usedforsecurity=False).digest(), ""
    except (OSError, ValueError) as error:
        return b"", str(error)


def _named(groups: Iterable[Sequence[Record]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{record.split}/{record.image_id}" for record in group) for group in groups)


def print_report(report: Report, console: Console | None = None) -> None:
    """Print what `check` found, naming the first of each kind.

    Args:
        report: its result.
        console: where to; None is the standard output.
    """
    console = console or Console()
    rows = [("images", f"{report.images:,}", "")]
    findings: dict[str, Sequence[str]] = {
        "broken": list(report.broken.values()),
        "missing": report.missing,
        "the same in two splits": [" = ".join(group) for group in report.leaks],
        "twice in a split": [" = ".join(group) for group in report.duplicates],
        "without captions, or with a blank one": report.uncaptioned,
        "damaged in the caption file": report.damaged,
    }
    for finding, names in findings.items():
        more = [f"and {len(names) - _PRINTED:,} more"] if len(names) > _PRINTED else []
        rows.append((finding, f"{len(names):,}", "\n".join([*names[:_PRINTED], *more])))
    print_rows(rows, ("finding", "how many", "which"), console=console)
    _print_oddities(report.oddities, console, report.places)
    _print_warnings(report.warnings, console)
    verdict = "sound" if report.sound else "not sound: mend or remove what is named above"
    console.print(f"The data set is {verdict}.", highlight=False)
