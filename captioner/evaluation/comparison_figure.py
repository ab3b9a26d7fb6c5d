"""A comparison as a figure: one panel for each metric, with each system's score and interval.

It needs matplotlib: ``pip install 'captioner[figures]'``. The colors are Okabe and Ito's, which
color-blind people can tell apart.
"""

from __future__ import annotations

import io
import math
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.evaluation.comparison import (
    HIGHER,
    LOWER,
    TOO_FEW,
    UNDECIDED,
    Comparison,
    Row,
)
from captioner.evaluation.fonts import describe_missing, find_font, visible_letters
from captioner.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".svg", ".png")
PANEL, ROW, COLUMNS = 2.5, 0.45, 4  # inches of a panel's width and a row's height; panels in a row
HEAD, LINE = 0.85, 0.2  # inches: title and axis of a panel; a line of the caption
TITLE, TEXT, SMALL = 11, 9, 8  # points
INK, GREY, GRID, RED = "#18181b", "#71717a", "#e4e4e7", "#b91c1c"
COLORS: dict[str | None, str] = {
    **{None: INK, HIGHER: "#0072b2", LOWER: "#d55e00"},
    **{UNDECIDED: "#8a8a93", TOO_FEW: "#8a8a93"},
}
FONT = "DejaVu Sans"  # comes with matplotlib
_WIDEST = 24  # characters in a line of a name


def require_matplotlib(option: str) -> None:
    """Raise a ValueError that says how to install matplotlib, if it is missing."""
    if find_spec("matplotlib") is None:
        raise ValueError(f"{option} needs matplotlib: pip install 'captioner[figures]'")


def drawing(file: str | Path) -> Callable[[Comparison, Path], Path]:
    """A function that draws a comparison into a file of this kind.

    Raises:
        ValueError: neither .svg nor .png, or matplotlib is not installed.
    """
    kind = Path(file).suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"figure={str(file)!r} is not a known kind of file; name it .svg or .png")
    require_matplotlib(f"figure={str(file)!r}")

    def draw(comparison: Comparison, path: Path) -> Path:
        return write_whole(path, figure(comparison, kind))

    return draw


def figure(comparison: Comparison, kind: str = ".svg") -> bytes:
    """Draw every metric that has intervals.

    Args:
        comparison: of one or more systems.
        kind: one of KINDS; an SVG has its letters as text.

    Returns:
        the content of the file.

    Raises:
        ValueError: no metric has intervals.
    """
    from matplotlib import rc_context

    panels = _panels(comparison)
    if not panels:
        raise ValueError("no metric of this comparison has intervals, so there is nothing to draw")
    settings: Any = {
        **{"font.family": _families(_texts(comparison)), "font.size": TEXT},
        **{"svg.fonttype": "none", "svg.hashsalt": "captioner", "text.parse_math": False},
    }
    file = io.BytesIO()
    with rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about missing letters, see `missing_letters`
        metadata = {"Date": None} if kind == ".svg" else None
        _drawn(comparison, panels).savefig(file, format=kind[1:], dpi=200, metadata=metadata)
    return file.getvalue()


def missing_letters(comparison: Comparison, file: str | Path) -> str | None:
    """A line about letters that the figure shows as boxes; None if there are none.

    An SVG has its letters as text, which are drawn with the fonts of the viewer.
    """
    if Path(file).suffix.lower() == ".svg":
        return None
    from matplotlib.font_manager import findfont
    from PIL import ImageFont

    return describe_missing(_texts(comparison), ImageFont.truetype(findfont(FONT), TEXT))


def _texts(comparison: Comparison) -> list[str]:
    return [comparison.title, *comparison.systems, *comparison.warnings]


