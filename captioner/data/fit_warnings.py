"""Warnings about training captions that do not fit the tokenizer or the maximum lengths.

They are printed before a training starts, and by `captioner data stats` and `check`. Without them,
low scores would have no obvious reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from captioner.config import pick
from captioner.data.records import Dataset
from captioner.tokenizers import TOKENIZERS

# Scripts without spaces between words, and the greatest average word length, in characters, of text
# that was segmented by spaces: Chinese and Japanese; Thai, Lao, Burmese, Khmer.
_UNSPACED = (
    (re.compile("[\u3041-\u30fa\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"), 3.0),
    (re.compile("[\u0e01-\u0e30\u0e81-\u0eb0\u1000-\u102a\u1780-\u17a2]"), 6.0),
)
_UNSPACED_FRACTION = 0.1  # of the captions
_LONG_FRACTION = 0.01


def unspaced(captions: Iterable[str], fraction: float = _UNSPACED_FRACTION) -> bool:
    """Whether captions are in a script without spaces and have not been segmented into words."""
    captions = list(captions)
    for script, longest in _UNSPACED:
        words = [[w for w in text.split() if script.search(w)] for text in captions]
        count = sum(map(len, words))
        letters = sum(len(script.findall(word)) for caption in words for word in caption)
        if sum(map(bool, words)) > fraction * len(captions) and letters > longest * count:
            return True
    return False


def tokenizer_warnings(captions: Iterable[str], tokenizer: str) -> list[str]:
    """Return a warning if the tokenizer does not suit the script of the captions.

    Args:
        captions: texts of the dataset.
        tokenizer: its name, a key of TOKENIZERS.
    """
    if tokenizer != "word" or not unspaced(captions):
        return []
    return [
        "captions have no spaces between words, so the word tokenizer treats whole sentences as "
        "words: set tokenizer=character"
    ]


def length_warnings(lengths: Sequence[int], max_words: int, max_length: int) -> list[str]:
    """Return warnings about training captions that are truncated, empty or too long to decode.

    Args:
        lengths: number of tokens of each training caption, before truncation.
        max_words: they are truncated to this number, `loader.max_words`.
        max_length: decoded captions have at most this number of tokens, `decoding.max_length`.
    """
    longest, warnings = max(lengths, default=0), []
    truncated = sum(length > max_words for length in lengths)
    if truncated:
        warnings.append(
            f"{truncated:,} of {len(lengths):,} training captions are longer than "
            f"loader.max_words={max_words} and are truncated: the longest has {longest} words"
        )
    long = sum(length > max_length for length in lengths)
    if long > _LONG_FRACTION * len(lengths):
        warnings.append(
            f"{long:,} of {len(lengths):,} training captions are longer than "
            f"decoding.max_length={max_length}, the longest has {longest} words: increase it"
        )
    if empty := sum(length == 0 for length in lengths):
        warnings.append(f"{empty:,} training captions have no words and are skipped")
    return warnings


def fit_warnings(
    dataset: Dataset, tokenizer_name: str, max_words: int, max_length: int
) -> list[str]:
    """Return the warnings about the training captions of a dataset.

    Args:
        dataset: any.
        tokenizer_name: a key of TOKENIZERS.
        max_words: `loader.max_words`.
        max_length: `decoding.max_length`.

    Raises:
        ValueError: the tokenizer is not known.
    """
    split_words = pick(TOKENIZERS, tokenizer_name, "tokenizer.name").split
    texts = [text for r in dataset.records if r.split == "train" for text in r.captions]
    lengths = [len(split_words(text)) for text in texts]
    return [
        *tokenizer_warnings(texts, tokenizer_name),
        *length_warnings(lengths, max_words, max_length),
    ]
