"""What a unit responds to: the words and the places at which it is most positive or negative."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from captioner.inspection.states import StateTable

LEAST = 5
"""Words that occur more rarely have no mean worth a place in the table."""


@dataclass(frozen=True)
class WordMean:
    """The mean of a unit over the steps that read a word.

    Attributes:
        word: that was read.
        count: the number of these steps.
        mean: over them.
        rest: the mean over all other steps.
    """

    word: str
    count: int
    mean: float
    rest: float


@dataclass(frozen=True)
class Place:
    """Steps of a caption, from `first` to `last`, with the value of one unit or of several.

    Attributes:
        caption: its number in the table.
        image: the id of its image.
        reads: what its steps read.
        first, last: the steps.
        value: of the unit; of a phrase search, the share of the units that are on.
    """

    caption: int
    image: str
    reads: tuple[str, ...]
    first: int
    last: int
    value: float

    def __str__(self) -> str:
        """The caption, with the steps in brackets."""
        before, after = self.reads[: self.first], self.reads[self.last + 1 :]
        inside = " ".join(self.reads[self.first : self.last + 1])
        return " ".join([*before, f"[{inside}]", *after])


@dataclass(frozen=True)
class UnitWords:
    """What a unit responds to.

    Attributes:
        mean: over all steps.
        positive, negative: the words with the highest and the lowest means, the extreme first.
        highest, lowest: the steps with the highest and the lowest values, one for each context.
    """

    mean: float
    positive: tuple[WordMean, ...]
    negative: tuple[WordMean, ...]
    highest: tuple[Place, ...]
    lowest: tuple[Place, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return asdict(self)


def top_words(
    table: StateTable,
    unit: int,
    *,
    site: str = "cell.hidden",
    layer: int | None = None,
    count: int = 8,
    least: int = LEAST,
) -> UnitWords:
    """Find the words and the places at which a unit is most positive and most negative.

    Args:
        unit: from 0 on.
        site: of the table.
        layer: from 0 on; None: the last.
        count: how many of each.
        least: words that fewer steps read are left out.

    Raises:
        ValueError: the table does not have the site, the layer or the unit.
    """
    values = table.unit(site, unit, layer).astype(np.float64)
    known = ~np.isnan(values)
    means = _word_means(table.words[known], values[known], least)
    steps = np.flatnonzero(known)
    rising, falling = (steps[np.argsort(sign * values[steps], kind="stable")] for sign in (1, -1))
    return UnitWords(
        mean=float(values[known].mean()),
        positive=tuple(means[::-1][:count]),
        negative=tuple(means[:count]),
        highest=_places(table, falling, values, count),
        lowest=_places(table, rising, values, count),
    )


def _word_means(words: np.ndarray, values: np.ndarray, least: int) -> list[WordMean]:
    """The means of all words with enough steps, lowest first."""
    names, numbers = np.unique(words.astype(str), return_inverse=True)
    counts = np.bincount(numbers)
    sums = np.bincount(numbers, weights=values)
    total, steps = values.sum(), len(values)
    means = [
        WordMean(str(name), int(n), float(s / n), float((total - s) / max(steps - n, 1)))
        for name, n, s in zip(names, counts, sums)
        if n >= least
    ]
    return sorted(means, key=lambda word: word.mean)


def _places(
    table: StateTable, rows: np.ndarray, values: np.ndarray, count: int
) -> tuple[Place, ...]:
    """The first of the rows, each beginning of a caption once: its later words change nothing."""
    places: dict[tuple[str, ...], Place] = {}
    for row in rows:
        caption = int(table.captions[row])
        step = int(row - table.starts[caption])
        reads = table.reads[caption]
        place = Place(caption, table.images[caption], reads, step, step, float(values[row]))
        places.setdefault(reads[: step + 1], place)
        if len(places) == count:
            break
    return tuple(places.values())
