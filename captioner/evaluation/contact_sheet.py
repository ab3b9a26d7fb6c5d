"""Contact sheets: images with their captions and references, as one PNG."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

from captioner.evaluation.fonts import Font, describe_missing, find_font, has, visible_letters
from captioner.transforms import open_image

Rows = Sequence[tuple[str, str, Sequence[str]]]
"""(path of the image, caption, references) of each cell."""

SIDE, MARGIN, COLUMNS = 232, 16, 4
TEXT, SMALL = 15, 12
INK, GREY, PAPER = (24, 24, 27), (113, 113, 122), (255, 255, 255)


def contact_sheet(rows: Rows, *, references: int = 2) -> bytes:
    """Draw images, each with its caption below and some references in grey.

    Args:
        rows: the content of the cells; an image that cannot be read becomes a grey square.
        references: the number of references shown.

    Returns:
        a PNG. Letters that no font of this machine has are boxes; see `missing_letters`.
    """
    cells = [_cell(path, caption, texts[:references]) for path, caption, texts in rows]
    columns = min(COLUMNS, max(1, len(cells)))
    lines = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in line) for line in lines]
    width = columns * (SIDE + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN * (len(lines) + 1)), PAPER)
    top = MARGIN
    for line, height in zip(lines, heights):
        for column, cell in enumerate(line):
            sheet.paste(cell, (MARGIN + column * (SIDE + MARGIN), top))
        top += height + MARGIN
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def missing_letters(rows: Rows, *, references: int = 2) -> str | None:
    """A line about letters that a contact sheet shows as boxes; None if there are none."""
    texts = [text for _, caption, captions in rows for text in (caption, *captions[:references])]
    return describe_missing(texts, _own(TEXT))


def _cell(path: str, caption: str, references: Sequence[str]) -> Image.Image:
    """One image with the texts below it."""
    texts = [(caption or "(no words)", TEXT, INK), *((text, SMALL, GREY) for text in references)]
    placed, top = [], SIDE + 4
    for text, size, color in texts:
        font = _font(text, size)
        top += 4
        for line in _wrapped(text, font):
            placed.append((top, line, font, color))
            top += _height(font, size)
    cell = Image.new("RGB", (SIDE, top), PAPER)
    picture = _picture(path)
    cell.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    draw = ImageDraw.Draw(cell)
    for y, line, font, color in placed:
        draw.text((0, y), line, fill=color, font=font)
    return cell


def _height(font: Font, size: int) -> int:
    """The height of a line; in some scripts marks need more than 1.3 times the size."""
    own = sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else 0
    return max(own, round(1.3 * size))


def _picture(path: str) -> Image.Image:
    try:
        return ImageOps.contain(open_image(path), (SIDE, SIDE), Image.Resampling.LANCZOS)
    except (ValueError, OSError):
        return Image.new("RGB", (SIDE, SIDE), GREY)


def _wrapped(text: str, font: Font) -> list[str]:
    """Lines as wide as a cell, broken at spaces, and anywhere in text without spaces."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if font.getlength(joined) <= SIDE:
            lines[-1] = joined
        elif font.getlength(word) <= SIDE:
            lines.append(word)
        else:
            *full, last = _broken(joined, font)
            lines[-1:] = [*full, last]
    return lines


def _broken(text: str, font: Font) -> list[str]:
    """Lines filled letter by letter; a combining mark stays with its letter."""
    lines = [""]
    for letter in text:
        mark = unicodedata.category(letter).startswith("M")
        if lines[-1] and not mark and font.getlength(lines[-1] + letter) > SIDE:
            lines.append("")
        lines[-1] += letter
    return lines


def _font(text: str, size: int) -> Font:
    """Pillow's own font, or one of this machine if that does not have all letters of the text."""
    own = _own(size)
    if all(has(own, letter) for letter in visible_letters([text])):
        return own
    file = find_font(text)
    return own if file is None else _opened(str(file), size)


@cache
def _own(size: int) -> Font:
    return ImageFont.load_default(size)


@cache
def _opened(file: str, size: int) -> Font:
    return ImageFont.truetype(file, size)
