"""What a word depends on: attribution to the positions of the grid and to the words before it.

Each method gives one number R per position and per word read, in nats (or logits), positive where
it speaks for the word. x is what was read, b the baseline (``reading.py``), f the score of the
word:

    gradient-x-input       R_i = (x_i - b_i) . df/dx_i (x)              Simonyan et al., 2014
    integrated-gradients   R_i = (x_i - b_i) . ∫ df/dx_i (b + α (x - b)) dα     Sundararajan, 2017
    occlusion              R_i = f(x) - f(x with b_i in place of x_i)   Zeiler & Fergus, 2014
    lrp                    relevance through the cells (``relevance.py``)       Arras et al., 2017

If f is linear, all are equal. Integrated gradients are complete: sum R = f(x) - f(b). The others
are not, and ``Attribution.error`` says by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.api import Captioner
from captioner.config import unknown
from captioner.generation import known_tokens
from captioner.images import Picture
from captioner.inspection.patching import features_of, require_one, with_features
from captioner.inspection.reading import Inputs, Reading, in_float64
from captioner.inspection.relevance import SignalTakesAll
from captioner.tokenizers import END, Vocabulary
from captioner.tracing.edits import AnyEdit
from captioner.tracing.trace import Trace

POINTS = 64
"""Nodes of the Gauss-Legendre quadrature of integrated gradients."""

Method = Callable[[Reading], tuple[Tensor, Tensor]]
"""The contributions of the positions [P] and of the words [T]."""


@dataclass(frozen=True)
class Attribution:
    """What one word depends on.

    Attributes:
        method: a key of METHODS.
        word: that was attributed.
        rather_than: the word that it is compared with; None: no comparison.
        reads: the words before, <start> first, T.
        map: contribution of each position of the grid, row by row, [P].
        words: contribution of each word before, [T].
        value: f(x), the log probability of the word, its logit, or the difference of two logits.
        baseline: f(b), where nothing is known of the image and of the words before.
    """

    method: str
    word: str
    rather_than: str | None
    reads: tuple[str, ...]
    map: np.ndarray
    words: np.ndarray
    value: float
    baseline: float

    @property
    def error(self) -> float:
        """The completeness error: sum of all contributions - (f(x) - f(b))."""
        return float(self.map.sum() + self.words.sum()) - (self.value - self.baseline)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return {
            **{"method": self.method, "word": self.word, "rather_than": self.rather_than},
            **{"reads": list(self.reads), "words": self.words.tolist(), "map": self.map.tolist()},
            **{"value": self.value, "baseline": self.baseline, "error": self.error},
        }


# Methods ------------------------------------------------------------------------------------------


def gradient_x_input(reading: Reading) -> tuple[Tensor, Tensor]:
    """The gradient at x."""
    return _products(reading, reading.gradients(reading.inputs))


def integrated_gradients(reading: Reading, points: int = POINTS) -> tuple[Tensor, Tensor]:
    """The mean gradient on the straight line from b to x, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    grid, words = (
        b + torch.as_tensor((nodes + 1) / 2).to(x).view(-1, 1, 1) * (x - b)
        for x, b in zip(reading.inputs, reading.baseline)
    )
    gradients = reading.gradients(Inputs(grid, words))
    means = [torch.tensordot(torch.as_tensor(weights / 2).to(g), g, 1)[None] for g in gradients]
    return _products(reading, Inputs(*means))


def occlusion(reading: Reading) -> tuple[Tensor, Tensor]:
    """The change of f where one position, or one word, is replaced by its baseline."""
    (grid, words), absent = reading.inputs, reading.baseline
    positions, steps = grid.shape[1], words.shape[1]
    grids, vectors = (x.repeat(positions + steps, 1, 1) for x in (grid, words))
    for p in range(positions):
        grids[p, p] = absent.grid[0, p]
    for t in range(steps):
        vectors[positions + t, t] = absent.words[0, t]
    changes = reading.values(reading.inputs) - reading.values(Inputs(grids, vectors))
    return changes[:positions], changes[positions:]


