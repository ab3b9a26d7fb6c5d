"""Tables that fit the terminal, and plain lines for other programs."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from captioner.verbs.printing import FOLDED, print_rows

ROWS = [
    [
        "runs/2026-11-28_05-47-19_a_name_that_goes_on_and_on_[red]",
        "run",
        "show_tell, lstm",
        "12.34",
    ],
    ["runs/照片照片照片照片照片照片照片照片照片照片", "bundled", "attention, gru", "5.60"],
]


def printed(width: int, *, terminal: bool, no_wrap: tuple[int, ...] = ()) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    headings = ("name", "kind", "model", "dev BLEU-4")
    print_rows(ROWS, headings, right=(3,), no_wrap=no_wrap, console=console)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_folded_table_has_all_text(width: int) -> None:
    lines = printed(width, terminal=True)
    assert max(map(cell_len, lines)) <= width
    together = "".join("".join(line.split()) for line in lines)
    for part in ("照", "[red]"[0], "12.34", "5.60"):
        assert together.count(part) == "".join(map("".join, ROWS)).count(part)


def test_piped_rows_are_separated_by_tabs() -> None:
    lines = printed(20, terminal=False)
    assert lines == ["name\tkind\tmodel\tdev BLEU-4", *("\t".join(row) for row in ROWS)]


def test_a_cell_cannot_break_its_line(capsys) -> None:
    print_rows([["a\nb", "c\td"]])
    assert capsys.readouterr().out == "a, b\tc d\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_cell_cannot_control_the_terminal(terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, color_system=None)
    print_rows([["a\x1b[2Jb", "c\rd"]], console=console)
    assert "a\\x1b[2Jb" in file.getvalue() and "\x1b" not in file.getvalue()


@pytest.mark.parametrize("width", [40, 70, 80, 85, 86, 87, 88, 120])
def test_a_name_is_never_folded(width: int) -> None:
    lines = printed(width, terminal=True, no_wrap=(0,))
    for row in ROWS:
        assert sum(row[0] in line for line in lines) == 1
        assert sum(row[3] in line for line in lines) == 1
    as_list = lines[:2] == [f"name: {ROWS[0][0]}", "kind: run"]
    least = cell_len(ROWS[0][0]) + len("bundled") + FOLDED + len("dev BLEU-4") + 4
    assert as_list == (width < least)
    if not as_list:
        assert max(map(cell_len, lines)) <= width
