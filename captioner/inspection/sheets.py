"""Contact sheets: images with what was said of them, as one PNG to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from captioner.data.transforms import open_image

SIDE, MARGIN, COLUMNS = 232, 16, 4
TEXT, SMALL = 15, 12
INK, GREY, PAPER = (24, 24, 27), (113, 113, 122), (255, 255, 255)
_CHINESE_FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/System/Library/Fonts/PingFang.ttc",
    "/System/Library/Fonts/STHeiti Light.ttc",
    "C:/Windows/Fonts/msyh.ttc",
)


def contact_sheet(rows: Sequence[tuple[str, str, Sequence[str]]], *, references: int = 2) -> bytes:
    """Draw images, each with its caption below and some references in grey.

    Args:
        rows: (path of the image, caption, references), one for each cell.
        references: how many references are shown.

    Returns:
        a PNG. Chinese is drawn where the system has a font for it.
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


def _cell(path: str, caption: str, references: Sequence[str]) -> Image.Image:
    """One image with the texts below it."""
    texts = [(caption or "(no words)", TEXT, INK), *((text, SMALL, GREY) for text in references)]
    lines = [
        (line, size, colour, 4 if first == 0 else 0)
        for text, size, colour in texts
        for first, line in enumerate(_wrapped(text, _font(text, size)))
    ]
    height = SIDE + 4 + sum(round(size * 1.3) + gap for _, size, _, gap in lines)
    cell = Image.new("RGB", (SIDE, height), PAPER)
    picture = ImageOps.contain(open_image(path), (SIDE, SIDE), Image.Resampling.LANCZOS)
    cell.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    draw = ImageDraw.Draw(cell)
    top = SIDE + 4
    for line, size, colour, gap in lines:
        draw.text((0, top + gap), line, fill=colour, font=_font(line, size))
        top += round(size * 1.3) + gap
    return cell


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines no wider than a cell, broken at spaces, and anywhere in Chinese."""
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and font.getlength(lines[-1] + piece.rstrip()) > SIDE:
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip()
    return [line.rstrip() for line in lines]


def _pieces(text: str) -> list[str]:
    if any(_is_chinese(character) for character in text):
        return list(text)
    return [f"{word} " for word in text.split(" ")]


@cache
def _chinese_font() -> str | None:
    return next((name for name in _CHINESE_FONTS if Path(name).is_file()), None)


@cache
def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    chinese = _chinese_font()
    if chinese is not None and any(_is_chinese(character) for character in text):
        return ImageFont.truetype(chinese, size)
    return ImageFont.load_default(size)


def _is_chinese(character: str) -> bool:
    return "\u2e80" <= character <= "\u9fff" or "\uff00" <= character <= "\uffef"
