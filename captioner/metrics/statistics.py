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

from captioner.data.records import write_whole

Rows = NDArray[numpy.float64]
"""Statistics of images [n, k], or their weighted means [..., k]."""

FILE = "statistics.npz"


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


def _mean(name: str) -> Callable[[Rows], dict[str, Rows]]:
    return lambda means: {name: means[..., 0]}


FAMILIES: Mapping[str, Callable[[Rows], dict[str, Rows]]] = MappingProxyType(
    {
        "bleu": from_bleu_rows,
        "rouge_l": _mean("ROUGE-L"),
        "cider_d": _mean("CIDEr-D"),
        "cider": _mean("CIDEr"),
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
