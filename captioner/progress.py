"""A progress bar on standard error, where that is a terminal; it ends however the work ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, total: int, *, wanted: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs, and take it away at its end, also after an exception.

    Args:
        what: said before the bar.
        total: what it goes up to.
        wanted: False shows none, as does a standard error that is no terminal.

    Yields:
        what to call with the number of items done since the last call.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    # What is printed meanwhile goes above the bar, by way of standard error: so it must not where
    # standard output is a file or a pipe.
    bar = Progress(
        console=console,
        transient=True,
        disable=not (wanted and console.is_terminal),
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
