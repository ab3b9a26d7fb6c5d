"""Small worlds: datasets that are drawn within a second and have one property each.

The input of a model need not be a photograph. In a world it is nothing (a blank image: what remains
is a language model), or symbols by positions, one pixel each (``symbols.py``), or a sentence, a
sound or a drawing (``other_inputs.py``). Inputs are written as gray PNG images, which
``encoder=pixels`` and ``columns`` read without loss; all else is as with photographs.

A world is a function in WORLDS, from a source of randomness to pairs of an input and its caption.
The name of a dataset's folder is that of its world.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from captioner.config import pick
from captioner.data import idioms, other_inputs
from captioner.data.records import SPLITS, Record
from captioner.data.symbols import Pair, blank, encode
from captioner.files import write_whole

COUNTS = {"train": 200, "dev": 20, "test": 40}

World = Callable[[random.Random], Iterator[Pair]]
"""Yields pairs, as many as needed; the same source of randomness gives the same pairs."""


def sentence(text: str, source: random.Random) -> Iterator[Pair]:
    """One sentence, again and again."""
    while True:
        yield blank(), text


def frequency(often: int, source: random.Random) -> Iterator[Pair]:
    """Of ten sentences, `often` are "i love you" and the others "i love him"."""
    ten = ["i love you"] * often + ["i love him"] * (10 - often)
    while True:
        yield from ((blank(), text) for text in source.sample(ten, 10))


DIGITS = "one two three four five six seven eight".split()
COUNTED = 5
"""How far ``counting`` counts at most."""
DELAYS = (1, 2, 5, 10, 20, 40)


def counting(source: random.Random) -> Iterator[Pair]:
    """ "one two three ...", up to one to COUNTED, each as often."""
    while True:
        for last in source.sample(range(1, COUNTED + 1), COUNTED):
            yield blank(), " ".join(DIGITS[:last])


def delayed_copy(source: random.Random) -> Iterator[Pair]:
    """One of eight digits as input; the caption is "wait", any of DELAYS times, and the digit."""
    pairs = [(digit, delay) for digit in range(len(DIGITS)) for delay in DELAYS]
    while True:
        for digit, delay in source.sample(pairs, len(pairs)):
            yield encode([digit]), " ".join(["wait"] * delay + [DIGITS[digit]])


ADJECTIVES = "red old small kind".split()
NOUNS = "cat dog man bird girl".split()
VERBS = "sees helps likes hears".split()
WORDS = ["the", *ADJECTIVES, *NOUNS, *VERBS]
"""The symbols of the sentences of ``dictation``."""


def dictation(source: random.Random) -> Iterator[Pair]:
    """A sentence of seven words as input, and the same sentence as caption; none occurs twice."""
    kinds = (["the"], ADJECTIVES, NOUNS, VERBS, ["the"], ADJECTIVES, NOUNS)
    said = set()
    while True:
        words = tuple(source.choice(kind) for kind in kinds)
        if words not in said:
            said.add(words)
            yield encode([WORDS.index(word) for word in words]), " ".join(words)


KEPT = "red green blue white".split()
"""The words to keep of ``stream``."""
PROBLEMS, LONGEST_WAIT = 8, 4


def problem(source: random.Random) -> str:
    """A word to keep, "tick" one to LONGEST_WAIT times, "say", and the word."""
    word = source.choice(KEPT)
    return " ".join([word, *["tick"] * source.randint(1, LONGEST_WAIT), "say", word])


def stream(problems: int, source: random.Random) -> Iterator[Pair]:
    """So many of these, one after the other in one caption; nothing marks where one begins."""
    while True:
        yield blank(), " ".join(problem(source) for _ in range(problems))


def sports(likes: dict[str, str], source: random.Random) -> Iterator[Pair]:
    """ "我喜欢打篮球": who likes which sport, each as often."""
    captions = [f"{who}喜欢打{sport}" for who, sport in likes.items()]
    while True:
        yield from ((blank(), text) for text in source.sample(captions, len(captions)))


ARTS = "琴棋书画"
PAUSES = 4
"""How many 嗯 there are at most after an art."""


def second_thoughts(source: random.Random) -> Iterator[Pair]:
    """ "想学琴，嗯，嗯，[改学画，嗯，]就学画": at the end the art that was named last."""
    while True:
        first, second = source.sample(ARTS, 2)
        text = f"想学{first}" + "，嗯" * source.randint(0, PAUSES)
        if source.random() < 0.5:
            text += f"，改学{second}" + "，嗯" * source.randint(0, PAUSES)
            first = second
        yield blank(), f"{text}，就学{first}"


PERSONS = "cat dog bird girl boy king".split()
BESIDE = "near behind with above".split()
ACTIONS = "run sleep sing jump".split()
PHRASES = 4
"""How many phrases there are at most between subject and verb."""


def singular_or_plural(source: random.Random) -> str:
    """A noun, as often singular as plural."""
    return source.choice(PERSONS) + source.choice(["", "s"])


def agreement(source: random.Random) -> Iterator[Pair]:
    """ "the cats near the dog behind the bird run": the verb agrees with the first noun."""
    while True:
        noun = singular_or_plural(source)
        words = ["the", noun]
        for _ in range(source.randint(0, PHRASES)):
            words += [source.choice(BESIDE), "the", singular_or_plural(source)]
        yield blank(), " ".join([*words, source.choice(ACTIONS) + "s" * (not noun.endswith("s"))])


STEPS = 11
"""How many moves a ``walk`` has."""


def walk(source: random.Random) -> Iterator[Pair]:
    """A place on a circle of eight and STEPS moves by one; the caption names each place."""
    while True:
        symbols = [source.randrange(len(DIGITS))]
        places = symbols[:]
        for _ in range(STEPS):
            forward = source.randrange(2)
            symbols.append(len(DIGITS) + forward)
            places.append((places[-1] + (1 if forward else -1)) % len(DIGITS))
        yield encode(symbols), " ".join(DIGITS[place] for place in places)


WORLDS: dict[str, World] = {
    "memorization": partial(sentence, "我爱你，我也爱你"),
    "frequency_9_1": partial(frequency, 9),
    "frequency_7_3": partial(frequency, 7),
    "counting": counting,
    "delayed_copy": delayed_copy,
    "dictation": dictation,
    "idiom_chain": idioms.chains,
    "translation": other_inputs.translation,
    "telephone": other_inputs.telephone,
    "pictures": other_inputs.pictures,
    "stream": partial(stream, PROBLEMS),
    "single_problem": partial(stream, 1),
    "sports": partial(sports, {"我": "篮球", "他": "篮球", "她": "乒乓球"}),
    "table_tennis": partial(sentence, "我喜欢打乒乓球"),
    "rehearsal": partial(sports, {"我": "乒乓球", "他": "篮球", "她": "乒乓球"}),
    "second_thoughts": second_thoughts,
    "agreement": agreement,
    "walk": walk,
}
"""Every world by the name of its folder."""
MORE = {
    "delayed_copy": {"train": 960, "dev": 48, "test": 48},
    "dictation": {"train": 1000},
    "idiom_chain": {"train": 2000, "test": 200},
    "translation": {"train": 500, "test": 200},
    "telephone": {"train": 760, "test": 200},
    "pictures": {"train": 700, "test": 200},
    "stream": {"train": 1000},
    "single_problem": {"train": 1000},
    "second_thoughts": {"train": 400, "test": 100},
    "agreement": {"train": 1000},
    "walk": {"train": 1000, "test": 200},
}
"""Numbers of pairs of a split that differ from COUNTS."""


def draw(root: Path, *, seed: int = 0) -> Path:
    """Draw the world that a folder is named after; the same seed gives the same files.

    Args:
        root: a folder whose name is a key of WORLDS, in which images/*.png and, last,
            captions.jsonl are written.
        seed: of the source of randomness.

    Returns:
        the path of captions.jsonl, which does not exist after an interruption.

    Raises:
        ValueError: there is no world of that name.
    """
    root = Path(root)
    pairs = pick(WORLDS, root.name, "the last folder of data.root")(random.Random(seed))
    table = root / "captions.jsonl"
    table.unlink(missing_ok=True)  # absent while images are drawn
    (root / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for (image, split), (pixels, caption) in zip(_images(root.name), pairs):
        Image.fromarray(pixels).save(root / image)
        entry = {"image": image, "captions": [caption], "split": split}
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return write_whole(table, "".join(lines))


def is_world(records: Sequence[Record]) -> bool:
    """Whether records are those of a world, by the names of the folder and of all files."""
    name = Path(os.path.abspath(records[0].image)).parents[1].name if records else ""
    names = [(record.image_id, record.split) for record in records]
    return name in WORLDS and names == list(_images(name))


def _images(world: str) -> Iterator[tuple[str, str]]:
    """The path below the root, and the split, of each image of a world."""
    counts = COUNTS | MORE.get(world, {})
    for split in SPLITS:
        yield from ((f"images/{split}_{number:04d}.png", split) for number in range(counts[split]))
