"""Draws figures with shadows on a patterned background, with Pillow.

Every figure consists of polygons and discs in the unit box, -0.5 to 0.5 with y downwards, so that
one function places, scales, mirrors and rotates it. An image is drawn at OVERSAMPLING times its
side and averaged down, which smooths all edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

OVERSAMPLING = 3

Color = tuple[int, int, int]
Point = tuple[float, float]

COLORS: dict[str, Color] = {
    "red": (205, 28, 36),
    "orange": (248, 128, 16),
    "yellow": (252, 222, 40),
    "green": (36, 146, 58),
    "blue": (30, 92, 214),
    "purple": (112, 36, 158),
    "white": (252, 252, 250),
    "black": (30, 30, 36),
}
# Pairs of muted colors, on which both white and black are visible.
GROUNDS: tuple[tuple[Color, Color], ...] = (
    ((186, 194, 197), (163, 172, 177)),
    ((196, 186, 170), (174, 163, 146)),
    ((173, 189, 175), (150, 168, 154)),
    ((174, 186, 201), (152, 165, 183)),
    ((195, 178, 183), (174, 157, 164)),
    ((160, 168, 176), (139, 148, 158)),
    ((172, 166, 155), (151, 144, 133)),
)
CREAM: Color = (255, 248, 228)
INK: Color = (60, 62, 70)
BARK: Color = (112, 78, 56)


def _mix(first: Color, second: Color, fraction: float) -> Color:
    red, green, blue = (round(a + (b - a) * fraction) for a, b in zip(first, second, strict=True))
    return red, green, blue


class Pen:
    """Draws polygons and discs of one figure, given in its unit box.

    Args:
        surface: a Pillow drawing in mode "RGBA", so that shadows are blended.
        x: center of the figure, pixels.
        y: center of the figure, pixels.
        side: side of its box, pixels.
        tilt: clockwise rotation, degrees.
        mirrored: left and right swapped.
        color: of the figure.
        shadow: a color with opacity for all parts instead of their own; None draws the figure.
    """

    def __init__(
        self,
        *,
        surface: ImageDraw.ImageDraw,
        x: float,
        y: float,
        side: float,
        tilt: float,
        mirrored: bool,
        color: Color,
        shadow: tuple[int, int, int, int] | None = None,
    ) -> None:
        self.surface, self.x, self.y, self.side = surface, x, y, side
        self.cosine, self.sine = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        self.mirrored, self.shadow = mirrored, shadow
        self.main = color
        dark, light = sum(color) < 150, sum(color) > 700
        # a darker black or a lighter white would not be visible
        self.shade = _mix(color, (255, 255, 255), 0.25) if dark else _mix(color, (0, 0, 0), 0.25)
        self.tint = self.shade if light else _mix(color, (255, 255, 255), 0.4)
        self.bright = INK if light else CREAM

    def _place(self, point: Point) -> Point:
        across = -point[0] if self.mirrored else point[0]
        return (
            self.x + self.side * (across * self.cosine - point[1] * self.sine),
            self.y + self.side * (across * self.sine + point[1] * self.cosine),
        )

    def polygon(self, points: Sequence[Point], color: Color | None = None) -> None:
        """Fill a polygon, by default in the color of the figure."""
        fill = self.shadow or color or self.main
        self.surface.polygon([self._place(point) for point in points], fill=fill)

    def disc(self, x: float, y: float, radius: float, color: Color | None = None) -> None:
        """Fill a disc, by default in the color of the figure."""
        (x, y), radius = self._place((x, y)), radius * self.side
        fill = self.shadow or color or self.main
        self.surface.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _circle(pen: Pen) -> None:
    pen.disc(0, 0, 0.5)


def _square(pen: Pen) -> None:
    pen.polygon([(-0.44, -0.44), (0.44, -0.44), (0.44, 0.44), (-0.44, 0.44)])


def _triangle(pen: Pen) -> None:
    pen.polygon([(0, -0.46), (0.52, 0.44), (-0.52, 0.44)])


def _star(pen: Pen) -> None:
    corners = []
    for k in range(10):
        radius, angle = (0.54, 0.23)[k % 2], math.pi * k / 5
        corners.append((radius * math.sin(angle), 0.03 - radius * math.cos(angle)))
    pen.polygon(corners)


def _heart(pen: Pen) -> None:
    turns = [math.pi * k / 24 for k in range(48)]
    pen.polygon(
        [
            (
                0.52 * math.sin(t) ** 3,
                -0.05
                - (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                / 31,
            )
            for t in turns
        ]
    )


def _flower(pen: Pen) -> None:
    for k in range(6):
        pen.disc(0.31 * math.sin(math.pi * k / 3), -0.31 * math.cos(math.pi * k / 3), 0.2)
    pen.disc(0, 0, 0.16, pen.bright)


def _house(pen: Pen) -> None:
    pen.polygon([(-0.4, -0.08), (0.4, -0.08), (0.4, 0.48), (-0.4, 0.48)])
    pen.polygon([(0, -0.5), (0.53, -0.05), (-0.53, -0.05)], pen.shade)
    pen.polygon([(-0.24, 0.1), (-0.05, 0.1), (-0.05, 0.29), (-0.24, 0.29)], pen.bright)
    pen.polygon([(0.07, 0.12), (0.27, 0.12), (0.27, 0.48), (0.07, 0.48)], pen.bright)


def _tree(pen: Pen) -> None:
    pen.polygon([(-0.08, 0.2), (0.08, 0.2), (0.1, 0.5), (-0.1, 0.5)], BARK)
    for x in (-0.2, 0.2):
        pen.disc(x, 0.02, 0.22)
        pen.disc(0.6 * x, -0.2, 0.2)
    pen.disc(0, -0.28, 0.22)
    pen.disc(0, 0.02, 0.24)


def _boat(pen: Pen) -> None:
    pen.polygon([(-0.03, -0.5), (0.02, -0.5), (0.02, 0.2), (-0.03, 0.2)], BARK)
    pen.polygon([(0.05, -0.46), (0.42, 0.12), (0.05, 0.12)])
    pen.polygon([(-0.06, -0.32), (-0.06, 0.12), (-0.36, 0.12)], pen.tint)
    pen.polygon([(-0.52, 0.2), (0.52, 0.2), (0.34, 0.46), (-0.34, 0.46)])


def _fish(pen: Pen) -> None:
    turns = [math.pi * k / 20 for k in range(40)]
    pen.polygon([(0.2, 0.0), (0.52, -0.26), (0.45, 0.0), (0.52, 0.26)], pen.shade)
    pen.polygon([(0.42 * math.cos(t) - 0.1, 0.28 * math.sin(t)) for t in turns])
    pen.polygon([(-0.06, 0.02), (0.14, -0.08), (0.14, 0.14)], pen.shade)
    pen.disc(-0.32, -0.06, 0.065, pen.bright)
    pen.disc(-0.33, -0.06, 0.033, pen.main if pen.bright == INK else INK)


FIGURES: dict[str, Callable[[Pen], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "flower": _flower,
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "fish": _fish,
}


def _plain(surface: ImageDraw.ImageDraw, side: int, phase: float, ink: Color) -> None:
    """No pattern."""


def _striped(surface: ImageDraw.ImageDraw, side: int, phase: float, ink: Color) -> None:
    step = side / 8
    slant = (-side, 0, side)[int(phase * 997) % 3]
    for k in range(-9, 18):
        left, right = (k + phase) * step, (k + phase + 0.38) * step
        corners = [(left, 0), (right, 0), (right + slant, side), (left + slant, side)]
        surface.polygon(corners, fill=(*ink, 120))


def _dotted(surface: ImageDraw.ImageDraw, side: int, phase: float, ink: Color) -> None:
    step = side / 8
    for row in range(-1, 9):
        for column in range(-1, 9):
            x, y = (column + phase + (row % 2) / 2) * step, (row + phase) * step
            surface.ellipse((x, y, x + 0.31 * step, y + 0.31 * step), fill=(*ink, 120))


def _checked(surface: ImageDraw.ImageDraw, side: int, phase: float, ink: Color) -> None:
    step = side / 8
    for row in range(-1, 9):
        for column in range(-2 + row % 2, 9, 2):
            x, y = (column + phase) * step, (row + phase) * step
            surface.rectangle((x, y, x + step - 1, y + step - 1), fill=(*ink, 75))


_PATTERNS = {"plain": _plain, "striped": _striped, "dotted": _dotted, "checked": _checked}
BACKGROUNDS = tuple(_PATTERNS)


def draw_ground(side: int, *, ground: int, background: str, phase: float) -> Image.Image:
    """Draw a background with a slight vertical gradient.

    Args:
        side: pixels.
        ground: index into GROUNDS.
        background: one of BACKGROUNDS.
        phase: 0 to 1; shifts the pattern, and selects the slant of stripes.

    Returns:
        an RGB image.
    """
    light, dark = GROUNDS[ground]
    image = Image.new("RGB", (1, side))  # one column, then resized: faster than blending the whole
    for row in range(side):
        image.putpixel((0, row), _mix(light, dark, 0.45 * row / side))
    image = image.resize((side, side), Image.Resampling.NEAREST)
    _PATTERNS[background](ImageDraw.Draw(image, "RGBA"), side, phase, _mix(dark, (0, 0, 0), 0.22))
    return image


def draw_figure(
    image: Image.Image,
    *,
    shape: str,
    color: str,
    x: float,
    y: float,
    side: float,
    tilt: float = 0.0,
    mirrored: bool = False,
) -> None:
    """Draw one figure with its shadow onto an image.

    Args:
        image: changed in place; RGB.
        shape: one of FIGURES.
        color: one of COLORS.
        x: center, as a fraction of the image's width.
        y: center, as a fraction of the image's height.
        side: side of the figure's box, as a fraction of the image's width.
        tilt: clockwise rotation, degrees.
        mirrored: left and right swapped.
    """
    surface = ImageDraw.Draw(image, "RGBA")
    pixels = image.width
    for offset, shadow in ((0.012, (40, 40, 50, 90)), (0.0, None)):
        pen = Pen(
            surface=surface,
            x=(x + offset) * pixels,
            y=(y + 1.5 * offset) * pixels,
            side=side * pixels,
            tilt=tilt,
            mirrored=mirrored,
            color=COLORS[color],
            shadow=shadow,
        )
        FIGURES[shape](pen)


def draw_mask(
    size: int,
    *,
    shape: str,
    x: float,
    y: float,
    side: float,
    tilt: float = 0.0,
    mirrored: bool = False,
) -> Image.Image:
    """Draw where a figure is, without its shadow.

    Args:
        size: side of the image in pixels.
        shape, x, y, side, tilt, mirrored: as for ``draw_figure``.

    Returns:
        an image of mode "L", 255 inside the figure, less at its edges.
    """
    pixels = size * OVERSAMPLING
    image = Image.new("RGB", (pixels, pixels))
    pen = Pen(
        surface=ImageDraw.Draw(image, "RGBA"),
        x=x * pixels,
        y=y * pixels,
        side=side * pixels,
        tilt=tilt,
        mirrored=mirrored,
        color=COLORS["white"],
        shadow=(255, 255, 255, 255),  # all parts in one color
    )
    FIGURES[shape](pen)
    return image.reduce(OVERSAMPLING).convert("L")
