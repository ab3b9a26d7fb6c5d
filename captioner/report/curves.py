"""Training curves: the run's CSV log as line charts in SVG.

The charts have no script and no style of their own: the page around them gives colors to their
classes. Lines also differ by their dashes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from html import escape
from io import TextIOWrapper
from pathlib import Path

from markupsafe import Markup

from captioner.files import open_regular
from captioner.runs import metric_files

Points = list[tuple[float, float]]

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40
COLUMNS = (
    "train_loss",
    "dev_loss",
    "dev_loss_shuffled",
    "dev_bleu4",
    "dev_bleu1",
    "dev_cider",
    "dev_distinct",
    "train_reward",
)


def read_log(run: Path) -> dict[str, Points]:
    """Read the CSV log of a run.

    Args:
        run: the run folder; a resumed run has one file for each start.

    Returns:
        column -> (step, value) in order; columns without a finite value are omitted; if a step was
        logged twice, its last value is used.

    Raises:
        ValueError: a file is a pipe, a device or a folder.
    """
    columns: dict[str, dict[float, float]] = {name: {} for name in COLUMNS}
    for file in metric_files(run):
        with TextIOWrapper(
            open_regular(file), encoding="utf-8", errors="replace", newline=""
        ) as lines:
            whole = (line for line in lines if line.endswith("\n"))  # not half of a last one
            for row in csv.DictReader(whole):
                step = _number(row.get("step"))
                for name, points in columns.items():
                    value = _number(row.get(name))
                    if step is not None and value is not None:
                        points[step] = value
    return {name: sorted(points.items()) for name, points in columns.items() if points}


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def line_chart(series: Mapping[str, Points], *, title: str) -> Markup:
    """Draw lines over training steps.

    Args:
        series: name -> (step, value); one or more, each with a point or more.
        title: of the chart, for screen readers.

    Returns:
        an <svg> element. The lines have the classes c0, c1, ...
    """
    all_points = [point for points in series.values() for point in points]
    x_ticks = ticks(0.0, max(step for step, _ in all_points), least=1.0)
    values = [value for _, value in all_points]
    y_ticks = ticks(min(values), max(values))

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

    def y(value: float) -> float:
        fraction = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * fraction

    parts = [f"<title>{escape(title)}</title>"]
    for tick in y_ticks:
        parts.append(_line("grid", LEFT, y(tick), WIDTH - RIGHT, y(tick)))
        parts.append(_label(LEFT - 6, y(tick) + 4, f"{tick:g}", "end"))
    for tick in x_ticks:
        anchor = "end" if tick == x_ticks[-1] else "middle"
        parts.append(_label(x(tick), HEIGHT - BOTTOM + 18, f"{tick:,.0f}", anchor))
    parts.append(_label((WIDTH + LEFT) / 2, HEIGHT - 4, "optimizer steps", "middle"))
    for index, points in enumerate(series.values()):
        places = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(f'<polyline class="c{index}" points="{places}"/>')
        if len(points) <= 40:
            dots = (f'cx="{x(step):.1f}" cy="{y(value):.1f}"' for step, value in points)
            parts += [f'<circle class="c{index}" r="2.5" {dot}/>' for dot in dots]
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="chart" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float, *, most: int = 6, least: float = 0.0) -> list[float]:
    """Round numbers that span a range: steps of 1, 2 or 5 times a power of ten.

    Args:
        low: the smallest value in the range.
        high: the largest.
        most: the largest number of ticks, 3 or more; two more if the range ends between ticks.
        least: the smallest distance between ticks, such as 1 for whole numbers.
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / (most - 1)))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most - 1)
    step = max(step, least)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 10) for n in range(first, max(last, first + 1) + 1)]


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def legend(names: Sequence[str]) -> Markup:
    """The names of a chart's lines, each with a sample of its line."""
    entries = (
        f'<li><svg viewBox="0 0 28 8" class="key" aria-hidden="true">'
        f'<polyline class="c{index}" points="0,4 28,4"/></svg>{escape(name)}</li>'
        for index, name in enumerate(names)
    )
    return Markup(f'<ul class="legend">{"".join(entries)}</ul>')
