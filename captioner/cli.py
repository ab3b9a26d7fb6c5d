"""The command line: finds the verb and runs it; each verb is a module of ``captioner.verbs``.

Exit status: 0 done; 1 something could not be done, and standard error says what in one line; 2 the
command line itself is wrong; 130 interrupted or told to end (SIGTERM); 141 nobody reads the output.
Nothing that a verb raises becomes a traceback, unless CAPTIONER_TRACEBACK=1 asks for it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from captioner import __version__
from captioner.process import (
    bound_caches,
    bound_spinning,
    keep_memory,
    logs_on_stderr,
    print_any_name,
)
from captioner.verbs import VERBS
from captioner.verbs.failures import TRACEBACK, explain
from captioner.verbs.terminal import Parser, fail, warn

__all__ = ["VERBS", "main"]

EXAMPLES = """\
examples:
  captioner train experiment=demo                      train on the embedded data set
  captioner evaluate runs/demo data.split=test         score a run
  captioner compare runs/lstm runs/gru                 is one better, and how sure is that
  captioner caption photo.jpg                          caption a photograph by the bundled model
  captioner caption photo.jpg --model runs/nic         or by one of your own
  captioner models                                     which models there are
  captioner cache                                      which features are kept on disk
  captioner data stats data=flickr8k data.root=~/flickr8k

`captioner VERB --help` tells more of each. CAPTIONER_TRACEBACK=1 shows where an error arose.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        from captioner.verbs.candidates import complete

        complete(_top_parser())
    bound_caches()
    bound_spinning()
    keep_memory()
    print_any_name()
    try:
        with _ended_like_an_interrupt(), _plain_warnings(), logs_on_stderr(), _all_written():
            if arguments and arguments[0] in VERBS:
                verb = importlib.import_module(f"captioner.verbs.{arguments[0]}")
                return int(verb.run(arguments[1:]))
            _top_parser().parse_args(arguments or ["--help"])
            return 0
    except KeyboardInterrupt as error:
        return fail(str(error) or "interrupted", 130)
    except BrokenPipeError:
        return _output_closed()
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        return fail(explain(error))


@contextmanager
def _ended_like_an_interrupt() -> Iterator[None]:
    """SIGTERM, by which schedulers and ``kill`` end a process, unwinds it as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*unused: object) -> None:
        raise KeyboardInterrupt("terminated (SIGTERM)")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings are lines for people; from Python they stay warnings, with the place they are of."""

    def show(message: Warning | str, *unused: Any, **also: Any) -> None:
        warn(str(message))

    before = warnings.showwarning
    if not os.environ.get(TRACEBACK):
        warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


@contextmanager
def _all_written() -> Iterator[None]:
    """Write out what was printed: that its reader has gone, or the disk is full, is told here."""
    try:
        yield
    except SystemExit:  # as --help leaves
        _flush()
        raise
    _flush()


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
        raise


def _output_closed() -> int:
    """End quietly where the reader of the output has gone, as after ``| head``."""
    _discard_output()
    return 141


def _discard_output() -> None:
    """Let what could not be written go, for Python tries once more at its exit."""
    with suppress(OSError, ValueError):  # there is no file beneath it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _top_parser() -> Parser:
    lines = "\n".join(f"  {verb:<12}{text}" for verb, text in VERBS.items())
    parser = Parser(
        prog="captioner",
        usage="captioner VERB ...",
        description=f"Image captioning that can be read like a textbook.\n\nverbs:\n{lines}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"captioner {__version__}")
    parser.add_argument("verb", choices=list(VERBS), metavar="VERB", help=argparse.SUPPRESS)
    return parser
