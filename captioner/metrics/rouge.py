"""ROUGE-L: the longest common subsequence of words of a candidate and its references.

    P = max_j lcs(c, r_j) / |c|      R = max_j lcs(c, r_j) / |r_j|
    ROUGE-L = (1 + beta^2) P R / (R + beta^2 P)            beta = 1.2

The best precision and the best recall may come from different references, as in coco-caption. The
score of a corpus is the mean of its images' scores.

Lin, "ROUGE: a Package for Automatic Evaluation of Summaries", ACL workshop 2004.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from captioner.metrics.corpus import Corpus, Metric, Result, Rows, mean_as
from captioner.metrics.ngrams import Integers, References, Texts, Words

BETA = 1.2

_CHUNK = 4096


def measure(corpus: Corpus) -> Result:
    """ROUGE-L of a corpus."""
    rows = rouge_rows(corpus.numbered, corpus.candidates)
    parts = {"beta": f"{BETA}"}
    return Result({"ROUGE-L": rows.mean()}, "ROUGE-L", parts, {"rouge_l": rows})


def rouge_rows(
    references: References, candidates: Sequence[Words], images: Integers | None = None
) -> Rows:
    """ROUGE-L of each candidate, 0 to 100.

    An empty text is one empty word, as in coco-caption: it matches another empty text.

    Args:
        references: of I images.
        candidates: C captions.
        images: which image each describes [C]; None: one per image, in order.

    Returns:
        one row per candidate [C, 1].
    """
    owners, texts = references.reference_pairs(
        references.places(images, len(candidates))
    )  # [pairs]
    numbered, reference_texts = references.number(candidates), references.texts
    common = _common(numbered, owners, reference_texts, texts)  # [pairs]
    precisions = common / numpy.maximum(1, numbered.lengths)[owners]
    recalls = common / numpy.maximum(1, reference_texts.lengths)[texts]
    first = numpy.flatnonzero(numpy.diff(owners, prepend=-1))
    precision = numpy.maximum.reduceat(precisions, first)  # [C]
    recall = numpy.maximum.reduceat(recalls, first)
    bottom = numpy.where(precision > 0, recall + BETA**2 * precision, 1.0)
    return (100 * (1 + BETA**2) * precision * recall / bottom)[:, None]


def _common(candidates: Texts, owners: Integers, references: Texts, texts: Integers) -> Integers:
    """The length of the longest common subsequence of each pair [pairs].

    Dynamic programming over the words of the candidates, for many pairs at once: `row` has the
    lengths for the words so far, [pairs, words of the reference + 1].
    """
    common = numpy.zeros(len(owners), dtype=numpy.int64)
    by_length = numpy.argsort(references.lengths[texts], kind="stable")
    for start in range(0, len(owners), _CHUNK):
        chunk = by_length[start : start + _CHUNK]
        left = candidates.padded(owners[chunk], empty=-1, padding=-2)
        right = references.padded(texts[chunk], empty=-1, padding=-3)
        row = numpy.zeros((len(chunk), right.shape[1] + 1), dtype=numpy.int32)
        for word in left.T:
            longer = numpy.maximum(row[:, 1:], row[:, :-1] + (right == word[:, None]))
            numpy.maximum.accumulate(longer, axis=1, out=row[:, 1:])
        common[chunk] = row[:, -1]
    return common


METRIC = Metric(measure, ("ROUGE-L",), {"rouge_l": mean_as("ROUGE-L")})
