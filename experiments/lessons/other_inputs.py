"""Other inputs: X_0 is an encoded sentence, a sound or a picture; one structure for all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from lesson import Claim, Measured, percent, records_of, spread, trained
from PIL import Image

from captioner.api import Captioner

WORLDS = {
    "translation": ("a sentence", "一句话"),
    "telephone": ("a sound", "一段声音"),
    "pictures": ("a picture", "一幅图"),
}
DATA = ", ".join(f"`{world}`" for world in WORLDS)
TRAININGS = len(WORLDS)


def scores(captioner: Captioner) -> dict[str, Any]:
    """How many captions of the test inputs, and how many of their words, are right; examples."""
    records = records_of(captioner, "test")
    said = captioner.caption([record.image for record in records])
    pairs = [(caption.text, record.captions[0]) for caption, record in zip(said, records)]
    words = [a == b for pair in pairs for a, b in zip_longest(*map(str.split, pair))]
    wrong = [pair for pair in pairs if pair[0] != pair[1]]
    return {
        "exact": 1 - len(wrong) / len(pairs),
        "words": float(np.mean(words)),
        "examples": [pairs[0], *wrong[:1]],
    }


def measure(seeds: Sequence[int]) -> Measured:
    """Train on each world; nothing but the world changes."""
    numbers: dict[str, Any] = {world: [] for world in WORLDS}
    for seed in seeds:
        for world, rows in numbers.items():
            overrides = (f"data.root=datasets/worlds/{world}", f"seed={seed}")
            name = f"other_inputs_{world}"
            rows.append(scores(trained(name, "experiment=lesson_other_inputs", *overrides)))
    return Measured(_claims(numbers), _values(numbers), numbers)


def _claims(numbers: dict[str, Any]) -> list[Claim]:
    claims = []
    for world, (english, chinese) in WORLDS.items():
        exact = [row["exact"] for row in numbers[world]]
        claims.append(
            Claim(
                f"X₀ = {english}: at least 90 % of unseen ones are answered without an error.",
                f"X₀ 是{chinese}：没见过的，至少 90 % 答得一字不差。",
                spread(exact),
                min(exact) >= 0.9,
            )
        )
    return claims


def _values(numbers: dict[str, Any]) -> dict[str, str]:
    pairs = [pair for world in WORLDS for pair in numbers[world][0]["examples"]]
    words = {f"{world}_words": spread([row["words"] for row in numbers[world]]) for world in WORLDS}
    return {"examples": "\n".join(f"| {said} | {meant} |" for said, meant in pairs), **words}


def draw(figure: Any, numbers: dict[str, Any]) -> None:
    """The first test input of each world, with the share of answers without an error."""
    labels = {
        "translation": ("position in the sentence", "Chinese word"),
        "telephone": ("time, 1 s", "frequency, 0.6 to 1.6 kHz"),
        "pictures": ("16 columns", "16 rows"),
    }
    for axes, (world, (x, y)) in zip(figure.subplots(1, len(WORLDS)), labels.items()):
        exact = float(np.mean([row["exact"] for row in numbers[world]]))
        with Image.open(f"datasets/worlds/{world}/images/test_0000.png") as image:
            origin = "lower" if world == "telephone" else "upper"
            axes.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255, origin=origin)
        axes.set_title(f"{world}: {percent(exact)} right", fontsize=9)
        axes.set(xticks=[], yticks=[], xlabel=x, ylabel=y)