def _families(texts: Sequence[str]) -> list[str]:
    """Matplotlib's own font, then fonts of this machine for letters that it does not have."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    known, families = get_font(findfont(FONT)).get_charmap(), [FONT]
    for text in texts:
        missing = "".join(letter for letter in visible_letters([text]) if ord(letter) not in known)
        file = find_font(missing)
        if file is not None:
            fontManager.addfont(str(file))
            families.append(FontProperties(fname=str(file)).get_name())
    return list(dict.fromkeys(families))


# Drawing --------------------------------------------------------------------------------------


def _panels(comparison: Comparison) -> list[list[Row]]:
    """The rows with intervals, by metric."""
    panels: dict[str, list[Row]] = {}
    for row in comparison.rows:
        if row.interval is not None:
            panels.setdefault(row.metric, []).append(row)
    return list(panels.values())


def _drawn(comparison: Comparison, panels: Sequence[Sequence[Row]]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = list(comparison.systems)
    lines = math.ceil(len(panels) / COLUMNS)
    columns = math.ceil(len(panels) / lines)
    width = 2.2 + PANEL * columns
    foot = _foot(comparison, int(width / (0.56 * TEXT / 72)))
    height = lines * (HEAD + ROW * len(names)) + LINE * (len(foot) + 1)
    bottom = LINE * (len(foot) + 1) / height
    layout = ConstrainedLayoutEngine(rect=(0, bottom, 1, 1 - bottom), w_pad=0.1, h_pad=0.1)
    sheet = Figure(figsize=(width, height), layout=layout)
    all_axes = sheet.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axes, rows in zip(all_axes, panels):
        _draw_panel(axes, rows, names)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    for place, (text, color) in enumerate(foot):
        y = bottom - LINE * (place + 0.9) / height
        sheet.text(0.1 / width, y, text, color=color, fontsize=TEXT)
    return sheet


def _draw_panel(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(rows[0].metric, loc="left", fontsize=TITLE, color=INK)
    axes.set_xlim(*_limits(rows))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.set_yticks(range(len(names)), [_shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.65)  # the baseline is on top, with space for its number
    axes.tick_params(length=0, labelcolor=INK)
    axes.tick_params(axis="x", labelcolor=GREY, labelsize=SMALL)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)
    if len(rows) > 1:
        axes.axvline(rows[0].score, color=GREY, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
    if not any(_values(rows)):
        axes.set_xticks([0])  # the other end of the axis is arbitrary
        axes.text(0.5, 0.5, "all 0", transform=axes.transAxes, ha="center", color=GREY)
    for row in rows:
        _draw_row(axes, row, names.index(row.system))


def _draw_row(axes: Axes, row: Row, y: float) -> None:
    color = COLORS[row.difference.verdict if row.difference else None]
    low, high = row.interval or (row.score, row.score)
    axes.plot([low, high], [y, y], color=color, linewidth=1.6, marker="|", markersize=7, zorder=2)
    axes.plot(row.score, y, "o", color=color, markersize=6, markeredgecolor="white", zorder=3)
    if len(row.seeds) > 1:
        below = [y + 0.22] * len(row.seeds)
        axes.plot(row.seeds, below, "o", markersize=3, markerfacecolor="white", color=color)
    axes.annotate(
        f"{row.score:.2f}",
        (row.score, y),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=SMALL,
        color=color,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # no line crosses a number
        zorder=4,
    )


def _values(rows: Sequence[Row]) -> list[float]:
    """All values in a panel."""
    return [value for row in rows for value in (*(row.interval or ()), row.score, *row.seeds)]


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """The ends of an axis, with a margin; no score is below 0."""
    low, high = min(_values(rows)), max(_values(rows))
    room = 0.1 * (high - low) or max(1.0, 0.1 * high)
    low = low - room if low > room else -0.04 * (high + room)  # a dot at 0 is not cut off
    return low, high + room


# Texts ----------------------------------------------------------------------------------------


def _foot(comparison: Comparison, letters: int) -> list[tuple[str, str]]:
    """Lines below the panels and their colors."""
    text = f"{comparison.title}; dots and whiskers: scores and 95 % intervals over images"
    if any(len(row.seeds) > 1 for row in comparison.rows):
        text += "; rings: training seeds"
    if comparison.tests:
        text += f"; dashed: {comparison.baseline}; colors: differences to it, tested"
    texts = [(f"WARNING: {warning}", RED) for warning in comparison.warnings] + [(text, GREY)]
    lines = [(line, color) for text, color in texts for line in textwrap.wrap(text, letters)]
    verdicts = [row.difference.verdict for row in comparison.rows if row.difference]
    for verdict in (HIGHER, LOWER, UNDECIDED, TOO_FEW):
        if verdict in verdicts:
            lines.append((f"● {verdict} ({verdicts.count(verdict)})", COLORS[verdict]))
    return lines


def _shortened(name: str) -> str:
    """A name in at most two lines; of a longer one the middle is left out, since ends differ."""
    lines = _lines(name)
    if len(lines) > 2:
        head, tail = _lines(name)[0], _lines(name[::-1])[0][::-1]
        lines = [head, f"…{tail[1:]}"]
    return "\n".join(lines)


def _lines(name: str) -> list[str]:
    lines, width = [""], 0
    for letter in name:
        width += _width(letter)
        if width > _WIDEST:
            lines.append("")
            width = _width(letter)
        lines[-1] += letter
    return lines


def _width(letters: Iterable[str]) -> int:
    """The width of letters in columns: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in letters)
