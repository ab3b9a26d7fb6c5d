"""A comparison as a figure: a panel for each metric, in it each system's score and interval.

One drawing goes to either of two canvases, SVG or a picture by Pillow, so neither needs a plotting
library. Colours are Okabe and Ito's, which the colour-blind can tell apart.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Protocol

from captioner.comparison import HIGHER, LOWER, UNDECIDED, Comparison, Row
from captioner.data.records import write_whole

PANEL, GAP, ROW, COLUMNS = 226, 26, 38, 4  # pixels; panels side by side
MARGIN, HEAD, AXIS, FOOT = 20, 30, 30, 22
TITLE, TEXT, SMALL = 15, 13, 11
INK, GREY, GRID, PAPER = "#18181b", "#71717a", "#e4e4e7", "#ffffff"
RED = "#b91c1c"
COLOURS = {None: INK, HIGHER: "#0072b2", LOWER: "#d55e00", UNDECIDED: "#8a8a93"}
_LONGEST = 26  # letters of a name


class Canvas(Protocol):
    """What a figure is drawn on; coordinates are pixels from the upper left corner."""

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> None:
        """A straight line."""

    def dot(self, x: float, y: float, radius: float, fill: str, rim: str) -> None:
        """A disc with a rim."""

    def text(self, x: float, y: float, text: str, size: int, colour: str, anchor: str) -> None:
        """A text with a halo on the base line y; anchor: start, middle or end."""

    def content(self) -> bytes:
        """The file."""


class Svg:
    """A canvas that writes SVG."""

    def __init__(self, width: int, height: int) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">',
            f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        ]

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> None:
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width:g}"/>'
        )

    def dot(self, x: float, y: float, radius: float, fill: str, rim: str) -> None:
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" stroke="{rim}" '
            'stroke-width="1.2"/>'
        )

    def text(self, x: float, y: float, text: str, size: int, colour: str, anchor: str) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" '
            f'text-anchor="{anchor}" stroke="{PAPER}" stroke-width="3" stroke-linejoin="round" '
            f'paint-order="stroke">{escape(text)}</text>'
        )

    def content(self) -> bytes:
        return "\n".join([*self.parts, "</svg>\n"]).encode("utf-8")


class Png:
    """A canvas that paints a PNG of twice the size, smoothed from four times."""

    SCALE = 4

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (width * self.SCALE, height * self.SCALE), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> None:
        ends = [value * self.SCALE for value in (x1, y1, x2, y2)]
        self.draw.line(ends, fill=colour, width=round(width * self.SCALE))

    def dot(self, x: float, y: float, radius: float, fill: str, rim: str) -> None:
        centre = (x * self.SCALE, y * self.SCALE)
        self.draw.circle(centre, radius * self.SCALE, fill, rim, width=round(1.2 * self.SCALE))

    def text(self, x: float, y: float, text: str, size: int, colour: str, anchor: str) -> None:
        from PIL import ImageFont

        font = ImageFont.load_default(size * self.SCALE)
        place = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
        at = (x * self.SCALE, y * self.SCALE)
        self.draw.text(at, text, PAPER, font, anchor=place, stroke_width=round(1.5 * self.SCALE))
        self.draw.text(at, text, colour, font, anchor=place)

    def content(self) -> bytes:
        from PIL import Image

        size = (self.image.width // 2, self.image.height // 2)
        file = io.BytesIO()
        self.image.resize(size, Image.Resampling.LANCZOS).save(file, "PNG", optimize=True)
        return file.getvalue()


CANVASES: dict[str, Callable[[int, int], Canvas]] = {".svg": Svg, ".png": Png}


def drawing(file: str | Path) -> Callable[[Comparison, Path], Path]:
    """What draws a comparison into files of this kind.

    Raises:
        ValueError: neither .svg nor .png.
    """
    kind = Path(file).suffix.lower()
    if kind not in CANVASES:
        raise ValueError(f"figure={str(file)!r} is of no known kind; name it .svg or .png")

    def draw(comparison: Comparison, path: Path) -> Path:
        return write_whole(path, figure(comparison, CANVASES[kind]))

    return draw


def figure(comparison: Comparison, canvas: Callable[[int, int], Canvas]) -> bytes:
    """Draw every metric that has intervals.

    Raises:
        ValueError: no metric has any.
    """
    panels = _panels(comparison)
    if not panels:
        raise ValueError("no metric of this comparison has intervals, so there is nothing to draw")
    names = list(comparison.systems)
    gutter = round(max(len(_cut(name)) for name in names) * TEXT * 0.56) + 12
    lines = math.ceil(len(panels) / COLUMNS)
    columns = math.ceil(len(panels) / lines)
    height = HEAD + ROW * len(names) + AXIS  # of a panel
    width = 2 * MARGIN + gutter + columns * (PANEL + GAP) - GAP
    foot = _foot(comparison, width)
    sheet = canvas(width, 2 * MARGIN + lines * height + FOOT * len(foot))
    for index, panel in enumerate(panels):
        left = MARGIN + gutter + (index % columns) * (PANEL + GAP)
        top = MARGIN + (index // columns) * height
        if index % columns == 0:
            for place, name in enumerate(names):
                y = top + HEAD + ROW * (place + 0.5) + 5
                sheet.text(left - 12, y, _cut(name), TEXT, INK, "end")
        _draw_panel(sheet, panel, names, left, top)
    for place, (text, colour) in enumerate(foot):
        y = MARGIN + lines * height + FOOT * (place + 0.8)
        marked = colour not in (GREY, RED)
        if marked:
            sheet.dot(MARGIN + 5, y - 4, 4.5, colour, PAPER)
        sheet.text(MARGIN + 16 * marked, y, text, TEXT, colour, "start")
    return sheet.content()


def _panels(comparison: Comparison) -> list[list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in comparison.rows:
        if row.interval is not None:
            found.setdefault(row.metric, []).append(row)
    return list(found.values())


@dataclass(frozen=True)
class _Scale:
    """From scores to pixels."""

    low: float
    high: float
    left: float

    @classmethod
    def of(cls, rows: Sequence[Row], left: float) -> _Scale:
        values = [v for row in rows for v in (*(row.interval or ()), *row.seeds)]
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 1.0
        return cls(low - room, high + room, left)

    def __call__(self, value: float) -> float:
        return self.left + PANEL * (value - self.low) / (self.high - self.low)

    def ticks(self) -> Iterable[float]:
        """Round numbers, five at most."""
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [step * index for index in range(first, last + 1)]


def _draw_panel(
    sheet: Canvas, rows: Sequence[Row], names: Sequence[str], left: float, top: float
) -> None:
    scale = _Scale.of(rows, left)
    floor = top + HEAD + ROW * len(names)
    sheet.text(left, top + 16, rows[0].metric, TITLE, INK, "start")
    for tick in scale.ticks():
        x = scale(tick)
        sheet.line(x, top + HEAD, x, floor, GRID, 1)
        sheet.text(x, floor + 15, f"{tick:.6g}", SMALL, GREY, "middle")
    sheet.line(left, floor, left + PANEL, floor, GREY, 1)
    for y in _dashes(top + HEAD, floor):
        sheet.line(scale(rows[0].score), y, scale(rows[0].score), y + 3, GREY, 1)
    for row in rows:
        _draw_row(sheet, row, scale, top + HEAD + ROW * (names.index(row.system) + 0.5))


def _draw_row(sheet: Canvas, row: Row, scale: _Scale, y: float) -> None:
    colour = COLOURS[row.difference.verdict if row.difference else None]
    low, high = (scale(value) for value in row.interval or (row.score, row.score))
    sheet.line(low, y + 3, high, y + 3, colour, 2)
    for end in (low, high):
        sheet.line(end, y - 1, end, y + 7, colour, 2)
    if len(row.seeds) > 1:
        for seed in row.seeds:
            sheet.dot(scale(seed), y + 13, 2.4, PAPER, colour)
    sheet.dot(scale(row.score), y + 3, 4.5, colour, PAPER)
    sheet.text(scale(row.score), y - 5, f"{row.score:.2f}", SMALL, colour, "middle")


def _dashes(top: float, floor: float) -> Iterable[float]:
    return (top + 6 * index for index in range(int((floor - top) // 6)))


def _foot(comparison: Comparison, width: int) -> list[tuple[str, str]]:
    """Lines below the panels and their colours."""
    text = f"{comparison.title}; dots and whiskers: scores and 95 % intervals over images"
    if any(len(row.seeds) > 1 for row in comparison.rows):
        text += "; rings: training seeds"
    if comparison.tests:
        text += f"; dashed: {_cut(comparison.baseline)}; colours: differences to it, tested"
    said = [(f"WARNING: {warning}", RED) for warning in comparison.warnings] + [(text, GREY)]
    letters = int((width - 2 * MARGIN) / (0.52 * TEXT))
    lines = [(line, colour) for text, colour in said for line in textwrap.wrap(text, letters)]
    found = [row.difference.verdict for row in comparison.rows if row.difference]
    for verdict in (HIGHER, LOWER, UNDECIDED):
        if verdict in found:
            lines.append((f"{verdict} ({found.count(verdict)})", COLOURS[verdict]))
    return lines


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
