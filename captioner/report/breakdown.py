"""Scores by length of caption, and recall of words by their frequency in training captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

FREQUENCIES = (0, 1, 5, 20, 100, 1000, 10_000)
"""Lower ends of the bins for the frequency of a word in the training captions."""


@dataclass(frozen=True)
class Bin:
    """The images or words in one range.

    Attributes:
        low: the smallest value of the range.
        high: the largest; None if the range has no end.
        count: the number of images or words in it.
        values: name -> their mean.
    """

    low: int
    high: int | None
    count: int
    values: Mapping[str, float]

    @property
    def label(self) -> str:
        """The range as text."""
        if self.high is None:
            return f"{self.low:,} or more"
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,} to {self.high:,}"


def by_length(
    lengths: Sequence[float], scores: Mapping[str, Sequence[float]], *, most: int = 6
) -> list[Bin]:
    """Mean scores of images by length, in ranges with about the same number of images.

    Args:
        lengths: of each image's caption, or the mean of its references; rounded to whole words.
        scores: metric -> the score of each image.
        most: the largest number of ranges; equal lengths are always in the same range.

    Returns:
        the ranges that are not empty, from short to long.
    """
    rounded = [math.floor(length + 0.5) for length in lengths]
    ordered = sorted(rounded)
    starts = sorted({ordered[len(ordered) * part // most] for part in range(most)})
    ends = [*(start - 1 for start in starts[1:]), ordered[-1]]
    bins = []
    for low, high in zip(starts, ends):
        members = [index for index, length in enumerate(rounded) if low <= length <= high]
        means = {
            name: sum(values[i] for i in members) / len(members) for name, values in scores.items()
        }
        bins.append(Bin(low, high, len(members), means))
    return bins


def by_frequency(
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    counts: Mapping[str, int],
) -> list[Bin]:
    """Recall of the words that references agree on, by frequency in the training captions.

    A word is expected in the caption of an image if at least half of the references use it, and at
    least two of them (or the only one).

    Args:
        captions: the words of each caption.
        references: for each, the words of one or more references.
        counts: word -> how often it occurs in the training captions.

    Returns:
        for each range of FREQUENCIES the number of expected words, and their "recall", 0 to 1.
    """
    expected: Counter[int] = Counter()
    used: Counter[int] = Counter()
    for words, texts in zip(captions, references):
        uses = Counter(word for text in texts for word in set(text))
        least = max(min(2, len(texts)), len(texts) / 2)
        for word in (word for word, count in uses.items() if count >= least):
            place = max(low for low in FREQUENCIES if counts.get(word, 0) >= low)
            expected[place] += 1
            used[place] += word in words
    return [
        Bin(low, end and end - 1, expected[low], {"recall": used[low] / expected[low]})
        for low, end in pairwise([*FREQUENCIES, None])
        if low is not None and expected[low]
    ]
