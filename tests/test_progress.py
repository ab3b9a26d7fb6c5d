"""Bars are for terminals alone, and change nothing about the items."""

import io
import sys

import pytest

from captioner.progress import shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("terminal", "wanted"), [(False, True), (True, False), (True, True)])
def test_a_bar_is_drawn_only_where_it_is_wanted_and_seen(terminal, wanted, monkeypatch) -> None:
    written = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("TERM", "xterm")
    assert list(shown(range(7), "counting", wanted=wanted)) == list(range(7))
    assert ("counting" in written.getvalue()) == (terminal and wanted)
