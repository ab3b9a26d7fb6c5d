"""A synthetic dataset of drawn scenes with exact captions, which is always available.

A scene has one figure, two to four equal figures, or two figures in a relation, on a patterned
background. Its five captions come from a small grammar with exact meaning, so that any caption can
be checked against its image: `facts` parses a caption.

Dev and test scenes have combinations that training scenes do not have (a color with a shape, or two
shapes in a relation), while each single word is frequent in training. A good score therefore needs
composition, not memorization (after CLEVR-CoGenT, Johnson et al. 2017, arXiv 1612.06890).
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
    COLORS,
    FIGURES,
    GROUNDS,
    OVERSAMPLING,
    draw_figure,
    draw_ground,
    draw_mask,
)
from captioner.data.records import SPLITS
from captioner.files import write_whole

_LOG = logging.getLogger(__name__)

SHAPES = tuple(FIGURES)
COLOR_WORDS = tuple(COLORS)
COUNTS = {2: "two", 3: "three", 4: "four"}
SIZES = {"small": 0.3, "large": 0.6}
HELD_OUT = {
    "dev": {"white circle", "purple star", "blue house", "green fish"},
    "test": {"yellow triangle", "orange flower", "red boat", "black heart"},
}
# relation -> its expressions, and those of the inverse relation
RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left of": (("left of", "to the left of"), ("right of", "to the right of")),
    "above": (("above",), ("below", "under")),
}


@dataclass(frozen=True)
class Figure:
    """One figure of a scene.

    Args:
        shape: one of SHAPES.
        color: one of COLOR_WORDS.
        x: center, as a fraction of the image's side.
        y: center, as a fraction of the image's side, downwards.
        side: side of its box, as a fraction of the image's side.
        tilt: clockwise rotation, degrees.
        mirrored: left and right swapped.
    """

    shape: str
    color: str
    x: float
    y: float
    side: float
    tilt: float = 0.0
    mirrored: bool = False

    @property
    def name(self) -> str:
        """Color and shape, as in captions."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The content of an image.

    Args:
        figures: one figure; two to four of equal color and shape; or the two of a relation, the
            subject first.
        background: one of BACKGROUNDS.
        relation: one of RELATIONS, or empty.
        size: one of SIZES, for a single figure, or empty.
        ground: index of the background's colors.
        phase: 0 to 1, shift of the background's pattern.
    """

    figures: tuple[Figure, ...]
    background: str
    relation: str = ""
    size: str = ""
    ground: int = 0
    phase: float = 0.0

    def facts(self) -> frozenset[str]:
        """All statements that captions may make about the scene, in the form of `facts`."""
        first = self.figures[0]
        if self.relation:
            what = f"{first.name} {self.relation} {self.figures[1].name}"
        else:
            what = f"{len(self.figures)} {first.name}"
        statements = (what, self.size, f"{self.background} background")
        return frozenset(statement for statement in statements if statement)

    def draw(self, side: int) -> Image.Image:
        """Draw the scene as an RGB image of `side` x `side` pixels."""
        image = draw_ground(
            side * OVERSAMPLING, ground=self.ground, background=self.background, phase=self.phase
        )
        for figure in self.figures:
            draw_figure(image, **vars(figure))
        return image.reduce(OVERSAMPLING)

    def masks(self, side: int) -> list[Image.Image]:
        """Where each of the figures is: images of mode "L", 255 inside the figure."""
        return [
            draw_mask(side, **{n: v for n, v in vars(figure).items() if n != "color"})
            for figure in self.figures
        ]


def split_of_pair(shape: str, color: str) -> str:
    """Return the split with this shape in this color, by HELD_OUT; all others are in "train"."""
    name = f"{color} {shape}"
    return next((split for split, names in HELD_OUT.items() if name in names), "train")


def split_of_relation(subject: str, relation: str, other: str) -> str:
    """Return the split with these two shapes in this relation; their order matters.

    For each relation, 5 of the 100 ordered pairs of shapes are in dev and 5 in test. Every shape
    occurs once as the first and once as the second in these 10, and nine times in both places in
    the training pairs.
    """
    first, second = SHAPES.index(subject), SHAPES.index(other)
    turn = 1 + 2 * tuple(RELATIONS).index(relation)
    if (first + 3 * second + turn) % 10:
        return "train"
    return "dev" if first % 2 else "test"


def _figure(
    rng: random.Random,
    name: tuple[str, str],
    x: float,
    y: float,
    side: float,
    *,
    jitter: float = 0.03,
) -> Figure:
    return Figure(
        shape=name[0],
        color=name[1],
        x=x + rng.uniform(-jitter, jitter),
        y=y + rng.uniform(-jitter, jitter),
        side=side * rng.uniform(0.94, 1.06),
        tilt=rng.uniform(-8, 8),
        mirrored=rng.random() < 0.5,
    )


def _pairs(*splits: str) -> list[tuple[str, str]]:
    """List the (shape, color) pairs of the given splits."""
    return [(s, c) for s in SHAPES for c in COLOR_WORDS if split_of_pair(s, c) in splits]


def _single(rng: random.Random, split: str) -> Scene:
    size = rng.choice(tuple(SIZES))
    figure = _figure(rng, rng.choice(_pairs(split)), 0.5, 0.5, SIZES[size], jitter=0.08)
    return Scene((figure,), rng.choice(BACKGROUNDS), size=size)


def _several(rng: random.Random, split: str) -> Scene:
    name, count = rng.choice(_pairs(split)), rng.choice(tuple(COUNTS))
    cells = rng.sample([(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)], count)
    side = rng.uniform(0.28, 0.38)
    figures = tuple(_figure(rng, name, x, y, side, jitter=0.05) for x, y in cells)
    return Scene(figures, rng.choice(BACKGROUNDS))


def _related(rng: random.Random, split: str) -> Scene:
    """Two figures; those of dev and test have shapes that training never has in this relation."""
    relation = rng.choice(tuple(RELATIONS))
    colors = _pairs("train", split)
    while True:
        subject, other = rng.choice(colors), rng.choice(colors)
        if subject != other and split_of_relation(subject[0], relation, other[0]) == split:
            break
    centers = [(0.27, 0.5 + rng.uniform(-0.08, 0.08)), (0.73, 0.5 + rng.uniform(-0.08, 0.08))]
    if relation == "above":
        centers = [(y, x) for x, y in centers]
    first, second = (
        _figure(rng, name, *center, 0.4, jitter=0.02)
        for name, center in zip((subject, other), centers, strict=True)
    )
    return Scene((first, second), rng.choice(BACKGROUNDS), relation=relation)


def sample_scene(rng: random.Random, split: str) -> Scene:
    """Draw a random scene: a single figure (1/4), several (1/4), or two in a relation (1/2).

    Args:
        rng: source of randomness.
        split: "train", "dev" or "test"; determines the possible combinations.
    """
    kind = rng.choice((_single, _several, _related, _related))
    scene = kind(rng, split)
    values = vars(scene) | {"ground": rng.randrange(len(GROUNDS)), "phase": rng.random()}
    return Scene(**values)


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _plural(words: str) -> str:
    return words if words.endswith("fish") else words + "s"


def describe(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Return five different captions, each true of the scene and with all its figures.

    Args:
        scene: any.
        rng: source of randomness, for the choice between synonymous expressions.
    """
    ground = f"on a {scene.background} background"
    name = scene.figures[0].name
    if scene.relation:
        return _describe_relation(scene, ground, rng)
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


