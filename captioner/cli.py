"""The command line: runs a verb, which is a module of ``captioner.verbs``.

Exit status: 0 success; 1 failure, with one line on standard error; 2 wrong usage; 130 interrupted
or terminated (SIGTERM); 141 the reader of the output has closed it. Exceptions are printed without
a traceback, unless CAPTIONER_TRACEBACK=1 is set.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from captioner import __version__
from captioner.process import (
    freeze_torch,
    interruption_of,
    logs_on_stderr,
    print_any_name,
)
from captioner.verbs import VERBS
from captioner.verbs.failures import TRACEBACK, explain
from captioner.verbs.terminal import Parser, fail, warn

__all__ = ["VERBS", "main"]

EXAMPLES = """\
examples:
  captioner train experiment=demo                      train on the built-in dataset
  captioner evaluate runs/demo data.split=test         score a run
  captioner compare runs/lstm runs/gru                 test which one is better
  captioner caption photo.jpg                          caption a photograph with the bundled model
  captioner caption photo.jpg --model runs/nic         or with your own
  captioner models                                     list models
  captioner cache                                      list cached features
  captioner data stats data=flickr8k data.root=~/flickr8k

`captioner VERB --help` describes a verb. CAPTIONER_TRACEBACK=1 shows the traceback of an error.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        from captioner.verbs.candidates import complete

        complete(_top_parser())
    print_any_name()
    if argv is None:
        freeze_torch()
    if argv is None and sys.stdout is None:
        return fail("standard output is closed; send it to a file, or to /dev/null")
    try:
        with (
            _interruptible(exits=argv is None),
            _plain_warnings(),
            logs_on_stderr(),
            _flushed_output(),
        ):
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
        interruption = interruption_of(error)
        if interruption is not None:
            return fail(str(interruption) or "interrupted", 130)
        return fail(explain(error))


@contextmanager
def _interruptible(*, exits: bool) -> Iterator[None]:
    """Ctrl-C, and SIGTERM, which schedulers and ``kill`` send, raise KeyboardInterrupt once.

    While the command then ends, a second signal is ignored: it would interrupt the cleaning up. A
    third one ends the process at once. If a library catches the exception and goes on, or Python
    drops it because it was raised in a finalizer or a callback of the garbage collector, it is
    raised again.

    Args:
        exits: the process exits after the block, so that Ctrl-C stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    raised: list[weakref.ref[_Interruption]] = []
    ended, threads = threading.Event(), list[threading.Thread]()

    def end(number: int, _: object) -> None:
        received.append(number)
        if len(received) > 2:
            os._exit(130)
        if len(received) == 1:
            error = _Interruption(*["terminated (SIGTERM)"] * (number == signal.SIGTERM))
            raised[:] = [weakref.ref(error, caught)]
            try:
                raise error
            finally:
                del error  # it has this frame in its traceback

    def caught(_: object) -> None:  # nobody has the exception any more
        number = received[0]
        received.clear()
        # Not here: an exception of this function would be lost as well.
        thread = threading.Thread(target=again, args=(number,), daemon=True)
        thread.start()
        threads.append(thread)

    def again(number: int) -> None:  # until it is noticed: a pause may begin just after the signal
        while not (ended.wait(0.05) or received):
            os.kill(os.getpid(), number)

    def dropped(lost: sys.UnraisableHookArgs) -> None:  # others print it, or keep it for ever
        if not isinstance(lost.exc_value, _Interruption):
            hook(lost)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    hook, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    finally:
        ended.set()
        for thread in threads:  # none sends a signal later
            thread.join()
        raised.clear()  # the command has ended: the exception may go
        sys.unraisablehook = hook
        if received and exits:
            before[signal.SIGINT] = signal.SIG_IGN
        for number, handler in before.items():
            signal.signal(number, handler)


class _Interruption(KeyboardInterrupt):
    """As KeyboardInterrupt, and can be referred to weakly."""


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings as single lines; CAPTIONER_TRACEBACK=1 shows where they come from."""

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
def _flushed_output() -> Iterator[None]:
    """Flush standard output, so that a full disk or a closed pipe is an error of this command."""
    try:
        yield
    except SystemExit:  # of --help
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
    """End without a message if the reader of the output has closed it, as ``| head`` does."""
    _discard_output()
    return 141


def _discard_output() -> None:
    """Discard what could not be written, since Python tries again when it exits."""
    with suppress(OSError, ValueError):  # standard output is no file
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
