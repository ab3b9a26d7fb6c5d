"""Tables for a terminal, and tab-separated rows for other programs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from captioner.process import printable

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod

FOLDED = 8
"""The smallest width of a folded column, in characters."""


def print_rows(
    rows: Sequence[Sequence[str]],
    headings: Sequence[str] = (),
    *,
    right: Collection[int] = (),
    no_wrap: Collection[int] = (),
    console: Console | None = None,
) -> None:
    """Print rows of cells.

    On a terminal they are a table that fits its width, with long cells folded, or a list if it is
    too narrow for a table. Otherwise each row is a line of cells separated by tabs, headings
    first, without colors.

    Args:
        rows: with the same number of cells each.
        headings: of the columns; empty for none.
        right: the indices of columns that are right-aligned and never folded.
        no_wrap: the indices of other columns that are never folded, such as names to copy.
        console: to print to; None: standard output.
    """
    from rich.console import Console

    console = console or Console()
    rows = [[_printable_lines(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        for row in [headings, *rows] if headings else rows:
            line = "\t".join(" ".join(cell.replace("\n", ", ").split()) for cell in row)
            print(line, file=console.file)  # rich would replace tabs by blanks
        return
    unfolded = {*right, *no_wrap}
    if no_wrap and _least_width([headings, *rows], unfolded) > console.width:
        _print_list(rows, headings, console)
    else:
        _print_table(rows, headings, right, unfolded, console)


def _printable_lines(cell: str) -> str:
    return "\n".join(printable(line.replace("\t", " ")) for line in cell.split("\n"))


def _least_width(rows: Sequence[Sequence[str]], unfolded: Collection[int]) -> int:
    """The width of a table in which only words of more than FOLDED columns are broken."""
    from rich.cells import cell_len

    total = 0
    for column, cells in enumerate(zip(*(row for row in rows if row))):
        lines = [line for cell in cells for line in cell.split("\n")]
        if column in unfolded:
            total += max(map(cell_len, lines)) + 1
        else:
            words = [cell_len(word) for line in lines for word in line.split()]
            total += min(max(words, default=0), FOLDED) + 1
    return total


def _print_list(rows: Sequence[Sequence[str]], headings: Sequence[str], console: Console) -> None:
    """Print each row as lines of headings and cells, with a blank line between rows."""
    for number, row in enumerate(rows):
        if number:
            print(file=console.file)
        for heading, cell in zip(headings or [""] * len(row), row):
            if cell:
                lines = cell.replace("\n", "\n  ")
                print(f"{heading}: {lines}" if heading else lines, file=console.file)


def _print_table(
    rows: Sequence[Sequence[str]],
    headings: Sequence[str],
    right: Collection[int],
    unfolded: Collection[int],
    console: Console,
) -> None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_header=bool(headings))
    for column, heading in enumerate(headings or rows[0] if rows else ()):
        name = Text(heading) if headings else ""
        side: JustifyMethod = "right" if column in right else "left"
        table.add_column(name, justify=side, no_wrap=column in unfolded, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
