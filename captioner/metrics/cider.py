"""CIDEr-D and CIDEr: similarity to the references, with rare n-grams weighted more (tf-idf).

    g(x)_k = count of n-gram k in x * (log I - log max(1, df_k))        df_k: images with k

    CIDEr_n   = mean_j  g(c) . g(r_j) / (|g(c)| |g(r_j)|)
    CIDEr-D_n = mean_j  exp(-(l_c - l_r)^2 / (2 sigma^2)) min(g(c), g(r_j)) . g(r_j) / (|..| |..|)

The score of an image is the mean over n = 1 to 4, that of a corpus the mean of its images' scores.
sigma = 6; l is the number of bigrams, as in coco-caption (the number of words minus one, for texts
of one word or more). Here coco-caption's 1.0 is 100, as papers report it, and the maximum is 1,000.
Words are not stemmed: coco-caption does not stem either, though the paper does.

Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from captioner.metrics.corpus import Corpus, Metric, Result, Rows, mean_as
from captioner.metrics.ngrams import ORDERS, Integers, Matches, References, Words, expand

SIGMA = 6.0
SCALE = 1000.0


def measure(corpus: Corpus) -> Result:
    """CIDEr-D of a corpus, with the document frequencies of its own references."""
    rows = Cider(corpus.numbered).rows(corpus.candidates, matches=corpus.matches)
    return Result({"CIDEr-D": rows.mean()}, "CIDEr-D", {"df": "references"}, {"cider_d": rows})


def measure_plain(corpus: Corpus) -> Result:
    """CIDEr of a corpus, with the document frequencies of its own references."""
    scorer = Cider(corpus.numbered, clipped=False)
    rows = scorer.rows(corpus.candidates, matches=corpus.matches)
    return Result({"CIDEr": rows.mean()}, "CIDEr", {"df": "references"}, {"cider": rows})


class Cider:
    """CIDEr-D or CIDEr against fixed references, whose weights are computed once.

    Args:
        references: with the document frequencies.
        clipped: True is CIDEr-D; False is CIDEr, without clipped counts and length penalty.
    """

    def __init__(self, references: References, *, clipped: bool = True) -> None:
        self._references, self._clipped = references, clipped
        self._idf = [
            numpy.log(references.documents) - numpy.log(numpy.maximum(1, order.frequencies))
            for order in references.orders
        ]
        self._weights = [
            order.counts * idf[order.grams] for order, idf in zip(references.orders, self._idf)
        ]
        size = len(references.texts.lengths)
        self._norms = [
            _norms(order.texts, weights, size)
            for order, weights in zip(references.orders, self._weights)
        ]

    def rows(
        self,
        candidates: Sequence[Words],
        images: Integers | None = None,
        *,
        matches: Sequence[Matches] | None = None,
    ) -> Rows:
        """The score of each candidate, 0 to 1,000.

        Args:
            candidates: C captions.
            images: which image each describes [C]; None: one per image, in order.
            matches: the matches of these candidates; None computes them.

        Returns:
            one row per candidate [C, 1].
        """
        references = self._references
        matches = matches or references.match(candidates, images)
        owners, texts = references.reference_pairs(
            references.places(images, len(candidates))
        )  # [pairs]
        first = numpy.searchsorted(owners, numpy.arange(len(candidates)))  # [C]
        # A pair is a candidate and one of its references, which are consecutive in `texts`.
        shift = first - texts[first]  # [C]
        total = numpy.zeros(len(owners))
        for n in range(len(ORDERS)):
            total += self._order(n, matches[n], shift, owners, texts)
        if self._clipped:
            lengths = numpy.fromiter(map(len, candidates), dtype=numpy.int64, count=len(candidates))
            bigrams = numpy.maximum(0, lengths - 1)[owners]
            gap = bigrams - numpy.maximum(0, references.texts.lengths - 1)[texts]
            total *= numpy.exp(-(gap**2) / (2 * SIGMA**2))
        sums = numpy.bincount(owners, total, minlength=len(candidates))
        sizes = numpy.bincount(owners, minlength=len(candidates))
        return (SCALE * sums / (sizes * len(ORDERS)))[:, None]

    def _order(
        self, n: int, match: Matches, shift: Integers, owners: Integers, texts: Integers
    ) -> Rows:
        """Cosines, clipped or not, of the n-grams of one order [pairs]."""
        order = self._references.orders[n]
        unseen = numpy.log(self._references.documents)
        idf = numpy.full(len(match.grams), unseen)
        known = match.grams < len(order.keys)
        idf[known] = self._idf[n][match.grams[known]]
        weights = match.counts * idf  # [M]
        norms = _norms(match.candidates, weights, len(shift))

        shared = numpy.flatnonzero(match.places >= 0)
        places = match.places[shared]
        index, entries = expand(order.starts[places], order.starts[places + 1])
        ours, theirs = weights[shared][index], self._weights[n][entries]
        candidate = match.candidates[shared][index]
        products = numpy.minimum(ours, theirs) * theirs if self._clipped else ours * theirs
        pair = order.texts[entries] + shift[candidate]
        dots = numpy.bincount(pair, products, minlength=len(owners))
        lengths = norms[owners] * self._norms[n][texts]
        return dots / numpy.where(lengths > 0, lengths, 1.0)


def _norms(texts: Integers, weights: Rows, size: int) -> Rows:
    """The norm of each text's tf-idf vector [size]."""
    return numpy.sqrt(numpy.bincount(texts, weights**2, minlength=size))


METRIC = Metric(measure, ("CIDEr-D",), {"cider_d": mean_as("CIDEr-D")})
PLAIN = Metric(measure_plain, ("CIDEr",), {"cider": mean_as("CIDEr")})
