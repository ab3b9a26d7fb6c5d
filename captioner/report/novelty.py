"""Captions compared with the training captions: frequency of their words, and novelty.

A caption's nearest training caption is the one that has the most pairs of adjacent words in
common with it:

    similarity(a, b) = 2 |A ∩ B| / (|A| + |B|)          (Dice, 1945)

over the sets A and B of their word pairs, with the borders of a caption as words; 1 for equal
captions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy

_BORDER = ""


@dataclass(frozen=True)
class Nearest:
    """A training caption and its similarity.

    Attributes:
        words: of the training caption.
        similarity: 0 to 1.
    """

    words: tuple[str, ...]
    similarity: float


class TrainingCaptions:
    """The captions that a model was trained on.

    Args:
        captions: the words of each; one or more.

    Attributes:
        captions: the different captions, in order.
        counts: word -> how often it occurs in all captions.
    """

    def __init__(self, captions: Iterable[Sequence[str]]) -> None:
        texts = [tuple(words) for words in captions]
        self.counts = Counter(word for words in texts for word in words)
        self.captions = list(dict.fromkeys(texts))
        places: dict[tuple[str, str], list[int]] = defaultdict(list)
        sizes = []
        for index, words in enumerate(self.captions):
            pairs = _pairs(words)
            sizes.append(len(pairs))
            for pair in pairs:
                places[pair].append(index)
        self._places = {pair: numpy.array(indices) for pair, indices in places.items()}
        self._sizes = numpy.array(sizes)
        self._known = set(self.captions)

    def __contains__(self, words: Sequence[str]) -> bool:
        """Whether a caption is one of them, word for word."""
        return tuple(words) in self._known

    def nearest(self, words: Sequence[str]) -> Nearest:
        """The most similar training caption; the first of several."""
        pairs = _pairs(words)
        places = [self._places[pair] for pair in pairs if pair in self._places]
        if not places:
            return Nearest((), 0.0)
        shared = numpy.bincount(numpy.concatenate(places), minlength=len(self.captions))
        similarity = 2 * shared / (self._sizes + len(pairs))
        best = int(similarity.argmax())
        return Nearest(self.captions[best], float(similarity[best]))


def _pairs(words: Sequence[str]) -> set[tuple[str, str]]:
    return set(pairwise([_BORDER, *words, _BORDER]))
