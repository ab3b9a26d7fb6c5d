"""The inputs of small worlds: gray images that stand for symbols."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SIDE = 16
"""Side of the images in pixels: the most symbols, and the most positions."""

Pair = tuple[np.ndarray, str]
"""An input, uint8 [S, S], and its caption."""


def blank(side: int = SIDE) -> np.ndarray:
    """No input: a black image."""
    return np.zeros((side, side), np.uint8)


def encode(symbols: Sequence[int], side: int = SIDE) -> np.ndarray:
    """Symbols as an image: the pixel in row s and column p is white if s is at position p.

    Args:
        symbols: at most `side` of them, each from 0 to side - 1.
        side: S.
    """
    image = blank(side)
    image[list(symbols), range(len(symbols))] = 255
    return image


def one_of(number: int) -> np.ndarray:
    """One white pixel, from left to right and from top to bottom: numbers from 0 to SIDE**2 - 1."""
    image = blank()
    image[divmod(number, SIDE)] = 255
    return image
