"""Fonts of this machine that have the letters of a text, for images with text.

Pillow and matplotlib draw an empty box for a letter that their font does not have. A font of the
system has a letter if it draws the letter differently from a code that is not a letter. This needs
neither a table of languages nor fontconfig, and works for Chinese, Hindi and Thai.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_ROOTS = (
    *("~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts"),
    *("~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts"),
)
_SUFFIXES = (".ttf", ".ttc", ".otf")
_PLAIN = re.compile("noto ?sans|pingfang|yahei|msyh|dejavusans|wqy|regular", re.IGNORECASE)
_SPECIAL = re.compile(
    "bold|black|light|thin|medium|italic|oblique|mono|serif|condensed|narrow|looped|ui", re.I
)
_NONE = "\uffff"
"""A noncharacter of Unicode, which no font has."""
_SIZE = 16


def font_files() -> list[Path]:
    """The font files of this machine, plain ones first."""
    own = os.environ.get("XDG_DATA_HOME")
    roots = [*([f"{own}/fonts"] if own else []), *_ROOTS]
    files = {
        path
        for root in roots
        for path in Path(os.path.expanduser(root)).rglob("*")
        if path.suffix.lower() in _SUFFIXES
    }
    return sorted(files, key=lambda path: (*_distance_from_plain(path.stem), str(path)))


def _distance_from_plain(name: str) -> tuple[int, int]:
    return len(_SPECIAL.findall(name)), -len(_PLAIN.findall(name))


def find_font(text: str) -> Path | None:
    """A font file with the letters of a text.

    Args:
        text: in any language.

    Returns:
        the first of `font_files` with all of them, else the one with most of them; None if no
        font has any.
    """
    letters = frozenset(visible_letters([text]))
    return _best(letters) if letters else None


@cache
def _best(letters: frozenset[str]) -> Path | None:
    best, most = None, 0
    for file in _files():
        count = sum(_has(file, letter) for letter in letters)
        if count > most:
            best, most = file, count
        if count == len(letters):
            break
    return best


@cache
def _files() -> tuple[Path, ...]:
    return tuple(font_files())


def visible_letters(texts: Iterable[str]) -> list[str]:
    """The visible characters of texts, each once, without combining marks."""
    letters = dict.fromkeys(letter for text in texts for letter in text)
    return [letter for letter in letters if unicodedata.category(letter)[0] in "LNPS"]


def describe_missing(texts: Iterable[str], font: Font) -> str | None:
    """A line about letters that neither `font` nor any font of this machine has; None if all do."""
    unknown = [letter for letter in visible_letters(texts) if not has(font, letter)]
    missing = [letter for letter in unknown if not any(_has(file, letter) for file in _files())]
    if not missing:
        return None
    names = [unicodedata.name(letter, "unknown").split()[0].title() for letter in missing]
    scripts = ", ".join("Chinese" if name == "Cjk" else name for name in dict.fromkeys(names))
    return (
        f"no font of this machine has {len(missing)} of its letters ({scripts}), which are drawn "
        "as boxes; install one, such as the package fonts-noto, and run the command again"
    )


def has(font: Font, letter: str) -> bool:
    """Whether a font draws a letter differently from a code that is not a letter."""
    return _drawn(font, letter) != _drawn(font, _NONE)


@cache
def _has(file: Path, letter: str) -> bool:
    font = _opened(file)
    return font is not None and has(font, letter)


@cache
def _opened(file: Path) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(str(file), _SIZE, layout_engine=ImageFont.Layout.BASIC)
    except OSError:  # a bitmap font of another size, or not a font
        return None


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
