"""The progress bar of all verbs, on standard error, if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    description: str, total: int, *, unit: str = "images", wanted: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a bar with the count, the speed and the remaining time, until the block ends.

    Args:
        description: the text before the bar.
        total: the final count.
        unit: of the count, for the speed.
        wanted: whether to show it; it is never shown if standard error is not a terminal.

    Yields:
        a function to call, from any thread, with the number of items done since its last call.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    # Text that is printed meanwhile appears above the bar, through standard error; so it must not
    # be redirected if standard output is a file or a pipe.
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[speed]}"),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (wanted and console.is_terminal),
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar:
        task = bar.add_task(description, total=total, speed="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            bar.update(task, speed=f"{speed:.0f} {unit}/s" if speed else "")

        yield advance