def _describe_relation(scene: Scene, ground: str, rng: random.Random) -> tuple[str, ...]:
    """Four captions from the subject to the other figure, and one in the reverse order.

    The reverse order has its own first word, "the". If the order were random after any first word,
    a decoder would have to remember which figure it named first.
    """
    subject, other = (figure.name for figure in scene.figures)
    forwards, backwards = RELATIONS[scene.relation]

    def relation() -> str:
        return f"{_with_article(subject)} {rng.choice(forwards)} {_with_article(other)}"

    return (
        relation(),
        f"there is {relation()}",
        f"{relation()} {ground}",
        f"the {other} is {rng.choice(backwards)} the {subject}",
        f"a picture of {relation()}",
    )


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_NUMBERS = {word: count for count, word in COUNTS.items()} | {"a": 1, "an": 1, "the": 1}
_RELATIONS = {
    expression: (relation, bool(reverse))
    for relation, sides in RELATIONS.items()
    for reverse, expressions in enumerate(sides)
    for expression in expressions
}
_CAPTION = re.compile(
    rf"(?:there is |there are |a picture of )?(?P<count>{_any(_NUMBERS)}) "
    rf"(?:(?P<size>{_any(SIZES)}) )?(?P<color>{_any(COLOR_WORDS)}) (?P<shape>\w+)"
    rf"(?: (?:is )?(?P<relation>{_any(_RELATIONS)}) (?:a|an|the) "
    rf"(?P<other>(?:{_any(COLOR_WORDS)}) (?:{_any(SHAPES)})))?"
    rf"(?: on a (?P<background>{_any(BACKGROUNDS)}) background)?"
)


