"""A table of states: the values of a model's units after every word of many captions.

The rows of all captions follow one another. The first row of a caption is the state after X_0 (or,
where the image enters elsewhere, before <start>), the second after <start>, then one after each
word:

    reads       X_0     <start>   a       red     circle
    row         0       1         2       3       4

The values of the row after "red" are those from which the decoder predicts "circle". A table is one
safetensors file; loading it needs neither the model nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from captioner.config import unknown
from captioner.tracing.array_file import ArrayFile

FILE = ArrayFile("captioner.states", "a table of states", 1)

SITES = (
    "cell.hidden",
    "cell.memory",
    "cell.candidate",
    "cell.forget_gate",
    "cell.input_gate",
    "cell.output_gate",
    "cell.reset_gate",
    "cell.update_gate",
    "layer.hidden",
)
"""The sites that a table may have; NaN where a step has no value."""


@dataclass(frozen=True, eq=False)
class StateTable:
    """The states of many captions.

    Attributes:
        images: the id of the image of each caption.
        reads: what the steps of each caption read, "X_0" (or "image") and "<start>" first.
        sites: the arrays, [N, L, H]: N steps of all captions together, L layers, H units.
        model: its decoder, cell and sizes, as plain data.
        data: the dataset, the split, and whose captions they are, as plain data.
    """

    images: tuple[str, ...]
    reads: tuple[tuple[str, ...], ...]
    sites: Mapping[str, np.ndarray]
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reads)

    @cached_property
    def starts(self) -> np.ndarray:
        """The first row of each caption, and N: [captions + 1]."""
        return np.cumsum([0, *map(len, self.reads)])

    @cached_property
    def words(self) -> np.ndarray:
        """What each of the N rows read."""
        return np.array([word for reads in self.reads for word in reads], dtype=object)

    @cached_property
    def captions(self) -> np.ndarray:
        """The number of each row's caption, [N]."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def rows(self, caption: int) -> slice:
        """The rows of a caption."""
        return slice(int(self.starts[caption]), int(self.starts[caption + 1]))

    def text(self, caption: int) -> str:
        """The words of a caption, separated by blanks."""
        return " ".join(self.reads[caption][2:])

    def values(self, site: str, layer: int | None = None) -> np.ndarray:
        """The values of a site: [N, H].

        Args:
            layer: from 0 on; None: the last.

        Raises:
            ValueError: the table does not have the site or the layer.
        """
        if site not in self.sites:
            raise unknown("site", site, self.sites)
        array = self.sites[site]
        if layer is None:
            return array[:, -1]
        if not 0 <= layer < array.shape[1]:
            raise ValueError(f"layer={layer} is not accepted; choose 0 to {array.shape[1] - 1}")
        return array[:, layer]

    def unit(self, site: str, unit: int, layer: int | None = None) -> np.ndarray:
        """The values of a unit, [N].

        Raises:
            ValueError: the table does not have the site, the layer or the unit.
        """
        values = self.values(site, layer)
        if not 0 <= unit < values.shape[1]:
            raise ValueError(f"unit={unit} is not accepted; choose 0 to {values.shape[1] - 1}")
        return values[:, unit]

    def save(self, path: str | Path) -> Path:
        """Write the table as one safetensors file, with the captions as JSON in the header.

        Raises:
            OSError: it cannot be written.
            ValueError: the file exists and is not a table of states.
        """
        values = {
            "images": list(self.images),
            "reads": [list(reads) for reads in self.reads],
            "model": dict(self.model),
            "data": dict(self.data),
        }
        return FILE.write(path, values, self.sites)

    @classmethod
    def load(cls, path: str | Path) -> StateTable:
        """Read a table; neither the model nor torch is needed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a table of states, or one of a newer format.
        """
        values, arrays = FILE.read(path)
        with FILE.damages(path):
            reads = tuple(map(tuple, values["reads"]))
            model, data = dict(values["model"]), dict(values["data"])
            return cls(tuple(values["images"]), reads, arrays, model, data)
