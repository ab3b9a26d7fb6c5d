"""The training captions as hashes: a caption can be looked up, but none can be read.

A caption is hashed by its words, split as for scores: case and punctuation make no difference.

    h = BLAKE2b of 64 bits (words joined by U+001F)

30,000 captions take 240 kB, so a checkpoint carries the hashes of its training captions. A new
caption is mistaken for a training caption with probability 30,000 / 2^64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy
from numpy.typing import NDArray

Hashes = NDArray[numpy.uint64]


class CaptionHashes:
    """A set of captions of which only hashes are kept.

    Args:
        hashes: of the captions, in any order, [n].

    Attributes:
        hashes: each once, sorted.
    """

    def __init__(self, hashes: Hashes) -> None:
        hashes = numpy.asarray(hashes, dtype=numpy.uint64)
        ascending = bool((hashes[1:] > hashes[:-1]).all())  # as stored: sorting takes longer
        self.hashes: Hashes = hashes if ascending else numpy.unique(hashes)

    @classmethod
    def of(cls, captions: Iterable[Sequence[str]]) -> CaptionHashes:
        """Hash the words of captions."""
        return cls(numpy.array([_hash(words) for words in captions], dtype=numpy.uint64))

    @classmethod
    def union(cls, sets: Iterable[CaptionHashes | None]) -> CaptionHashes | None:
        """The captions of several sets together; None if one of the sets is not known."""
        parts = list(sets)
        if not parts or any(hashes is None for hashes in parts):
            return None
        return cls(numpy.concatenate([hashes.hashes for hashes in parts if hashes is not None]))

    def __len__(self) -> int:
        return len(self.hashes)

    def __contains__(self, words: Sequence[str]) -> bool:
        """Whether a caption, given as its words, is in the set."""
        wanted = numpy.uint64(_hash(words))
        place = int(numpy.searchsorted(self.hashes, wanted))
        return place < len(self.hashes) and self.hashes[place] == wanted

    def without(self, other: CaptionHashes) -> int:
        """How many of its captions are not in another set."""
        return len(numpy.setdiff1d(self.hashes, other.hashes, assume_unique=True))

    @property
    def digest(self) -> str:
        """Identifies the set in signatures: 8 hexadecimal digits."""
        return hashlib.sha256(self.hashes.astype("<u8").tobytes()).hexdigest()[:8]


def _hash(words: Sequence[str]) -> int:
    text = "\x1f".join(words).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
