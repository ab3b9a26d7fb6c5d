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
"""Lines of cells, the header first; numbers are right-aligned."""

_LEFT = ("metric", "system", "verdict")


def as_text(comparison: Comparison, *, width: int | None = None) -> str:
    """The comparison for a terminal.

    Args:
        comparison: the content.
        width: of the terminal in columns; a wider table is split into several. None splits none.
    """
    text_width = min(WIDTH, width or WIDTH)
    parts = _wrapped("WARNING: ", comparison.warnings, text_width)
    parts += [*_wrapped("", [title(comparison)], text_width), ""]
    for name, table in tables(comparison).items():
        parts += [f"{name}:"] if name else []
        for narrow in _split_columns(table, width):
            parts += [*_aligned(narrow), ""]
    return "\n".join(parts + _wrapped("- ", explanations(comparison), text_width)) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """The comparison for a README or a pull request."""
    parts = [f"> **Warning:** {warning}\n" for warning in comparison.warnings]
    parts += [title(comparison), ""]
    for name, table in tables(comparison).items():
        head, *body = [[cell.replace("|", "\\|") for cell in line] for line in table]
        rules = ["---" if cell in _LEFT else "---:" for cell in head]
        lines = [f"| {' | '.join(line)} |" for line in (head, rules, *body)]
        parts += [*([f"{name}:", ""] if name else []), *lines, ""]
    return "\n".join(parts + [f"- {line}" for line in explanations(comparison)]) + "\n"


def as_json(comparison: Comparison) -> str:
    """All numbers of the comparison."""
    return to_json(comparison.as_dict(), indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Comparison], str]] = MappingProxyType(
    {"text": as_text, "markdown": as_markdown, "json": as_json}
)


# Content --------------------------------------------------------------------------------------


def title(comparison: Comparison) -> str:
    """What was compared, in one line."""
    against = f"; differences from {comparison.baseline}" if comparison.tests else ""
    return f"{comparison.title}{against}"


def tables(comparison: Comparison, *, repeat: bool = False) -> dict[str, Table]:
    """Title -> table: the scores, and with several seeds the scores over seeds.

    Args:
        comparison: the content.
        repeat: whether every line has the name of its metric, instead of the first one of each.
    """
    titled = {"": _table(comparison.rows, _score_cells, repeat)}
    if any(len(row.seeds) > 1 for row in comparison.rows):
        titled["Over training seeds"] = _table(comparison.rows, _seed_cells, repeat)
    return titled


def _score_cells(row: Row) -> dict[str, str]:
    cells = {"score": f"{row.score:.2f}", "95 % interval": _interval(row.interval)}
    if row.difference is not None:
        d = row.difference
        cells |= {
            "difference": f"{d.value:+.2f}",
            "interval of difference": _interval(d.interval, sign="+"),
            "p": _p(d.corrected["randomised"]),
            "p bootstrap": _p(d.corrected["bootstrap"]),
            "p seeds": "" if d.p_seeds is None else _p(d.corrected["deciding"]),
            "minimum significant difference": "" if d.shown_from is None else f"{d.shown_from:.2f}",
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


def _table(
    rows: Sequence[Row], cells: Callable[[Row], dict[str, str]], repeat: bool = False
) -> Table:
    """One line for each row; empty columns are left out, and repeated metrics unless `repeat`."""
    filled = [{"metric": row.metric, "system": row.system, **cells(row)} for row in rows]
    longest = max(filled, key=len)
    head = [name for name in longest if any(line.get(name) for line in filled)]
    lines, above = [head], ""
    for line in filled:
        metric = line["metric"]
        line["metric"] = metric if repeat or metric != above else ""
        lines.append([line.get(name, "") for name in head])
        above = metric
    return lines


def explanations(comparison: Comparison) -> list[str]:
    """How to read the table, and what it was computed from."""
    lines = [f"95 % intervals over images by {comparison.resamples} bootstrap resamples"]
    if comparison.tests:
        lines.append(
            f"p, of approximate randomization over images, decides the verdict (below {ALPHA}); "
            "if both systems have seeds, p seeds decides it, over images and seeds; every p is "
            f"corrected by Holm over the {comparison.tests} differences of the table"
        )
    if any(row.difference and row.difference.shown_from is not None for row in comparison.rows):
        lines.append(
            "minimum significant difference: a difference of about this size would have been "
            "significant; a smaller one may still exist"
        )
    return [*lines, *comparison.notes, *_signatures(comparison)]


def _signatures(comparison: Comparison) -> list[str]:
    """The signature that all systems share, or those of each."""
    if len(comparison.signatures) == 1:
        return [f"signature {comparison.signature}"]
    signatures = comparison.signatures.items()
    return [f"signature of {', '.join(names)}: {signature}" for signature, names in signatures]


# Layout --------------------------------------------------------------------------------------


def _interval(value: tuple[float, float] | None, sign: str = "") -> str:
    return "" if value is None else f"[{value[0]:{sign}.2f}, {value[1]:{sign}.2f}]"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _widths(table: Table) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*table)]


def _split_columns(table: Table, width: int | None) -> list[Table]:
    """Tables that fit into a width, each with the names of its rows."""
    widths, names = _widths(table), range(2)  # columns: metric and system
    parts: list[list[int]] = [[]]
    for column in range(len(names), len(widths)):
        columns = [*names, *parts[-1], column]
        if parts[-1] and width and sum(widths[n] + 2 for n in columns) - 2 > width:
            parts.append([])
        parts[-1].append(column)
    return [[[line[n] for n in (*names, *part)] for line in table] for part in parts]


def _aligned(table: Table) -> list[str]:
    head, widths = table[0], _widths(table)
    lines = []
    for line in table:
        cells = []
        for cell, width, name in zip(line, widths, head):
            blank = " " * (width - cell_len(cell))  # a Chinese character takes two columns
            cells.append(cell + blank if name in _LEFT else blank + cell)
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "-" * max(map(cell_len, lines)), *lines[1:]]


def _wrapped(mark: str, texts: Sequence[str], width: int) -> list[str]:
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
