"""Progress bars are shown only on terminals, and end also after an exception."""

import io
import sys

import pytest

from captioner.progress import progress_bar

SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"
"""What shows and hides a terminal's cursor."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("terminal", "wanted"), [(False, True), (True, False), (True, True)])
def test_a_bar_is_shown_only_on_a_terminal_if_wanted(terminal, wanted, monkeypatch) -> None:
    written = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("counting", 7, wanted=wanted) as advance:
        for _ in range(7):
            advance(1)
    assert ("counting" in written.getvalue()) == (terminal and wanted)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_bar_ends_with_an_exception(error, monkeypatch) -> None:
    written = Terminal()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(error), progress_bar("counting", 7) as advance:
        advance(1)
        raise error
    text = written.getvalue()
    assert text.rindex(SHOW) > text.rindex(HIDE)
    assert sys.stderr is written


@pytest.mark.parametrize("terminal", [False, True])
def test_text_printed_during_a_bar_goes_to_standard_output(terminal, monkeypatch) -> None:
    """A bar on a terminal must not redirect output that goes to a file."""
    written, output = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", written if terminal else io.StringIO())
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("counting", 7) as advance:
        advance(1)
        print("a caption")
    assert output.getvalue() == "a caption\n"
    assert "a caption" not in written.getvalue()
