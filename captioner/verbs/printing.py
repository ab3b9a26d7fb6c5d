"""Tables for a terminal, and tab-separated rows for other programs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def print_rows(
    rows: Sequence[Sequence[str]],
    headings: Sequence[str] = (),
    *,
    right: Collection[int] = (),
    console: Console | None = None,
) -> None:
    """Print rows of cells.

    On a terminal they are a table that fits its width, with long cells folded. Otherwise each row
    is a line of cells separated by tabs, headings first, without colors.

    Args:
        rows: with the same number of cells each.
        headings: of the columns; empty for none.
        right: the indices of columns that are right-aligned and never folded.
        console: to print to; None is standard output.
    """
    from rich.console import Console

    console = console or Console()
    if not console.is_terminal:
        for row in [headings, *rows] if headings else rows:
            line = "\t".join(" ".join(cell.replace("\n", ", ").split()) for cell in row)
            print(line, file=console.file)  # rich would replace tabs by blanks
        return
    _print_table(rows, headings, right, console)


def _print_table(
    rows: Sequence[Sequence[str]],
    headings: Sequence[str],
    right: Collection[int],
    console: Console,
) -> None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_header=bool(headings))
    for column, heading in enumerate(headings or rows[0] if rows else ()):
        number = column in right
        name = Text(heading) if headings else ""
        table.add_column(
            name, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
