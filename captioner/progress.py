"""A progress bar over work that is taken item by item."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def shown(items: Iterable[Item], what: str, *, wanted: bool = True) -> Iterable[Item]:
    """The items, with a bar on standard error that goes when they are done.

    Args:
        items: with a length, which the bar goes up to.
        what: said before the bar.
        wanted: False gives the items as they are, and so does a standard error that is no terminal.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        return items
    return track(items, description=what, console=console, transient=True)
