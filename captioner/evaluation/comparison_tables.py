"""A comparison as text for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from rich.cells import cell_len

from captioner.evaluation.comparison import Comparison, Row
from captioner.files import to_json
from captioner.metrics.significance import ALPHA

WIDTH = 100

Table = list[list[str]]
"""Lines of cells, the first line being the header; cells of numbers are set to the right."""

_LEFT = ("metric", "system", "verdict")


def as_text(comparison: Comparison, *, width: int | None = None) -> str:
    """The comparison for a terminal.

    Args:
        comparison: what is said.
        width: of the terminal in letters; a wider table is folded into several. None folds none.
    """
    across = min(WIDTH, width or WIDTH)
    parts = _lines("WARNING: ", comparison.warnings, across)
    parts += [*_lines("", [_title(comparison)], across), ""]
    for name, table in _tables(comparison).items():
        parts += [f"{name}:"] if name else []
        for part in _folded(table, width):
            parts += [*_aligned(part), ""]
    return "\n".join(parts + _lines("- ", _reading(comparison), across)) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """The comparison for a README or a pull request."""
    parts = [f"> **Warning:** {one}\n" for one in comparison.warnings]
    parts += [_title(comparison), ""]
    for name, table in _tables(comparison).items():
        head, *body = [[cell.replace("|", "\\|") for cell in line] for line in table]
        rules = ["---" if cell in _LEFT else "---:" for cell in head]
        lines = [f"| {' | '.join(line)} |" for line in (head, rules, *body)]
        parts += [*([f"{name}:", ""] if name else []), *lines, ""]
    return "\n".join(parts + [f"- {one}" for one in _reading(comparison)]) + "\n"


def as_json(comparison: Comparison) -> str:
    """All numbers of the comparison."""
    return to_json(comparison.as_dict(), indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Comparison], str]] = MappingProxyType(
    {"text": as_text, "markdown": as_markdown, "json": as_json}
)


# What is said ---------------------------------------------------------------------------------


def _title(comparison: Comparison) -> str:
    against = f"; differences to {comparison.baseline}" if comparison.tests else ""
    return f"{comparison.title}{against}"


def _tables(comparison: Comparison) -> dict[str, Table]:
    tables = {"": _table(comparison.rows, _score_cells)}
    if any(len(row.seeds) > 1 for row in comparison.rows):
        tables["Over training seeds"] = _table(comparison.rows, _seed_cells)
    return tables


def _score_cells(row: Row) -> dict[str, str]:
    cells = {"score": f"{row.score:.2f}", "95 % interval": _interval(row.interval)}
    if row.difference is not None:
        d = row.difference
        cells |= {
            "difference": f"{d.value:+.2f}",
            "its 95 % interval": _interval(d.interval, sign="+"),
            "p": _p(d.corrected["randomised"]),
            "p bootstrap": _p(d.corrected["bootstrap"]),
            "p seeds": "" if d.p_seeds is None else _p(d.corrected["deciding"]),
            "shown from": "" if d.shown_from is None else f"{d.shown_from:.2f}",
            "verdict": d.verdict,
        }
    return cells


def _seed_cells(row: Row) -> dict[str, str]:
    cells = {"seeds": str(len(row.seeds)), "mean": f"{row.score:.2f}"}
    if row.deviation is not None:
        spread = f"{min(row.seeds):.2f} to {max(row.seeds):.2f}"
        cells |= {"sd": f"{row.deviation:.2f}", "range": spread}
    if row.difference is not None and row.difference.interval_seeds is not None:
        interval = _interval(row.difference.interval_seeds, sign="+")
        cells |= {"difference": f"{row.difference.value:+.2f}", "over images and seeds": interval}
    return cells


def _table(rows: Sequence[Row], cells: Callable[[Row], dict[str, str]]) -> Table:
    """A line a row, the metric's name only in its first; columns that no row fills are left out."""
    found = [{"metric": row.metric, "system": row.system, **cells(row)} for row in rows]
    longest = max(found, key=len)
    head = [name for name in longest if any(line.get(name) for line in found)]
    lines, above = [head], ""
    for line in found:
        metric, line["metric"] = line["metric"], line["metric"] if line["metric"] != above else ""
        lines.append([line.get(name, "") for name in head])
        above = metric
    return lines


def _reading(comparison: Comparison) -> list[str]:
    """How to read the table, then what it was made of."""
    said = [f"95 % intervals over images by {comparison.resamples} bootstrap resamples"]
    if comparison.tests:
        said += [
            f"p, of approximate randomisation over images, decides the verdict (below {ALPHA}); "
            "where both systems have seeds, p seeds does, over images and seeds; every p is "
            f"corrected by Holm over the {comparison.tests} differences of the table",
        ]
    if any(row.difference and row.difference.shown_from is not None for row in comparison.rows):
        said.append(
            "shown from: a difference of about this size would surely have been called one; a "
            "smaller one may be there all the same"
        )
    return [*said, *comparison.notes, f"signature {comparison.signature}"]


# How it is set --------------------------------------------------------------------------------


def _interval(value: tuple[float, float] | None, sign: str = "") -> str:
    return "" if value is None else f"[{value[0]:{sign}.2f}, {value[1]:{sign}.2f}]"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _widths(table: Table) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*table)]


def _folded(table: Table, width: int | None) -> list[Table]:
    """A table as several that are as narrow as a terminal, each with the names of its rows."""
    widths, named = _widths(table), 2  # columns: metric and system
    parts: list[list[int]] = [[]]
    for column in range(named, len(widths)):
        shown = [*range(named), *parts[-1], column]
        if parts[-1] and width and sum(widths[n] + 2 for n in shown) - 2 > width:
            parts.append([])
        parts[-1].append(column)
    return [[[line[n] for n in (*range(named), *part)] for line in table] for part in parts]


def _aligned(table: Table) -> list[str]:
    head, widths = table[0], _widths(table)
    lines = []
    for line in table:
        cells = []
        for cell, width, name in zip(line, widths, head):
            blank = " " * (width - cell_len(cell))  # a Chinese letter is as wide as two
            cells.append(cell + blank if name in _LEFT else blank + cell)
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "-" * max(map(cell_len, lines)), *lines[1:]]


def _lines(mark: str, texts: Sequence[str], width: int) -> list[str]:
    indent = " " * len(mark)
    return [
        textwrap.fill(
            text,
            width,
            initial_indent=mark,
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
        for text in texts
    ]
