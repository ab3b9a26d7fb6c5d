"""The drawn scenes: reproducible, described exactly, and with held-out combinations.

The tests parse captions with a parser of their own, which does not use the generator.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from captioner.data import shapes
from captioner.data.shapes import (
    Figure,
    Scene,
    describe,
    draw,
    facts,
    is_exact,
    sample_scene,
    scene_of,
)
from captioner.process import logs_on_stderr

COLORS = {
    "red": (205, 28, 36),
    "orange": (248, 128, 16),
    "yellow": (252, 222, 40),
    "green": (36, 146, 58),
    "blue": (30, 92, 214),
    "purple": (112, 36, 158),
    "white": (252, 252, 250),
    "black": (30, 30, 36),
}
KINDS = "circle square triangle star heart flower house tree boat fish".split()
NUMBERS = {"two": 2, "three": 3, "four": 4}
COUNTS = {"train": 23, "dev": 7, "test": 5}


def figures_of(caption: str) -> list[str]:
    """The figures in a caption, color and singular shape, in order."""
    words = caption.split()
    return [
        f"{color} {shape if shape in KINDS else shape.removesuffix('s')}"
        for color, shape in itertools.pairwise(words)
        if color in COLORS
    ]


def combinations_of(caption: str) -> set[str]:
    """The combinations in a caption: color and shape, or two shapes in a relation."""
    named = figures_of(caption)
    if len(named) == 1:
        return set(named)
    first, second = (name.split()[1] for name in named)
    for words, forwards, relation in (
        ("left of", True, "left of"),
        ("right of", False, "left of"),
        ("above", True, "above"),
        ("below", False, "above"),
        ("under", False, "above"),
    ):
        if f" {words} " in caption:
            ends = (first, second) if forwards else (second, first)
            return {f"{ends[0]} {relation} {ends[1]}"}
    raise AssertionError(caption)


def read(table: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("shapes"), size=40, progress=False, **COUNTS).parent


@pytest.fixture(scope="module")
def captions() -> dict[str, list[tuple[str, ...]]]:
    """Five captions of many scenes of each split, without drawing them."""
    captions: dict[str, list[tuple[str, ...]]] = {}
    for split, count in {"train": 6000, "dev": 600, "test": 601}.items():
        for index in range(count):
            rng = random.Random(f"0 {split} {index}")
            captions.setdefault(split, []).append(describe(sample_scene(rng, split), rng))
    return captions


def test_equal_seeds_give_equal_files_and_other_seeds_others(root: Path, tmp_path: Path) -> None:
    again = draw(tmp_path / "again", size=40, progress=False, **COUNTS).parent
    other = draw(tmp_path / "other", size=40, seed=1, progress=False, **COUNTS).parent
    assert contents(again) == contents(root)
    assert contents(other).keys() == contents(root).keys()
    assert all(data != contents(root)[name] for name, data in contents(other).items())


def test_more_images_do_not_change_the_first_ones(root: Path, tmp_path: Path) -> None:
    more = draw(tmp_path, size=40, progress=False, **(COUNTS | {"train": 25})).parent
    before, after = contents(root), contents(more)
    assert len(after) == len(before) + 2
    assert all(after[name] == before[name] for name in before if name.endswith(".png"))


def test_split_sizes_and_files(root: Path) -> None:
    entries = read(root / "captions.jsonl")
    counts = {split: sum(entry["split"] == split for entry in entries) for split in COUNTS}
    assert counts == COUNTS
    assert len({entry["image"] for entry in entries}) == sum(COUNTS.values())
    for entry in entries:
        with Image.open(root / entry["image"]) as image:
            assert (image.size, image.mode, image.format) == ((40, 40), "RGB", "PNG")


def test_the_five_captions_differ_and_describe_the_same_figures(
    captions: dict[str, list[tuple[str, ...]]],
) -> None:
    for five in (five for split in captions.values() for five in split):
        assert len(set(five)) == 5
        assert len({frozenset(figures_of(caption)) for caption in five}) == 1
        assert len({frozenset(combinations_of(caption)) for caption in five}) == 1


def test_dev_and_test_combinations_do_not_occur_in_training(
    captions: dict[str, list[tuple[str, ...]]],
) -> None:
    seen = {
        split: {pair for five in fives for caption in five for pair in combinations_of(caption)}
        for split, fives in captions.items()
    }
    assert min(len(pairs) for pairs in seen.values()) >= 14  # 4 pairs and 10 relations
    assert not seen["train"] & seen["dev"]
    assert not seen["train"] & seen["test"]
    assert not seen["dev"] & seen["test"]


def test_held_out_pairs_do_not_occur_in_training(
    captions: dict[str, list[tuple[str, ...]]],
) -> None:
    trained = {name for five in captions["train"] for name in figures_of(five[0])}
    assert len(trained) == len(COLORS) * len(KINDS) - 8
    for split in ("dev", "test"):
        alone = {figures_of(f[0])[0] for f in captions[split] if len(figures_of(f[0])) == 1}
        assert len(alone) == 4
        assert not alone & trained


def test_no_caption_of_dev_or_test_occurs_in_training(
    captions: dict[str, list[tuple[str, ...]]],
) -> None:
    texts = {split: {c for five in fives for c in five} for split, fives in captions.items()}
    assert not texts["train"] & (texts["dev"] | texts["test"])


def test_every_word_of_dev_and_test_is_frequent_in_training(
    captions: dict[str, list[tuple[str, ...]]],
) -> None:
    words = [word for five in captions["train"] for c in five for word in c.split()]
    for split in ("dev", "test"):
        for word in {word for five in captions[split] for c in five for word in c.split()}:
            assert words.count(word) >= 100, word


@pytest.mark.parametrize("relation", ["left of", "above"])
def test_training_has_every_shape_on_both_sides_of_a_relation(
    relation: str, captions: dict[str, list[tuple[str, ...]]]
) -> None:
    seen = {name for five in captions["train"] for name in combinations_of(five[0])}
    pairs = [name.split(f" {relation} ") for name in seen if f" {relation} " in name]
    assert {pair[0] for pair in pairs} == {pair[1] for pair in pairs} == set(KINDS)


def near(image: Image.Image, color: str) -> np.ndarray:
    """Rows and columns of the pixels close to a color, [n, 2], as fractions of the side."""
    distance = np.abs(np.asarray(image).astype(int) - COLORS[color]).max(axis=2)
    return np.argwhere(distance < 24) / image.width


@pytest.mark.parametrize("split", ["train", "test"])
def test_figures_are_drawn_where_the_caption_places_them(split: str) -> None:
    """The mean position of the pixels of each color agrees with the relation in the caption."""
    compared = 0
    for index in range(60):
        rng = random.Random(f"7 {split} {index}")
        scene = sample_scene(rng, split)
        image, caption = scene.draw(96), describe(scene, rng)[0]
        named = [name.split()[0] for name in figures_of(caption)]
        assert all(len(near(image, color)) > 25 for color in named), caption
        # white and black also serve as details of other figures
        if len(set(named)) == 2 and not {"white", "black"} & set(named):
            first, second = (near(image, color).mean(axis=0) for color in named)
            axis = 1 if "left of" in caption else 0
            assert second[axis] - first[axis] > 0.3, caption
            compared += 1
    assert compared > 8


def blobs(mask: np.ndarray) -> int:
    """Count regions of a mask by flooding each in turn; corners connect, specks do not count."""
    left, count = {tuple(place) for place in np.argwhere(mask)}, 0
    while left:
        front, size = [left.pop()], 0
        while front:
            row, column = front.pop()
            size += 1
            around = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
            front.extend(around & left)
            left -= around
        count += size > 4
    return count


def test_the_number_of_figures_is_that_of_the_caption() -> None:
    counted = set()
    for index in range(200):
        scene = sample_scene(random.Random(f"3 train {index}"), "train")
        figure = scene.figures[0]
        if scene.relation or figure.shape not in {"circle", "square", "triangle", "star", "heart"}:
            continue
        number = len(scene.figures)
        if (number, figure.shape) in counted:
            continue
        counted.add((number, figure.shape))
        places = (near(scene.draw(80), figure.color) * 80).round().astype(int)
        mask = np.zeros((80, 80), dtype=bool)
        mask[places[:, 0], places[:, 1]] = True
        assert blobs(mask) == number
    assert {number for number, _ in counted} == {1, 2, 3, 4}


def test_a_large_figure_is_larger() -> None:
    areas = []
    for side in shapes.SIZES.values():
        scene = Scene((Figure("square", "red", 0.5, 0.5, side),), "plain", size="small")
        areas.append(len(near(scene.draw(60), "red")))
    small, large = areas
    assert large > 3 * small


def test_facts_do_not_depend_on_the_wording() -> None:
    assert facts("three red fish on a dotted background") == {"3 red fish", "dotted background"}
    assert facts("There are three red  fish") == {"3 red fish"}
    assert facts("a picture of a small orange house") == {"1 orange house", "small"}
    sides = ("a red fish to the left of a blue boat", "the blue boat is right of the red fish")
    assert [facts(side) for side in sides] == [{"red fish left of blue boat"}] * 2
    assert facts("the blue boat is under the red fish") == {"red fish above blue boat"}


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a red",
        "a red circles",
        "two red circle",
        "two red circles left of a blue boat",
        "a red circle left of",
        "a red circle a red circle",
        "a crimson circle",
        "a red circle on a background",
    ],
)
def test_captions_outside_the_grammar_have_no_facts(caption: str) -> None:
    assert facts(caption) == frozenset()
    assert not is_exact(caption, ["a red circle"])


def test_facts_of_the_captions_are_those_of_the_scene() -> None:
    for index in range(300):
        rng = random.Random(index)
        scene = sample_scene(rng, "dev")
        five = describe(scene, rng)
        assert frozenset().union(*(facts(caption) for caption in five)) == scene.facts()
        assert all(is_exact(caption, five) for caption in five)


@pytest.mark.parametrize(
    ("caption", "exact"),
    [
        ("a red fish above a blue boat", True),
        ("a picture of a red fish above a blue boat on a striped background", True),
        ("a red fish above a blue boat on a plain background", False),
        ("a red fish below a blue boat", False),
        ("a blue boat above a red fish", False),
        ("a blue fish above a red boat", False),
        ("a red fish left of a blue boat", False),
        ("a red fish", False),
    ],
)
def test_exactness_of_captions(caption: str, exact: bool) -> None:
    references = [
        "a red fish above a blue boat",
        "the blue boat is under the red fish",
        "a red fish above a blue boat on a striped background",
    ]
    assert is_exact(caption, references) is exact


@pytest.mark.reliability("interrupted")
def test_interrupted_drawing_leaves_no_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = draw(tmp_path, train=3, dev=2, test=1, size=16, progress=False)
    assert table.is_file()
    sampled = []

    def interrupt(rng: random.Random, split: str) -> Scene:
        sampled.append(split)
        if len(sampled) == 4:
            raise KeyboardInterrupt
        return sample_scene(rng, split)

    monkeypatch.setattr(shapes, "sample_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, train=3, dev=2, test=1, size=16, progress=False)
    assert not table.exists()


def test_progress_goes_to_stderr_and_can_be_silenced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with logs_on_stderr():
        draw(tmp_path, train=2, dev=1, test=0, size=16, progress=True)
    output = capsys.readouterr()
    assert (output.out, "3 of 3" in output.err) == ("", True)
    draw(tmp_path, train=2, dev=1, test=0, size=16, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev": -1}, "dev=-1 is not accepted; choose 0"),
        ({"size": 8}, "size=8 is too small; choose 16"),
    ],
)
def test_arguments_out_of_range_are_errors(
    options: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "none", progress=False, **options)
    assert not (tmp_path / "none").exists()


def test_masks_are_where_the_figures_are_drawn(tmp_path) -> None:
    """The scene is that of the file; its picture differs from an empty one inside the masks."""
    draw(tmp_path, seed=3, train=0, dev=0, test=12, size=64, progress=False)
    for index in range(12):
        scene = scene_of("test", index, seed=3)
        picture = Image.open(tmp_path / "images" / f"test_{index:05d}.png")
        empty = dataclasses.replace(scene, figures=()).draw(64)
        changed = np.asarray(ImageChops.difference(picture, empty)).max(axis=2) > 0
        inside = np.max([np.asarray(mask) for mask in scene.masks(64)], axis=0)
        assert len(scene.masks(64)) == len(scene.figures)
        assert changed[inside == 255].mean() > 0.99
        assert changed[inside == 0].mean() < 0.1  # the shadows
        assert (inside > 127).mean() == pytest.approx(changed.mean(), rel=0.4)
