"""Inputs that are not photographs: sentences, sounds and drawings, as gray images of SIDE x SIDE.

    translation    a column for each Chinese word, its row is the word; the caption is English
    telephone      the spectrogram of a dialled number; the caption has its digits
    pictures       two drawn shapes; the caption says which, and how they lie

No sentence, number or drawing occurs twice: those of dev and test do not occur in training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product

import numpy as np

from captioner.data.symbols import SIDE, Pair, blank, encode

# A sentence ---------------------------------------------------------------------------------------

TIMES = {"": "", "今天": "today", "昨天": "yesterday"}
SUBJECTS = {"老师": "teacher", "学生": "student", "孩子": "child"}
PLACES = {"": "", "在公园": "in the park", "在学校": "at school"}
VERBS = {"看见了": "saw", "找到了": "found", "画了": "drew"}
NUMBERS = {"一只": "a", "两只": "two", "三只": "three"}
OBJECTS = {"猫": "cat", "狗": "dog", "鸟": "bird"}
PARTS = (TIMES, SUBJECTS, PLACES, VERBS, NUMBERS, OBJECTS)
"""In the order of a Chinese sentence."""
CHINESE = [word for part in PARTS for word in part if word]
"""The Chinese words, SIDE of them: the rows of the image."""


def translate(words: tuple[str, ...]) -> str:
    """One word of each of PARTS -> the English sentence: time and place stand at its end."""
    time, who, place, verb, number, thing = (part[word] for part, word in zip(PARTS, words))
    things = thing if number == "a" else f"{thing}s"
    return " ".join(f"the {who} {verb} {number} {things} {place} {time}".split())


def translation(source: random.Random) -> Iterator[Pair]:
    """A Chinese sentence, and the English one; all 729 of them, then an end."""
    sentences = list(product(*PARTS))
    for words in source.sample(sentences, len(sentences)):
        yield encode([CHINESE.index(word) for word in words if word]), translate(words)


# A sound ------------------------------------------------------------------------------------------

DIGITS = "zero one two three four five six seven eight nine".split()
LOW, HIGH = (697, 770, 852, 941), (1209, 1336, 1477)
"""The two tones of a key, in Hz: of its row and of its column (ITU-T Q.23)."""
KEYS = {digit: divmod(place, 3) for place, digit in enumerate("123456789*0#") if digit.isdecimal()}
RATE = 8000
"""Samples a second."""
WINDOW = 512
"""Samples of a column of the spectrogram: 64 ms."""
LOWEST, ROW = 40, 4
"""The first frequency, 40 * RATE / WINDOW = 625 Hz, and the width of a row, 4 * 15.6 Hz."""


def tones(number: str, source: random.Random) -> np.ndarray:
    """The sound of a dialled number of up to three digits, [SIDE * WINDOW] samples: 1 s.

    Tones and pauses of 120 to 150 ms, any loudness and phase, and noise.
    """
    noise = np.random.default_rng(source.getrandbits(32))
    sound = noise.normal(0, 0.1, SIDE * WINDOW)
    place = source.randrange(WINDOW)
    for digit in number:
        row, column = KEYS[digit]
        count = int(source.uniform(0.12, 0.15) * RATE)
        at = np.arange(count) / RATE
        for frequency in (LOW[row], HIGH[column]):
            phase, loudness = source.uniform(0, 2 * np.pi), source.uniform(0.6, 1.2)
            sound[place : place + count] += loudness * np.sin(2 * np.pi * frequency * at + phase)
        place += count + int(source.uniform(0.12, 0.15) * RATE)
    return sound


def spectrogram(sound: np.ndarray) -> np.ndarray:
    """The loudness of each frequency over time: uint8 [SIDE, SIDE], a column for each window.

    |FFT| of each window (Hann), rows from low to high, black to white over 30 dB.
    """
    windows = sound.reshape(SIDE, WINDOW) * np.hanning(WINDOW)
    loud = np.abs(np.fft.rfft(windows, axis=1))[:, LOWEST : LOWEST + ROW * SIDE]
    rows = loud.reshape(SIDE, SIDE, ROW).max(2).T  # [SIDE, SIDE]
    decibels = 20 * np.log10(rows / (WINDOW / 4) + 1e-9)
    return np.uint8(255 * np.clip(decibels / 30 + 1, 0, 1))


def telephone(source: random.Random) -> Iterator[Pair]:
    """The spectrogram of three dialled digits, and their names; all 1000 numbers, then an end."""
    for number in source.sample(range(1000), 1000):
        digits = f"{number:03d}"
        names = " ".join(DIGITS[int(digit)] for digit in digits)
        yield spectrogram(tones(digits, source)), names


# A drawing ----------------------------------------------------------------------------------------

SHADES = {"gray": 110, "white": 255}
RADIUS = 3
Y, X = np.abs(np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1])
SHAPES = {
    "square": np.maximum(Y, X) <= RADIUS,
    "frame": np.maximum(Y, X) == RADIUS,
    "diamond": Y + X <= RADIUS,
    "cross": np.minimum(Y, X) == 0,
}
"""The pixels of each shape, 7 x 7."""
HALF = SIDE // 2


def drawing(source: random.Random) -> tuple[np.ndarray, str]:
    """Two shapes, side by side or one above the other, each anywhere in its 8 x 8 pixels."""
    image, names, beside = blank(), [], source.random() < 0.5
    for half in range(2):
        shade, shape = source.choice(list(SHADES)), source.choice(list(SHAPES))
        top, left = source.randint(0, 1), source.randint(0, 1)
        if half:
            top, left = (top, left + HALF) if beside else (top + HALF, left)
        image[top:, left:][: 2 * RADIUS + 1, : 2 * RADIUS + 1] = SHADES[shade] * SHAPES[shape]
        names.append(f"a {shade} {shape}")
    return image, (" left of " if beside else " above ").join(names)


def pictures(source: random.Random) -> Iterator[Pair]:
    """Drawings, each once; the captions are 128."""
    known = set()
    while True:
        image, caption = drawing(source)
        if image.tobytes() not in known:
            known.add(image.tobytes())
            yield image, caption
