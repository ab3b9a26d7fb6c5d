"""Which captions a model was trained on, as hashes: one can be told to be among them, none be read.

A caption is hashed by its words, as scores cut them: case and punctuation make no difference.

    h = BLAKE2b of 64 bits (words joined by U+001F)

30,000 captions are 240 kB, so a checkpoint carries those of its own training. A new caption is
taken for a known one with a chance of 30,000 / 2^64.
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
        self.hashes: Hashes = numpy.unique(numpy.asarray(hashes, dtype=numpy.uint64))

    @classmethod
    def of(cls, captions: Iterable[Sequence[str]]) -> CaptionHashes:
        """Hash the words of captions."""
        return cls(numpy.array([_hash(words) for words in captions], dtype=numpy.uint64))

    @classmethod
    def union(cls, several: Iterable[CaptionHashes | None]) -> CaptionHashes | None:
        """All captions of several sets; None where one of them is not known."""
        known = list(several)
        if not known or any(one is None for one in known):
            return None
        return cls(numpy.concatenate([one.hashes for one in known if one is not None]))

    def __len__(self) -> int:
        return len(self.hashes)

    def __contains__(self, words: Sequence[str]) -> bool:
        """Whether a caption, as its words, is one of them."""
        one = numpy.uint64(_hash(words))
        place = int(numpy.searchsorted(self.hashes, one))
        return place < len(self.hashes) and self.hashes[place] == one

    def without(self, others: CaptionHashes) -> int:
        """How many of them the others lack."""
        return len(numpy.setdiff1d(self.hashes, others.hashes, assume_unique=True))

    @property
    def digest(self) -> str:
        """What tells sets apart, for signatures: 8 hexadecimal digits."""
        return hashlib.sha256(self.hashes.astype("<u8").tobytes()).hexdigest()[:8]


def _hash(words: Sequence[str]) -> int:
    text = "\x1f".join(words).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
