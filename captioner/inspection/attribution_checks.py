"""Checks of an attribution: does its map say something about this word, and about this model?

**Deletion and insertion** (Petsiuk et al., "RISE", 2018; Samek et al., 2017). The positions of the
grid are replaced by the mean image one after the other, those of the highest contribution first: f
should fall faster than in a random order. Inserted into the mean image in this order, f should rise
faster. The words are not changed.

**Model randomization** (Adebayo et al., "Sanity Checks for Saliency Maps", 2018). The map is
compared with that of a decoder whose weights are random (``reading.randomized``), by Spearman's
rank correlation: near 0 if the map depends on what was learned, near 1 if it shows the image alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from captioner.inspection.attribution import Attribution, method_named
from captioner.inspection.reading import Inputs, Reading, randomized

POINTS, ORDERS, DECODERS = 16, 10, 5
"""Points of a curve; random orders; decoders with random weights."""


@dataclass(frozen=True)
class Curves:
    """f while positions are deleted, or inserted.

    Attributes:
        fractions: of the positions that were replaced or inserted, from 0 to 1, [K].
        deletion, insertion: f in the order of the map, [K].
        random_deletion, random_insertion: f in N random orders, [N, K].
    """

    fractions: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray

    @property
    def deletion_gain(self) -> float:
        """How much lower the mean f of deletion is than in random orders, in nats."""
        return float(self._mean(self.random_deletion).mean() - self._mean(self.deletion))

    @property
    def insertion_gain(self) -> float:
        """How much higher the mean f of insertion is than in random orders, in nats."""
        return float(self._mean(self.insertion) - self._mean(self.random_insertion).mean())

    def _mean(self, curve: np.ndarray) -> Any:
        """The area under a curve, by the trapezoidal rule: a mean of f."""
        widths = np.diff(self.fractions)
        return ((curve[..., 1:] + curve[..., :-1]) / 2) @ widths


@dataclass(frozen=True)
class Checks:
    """The checks of one attribution.

    Attributes:
        error: the completeness error.
        curves: of deletion and insertion.
        correlations: with the maps of decoders with random weights, [N], from -1 to 1.
    """

    error: float
    curves: Curves
    correlations: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        curves = {name: array.tolist() for name, array in vars(self.curves).items()}
        return {
            "error": self.error,
            "deletion_gain": self.curves.deletion_gain,
            "insertion_gain": self.curves.insertion_gain,
            "correlations_with_random_weights": self.correlations.tolist(),
            "curves": curves,
        }


def check(reading: Reading, attribution: Attribution) -> Checks:
    """Compute all checks of an attribution of this reading; they are the same in every call."""
    return Checks(
        attribution.error,
        curves(reading, attribution.map),
        randomization(reading, attribution),
    )


def curves(
    reading: Reading, contributions: np.ndarray, *, points: int = POINTS, orders: int = ORDERS
) -> Curves:
    """Delete and insert the positions of the grid.

    Args:
        contributions: of the positions, [P].
        points: K, at least 2; at most P + 1 are used.
        orders: N, of random orders.
    """
    random = np.random.default_rng(0)
    positions = len(contributions)
    counts = np.unique(np.linspace(0, positions, points).round().astype(int))  # [K]
    by_map = np.argsort(-contributions, kind="stable")
    every = [by_map, *(random.permutation(positions) for _ in range(orders))]
    kept = np.stack([_chosen(order, counts) for order in every])  # [N + 1, K, P]
    inserted = _values(reading, kept)
    deleted = _values(reading, ~kept)
    return Curves(counts / positions, deleted[0], inserted[0], deleted[1:], inserted[1:])


def _chosen(order: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Which positions are among the first ones of an order, for each count: [K, P] of bool."""
    places = np.argsort(order)
    return places < counts[:, None]


def _values(reading: Reading, present: np.ndarray) -> np.ndarray:
    """f where only some positions of the image are present: [N, K, P] -> [N, K]."""
    grid, words = reading.inputs
    mask = torch.from_numpy(present.reshape(-1, present.shape[-1], 1)).to(grid.device)
    grids = torch.where(mask, grid, reading.baseline.grid)  # [N * K, P, D]
    values = reading.values(Inputs(grids, words.expand(len(grids), -1, -1)))
    return values.view(present.shape[:2]).cpu().numpy()


def randomization(
    reading: Reading, attribution: Attribution, *, decoders: int = DECODERS
) -> np.ndarray:
    """Rank correlations of a map with those of decoders with random weights: [N]."""
    method = method_named(attribution.method)
    maps = (
        method(reading.by(randomized(reading.decoder, seed)))[0].cpu().numpy()
        for seed in range(decoders)
    )
    return np.array([rank_correlation(attribution.map, other) for other in maps])


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two lists of values; 0 if all of one are equal."""
    first, second = (_ranks(values) - (len(values) - 1) / 2 for values in (a, b))
    norm = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / norm if norm > 0 else 0.0


def _ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values have the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse]