def lrp(reading: Reading) -> tuple[Tensor, Tensor]:
    """Relevance: gates are constants, and nonlinearities pass on what they get."""
    rule = SignalTakesAll(reading.decoder)
    return _products(reading, reading.gradients(reading.inputs, rule))


def _products(reading: Reading, gradients: Inputs) -> tuple[Tensor, Tensor]:
    parts = zip(reading.inputs, reading.baseline, gradients)
    grid, words = (((x - b) * g).sum(-1)[0] for x, b, g in parts)
    return grid, words


METHODS: dict[str, Method] = {
    "gradient-x-input": gradient_x_input,
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
    "lrp": lrp,
}
"""Every method by its name."""

DEFAULT = "integrated-gradients"
"""Complete, and known for every decoder."""

DEFAULT_SCORE = "logit"
"""The log probability of a certain word is nearly constant, so that its gradient is nearly 0."""


def method_named(name: str) -> Method:
    """A method of the table.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def attribute(reading: Reading, method: str, vocabulary: Vocabulary) -> Attribution:
    """Attribute one word.

    Raises:
        ValueError: an unknown method, or one that does not know the decoder.
    """
    grid, words = method_named(method)(reading)
    other = reading.rather_than
    return Attribution(
        method=method,
        word=vocabulary.word(reading.word),
        rather_than=None if other is None else vocabulary.word(other),
        reads=tuple(vocabulary.word(token) for token in reading.before),
        map=grid.cpu().numpy(),
        words=words.cpu().numpy(),
        value=float(reading.values(reading.inputs)),
        baseline=float(reading.values(reading.baseline)),
    )


# Captions -----------------------------------------------------------------------------------------


def readings(
    captioner: Captioner,
    image: Picture,
    trace: Trace,
    *,
    words: Sequence[int] | None = None,
    rather_than: str | None = None,
    score: str = DEFAULT_SCORE,
    edits: Sequence[AnyEdit] = (),
) -> list[Reading]:
    """The words of a traced caption, each as a function of what was read before it.

    Args:
        captioner: one model.
        image: that was traced.
        trace: made with the same edits.
        words: their numbers, 1 is the first; None: all, <end> included.
        rather_than: a word to compare each of them with.
        score: "log_prob" or "logit" of the word.
        edits: changes of values, which every evaluation of f applies.

    Raises:
        ValueError: a number that the caption does not have; a word that the model does not know; an
            ensemble; features from which nothing can be attributed; edits that are not those of
            the trace, or that replace what is attributed.
    """
    require_one(captioner)
    if tuple(edit.as_dict() for edit in edits) != trace.edits:
        raise ValueError("the trace was made with other edits; give the same to both")
    vocabulary = captioner.tokenizer.vocabulary
    tokens = [vocabulary.end if w == END else vocabulary.id(w) for w in trace.words]
    for number in words or ():
        if not 1 <= number <= len(tokens):
            raise ValueError(
                f"word={number} is not accepted; the caption has words 1 to {len(tokens)}"
            )
    other = None if rather_than is None else _one_word(captioner, rather_than)
    if words and other is not None and other in (tokens[number - 1] for number in words):
        raise ValueError(f"rather_than={rather_than!r} is the word itself; give another word")
    decoder = in_float64(captioner.model.decoder)
    weight = next(decoder.parameters())
    features = features_of(captioner, image, weight)
    changes = with_features(captioner, edits, weight)
    read = (vocabulary.start, *tokens)
    return [
        Reading(decoder, features, read[:number], tokens[number - 1], other, score, edits=changes)
        for number in (words or range(1, len(tokens) + 1))
    ]


def _one_word(captioner: Captioner, rather_than: str) -> int:
    token, *more = known_tokens("rather_than", rather_than, captioner.tokenizer)
    if more:
        raise ValueError(f"rather_than={rather_than!r} has several words; give one")
    return token
