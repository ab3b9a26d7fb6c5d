"""Phrase search: where else are the units on that are on during this phrase?

Strobelt et al., "LSTMVis: A Tool for Visual Analysis of Hidden State Dynamics in Recurrent Neural
Networks", 2018. A phrase is selected in one caption; the units that are on at each of its steps,
and off just before and just after, describe it. Other captions are then searched for steps at which
these units are on together:

    S = {u : s_u v_tu >= threshold for a <= t <= b, and not at a - 1, nor at b + 1}

The sign of a unit means nothing in itself, so a unit is on at large negative values as well, if it
is so during the whole phrase (s_u = -1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from captioner.inspection.states import StateTable
from captioner.inspection.units import Place


@dataclass(frozen=True)
class PhraseSearch:
    """The units that a phrase turns on, and where else they are on.

    Attributes:
        phrase: what was selected; its value is 1.
        units: the numbers of the units.
        signs: 1 where a unit is on at positive values, -1 at negative ones.
        matches: in other captions; first those whose length is nearest, of these those with most
            units on.
    """

    phrase: Place
    units: tuple[int, ...]
    signs: tuple[int, ...]
    matches: tuple[Place, ...]

    @property
    def counts(self) -> list[tuple[str, int]]:
        """What the matches read, and how often, most frequent first."""
        return Counter(
            " ".join(match.reads[match.first : match.last + 1]) for match in self.matches
        ).most_common()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return {**asdict(self), "counts": [list(pair) for pair in self.counts]}


def find_phrase(table: StateTable, phrase: str, caption: int | None = None) -> Place:
    """Find a phrase in the captions of a table; upper and lower case are the same.

    Args:
        phrase: words one after another.
        caption: the number of the caption; None: the first that has it.

    Raises:
        ValueError: no such caption, or it does not have the phrase.
    """
    wanted = "".join(phrase.lower().split())
    if caption is not None and not 0 <= caption < len(table):
        raise ValueError(f"caption={caption} is not accepted; choose 0 to {len(table) - 1}")
    for number in range(len(table)) if caption is None else [caption]:
        reads = table.reads[number]
        for first in range(len(reads)):
            for last in range(first, len(reads)):
                if "".join(reads[first : last + 1]).lower() == wanted:
                    return Place(number, table.images[number], reads, first, last, 1.0)
    where = (
        "no caption of the table has"
        if caption is None
        else f"caption {caption} ({table.text(caption)!r}) does not have"
    )
    raise ValueError(f"phrase={phrase!r}: {where} these words one after another")


def search_phrase(
    table: StateTable,
    phrase: Place,
    *,
    site: str = "cell.hidden",
    layer: int | None = None,
    threshold: float = 0.5,
    exactly: bool = True,
    share: float = 0.75,
) -> PhraseSearch:
    """Find the units that are on during a phrase, and the other captions in which they are.

    Args:
        phrase: a result of ``find_phrase``.
        site: of the table.
        layer: from 0 on; None: the last.
        threshold: from which size a value is on, above 0.
        exactly: only units that are off at the step before the phrase and at that after it.
        share: of the units that must be on at each step of a match, in (0, 1].

    Raises:
        ValueError: the table does not have the site or the layer, a value out of range, or no unit
            is on during the phrase.
    """
    if not threshold > 0:
        raise ValueError(f"threshold={threshold} is not accepted; choose a number above 0")
    if not 0 < share <= 1:
        raise ValueError(f"share={share} is not accepted; choose a number above 0, at most 1")
    values = table.values(site, layer)  # [N, H]
    rows = table.rows(phrase.caption)
    units, signs = _units_on(values[rows], phrase, threshold, exactly)
    on = values[:, units] * signs >= threshold  # [N, units]; NaN is not on
    matches = _matches(table, on.mean(1), phrase, share)
    return PhraseSearch(phrase, tuple(units.tolist()), tuple(signs.tolist()), matches)


def _units_on(
    values: np.ndarray, phrase: Place, threshold: float, exactly: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers and signs of the units that the phrase turns on; `values` [steps, H]."""
    inside = values[phrase.first : phrase.last + 1]
    signs = np.where(inside[0] < 0, -1, 1)
    least = (inside * signs).min(0)  # [H]
    on = least >= threshold
    beside = [s for s in (phrase.first - 1, phrase.last + 1) if 0 <= s < len(values)]
    if exactly:
        on &= ~(values[beside] * signs >= threshold).any(0)
    if not on.any():
        text = " ".join(phrase.reads[phrase.first : phrase.last + 1])
        only = " and not beside it" if exactly and (least >= threshold).any() else ""
        raise ValueError(
            f"threshold={threshold:g}: no unit is on during the whole of {text!r}{only}; the "
            f"largest value that a unit keeps there is {np.nanmax(least):.2f}"
        )
    units = np.flatnonzero(on)
    return units, signs[units]


def _matches(table: StateTable, on: np.ndarray, phrase: Place, share: float) -> tuple[Place, ...]:
    """The longest spans of other captions with enough units on at each step; `on` is [N]."""
    length = phrase.last - phrase.first
    places = []
    for caption, reads in enumerate(table.reads):
        if caption != phrase.caption:
            of_caption = on[table.rows(caption)]
            for first, last in _spans(of_caption >= share - 1e-9):
                value = float(of_caption[first : last + 1].mean())
                places.append(Place(caption, table.images[caption], reads, first, last, value))
    return tuple(sorted(places, key=lambda p: (abs(p.last - p.first - length), -p.value)))


def _spans(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """The first and last index of each run of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    for first, end in zip(edges[::2], edges[1::2]):
        yield int(first), int(end) - 1
