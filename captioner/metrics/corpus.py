"""The input of a metric, `Corpus`, its output, `Result`, and its entry in the table, `Metric`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy
from numpy.typing import NDArray

from captioner.metrics.ngrams import Matches, References, Words
from captioner.metrics.novelty import CaptionHashes

Rows = NDArray[numpy.float64]
"""Statistics of images [n, k], or their weighted means [..., k]."""


class Unavailable(ValueError):
    """Something cannot be computed here; the message says why, and what is required."""


@dataclass(frozen=True)
class Corpus:
    """Captions to score, split into words; values that several metrics use are computed once.

    Attributes:
        texts: the captions as they were written, one per image.
        candidates: their words.
        reference_texts: for each image one or more captions by people.
        references: their words.
        tokenize: how they were split, a key of TOKENIZE.
        several: the words of several captions per image, best first; None if there is only one.
        training: the captions that the model was trained on; None if they are not known.
        pictures: paths of the images; None if they are not known.
    """

    texts: Sequence[str]
    candidates: Sequence[Words]
    reference_texts: Sequence[Sequence[str]]
    references: Sequence[Sequence[Words]]
    tokenize: str = "ptb"
    several: Sequence[Sequence[Words]] | None = None
    training: CaptionHashes | None = None
    pictures: Sequence[str] | None = None

    @property
    def english(self) -> bool:
        """Whether the captions were split into English words, not into characters."""
        return self.tokenize != "character"

    @cached_property
    def numbered(self) -> References:
        """The references with their n-grams numbered."""
        return References(self.references)

    @cached_property
    def matches(self) -> tuple[Matches, ...]:
        """The candidates' n-grams among those of their references."""
        return self.numbered.match(self.candidates)


@dataclass(frozen=True)
class Result:
    """What a metric returns.

    Attributes:
        values: name to score.
        name: what the metric's signature begins with.
        parts: what its scores depend on in addition to the corpus, for the signature.
        rows: the statistics of each image, by family, see `Metric`.
        missing: name to reason, of scores that could not be computed.
    """

    values: Mapping[str, float]
    name: str
    parts: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """A metric as the table lists it.

    Attributes:
        measure: scores a corpus; raises Unavailable if that is not possible here.
        scores: the names of all scores that it may return.
        families: name of the rows of images that it returns -> what turns their mean [..., k] into
            scores [...]; rows give scores their intervals and tests.
    """

    measure: Callable[[Corpus], Result]
    scores: tuple[str, ...]
    families: Mapping[str, Callable[[Rows], Mapping[str, Rows]]] = field(default_factory=dict)


def mean_as(score: str) -> Callable[[Rows], Mapping[str, Rows]]:
    """For rows [n, 1] that are the score of each image: the corpus score is their mean."""
    return lambda means: {score: means[..., 0]}
