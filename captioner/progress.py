"""The progress bar of all verbs: on standard error, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    what: str, total: int, *, unit: str = "images", wanted: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a bar with the count, the speed and the remaining time, until the block ends.

    Args:
        what: the text before the bar.
        total: the final count.
        unit: of the count, for the speed.
        wanted: False: no bar; there is also none if standard error is not a terminal.

    Yields:
        a function to call with the number of items done since its last call, from any thread.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    # Text that is printed meanwhile appears above the bar, through standard error; so it must not
    # be redirected where standard output is a file or a pipe.
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (wanted and console.is_terminal),
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar:
        task = bar.add_task(what, total=total, speed="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            bar.update(task, speed=f"{speed:.0f} {unit}/s" if speed else "")

        yield advance
