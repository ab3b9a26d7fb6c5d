"""The reward of a sampled caption: a weighted sum of scores against the training captions.

    r(c) = Σ_m weight_m score_m(c <end>, references <end>)

``<end>`` counts as a word of every reference, and of a sample that has reached it. Without it, the
captions with the highest reward are fragments ("a man riding a wave on a"), and CIDEr-D rises by up
to 4 points while captions get worse. Published code differs here, and scores of models trained with
and without <end> are not comparable (Hu, Cavicchioli & Capotondi, "A request for clarity over the
End of Sequence token in the Self-Critical Sequence Training", arXiv:2305.12254).

Scores are on the scale of coco-caption, not in percent: CIDEr-D from 0 to 10, BLEU-4 and
ROUGE-L from 0 to 1. Document frequencies are those of the references given here, the training
split. The references are indexed once (`captioner.metrics.ngrams`); a step of training only counts
its samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy

from captioner.config import unknown_key
from captioner.metrics.bleu import bleu_rows
from captioner.metrics.cider import Cider
from captioner.metrics.corpus import Rows
from captioner.metrics.ngrams import Integers, Matches, References, Words
from captioner.metrics.rouge import rouge_rows
from captioner.tokenizers import END

Score = Callable[[Sequence[Words], Integers, Sequence[Matches]], Rows]
"""Candidates, the image of each [C], their n-grams -> one score each [C]."""

_PER_CENT = 100.0


def _cider(references: References) -> Score:
    scorer = Cider(references)
    return lambda texts, images, matches: (
        scorer.rows(texts, images, matches=matches)[:, 0] / _PER_CENT
    )


def _bleu4(references: References) -> Score:
    return lambda texts, images, matches: sentence_bleu(
        bleu_rows(references, texts, images, matches=matches)
    )


def _rouge_l(references: References) -> Score:
    return lambda texts, images, matches: rouge_rows(references, texts, images)[:, 0] / _PER_CENT


REWARDS: Mapping[str, Callable[[References], Score]] = MappingProxyType(
    {"cider": _cider, "bleu4": _bleu4, "rouge_l": _rouge_l}
)
"""Name of a reward -> a function from references to a function that scores captions."""


class Rewards:
    """Rewards of captions against fixed references.

    Args:
        references: for each of I images the words of one or more captions, without <end>.
        weights: key of REWARDS -> weight ≥ 0; at least one weight above 0.

    Raises:
        ValueError: as for `check_weights`; or an image has no references.
    """

    def __init__(self, references: Sequence[Sequence[Words]], weights: Mapping[str, float]) -> None:
        check_weights(weights)
        self._references = References([[[*text, END] for text in texts] for texts in references])
        self._parts = [
            (weight, REWARDS[name](self._references)) for name, weight in weights.items() if weight
        ]

    def __call__(self, candidates: Sequence[Words], images: Integers) -> Rows:
        """Score captions.

        Args:
            candidates: the words of C captions, <end> last where it was reached.
            images: index of the image that each caption describes, [C].

        Returns:
            the reward of each caption, [C].
        """
        matches = self._references.match(candidates, images)
        return sum(
            (weight * score(candidates, images, matches) for weight, score in self._parts),
            start=numpy.zeros(len(candidates)),
        )


def check_weights(weights: Mapping[str, float]) -> None:
    """Check the weights of rewards.

    Raises:
        ValueError: a reward is unknown, a weight is negative or not a number, or all are 0.
    """
    for name, weight in weights.items():
        if name not in REWARDS:
            raise unknown_key("objective.rewards", name, REWARDS)
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight < math.inf:
            raise ValueError(
                f"objective.rewards.{name}={weight!r} is not accepted; choose a number from 0"
            )
    if not any(weights.values()):
        raise ValueError(
            "objective.rewards are all 0; give one a weight, such as objective.rewards.cider=1"
        )


def sentence_bleu(rows: Rows) -> Rows:
    """BLEU-4 of single captions, 0 to 1, from the counts of `bleu_rows` [C, 10].

    p_n = (matches + 1) / (total + 1) for n from 2 to 4, since few captions contain a 4-gram of
    their references, and log 0 would hide the other terms (Lin & Och, COLING 2004; nltk's method2).
    """
    more = numpy.array([0, 1, 1, 1])
    matches, total = rows[:, :4] + more, rows[:, 4:8] + more
    brevity = numpy.minimum(0.0, 1.0 - rows[:, 9] / numpy.maximum(1, rows[:, 8]))  # log BP
    with numpy.errstate(divide="ignore"):
        return numpy.exp(numpy.log(matches / total).mean(axis=1) + brevity)
