"""BLEU: how many n-grams of the candidates are also in one of their references.

    BLEU-n = BP (p_1 p_2 ... p_n)^(1/n)        BP = 1 if c > r, else exp(1 - r / c)

p_k is the fraction of the candidates' k-grams that match a reference, each clipped to its largest
count in one reference; c is the total length of the candidates, r the total length of the
references closest to them in length (the shorter of two that are equally close). All counts are
summed over the corpus before dividing, so BLEU is not the mean of sentence scores. There is no
smoothing.

Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import version
from typing import Any

import numpy

from captioner.metrics.corpus import Corpus, Metric, Result, Rows
from captioner.metrics.ngrams import ORDERS, Integers, Matches, References, Words


def measure(corpus: Corpus) -> Result:
    """BLEU-1 to BLEU-4 of a corpus."""
    rows = bleu_rows(corpus.numbered, corpus.candidates, matches=corpus.matches)
    return Result(
        values=bleu(corpus.candidates, corpus.references),
        name="BLEU",
        parts={"nltk": version("nltk")},
        rows={"bleu": rows},
    )


def bleu(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> dict[str, float]:
    """Score candidates against their references with nltk's corpus_bleu.

    For a candidate of fewer than n words nltk counts one n-gram and coco-caption none; otherwise
    the two agree.

    Args:
        candidates: the words of each candidate; one or more candidates.
        references: for each candidate, the words of one or more references.

    Returns:
        BLEU-1 to BLEU-4, 0 to 100; exactly 0 if no n-gram of that order, or of a lower one,
        matches.
    """
    # Importing nltk takes a second.
    from nltk.translate.bleu_score import corpus_bleu

    precisions: list[Fraction] = []

    def unsmoothed(of_orders: list[Fraction], **_: Any) -> list[Fraction]:
        # nltk's default replaces 0 by the smallest float, which gives scores near 1e-77, and warns.
        precisions.extend(of_orders)
        return of_orders

    weights = [tuple(1 / n for _ in range(n)) for n in ORDERS]
    scores = corpus_bleu(references, candidates, weights=weights, smoothing_function=unsmoothed)
    matched = [bool(precisions) and all(p > 0 for p in precisions[:n]) for n in ORDERS]
    return {f"BLEU-{n}": 100 * float(s) if m else 0.0 for n, s, m in zip(ORDERS, scores, matched)}


def bleu_rows(
    references: References,
    candidates: Sequence[Words],
    images: Integers | None = None,
    *,
    matches: Sequence[Matches] | None = None,
    coco: bool = False,
) -> Rows:
    """The counts of each candidate, from whose mean `from_bleu_rows` computes BLEU.

    Args:
        references: of I images.
        candidates: C captions.
        images: which image each describes [C]; None: one per image, in order.
        matches: the matches of these candidates; None computes them.
        coco: count no n-gram for a candidate of fewer than n words, as coco-caption does; nltk
            counts one, which cannot match.

    Returns:
        matched n-grams (orders 1 to 4), n-grams of the candidate (orders 1 to 4), its length, the
        length of the closest reference, [C, 10].
    """
    matches = matches or references.match(candidates, images)
    owners, texts = references.reference_pairs(references.places(images, len(candidates)))
    lengths = numpy.fromiter(map(len, candidates), dtype=numpy.int64, count=len(candidates))
    rows = numpy.zeros((len(candidates), 10))
    for n, (order, match) in enumerate(zip(references.orders, matches)):
        known = match.places >= 0
        clipped = numpy.minimum(match.counts[known], order.most[match.places[known]])
        rows[:, n] = numpy.bincount(match.candidates[known], clipped, minlength=len(rows))
        rows[:, 4 + n] = numpy.maximum(0 if coco else 1, lengths - n)
    rows[:, 8] = lengths
    rows[:, 9] = _closest(lengths, owners, references.texts.lengths[texts])
    return rows


def _closest(lengths: Integers, owners: Integers, reference_lengths: Integers) -> Integers:
    """The length of each candidate's reference that is closest to its own [C]."""
    largest = int(reference_lengths.max(initial=0)) + 1
    ranked = (
        numpy.abs(reference_lengths - lengths[owners]) * largest + reference_lengths
    )  # by distance, then length
    first = numpy.flatnonzero(numpy.diff(owners, prepend=-1))
    return numpy.minimum.reduceat(ranked, first) % largest if len(first) else lengths


def from_bleu_rows(means: Rows) -> dict[str, Rows]:
    """BLEU-1 to BLEU-4 (0 to 100) of mean counts [..., 10].

    The columns are those of `bleu_rows`.
    """
    matched, total = means[..., :4], means[..., 4:8]
    length, closest = means[..., 8], means[..., 9]
    with numpy.errstate(divide="ignore", invalid="ignore"):
        logs = numpy.log(matched) - numpy.log(total)  # [..., 4]
        brevity = numpy.minimum(0.0, 1.0 - closest / length)  # log BP
        precision = numpy.cumsum(logs, axis=-1) / numpy.arange(1, 5)  # log geometric means [..., 4]
        scores = numpy.exp(precision + brevity[..., None])
    scores = numpy.where(numpy.isfinite(scores), 100.0 * scores, 0.0)
    return {f"BLEU-{order}": scores[..., order - 1] for order in range(1, 5)}


METRIC = Metric(measure, tuple(f"BLEU-{n}" for n in ORDERS), {"bleu": from_bleu_rows})
