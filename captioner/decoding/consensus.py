"""Minimum Bayes risk: of the captions found, not the most probable, but the one most agreed upon.

The best guess under a score u is the caption whose expected score is highest, were each of the
candidates c_j in turn what people said (Kumar & Byrne, NAACL 2004; the consensus caption of Devlin
et al., arXiv:1505.04467):

    c* = argmax_i Σ_j w_j u(c_i, c_j)       w_j = p(c_j)^(1/τ) / Σ_k p(c_k)^(1/τ)

Samples are votes already: there all w_j are equal. A caption cut off before its end has no vote,
unless all are. The score is made as CIDEr-D is (Vedantam et
al., CVPR 2015), of n-grams from 1 to 4 and a penalty on lengths,

    u(c, r) = exp(-(l_c - l_r)^2 / (2 sigma^2)) mean_n  min(g(c), g(r)) . g(r) / (|g(c)| |g(r)|)

    g(x)_k  = count of n-gram k in x * Σ rarity of its words

but asks for no document frequencies: a word's rarity is known from its place in the vocabulary
(``Vocabulary.rarity``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy

from captioner.decoding.search import Hypothesis

SIGMA = 6.0
ORDERS = (1, 2, 3, 4)


def by_consensus(
    found: Sequence[Hypothesis], rarity: Sequence[float], temperature: float | None
) -> list[Hypothesis]:
    """Rank the hypotheses of an image by their agreement, which becomes their score.

    Args:
        found: C candidates, 1 or more.
        rarity: of each token ≥ 0; empty: all alike.
        temperature: τ > 0 of their votes; None: the candidates are samples, each with one vote.

    Returns:
        the most agreed upon first; but, as ever, those that hold all required words before the
        others, and finished ones before unfinished.
    """
    votes = numpy.ones(len(found))
    if temperature is not None:
        log_probs = numpy.array([sum(one.log_probs) for one in found]) / temperature
        votes = numpy.exp(log_probs - log_probs.max())
    if any(one.finished for one in found):
        votes = votes * [one.finished for one in found]
    agreement = similarities([one.tokens for one in found], rarity) @ (votes / votes.sum())
    ranked = [one._replace(score=float(score)) for one, score in zip(found, agreement)]
    return sorted(ranked, key=lambda one: (len(one.missing), not one.finished, -one.score))


def similarities(captions: Sequence[Sequence[int]], rarity: Sequence[float]) -> numpy.ndarray:
    """u of each caption against each as its reference, [C, C], 0 to 1.

    Args:
        captions: C of them, as tokens.
        rarity: of each token ≥ 0; empty: all alike.
    """
    lengths = numpy.array([len(words) for words in captions])
    total = numpy.zeros((len(captions), len(captions)))
    for n in ORDERS:
        vectors = _vectors(captions, n, rarity)  # [C, G]
        norms = numpy.sqrt((vectors**2).sum(axis=1))
        dots = numpy.stack([(numpy.minimum(one, vectors) * vectors).sum(1) for one in vectors])
        total += dots / numpy.maximum(numpy.outer(norms, norms), 1e-12)
    differences = lengths[:, None] - lengths
    return numpy.exp(-(differences**2) / (2 * SIGMA**2)) * total / len(ORDERS)


def _vectors(captions: Sequence[Sequence[int]], n: int, rarity: Sequence[float]) -> numpy.ndarray:
    """The weighted counts of the G different n-grams of captions, [C, G]."""
    said = [[tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for words in captions]
    places = {gram: place for place, gram in enumerate(dict.fromkeys(chain.from_iterable(said)))}
    counts = numpy.zeros((len(captions), len(places)))
    for row, grams in zip(counts, said):
        for gram in grams:
            row[places[gram]] += 1
    if len(rarity):
        counts *= [sum(rarity[token] for token in gram) for gram in places]
    return counts
