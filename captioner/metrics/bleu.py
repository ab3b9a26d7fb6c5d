"""BLEU: how many n-grams of the candidates stand in one of their references.

    BLEU-n = BP (p_1 p_2 ... p_n)^(1/n)        BP = 1 if c > r, else exp(1 - r / c)

p_k is the share of the candidates' k-grams found in a reference, each counted at most as often as
one reference has it; c is the length of all candidates together, r that of the references closest
to them in length, the shorter where two are equally close. All counts are summed over the corpus
before dividing, so BLEU is not the mean of sentence scores. Nothing is smoothed.

Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

ORDERS = (1, 2, 3, 4)


def bleu(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> dict[str, float]:
    """Score candidates against their references with nltk's corpus_bleu.

    nltk counts one n-gram for a candidate of fewer than n words, coco-caption none; apart from
    that the two agree.

    Args:
        candidates: the words of each candidate; one or more candidates.
        references: for each candidate, the words of one or more references.

    Returns:
        BLEU-1 to BLEU-4, 0 to 100; exactly 0 where no n-gram of that order, or of a lower one, is
        found.
    """
    # Importing nltk takes a second, so it waits until a score is wanted.
    from nltk.translate.bleu_score import corpus_bleu

    precisions: list[Fraction] = []

    def unsmoothed(found: list[Fraction], **_: Any) -> list[Fraction]:
        # nltk's own puts the smallest float for 0, which leaves scores near 1e-77, and warns.
        precisions.extend(found)
        return found

    weights = [tuple(1 / n for _ in range(n)) for n in ORDERS]
    scores = corpus_bleu(references, candidates, weights=weights, smoothing_function=unsmoothed)
    found = [bool(precisions) and all(p > 0 for p in precisions[:n]) for n in ORDERS]
    return {f"BLEU-{n}": 100 * float(s) if f else 0.0 for n, s, f in zip(ORDERS, scores, found)}
