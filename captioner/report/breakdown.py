"""Scores by length of caption, and words by how often training said them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

FREQUENCIES = (0, 1, 5, 20, 100, 1000, 10_000)
"""Lower ends of the bins of how often a word occurs in the training captions."""


@dataclass(frozen=True)
class Bin:
    """Images or words of one range.

    Attributes:
        low: the least value of the range.
        high: the largest; None where the range has no end.
        count: how many there are in it.
        values: name -> the mean over them.
    """

    low: int
    high: int | None
    count: int
    values: Mapping[str, float]

    @property
    def label(self) -> str:
        """The range in words."""
        if self.high is None:
            return f"{self.low:,} or more"
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,} to {self.high:,}"


def by_length(
    lengths: Sequence[float], scores: Mapping[str, Sequence[float]], *, most: int = 6
) -> list[Bin]:
    """Mean scores of images by a length, in ranges of about as many images each.

    Args:
        lengths: of each image's caption, or the mean of its references; rounded to whole words.
        scores: metric -> the score of each image.
        most: how many ranges at most; equal lengths are never parted.

    Returns:
        the ranges that hold images, from short to long.
    """
    rounded = [math.floor(length + 0.5) for length in lengths]
    ordered = sorted(rounded)
    starts = sorted({ordered[len(ordered) * part // most] for part in range(most)})
    ends = [*(start - 1 for start in starts[1:]), ordered[-1]]
    found = []
    for low, high in zip(starts, ends):
        within = [index for index, length in enumerate(rounded) if low <= length <= high]
        means = {name: sum(one[i] for i in within) / len(within) for name, one in scores.items()}
        found.append(Bin(low, high, len(within), means))
    return found


def by_frequency(
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    counts: Mapping[str, int],
) -> list[Bin]:
    """How many of the words that people agree on captions say, by frequency in training.

    A word counts for an image where at least half of its references use it, and two of them or the
    only one: what most people say, a caption might be expected to say.

    Args:
        captions: the words of each caption.
        references: for each, the words of one or more references.
        counts: word -> how often it occurs in the training captions.

    Returns:
        for each range of FREQUENCIES the words asked for, and their "recall", 0 to 1.
    """
    asked: Counter[int] = Counter()
    said: Counter[int] = Counter()
    for words, texts in zip(captions, references):
        uses = Counter(word for text in texts for word in set(text))
        least = max(min(2, len(texts)), len(texts) / 2)
        for word in (word for word, count in uses.items() if count >= least):
            place = max(low for low in FREQUENCIES if counts.get(word, 0) >= low)
            asked[place] += 1
            said[place] += word in words
    return [
        Bin(low, None if end is None else end - 1, asked[low], {"recall": said[low] / asked[low]})
        for low, end in pairwise([*FREQUENCIES, None])
        if low is not None and asked[low]
    ]
