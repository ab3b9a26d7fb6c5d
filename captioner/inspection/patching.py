"""What a caption depends on: values of another image, and the image at all.

The **patching table** (activation patching; Vig et al., "Investigating Gender Bias in Language
Models Using Causal Mediation Analysis", NeurIPS 2020) reads the caption of image A, replaces one
value by that of image B, which reads the same words, and measures how the log probability of each
word changes: X_0, or what attention reads of the image; h_t; C_t.

The **image-dependence curve** compares the distribution of each next word with that of the mean
image, whose standardized feature is 0:

    D_t = KL(p(. | image, words) || p(. | mean image, words))          in nats

0 means that the word depends on the words before it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from captioner.api import Captioner
from captioner.images import Picture
from captioner.models.decoders.decoder import Decoder
from captioner.models.decoders.standardize import Standardize
from captioner.models.features import Features
from captioner.tracing.editing import number_swaps
from captioner.tracing.edits import AnyEdit, Swap
from captioner.tracing.trace import Trace

STATES = ("cell.hidden", "cell.memory")


@dataclass(frozen=True)
class PatchingTable:
    """How the log probability of each word of A's caption changes by a value of B.

    Attributes:
        words: of A's caption, T.
        log_probs: of them, unchanged, [T].
        image: the change by X_0, or by what attention reads of the image, [T].
        states: for h and C, by site: the change of word t (column) by the value of step s (row),
            both from 1 on, [T, T]; 0 where s > t.
    """

    words: tuple[str, ...]
    log_probs: tuple[float, ...]
    image: np.ndarray
    states: dict[str, np.ndarray]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return {
            "words": list(self.words),
            "log_probs": list(self.log_probs),
            "image": self.image.tolist(),
            "states": {site: changes.tolist() for site, changes in self.states.items()},
        }


def patch(
    captioner: Captioner,
    image: Picture,
    other: Picture,
    *,
    caption: str | None = None,
    **options: Any,
) -> PatchingTable:
    """Compute the patching table.

    Args:
        captioner: one model.
        image: A, whose caption is read.
        other: B, whose values replace those of A.
        caption: read this one instead of that which the model generates for A.
        options: any of DecodingOptions, for A's caption.

    Raises:
        FileNotFoundError, ValueError: as ``Captioner.trace``; or an ensemble.
    """
    require_one(captioner)
    plain, read = _reading(captioner, image, caption, options)
    [site] = [name for name in plain.sites if name.startswith("image.")]
    changes = np.array(read([Swap(site, other)]).log_probs) - plain.log_probs
    states = {}
    for name in STATES:
        if name in plain:
            steps = range(1, len(plain.reads))
            rows = [read([Swap(name, other, step=step)]).log_probs for step in steps]
            states[name] = np.array(rows) - plain.log_probs
    return PatchingTable(plain.words, plain.log_probs, changes, states)


def image_dependence(
    captioner: Captioner, image: Picture, *, caption: str | None = None, **options: Any
) -> tuple[Trace, np.ndarray]:
    """Compute the image-dependence curve.

    Args:
        captioner: one model.
        image, caption, options: as for ``patch``.

    Returns:
        the trace of the caption, and D_t of each of its T words in nats, [T].

    Raises:
        FileNotFoundError, ValueError: as ``Captioner.trace``; or an ensemble.
    """
    require_one(captioner)
    plain, read = _reading(captioner, image, caption, options)
    [site] = [name for name in plain.sites if name.startswith("image.")]
    [features] = captioner.encode([captioner.prepare(image)])
    mean = mean_features(captioner.model.decoder, features)
    without = read([Swap(site, mean)])
    p, q = (_log_softmax(trace["output.logits"][1:]) for trace in (plain, without))  # [T, V]
    return plain, (np.exp(p) * (p - q)).sum(axis=1)


def mean_features(decoder: Decoder, like: Features) -> Features:
    """The features of the mean image of a decoder: standardized, they are 0.

    Args:
        decoder: with the statistics of its training images (``Standardize``).
        like: features of the same encoder, for the number of positions.

    Returns:
        one row.

    Raises:
        ValueError: the decoder does not standardize.
    """
    parts = [part for part in decoder.modules() if isinstance(part, Standardize)]
    if not parts:
        raise ValueError(f"{type(decoder).__name__} does not standardize, so it has no mean image")
    mean, size = parts[0].mean, like.pooled.shape[1]
    if len(mean) > size:  # the means of R x R regions, [D, R, R]
        regions = round((len(mean) / size) ** 0.5)
        mean = _spread(mean.view(size, regions, regions), like)  # [P, D]
    pooled = (mean if mean.ndim == 1 else mean.mean(0)).expand(1, size).to(like.pooled)
    if like.grid is None:
        return Features(pooled)
    return Features(pooled, mean.expand(1, like.grid.shape[1], size).to(like.grid))


def _spread(means: Any, like: Features) -> Any:
    """Means of regions [D, R, R] as a grid [P, D] of the same means, if R divides its side."""
    from torch.nn.functional import interpolate

    assert like.grid is not None
    side = round(like.grid.shape[1] ** 0.5)
    return interpolate(means[None], size=(side, side))[0].flatten(1).T


def _reading(
    captioner: Captioner, image: Picture, caption: str | None, options: dict[str, Any]
) -> tuple[Trace, Any]:
    """The trace of reading a caption, and a function that reads it with edits."""
    if caption is None:
        caption = captioner.trace(image, **options).text

    def read(edits: Sequence[AnyEdit]) -> Trace:
        return captioner.trace(image, caption=caption, edits=edits, **options)

    return read([]), read


def features_of(captioner: Captioner, image: Any, like: Tensor) -> Features:
    """The features of an image, on the device and in the type of a tensor."""
    if not isinstance(image, Features):
        [image] = captioner.encode([captioner.prepare(image)])
    grid = None if image.grid is None else image.grid.to(like)
    return Features(image.pooled.to(like), grid)


def with_features(captioner: Captioner, edits: Sequence[AnyEdit], like: Tensor) -> list[AnyEdit]:
    """The edits, in which each other image is given by its features (``features_of``)."""
    images, numbers = number_swaps(edits)
    features = [features_of(captioner, image, like) for image in images]
    return [
        replace(edit, from_image=features[number or 0]) if isinstance(edit, Swap) else edit
        for edit, number in zip(edits, numbers)
    ]


def require_one(captioner: Captioner) -> None:
    """Raise for an ensemble."""
    if len(captioner.models) > 1:
        raise ValueError("an ensemble has no single X_0, h and C; load one model")


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
