"""What a probe asks of a state: one label for each step of a caption, from its text alone.

A function takes what the steps of a caption read ("X_0" and "<start>" first) and returns a label
for each step, None where there is no question. The first two fit any language; the others know the
grammar of the drawn scenes (``captioner.data.shapes``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from captioner.data.shapes import COLOR_WORDS, COUNTS

Labels = list[str | None]
Task = Callable[[Sequence[str]], Labels]

MOST = 12
"""Positions from here on are one class: few captions are longer."""

_NUMBERS = {**{word: str(count) for count, word in COUNTS.items()}, "a": "1", "an": "1", "the": "1"}


def steps_so_far(reads: Sequence[str]) -> Labels:
    """How many words were read: 0 after <start>, at most MOST."""
    return [None, *(str(min(read, MOST)) for read in range(len(reads) - 1))]


def steps_to_end(reads: Sequence[str]) -> Labels:
    """How many words of the caption are still to come, at most MOST; 0 before <end>."""
    return [
        None if step == 0 else str(min(len(reads) - 1 - step, MOST)) for step in range(len(reads))
    ]


def inside_phrase(reads: Sequence[str]) -> Labels:
    """Whether the last word was in the first figure's name, in the second's, or in neither.

    The name of a figure is its color and its shape. The same words are in both.
    """
    labels: Labels = []
    names = 0
    for step, word in enumerate(reads):
        begins = word in COLOR_WORDS
        names += begins
        inside = begins or (step > 0 and reads[step - 1] in COLOR_WORDS)
        labels.append(None if step == 0 else ("no", "first", "second")[min(names, 2) * inside])
    return labels


def number(reads: Sequence[str]) -> Labels:
    """How many equal figures the caption is about: 1 to 4, from its first color word on."""
    labels: Labels = []
    known: str | None = None
    last = ""
    for word in reads:
        last = _NUMBERS.get(word, last)
        if known is None and word in COLOR_WORDS:
            known = last
        labels.append(known)
    return labels


def first_color(reads: Sequence[str]) -> Labels:
    """The first color named so far, from the word after it on."""
    labels: Labels = []
    color = None
    for word in reads:
        labels.append(color)
        if color is None and word in COLOR_WORDS:
            color = word
    return labels
