"""What of a data set does not fit the tokenizer and the lengths chosen.

Each is found before a training begins, and in `captioner data stats` and `check`: afterwards the
scores would be low and nothing would say why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Scripts without spaces between words, and how many characters a word of them has at most on
# average where somebody has put spaces there: Chinese and Japanese; Thai, Lao, Burmese, Khmer.
_UNSPACED = (
    (re.compile("[\u3041-\u30fa\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"), 3.0),
    (re.compile("[\u0e01-\u0e30\u0e81-\u0eb0\u1000-\u102a\u1780-\u17a2]"), 6.0),
)
_MANY = 0.1  # share of captions
_LONG = 0.01


def unspaced(captions: Iterable[str], share: float = _MANY) -> bool:
    """Whether captions are of a script without spaces, and nobody has put any between words."""
    captions = list(captions)
    for script, longest in _UNSPACED:
        words = [[w for w in text.split() if script.search(w)] for text in captions]
        count = sum(map(len, words))
        letters = sum(len(script.findall(word)) for several in words for word in several)
        if sum(map(bool, words)) > share * len(captions) and letters > longest * count:
            return True
    return False


def tokenizer_warnings(captions: Iterable[str], tokenizer: str) -> list[str]:
    """What the tokenizer makes of captions that it is not for.

    Args:
        captions: as they stand in the data.
        tokenizer: its name.
    """
    if tokenizer != "word" or not unspaced(captions):
        return []
    return [
        "captions have no spaces between words, so the word tokenizer takes whole sentences for "
        "words: set tokenizer=character"
    ]


def length_warnings(lengths: Sequence[int], max_words: int, max_length: int) -> list[str]:
    """Which training captions are cut, or are longer than what is decoded.

    Args:
        lengths: tokens of each training caption, uncut.
        max_words: to which they are cut, `loader.max_words`.
        max_length: at which decoded captions end, `decoding.max_length`.
    """
    longest, found = max(lengths, default=0), []
    cut = sum(length > max_words for length in lengths)
    if cut:
        found.append(
            f"{cut:,} of {len(lengths):,} training captions are longer than "
            f"loader.max_words={max_words} and are cut there: the longest has {longest} words"
        )
    if sum(length > max_length for length in lengths) > _LONG * len(lengths):
        found.append(
            f"decoding.max_length={max_length} ends captions before the training captions end, "
            f"the longest at {longest} words: raise it"
        )
    if empty := sum(length == 0 for length in lengths):
        found.append(f"{empty:,} training captions hold no word and are skipped")
    return found
