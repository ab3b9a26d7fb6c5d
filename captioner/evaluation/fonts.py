"""Fonts of this machine: which has the letters of a text, for pictures that hold text.

Pillow and matplotlib draw an empty box for a letter that their font lacks. Here the fonts of the
system are asked, letter by letter, whether drawing it differs from drawing no letter at all; that
needs no table of languages and no fontconfig, so Chinese, Hindi and Thai are found alike.
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
_ODD = re.compile(
    "bold|black|light|thin|medium|italic|oblique|mono|serif|condensed|narrow|looped|ui", re.I
)
_NONE = "\uffff"
"""No letter, in any font and for ever (Unicode calls it a noncharacter)."""
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
    return sorted(files, key=lambda path: (*_oddity(path.stem), str(path)))


def _oddity(name: str) -> tuple[int, int]:
    return len(_ODD.findall(name)), -len(_PLAIN.findall(name))


def font_of(text: str) -> Path | None:
    """A font file with the letters of a text.

    Args:
        text: in any language.

    Returns:
        the first of `font_files` with all of them, else the one with most of them; None where
        none has any.
    """
    letters = frozenset(letters_of([text]))
    return _best(letters) if letters else None


@cache
def _best(letters: frozenset[str]) -> Path | None:
    best, most = None, 0
    for file in _files():
        found = sum(_has(file, letter) for letter in letters)
        if found > most:
            best, most = file, found
        if found == len(letters):
            break
    return best


@cache
def _files() -> tuple[Path, ...]:
    return tuple(font_files())


def letters_of(texts: Iterable[str]) -> list[str]:
    """The letters of texts that leave a mark by themselves, each once."""
    every = dict.fromkeys(letter for text in texts for letter in text)
    return [one for one in every if unicodedata.category(one)[0] in "LNPS"]


def lack(texts: Iterable[str], font: Font) -> str | None:
    """What to say of letters that neither a font nor any of this machine has; None without such."""
    others = [one for one in letters_of(texts) if not has(font, one)]
    found = [one for one in others if not any(_has(file, one) for file in _files())]
    if not found:
        return None
    names = [unicodedata.name(one, "unknown").split()[0].title() for one in found]
    scripts = ", ".join("Chinese" if name == "Cjk" else name for name in dict.fromkeys(names))
    return (
        f"no font of this machine has {len(found)} of its letters ({scripts}), which are drawn as "
        "boxes; install one, such as the package fonts-noto, and make it again"
    )


def has(font: Font, letter: str) -> bool:
    """Whether a font draws a letter otherwise than what it draws for no letter."""
    return _drawn(font, letter) != _drawn(font, _NONE)


@cache
def _has(file: Path, letter: str) -> bool:
    font = _opened(file)
    return font is not None and has(font, letter)


@cache
def _opened(file: Path) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(str(file), _SIZE, layout_engine=ImageFont.Layout.BASIC)
    except OSError:  # a bitmap font of another size, or no font
        return None


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
