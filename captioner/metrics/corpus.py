"""What a metric is given, a `Corpus`, and what it returns, a `Result`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from captioner.metrics.ngrams import Matches, References, Words
from captioner.metrics.novelty import CaptionHashes
from captioner.metrics.statistics import Rows


class Unavailable(ValueError):
    """Something cannot be computed here; the text says why, and how it could be."""


@dataclass(frozen=True)
class Corpus:
    """Captions to score, cut into words; what several metrics need is computed once.

    Attributes:
        texts: the captions as they stand, one an image.
        candidates: their words.
        reference_texts: for each image one or more captions by people.
        references: their words.
        tokenize: how they were cut, a key of TOKENIZE.
        several: the words of several captions an image, best first, where there are such.
        training: the captions that the model was trained on, where they are known.
        pictures: paths of the images, where they are known.
    """

    texts: Sequence[str]
    candidates: Sequence[Words]
    reference_texts: Sequence[Sequence[str]]
    references: Sequence[Sequence[Words]]
    tokenize: str = "ptb"
    several: Sequence[Sequence[Words]] | None = None
    training: CaptionHashes | None = None
    pictures: Sequence[str] | None = None

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
    """What a metric finds.

    Attributes:
        values: name to score.
        name: what the metric's signature begins with.
        parts: what its scores depend on besides the corpus, for the signature.
        rows: the statistics of each image, by family of `statistics.FAMILIES`.
        missing: name to reason, of scores that could not be computed.
    """

    values: Mapping[str, float]
    name: str
    parts: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
