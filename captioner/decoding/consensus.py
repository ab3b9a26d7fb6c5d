"""Minimum Bayes risk: choose the caption that agrees most with the others, not the most probable.

It is the caption with the highest expected score u if each of the candidates c_j were the reference
(Kumar & Byrne, NAACL 2004; the consensus caption of Devlin et al., arXiv:1505.04467):

    c* = argmax_i Σ_j w_j u(c_i, c_j)       w_j = p(c_j)^(1/τ) / Σ_k p(c_k)^(1/τ)

Samples follow p already, so all their w_j are equal. Unfinished captions have weight 0, unless all
are unfinished. The score is similar to CIDEr-D (Vedantam et al., CVPR 2015), with n-grams from 1 to
4 and a length penalty,

    u(c, r) = exp(-(l_c - l_r)^2 / (2 sigma^2)) mean_n  min(g(c), g(r)) . g(r) / (|g(c)| |g(r)|)

    g(x)_k  = count of n-gram k in x * Σ rarity of its words

but needs no document frequencies: the rarity of a word follows from its rank in the vocabulary
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
    candidates: Sequence[Hypothesis], rarity: Sequence[float], temperature: float | None
) -> list[Hypothesis]:
    """Rank the hypotheses of an image by their agreement, which becomes their score.

    Args:
        candidates: C hypotheses, 1 or more.
        rarity: of each token ≥ 0; empty: all equal.
        temperature: τ > 0 of the weights; None: the candidates are samples, with equal weights.

    Returns:
        hypotheses with all required words first, then finished ones, then by agreement.
    """
    weights = numpy.ones(len(candidates))
    if temperature is not None:
        log_probs = numpy.array([sum(h.log_probs) for h in candidates]) / temperature
        weights = numpy.exp(log_probs - log_probs.max())
    if any(h.finished for h in candidates):
        weights = weights * [h.finished for h in candidates]
    agreement = similarities([h.tokens for h in candidates], rarity) @ (weights / weights.sum())
    ranked = [h._replace(score=float(score)) for h, score in zip(candidates, agreement)]
    return sorted(ranked, key=lambda h: (len(h.missing), not h.finished, -h.score))


def similarities(captions: Sequence[Sequence[int]], rarity: Sequence[float]) -> numpy.ndarray:
    """u of each caption (row) with each other as its reference (column), [C, C], in [0, 1].

    Args:
        captions: the token ids of C captions.
        rarity: of each token ≥ 0; empty: all equal.
    """
    lengths = numpy.array([len(words) for words in captions])
    total = numpy.zeros((len(captions), len(captions)))
    for n in ORDERS:
        vectors = _vectors(captions, n, rarity)  # [C, G]
        norms = numpy.sqrt((vectors**2).sum(axis=1))
        dots = numpy.stack(
            [(numpy.minimum(vector, vectors) * vectors).sum(1) for vector in vectors]
        )
        total += dots / numpy.maximum(numpy.outer(norms, norms), 1e-12)
    differences = lengths[:, None] - lengths
    return numpy.exp(-(differences**2) / (2 * SIGMA**2)) * total / len(ORDERS)


def _vectors(captions: Sequence[Sequence[int]], n: int, rarity: Sequence[float]) -> numpy.ndarray:
    """The weighted counts of the G different n-grams of captions, [C, G]."""
    ngrams = [[tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for words in captions]
    columns = {gram: column for column, gram in enumerate(dict.fromkeys(chain(*ngrams)))}
    counts = numpy.zeros((len(captions), len(columns)))
    for row, grams in zip(counts, ngrams):
        for gram in grams:
            row[columns[gram]] += 1
    if len(rarity):
        counts *= [sum(rarity[token] for token in gram) for gram in columns]
    return counts
