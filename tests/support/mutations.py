"""Seeded mutations of valid files: of bytes, of texts, and of the values in plain data."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

WORDS = (
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        "é犬\u0301".encode(),
        b"\r",
        b"\n\n",
    ),
    *(
        b'"',
        b"'",
        b",",
        b"\t",
        b"#",
        b":",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\\",
        b"\\ud800",
        b"${oc.env:HOME}",
    ),
    *(
        b"null",
        b"true",
        b"NaN",
        b"Infinity",
        b"1e999",
        b"-1",
        b"0",
        b"99999999999999999999",
        b"..",
        b"/",
    ),
    *(b"*a", b"&a", b"<<", b"!!python/object:os.system", b"format", b"__class__", b"<end>", b" "),
)
"""What is written into a file: signs, values and names that mean something to some parser."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**70), 10**30, 0.5, -0.0, 1e308),
    *(
        math.nan,
        math.inf,
        "",
        " ",
        "x",
        "\0",
        "\ud800",
        "../..",
        "${oc.env:HOME}",
        "é\n",
        "9" * 300,
    ),
    *([], {}, [[]], {"": None}, [1, "a"], {"a": [{}]}, ["x"] * 50),
)
"""What a value in plain data becomes."""

Change = Callable[[random.Random, bytes], bytes]


def _span(source: random.Random, data: bytes, most: int = 64) -> tuple[int, int]:
    start = source.randrange(len(data) + 1)
    return start, min(len(data), start + source.randrange(1, most))


def flip(source: random.Random, data: bytes) -> bytes:
    """Change some bits."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 8))):
        if changed:
            changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
    return bytes(changed)


def cut(source: random.Random, data: bytes) -> bytes:
    """Leave out a part, or all from some place on."""
    start, end = _span(source, data)
    return data[:start] + (b"" if source.random() < 0.3 else data[end:])


def splice(source: random.Random, data: bytes) -> bytes:
    """Copy a part to another place."""
    start, end = _span(source, data, 200)
    place = source.randrange(len(data) + 1)
    return data[:place] + data[start:end] + data[place + source.choice((0, end - start)) :]


def repeat(source: random.Random, data: bytes) -> bytes:
    """Repeat a part often."""
    start, end = _span(source, data, 12)
    return data[:end] + data[start:end] * source.choice((1, 3, 50, 2000)) + data[end:]


def nest(source: random.Random, data: bytes) -> bytes:
    """Open brackets that may or may not be closed."""
    place, depth = source.randrange(len(data) + 1), source.choice((3, 40, 400, 20_000))
    opening, closing = source.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")"), (b"- ", b"")))
    closed = closing * depth if source.random() < 0.5 else b""
    return data[:place] + opening * depth + b"1" + closed + data[place:]


def write_word(source: random.Random, data: bytes) -> bytes:
    """Write one of WORDS, between others or over them."""
    start, end = _span(source, data, 8)
    return data[:start] + source.choice(WORDS) + data[source.choice((start, end)) :]


CHANGES: tuple[Change, ...] = (flip, cut, splice, repeat, nest, write_word, write_word)


def mutate(source: random.Random, data: bytes) -> bytes:
    """Change bytes in one to three ways."""
    for _ in range(source.choice((1, 1, 2, 3))):
        data = source.choice(CHANGES)(source, data)
    return data


def mutate_tree(source: random.Random, tree: Any) -> Any:
    """A copy of plain data in which one to three values are others, absent, nested or repeated."""
    for _ in range(source.choice((1, 1, 2, 3))):
        tree = _changed(source, tree, source.choice(list(_paths(tree))))
    return tree


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values; of a long list only a few."""
    found = [path]
    if isinstance(tree, dict):
        pairs = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        pairs = list(enumerate(tree))[:20]
    else:
        return found
    for key, value in pairs:
        found += _paths(value, (*path, key))
    return found


def _changed(source: random.Random, tree: Any, path: tuple[Any, ...]) -> Any:
    if not path:
        return _other(source, tree)
    copied = dict(tree) if isinstance(tree, dict) else list(tree)
    key = path[0]
    if len(path) == 1 and source.random() < 0.2:
        del copied[key]
    else:
        copied[key] = _changed(source, copied[key], path[1:])
    return copied


def _other(source: random.Random, value: Any) -> Any:
    chosen = source.random()
    if chosen < 0.1:
        return [value] * source.choice((1, 3, 1000))
    if chosen < 0.2:
        for _ in range(source.choice((1, 40, 300))):
            value = source.choice(([value], {"a": value}))
        return value
    if chosen < 0.3 and isinstance(value, (int, float)) and not isinstance(value, bool):
        return source.choice((value + 1, -value, value * 10**9, float(value), str(value)))
    return source.choice(VALUES)
