"""Sufficient statistics: for each metric one row per image, from which the corpus score follows.

A corpus score is a function of the mean row: BLEU of mean counts, CIDEr and ROUGE-L of the mean of
the images' scores. So any subset or resample of a split is scored by a weighted mean of stored
rows, without the texts, which makes intervals and tests cheap.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from captioner.files import require_regular, write_whole
from captioner.limits import INFLATED_BYTES, INFLATION
from captioner.metrics.corpus import Rows
from captioner.metrics.table import FAMILIES
from captioner.plain_data import NUMPY_DAMAGES


@dataclass(frozen=True)
class Statistics:
    """The statistics of a scored set of images.

    Attributes:
        images: the image ids, in order.
        rows: for each family of FAMILIES, one row per image [n, k].
    """

    images: tuple[str, ...]
    rows: Mapping[str, Rows]

    def scores(self, weights: Rows | None = None) -> dict[str, Rows]:
        """Every score of the corpus.

        Args:
            weights: of the images, [..., n], not all zero; None weights them equally.

        Returns:
            name -> score, [...].
        """
        scores: dict[str, Rows] = {}
        for family, rows in self.rows.items():
            if weights is None:
                means = rows.mean(axis=0)
            else:
                means = weights @ rows / weights.sum(axis=-1, keepdims=True)
            scores.update(FAMILIES[family](means))
        return scores

    def save(self, path: Path) -> Path:
        """Write the arrays as one compressed file, atomically."""
        file = io.BytesIO()
        arrays: dict[str, Any] = {"images": numpy.array(self.images), **self.rows}
        numpy.savez_compressed(file, **arrays)
        return write_whole(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what ``save`` wrote, without executing code from the file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is of another kind, or damaged.
        """
        require_regular(path)
        try:
            _require_size(path)
            with numpy.load(path, allow_pickle=False) as content:
                rows = {name: content[name] for name in FAMILIES if name in content}
                images = tuple(str(image) for image in content["images"])
        except NUMPY_DAMAGES:
            raise ValueError(
                f"{path}: not the statistics of a score, or damaged; run captioner evaluate again"
            ) from None
        if not rows or any(numpy.shape(array)[:1] != (len(images),) for array in rows.values()):
            raise ValueError(f"{path}: damaged statistics; run captioner evaluate again")
        return cls(images, rows)


def _require_size(path: Path) -> None:
    """Raise ValueError for a compressed file whose content does not fit its size."""
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > max(INFLATED_BYTES, INFLATION * path.stat().st_size):
        raise ValueError