def facts(caption: str) -> frozenset[str]:
    """Parse a caption into statements that do not depend on its wording.

    Args:
        caption: of the grammar, or generated by a model; case and spacing do not matter.

    Returns:
        its statements, for example {"2 red circle", "dotted background"} or
        {"red fish left of blue boat"}; empty if the caption is not of the grammar. A caption is
        true of a scene if they are a nonempty subset of `Scene.facts()`.
    """
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()))
    if match is None:
        return frozenset()
    count, relation = _NUMBERS[match["count"]], match["relation"]
    shape = next((s for s in SHAPES if match["shape"] == (s if count == 1 else _plural(s))), None)
    if shape is None or (relation and count > 1):
        return frozenset()
    what = f"{count} {match['color']} {shape}"
    if relation:
        name, reverse = _RELATIONS[relation]
        pair = (f"{match['color']} {shape}", match["other"])
        what = f" {name} ".join(reversed(pair) if reverse else pair)
    ground = f"{match['background']} background" if match["background"] else ""
    return frozenset(fact for fact in (what, match["size"], ground) if fact)


def is_exact(caption: str, references: Iterable[str]) -> bool:
    """Whether a caption has all figures of an image and no false statement about it.

    Args:
        caption: to be checked.
        references: the captions of the image; together they have all statements.
    """
    true = frozenset().union(*(facts(reference) for reference in references))
    statements = facts(caption)
    return bool(statements) and statements <= true


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
    """Draw the dataset into a folder; the same arguments give the same images and captions.

    Args:
        root: the folder in which images/*.png and, last, captions.jsonl are written.
        seed: of the scenes; the held-out combinations do not depend on it.
        train: number of training images.
        dev: number of dev images.
        test: number of test images.
        size: side of the images in pixels, at least 16.
        progress: log the number of images after every 500.

    Returns:
        the path of captions.jsonl, which does not exist after an interruption.

    Raises:
        ValueError: a number of images is negative, or the side is too small.
    """
    counts = dict(zip(SPLITS, (train, dev, test), strict=True))
    for split, count in counts.items():
        if count < 0:
            raise ValueError(f"{split}={count} is not accepted; choose 0 images or more")
    if size < 16:
        raise ValueError(f"size={size} is too small; choose 16 pixels or more")
    table = Path(root) / "captions.jsonl"
    table.unlink(missing_ok=True)  # absent while images are drawn
    (table.parent / "images").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for split, count in counts.items():
        for index in range(count):
            lines.append(_draw_one(table.parent, f"{seed} {split} {index}", split, index, size))
            if progress and (len(lines) % 500 == 0 or len(lines) == sum(counts.values())):
                _LOG.info("drawn: %d of %d images", len(lines), sum(counts.values()))
    return write_whole(table, "".join(lines))


def scene_of(split: str, index: int, *, seed: int = 0) -> Scene:
    """The scene of an image that ``draw`` draws with the same seed.

    Args:
        split: "train", "dev" or "test".
        index: number of the image in its split, from 0.
    """
    return _sampled(f"{seed} {split} {index}", split)[1]


def _sampled(seed: str, split: str) -> tuple[random.Random, Scene]:
    """A scene, and the source of randomness, which goes on to its captions."""
    rng = random.Random(seed)
    return rng, sample_scene(rng, split)


def _draw_one(root: Path, seed: str, split: str, index: int, size: int) -> str:
    """Write one image and return its line of captions.jsonl."""
    rng, scene = _sampled(seed, split)
    image = f"images/{split}_{index:05d}.png"
    scene.draw(size).save(root / image, compress_level=3)
    entry = {"image": image, "captions": describe(scene, rng), "split": split}
    return json.dumps(entry) + "\n"
