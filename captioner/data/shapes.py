"""Drawn scenes with exact captions: the data set that is always there.

A scene holds one figure, two to four equal figures, or two figures in a relation, on a patterned
ground. Five captions come from a small grammar with exact meaning, so that for any caption it can
be told whether it is true of its picture: `facts` reads a caption back.

Development and test scenes are built from combinations that training never shows - a colour with a
shape, or two shapes in a relation - while each word by itself is frequent in training. A good score
is therefore composition and not memory (after CLEVR-CoGenT, Johnson et al. 2017, arXiv 1612.06890).
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from captioner.data.canvas import (
    BACKGROUNDS,
    COLOURS,
    FIGURES,
    GROUNDS,
    OVERSAMPLING,
    draw_figure,
    draw_ground,
)
from captioner.data.records import SPLITS
from captioner.files import write_whole

_LOG = logging.getLogger(__name__)

SHAPES = tuple(FIGURES)
COLOUR_WORDS = tuple(COLOURS)
COUNTS = {2: "two", 3: "three", 4: "four"}
SIZES = {"small": 0.3, "large": 0.6}
HELD_OUT = {
    "dev": {"white circle", "purple star", "blue house", "green fish"},
    "test": {"yellow triangle", "orange flower", "red boat", "black heart"},
}
# relation -> how it is said, and how it is said from the other figure's side
RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left of": (("left of", "to the left of"), ("right of", "to the right of")),
    "above": (("above",), ("below", "under")),
}


@dataclass(frozen=True)
class Figure:
    """One figure of a scene.

    Args:
        shape: one of SHAPES.
        colour: one of COLOUR_WORDS.
        x: centre, as a share of the picture's side.
        y: centre, as a share of the picture's side, downwards.
        side: side of its box, as a share of the picture's side.
        tilt: clockwise turn, degrees.
        mirrored: left and right swapped.
    """

    shape: str
    colour: str
    x: float
    y: float
    side: float
    tilt: float = 0.0
    mirrored: bool = False

    @property
    def name(self) -> str:
        """Colour and shape, as a caption says them."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Args:
        figures: one figure; two to four of equal colour and shape; or the two of a relation, the
            subject ("left of" what, "above" what) first.
        background: one of BACKGROUNDS.
        relation: one of RELATIONS, or empty.
        size: one of SIZES, for a single figure, or empty.
        ground: index of the background's tones.
        phase: 0 to 1, shift of the background's pattern.
    """

    figures: tuple[Figure, ...]
    background: str
    relation: str = ""
    size: str = ""
    ground: int = 0
    phase: float = 0.0

    def facts(self) -> frozenset[str]:
        """All that captions may say about the scene, in the words of `facts`."""
        first = self.figures[0]
        if self.relation:
            what = f"{first.name} {self.relation} {self.figures[1].name}"
        else:
            what = f"{len(self.figures)} {first.name}"
        said = (what, self.size, f"{self.background} background")
        return frozenset(fact for fact in said if fact)

    def draw(self, side: int) -> Image.Image:
        """Return the picture, RGB, `side` pixels wide and high."""
        image = draw_ground(
            side * OVERSAMPLING, ground=self.ground, background=self.background, phase=self.phase
        )
        for figure in self.figures:
            draw_figure(image, **vars(figure))
        return image.reduce(OVERSAMPLING)


def split_of_pair(shape: str, colour: str) -> str:
    """Tell which split shows this shape in this colour: HELD_OUT says it, the rest is "train"."""
    name = f"{colour} {shape}"
    return next((split for split, names in HELD_OUT.items() if name in names), "train")


def split_of_relation(subject: str, relation: str, other: str) -> str:
    """Tell which split shows these two shapes in this relation; their order matters.

    Of the 100 ordered pairs of shapes in each relation, 5 belong to dev and 5 to test. Every shape
    is once in front and once behind in these 10, and nine times in what is left for training.
    """
    first, second = SHAPES.index(subject), SHAPES.index(other)
    turn = 1 + 2 * tuple(RELATIONS).index(relation)
    if (first + 3 * second + turn) % 10:
        return "train"
    return "dev" if first % 2 else "test"


def _figure(
    chance: random.Random,
    name: tuple[str, str],
    x: float,
    y: float,
    side: float,
    *,
    jitter: float = 0.03,
) -> Figure:
    return Figure(
        shape=name[0],
        colour=name[1],
        x=x + chance.uniform(-jitter, jitter),
        y=y + chance.uniform(-jitter, jitter),
        side=side * chance.uniform(0.94, 1.06),
        tilt=chance.uniform(-8, 8),
        mirrored=chance.random() < 0.5,
    )


def _pairs(*splits: str) -> list[tuple[str, str]]:
    """List the (shape, colour) pairs that belong to the given splits."""
    return [(s, c) for s in SHAPES for c in COLOUR_WORDS if split_of_pair(s, c) in splits]


def _single(chance: random.Random, split: str) -> Scene:
    size = chance.choice(tuple(SIZES))
    figure = _figure(chance, chance.choice(_pairs(split)), 0.5, 0.5, SIZES[size], jitter=0.08)
    return Scene((figure,), chance.choice(BACKGROUNDS), size=size)


def _several(chance: random.Random, split: str) -> Scene:
    name, count = chance.choice(_pairs(split)), chance.choice(tuple(COUNTS))
    cells = chance.sample([(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)], count)
    side = chance.uniform(0.28, 0.38)
    figures = tuple(_figure(chance, name, x, y, side, jitter=0.05) for x, y in cells)
    return Scene(figures, chance.choice(BACKGROUNDS))


def _related(chance: random.Random, split: str) -> Scene:
    """Two figures; outside training their shapes have not been seen in this relation."""
    relation = chance.choice(tuple(RELATIONS))
    colours = _pairs("train", split)
    while True:
        subject, other = chance.choice(colours), chance.choice(colours)
        if subject != other and split_of_relation(subject[0], relation, other[0]) == split:
            break
    spots = [(0.27, 0.5 + chance.uniform(-0.08, 0.08)), (0.73, 0.5 + chance.uniform(-0.08, 0.08))]
    if relation == "above":
        spots = [(y, x) for x, y in spots]
    first, second = (
        _figure(chance, name, *spot, 0.4, jitter=0.02)
        for name, spot in zip((subject, other), spots, strict=True)
    )
    return Scene((first, second), chance.choice(BACKGROUNDS), relation=relation)


def sample_scene(chance: random.Random, split: str) -> Scene:
    """Draw one scene by lot: a quarter single figures, a quarter several, half two in a relation.

    Args:
        chance: source of randomness.
        split: "train", "dev" or "test"; decides which combinations may appear.
    """
    kind = chance.choice((_single, _several, _related, _related))
    scene = kind(chance, split)
    values = vars(scene) | {"ground": chance.randrange(len(GROUNDS)), "phase": chance.random()}
    return Scene(**values)


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _plural(words: str) -> str:
    return words if words.endswith("fish") else words + "s"


def describe(scene: Scene, chance: random.Random) -> tuple[str, ...]:
    """Return five different captions, each true of the scene and naming all its figures.

    Args:
        scene: what is shown.
        chance: source of randomness for the choice between equal expressions.
    """
    ground = f"on a {scene.background} background"
    name = scene.figures[0].name
    if scene.relation:
        return _describe_relation(scene, ground, chance)
    if len(scene.figures) > 1:
        several = f"{COUNTS[len(scene.figures)]} {_plural(name)}"
        return (
            several,
            f"there are {several}",
            f"{several} {ground}",
            f"a picture of {several}",
            f"there are {several} {ground}",
        )
    sized, named = _with_article(f"{scene.size} {name}"), _with_article(name)
    return (
        sized,
        f"there is {sized}",
        f"{named} {ground}",
        f"a picture of {sized}",
        f"there is {sized} {ground}",
    )


def _describe_relation(scene: Scene, ground: str, chance: random.Random) -> tuple[str, ...]:
    """Say it from the subject's side four times, and once from the other figure's.

    The reverse order has an opening of its own, "the". Were the order a free choice after any
    opening, a decoder would have to keep in mind which of the two it named first.
    """
    subject, other = (figure.name for figure in scene.figures)
    forwards, backwards = RELATIONS[scene.relation]

    def said() -> str:
        return f"{_with_article(subject)} {chance.choice(forwards)} {_with_article(other)}"

    return (
        said(),
        f"there is {said()}",
        f"{said()} {ground}",
        f"the {other} is {chance.choice(backwards)} the {subject}",
        f"a picture of {said()}",
    )


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_NUMBERS = {word: count for count, word in COUNTS.items()} | {"a": 1, "an": 1, "the": 1}
_SAID = {
    said: (relation, bool(reverse))
    for relation, sides in RELATIONS.items()
    for reverse, ways in enumerate(sides)
    for said in ways
}
_CAPTION = re.compile(
    rf"(?:there is |there are |a picture of )?(?P<count>{_any(_NUMBERS)}) "
    rf"(?:(?P<size>{_any(SIZES)}) )?(?P<colour>{_any(COLOUR_WORDS)}) (?P<shape>\w+)"
    rf"(?: (?:is )?(?P<relation>{_any(_SAID)}) (?:a|an|the) "
    rf"(?P<other>(?:{_any(COLOUR_WORDS)}) (?:{_any(SHAPES)})))?"
    rf"(?: on a (?P<background>{_any(BACKGROUNDS)}) background)?"
)


def facts(caption: str) -> frozenset[str]:
    """Read a caption back: what it says, in a form that does not depend on how it says it.

    Args:
        caption: of the grammar, or what a model made of it; case and spacing do not matter.

    Returns:
        its statements, for example {"2 red circle", "dotted background"} or
        {"red fish left of blue boat"}; empty where the caption is not of the grammar. A caption
        is exactly true of a scene when they are a subset of `Scene.facts()`, and not empty.
    """
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()))
    if match is None:
        return frozenset()
    count, relation = _NUMBERS[match["count"]], match["relation"]
    shape = next((s for s in SHAPES if match["shape"] == (s if count == 1 else _plural(s))), None)
    if shape is None or (relation and count > 1):
        return frozenset()
    what = f"{count} {match['colour']} {shape}"
    if relation:
        name, reverse = _SAID[relation]
        pair = (f"{match['colour']} {shape}", match["other"])
        what = f" {name} ".join(reversed(pair) if reverse else pair)
    ground = f"{match['background']} background" if match["background"] else ""
    return frozenset(fact for fact in (what, match["size"], ground) if fact)


def is_exact(caption: str, references: Iterable[str]) -> bool:
    """Tell whether a caption names all figures of a picture and says nothing untrue of it.

    Args:
        caption: what is judged.
        references: the picture's own captions; together they say all there is to say.
    """
    true = frozenset().union(*(facts(reference) for reference in references))
    said = facts(caption)
    return bool(said) and said <= true


def draw(
    root: Path,
    *,
    seed: int = 0,
    train: int = 6000,
    dev: int = 300,
    test: int = 300,
    size: int = 128,
    progress: bool = True,
) -> Path:
    """Draw the data set into a folder; the same arguments give the same pictures and captions.

    Args:
        root: written to: images/*.png and, last, captions.jsonl.
        seed: another seed gives other scenes; the held-out combinations stay.
        train: number of pictures to learn from.
        dev: number of pictures to choose a model by.
        test: number of pictures to score it on.
        size: side of the pictures in pixels, at least 16.
        progress: log the number of pictures after every 500.

    Returns:
        the path of captions.jsonl. It is absent after an interruption.

    Raises:
        ValueError: a number of pictures is negative, or the side too small.
    """
    counts = dict(zip(SPLITS, (train, dev, test), strict=True))
    for split, count in counts.items():
        if count < 0:
            raise ValueError(f"{split}={count} pictures cannot be drawn; give 0 or more")
    if size < 16:
        raise ValueError(f"size={size} is too small to show anything; give 16 pixels or more")
    table = Path(root) / "captions.jsonl"
    table.unlink(missing_ok=True)  # it vouches for the pictures: gone before them, back after them
    (table.parent / "images").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for split, count in counts.items():
        for index in range(count):
            lines.append(_draw_one(table.parent, f"{seed} {split} {index}", split, index, size))
            if progress and (len(lines) % 500 == 0 or len(lines) == sum(counts.values())):
                _LOG.info("drawn: %d of %d pictures", len(lines), sum(counts.values()))
    return write_whole(table, "".join(lines))


def _draw_one(root: Path, seed: str, split: str, index: int, size: int) -> str:
    """Write one picture and return its line of captions.jsonl."""
    chance = random.Random(seed)
    scene = sample_scene(chance, split)
    image = f"images/{split}_{index:05d}.png"
    scene.draw(size).save(root / image, compress_level=3)
    entry = {"image": image, "captions": describe(scene, chance), "split": split}
    return json.dumps(entry) + "\n"
