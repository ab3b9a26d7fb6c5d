"""Linear probes with control tasks: what can be read off a state, beyond the word just read?

A probe predicts a label of each step (``labels.py``) from the values of a state v by a linear map:

    p(label | v) = softmax(W (v - mean) / std + b)      mean CE + strength / 2 |W|^2  ->  min

High accuracy alone says little: a probe may learn the labels of words by heart. Its control task
(Hewitt & Liang, "Designing and Interpreting Probes with Control Tasks", EMNLP 2019) gives each
*word* one label at random, drawn from the distribution of the real labels, which only memorization
can learn:

    selectivity = accuracy - accuracy of the control task

Both are measured on held-out captions. A second comparison is the same probe on an untrained
decoder (``untrained``), whose random recurrence also keeps something of what it has read. Intervals
resample images: the captions of an image belong together.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.api import Captioner
from captioner.inspection.labels import Task
from captioner.inspection.states import StateTable
from captioner.models.captioning import build_decoder

CONTROLS = 3
"""Random assignments of labels to words, whose accuracies are averaged."""
STEPS = 100


@dataclass(frozen=True)
class Estimate:
    """A value, in [0, 1], with its interval of 95 %; of a selectivity, in [-1, 1]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Probe:
    """How well a label can be read off a state.

    Attributes:
        accuracy: of the probe, on held-out captions.
        control: the same of its control tasks, a mean.
        selectivity: the difference.
        majority: the accuracy of the label that is most frequent in training.
        labels: the number of different labels in training.
        steps: the number of held-out steps.
    """

    accuracy: Estimate
    control: Estimate
    selectivity: Estimate
    majority: float
    labels: int
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return asdict(self)


def probe(
    train: StateTable,
    test: StateTable,
    task: Task,
    *,
    site: str = "cell.hidden",
    layer: int | None = None,
    strength: float = 1e-3,
    resamples: int = 1000,
    seed: int = 0,
) -> Probe:
    """Train a probe on the captions of one table and measure it on those of another.

    Args:
        task: the label of each step of a caption.
        site: of both tables.
        layer: from 0 on; None: the last.
        strength: of the regularization.
        resamples: of the bootstrap.
        seed: of the control tasks and of the bootstrap.

    Raises:
        ValueError: a table does not have the site or the layer, or the task has fewer than two
            labels in the training captions or none in the others.
    """
    own, other = _labeled(train, task, site, layer), _labeled(test, task, site, layer)
    names = sorted(set(own.labels))
    if len(names) < 2 or not len(other.labels):
        raise ValueError(
            f"the task has {len(names)} labels in {len(own.labels)} training steps and "
            f"{len(other.labels)} others; a probe needs two labels, and steps to be measured on"
        )
    rng = np.random.default_rng(seed)
    right = _correct(own, other, strength)
    controls = [_correct(*_relabeled(own, other, rng), strength) for _ in range(CONTROLS)]
    control = np.mean(controls, axis=0)
    images = np.unique(np.array(test.images)[other.captions], return_inverse=True)[1]
    values = np.stack([right, control, right - control])  # [3, steps]
    accuracy, of_control, selectivity = _intervals(values, images, resamples, rng)
    most = max(names, key=lambda name: (own.labels == name).sum())
    majority = float((other.labels == most).mean())
    return Probe(accuracy, of_control, selectivity, majority, len(names), len(other.labels))


@dataclass(frozen=True)
class _Labeled:
    """The steps of a table that have a label.

    Attributes:
        values: [n, H].
        labels: [n].
        words: that were read, [n].
        captions: their numbers, [n].
    """

    values: np.ndarray
    labels: np.ndarray
    words: np.ndarray
    captions: np.ndarray


def _labeled(table: StateTable, task: Task, site: str, layer: int | None) -> _Labeled:
    values = table.values(site, layer)
    labels = np.array([label for reads in table.reads for label in task(reads)], dtype=object)
    asked = np.array([label is not None for label in labels]) & ~np.isnan(values).any(1)
    return _Labeled(
        values[asked], labels[asked].astype(str), table.words[asked], table.captions[asked]
    )


def _relabeled(
    own: _Labeled, other: _Labeled, rng: np.random.Generator
) -> tuple[_Labeled, _Labeled]:
    """The control task: one label for each word, drawn from those of the training steps."""
    words = sorted({*own.words, *other.words})
    drawn = dict(zip(words, rng.choice(own.labels, len(words))))
    return tuple(  # type: ignore[return-value]
        _Labeled(one.values, np.array([drawn[w] for w in one.words]), one.words, one.captions)
        for one in (own, other)
    )


def _correct(own: _Labeled, other: _Labeled, strength: float) -> np.ndarray:
    """Whether each step of `other` is classified correctly, by a probe trained on `own`: 0 or 1."""
    names, numbers = np.unique(own.labels, return_inverse=True)
    if len(names) == 1:  # of a control task with few words
        return (other.labels == names[0]).astype(float)
    mean, std = own.values.mean(0), own.values.std(0) + 1e-6
    states = [torch.tensor((one.values - mean) / std) for one in (own, other)]
    weight, bias = fit(states[0], torch.tensor(numbers), len(names), strength)
    found = (states[1] @ weight + bias).argmax(1).numpy()
    return (names[found] == other.labels).astype(float)


def fit(states: Tensor, labels: Tensor, count: int, strength: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression by L-BFGS.

    Args:
        states: standardized, [n, H].
        labels: [n], from 0 to count - 1.
        count: number of labels.
        strength: of the regularization of the weight.

    Returns:
        weight [H, count], bias [count].
    """
    weight = states.new_zeros(states.shape[1], count, requires_grad=True)
    bias = states.new_zeros(count, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        entropy = torch.nn.functional.cross_entropy(states @ weight + bias, labels)
        total = entropy + strength / 2 * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), bias.detach()


def _intervals(
    values: np.ndarray, images: np.ndarray, resamples: int, rng: np.random.Generator
) -> list[Estimate]:
    """The mean of each row of `values` [k, steps], with intervals over images, [steps]."""
    count = int(images.max()) + 1
    sums = np.stack([np.bincount(images, weights=row) for row in values])  # [k, images]
    steps = np.bincount(images)  # [images]
    weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples)  # [R, images]
    means = (weights @ sums.T) / (weights @ steps)[:, None]  # [R, k]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return [Estimate(*map(float, row)) for row in zip(values.mean(1), low, high)]


def untrained(captioner: Captioner, seed: int = 0) -> Captioner:
    """A copy whose decoder has learned nothing: new random weights, as before training.

    The encoder, the vocabulary and the statistics by which features are standardized remain.
    """
    copied = copy.deepcopy(captioner)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        new: Any = build_decoder(
            captioner.config["decoder"],
            vocabulary_size=len(captioner.tokenizer.vocabulary),
            feature_size=captioner.model.encoder.feature_size,
        )
    old: Any = copied.model.decoder
    for name, statistics in old.named_buffers():
        new.get_buffer(name).copy_(statistics)
    copied.model.decoder = new.to(copied.device).eval()
    return copied
