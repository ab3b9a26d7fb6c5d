"""Pretrained word vectors from a text file, in the format of GloVe and fastText.

    word v_1 v_2 ... v_E        one word per line; fastText begins with the line "WORDS E"

The file is read line by line, and only the vectors of words in the vocabulary are kept, so a file
of millions of words needs little memory. It is text, so nothing in it is executed.

Pennington, Socher & Manning, "GloVe", EMNLP 2014; Bojanowski et al., "Enriching Word Vectors with
Subword Information", TACL 2017.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray

from captioner.models.decoders.decoder import Decoder
from captioner.tokenizers import Vocabulary

MOST_BYTES = 2**16
"""Maximum length of a line; no text file of vectors has longer lines."""


@dataclass(frozen=True)
class Coverage:
    """The fractions of words for which a file has vectors.

    Attributes:
        words: fraction of the words of the vocabulary, without special tokens, [0, 1].
        tokens: fraction of the words of the training captions, [0, 1].
    """

    words: float
    tokens: float


def fill(
    decoder: Decoder, vocabulary: Vocabulary, path: str | Path, captions: Iterable[Sequence[int]]
) -> Coverage:
    """Copy the vectors of a file into a decoder's embedding; the other rows do not change.

    Args:
        decoder: a decoder whose ``words`` is an embedding [V, E].
        vocabulary: the vocabulary of V tokens.
        path: the file.
        captions: the training captions as token ids, for the coverage.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another width or another format, or contains none of the words.
    """
    weight = decoder.words.weight
    vectors = read(path, vocabulary, width=weight.shape[1])
    ordinary = len(vocabulary.ordinary)
    if not vectors:
        raise ValueError(
            f"training.word_vectors={path} contains none of the {ordinary} words of "
            "the vocabulary; choose a file of the same language, in lower case"
        )
    ids = list(vectors)
    with torch.no_grad():
        weight[ids] = torch.from_numpy(numpy.stack(list(vectors.values()))).to(weight)
    counts = Counter(token for caption in captions for token in caption)
    covered = sum(count for token, count in counts.items() if token in vectors)
    return Coverage(len(vectors) / ordinary, covered / max(1, counts.total()))


def read(
    path: str | Path, vocabulary: Vocabulary, *, width: int
) -> dict[int, NDArray[numpy.float32]]:
    """The vectors of a file for the words of a vocabulary: token id -> vector [E].

    Args:
        path: the file.
        vocabulary: the words to read, compared exactly; special tokens are skipped.
        width: E, the width that the vectors must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another width or another format.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise FileNotFoundError(f"training.word_vectors={path}: no such file")
    vectors: dict[int, NDArray[numpy.float32]] = {}
    for number, line in _lines(path):
        fields = line.split(" ")
        if number == 1:
            if len(fields) == 2 and all(field.isdigit() for field in fields):
                _check_width(path, int(fields[1]), width)
                continue  # fastText: the number of words and the width
            _check_width(path, len(fields) - 1, width)
        token = vocabulary.id(fields[0])
        if token == vocabulary.unknown or token in vectors:
            continue
        try:
            vector = numpy.array(fields[1:], dtype=numpy.float32)
        except ValueError:
            continue  # an entry with spaces, such as ". . .", whose first part is in the vocabulary
        if len(vector) != width or not numpy.isfinite(vector).all():
            raise ValueError(
                f"training.word_vectors={path}, line {number}: {fields[0]!r} has {len(vector)} "
                f"numbers, or infinite ones; the file's other words have {width}"
            )
        vectors[token] = vector
    return vectors


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, from 1; only one line is in memory at a time."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MOST_BYTES):
            number += 1
            if len(line) == MOST_BYTES or b"\0" in line or (number == 1 and b" " not in line):
                raise ValueError(
                    f"training.word_vectors={path}, line {number}: not a text file of word "
                    "vectors; each line is a word and its numbers, separated by spaces"
                )
            yield number, line.decode("utf-8", "replace").rstrip()


def _check_width(path: Path, actual: int, width: int) -> None:
    if actual != width:
        raise ValueError(
            f"training.word_vectors={path} has vectors of {actual} numbers; set "
            f"decoder.embedding_size={actual} (it is {width})"
        )
