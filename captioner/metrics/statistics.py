"""Sufficient statistics: one row an image for each metric, from which the corpus score follows.

A corpus score is a function of the mean row: BLEU of the mean counts, CIDEr and ROUGE-L of the mean
of the images' scores. So any subset or resample of a split is scored by a weighted mean of stored
rows, without looking at a text again: that makes intervals and tests cost next to nothing.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
from numpy.typing import NDArray

from captioner.files import write_whole

Rows = NDArray[numpy.float64]
"""Statistics of images [n, k], or their weighted means [..., k]."""


METEOR_COLUMNS = 23
_METEOR_KINDS = (1.0, 0.6, 0.8, 0.6)  # exact, stem, synonym, paraphrase
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def from_bleu_rows(means: Rows) -> dict[str, Rows]:
    """BLEU-1 to BLEU-4 (0 to 100) of mean counts [..., 10].

    The columns: n-grams found (4 orders), n-grams said (4 orders), length of the candidate, length
    of the closest reference.
    """
    found, said = means[..., :4], means[..., 4:8]
    length, closest = means[..., 8], means[..., 9]
    with numpy.errstate(divide="ignore", invalid="ignore"):
        logs = numpy.log(found) - numpy.log(said)  # [..., 4]
        brevity = numpy.minimum(0.0, 1.0 - closest / length)  # log BP
        total = numpy.cumsum(logs, axis=-1) / numpy.arange(1, 5)  # [..., 4]
        scores = numpy.exp(total + brevity[..., None])
    scores = numpy.where(numpy.isfinite(scores), 100.0 * scores, 0.0)
    return {f"BLEU-{order}": scores[..., order - 1] for order in range(1, 5)}


def from_meteor_rows(means: Rows) -> dict[str, Rows]:
    """METEOR (0 to 100) of mean counts [..., 23]; see `captioner.metrics.meteor`.

    The columns: words of candidate and reference, function words of each; for each kind of match
    content words of the candidate and the reference, then function words of each; chunks (0 where
    all words match in one), matched words of the candidate and of the reference.
    """
    lengths, functions, matched = means[..., :2], means[..., 2:4], means[..., 4:20]
    kinds = matched.reshape(*means.shape[:-1], 4, 4)  # [..., kind, content 2 | function 2]
    weighted = _DELTA * kinds[..., :2] + (1 - _DELTA) * kinds[..., 2:]  # [..., kind, 2]
    found = (numpy.array(_METEOR_KINDS)[:, None] * weighted).sum(axis=-2)  # [..., 2]
    said = _DELTA * (lengths - functions) + (1 - _DELTA) * functions
    with numpy.errstate(divide="ignore", invalid="ignore"):
        precision, recall = numpy.moveaxis(found / said, -1, 0)
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        chunks = means[..., 20] / means[..., 21:23].mean(axis=-1)
        scores = mean * (1 - _GAMMA * chunks**_BETA)
    return {"METEOR": numpy.where(numpy.isfinite(scores), 100 * scores, 0.0)}


def _mean(name: str) -> Callable[[Rows], dict[str, Rows]]:
    return lambda means: {name: means[..., 0]}


FAMILIES: Mapping[str, Callable[[Rows], dict[str, Rows]]] = MappingProxyType(
    {
        "bleu": from_bleu_rows,
        "rouge_l": _mean("ROUGE-L"),
        "cider_d": _mean("CIDEr-D"),
        "cider": _mean("CIDEr"),
        "meteor": from_meteor_rows,
        "spice": _mean("SPICE"),
        "clip": _mean("CLIPScore"),
        "ref_clip": _mean("RefCLIPScore"),
        "length": _mean("length"),
    }
)
"""Name of the stored rows -> mean row to scores."""


@dataclass(frozen=True)
class Statistics:
    """The statistics of a scored set of images.

    Attributes:
        images: the image ids, in order.
        rows: for each family of FAMILIES, one row an image [n, k].
    """

    images: tuple[str, ...]
    rows: Mapping[str, Rows]

    def scores(self, weights: Rows | None = None) -> dict[str, Rows]:
        """Every score of the corpus.

        Args:
            weights: of the images, [..., n], not all zero; None weighs them alike.

        Returns:
            name -> score, [...].
        """
        found: dict[str, Rows] = {}
        for family, rows in self.rows.items():
            if weights is None:
                means = rows.mean(axis=0)
            else:
                means = weights @ rows / weights.sum(axis=-1, keepdims=True)
            found.update(FAMILIES[family](means))
        return found

    def save(self, path: Path) -> Path:
        """Write the arrays as one compressed file, whole or not at all."""
        file = io.BytesIO()
        arrays: dict[str, Any] = {"images": numpy.array(self.images), **self.rows}
        numpy.savez_compressed(file, **arrays)
        return write_whole(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what ``save`` wrote; nothing in the file can run code.

        Raises:
            FileNotFoundError: nothing is there.
            ValueError: not such a file, or a damaged one.
        """
        try:
            with numpy.load(path, allow_pickle=False) as content:
                rows = {name: content[name] for name in FAMILIES if name in content}
                images = tuple(str(image) for image in content["images"])
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise ValueError(
                f"{path}: not the statistics of a score, or damaged; run captioner evaluate again"
            ) from None
        if not rows or any(array.shape[:1] != (len(images),) for array in rows.values()):
            raise ValueError(f"{path}: damaged statistics; run captioner evaluate again")
        return cls(images, rows)
