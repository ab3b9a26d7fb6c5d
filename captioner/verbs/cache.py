"""List and clear the feature cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.verbs.terminal import parser_of, print_json

if TYPE_CHECKING:
    from captioner.data.cache import Cached


def run(argv: Sequence[str]) -> int:
    """List the feature cache, or clear it."""
    parser = parser_of(
        "cache",
        "list (or nothing): whose features are kept, of how many images, and when they were used.\n"
        "clear: remove them; what a training reads or writes at the time is left. They are\n"
        "       computed anew where they are needed.",
        "  captioner cache\n"
        "  captioner cache --format json\n"
        "  captioner cache clear --older-than 30\n"
        "  captioner cache clear --folder /data/features --yes\n",
    )
    parser.add_argument("job", nargs="?", choices=("list", "clear"), default="list")
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        help="as loader.cache_folder (default: $CAPTIONER_CACHE, or captioner/ in $XDG_CACHE_HOME "
        "or ~/.cache)",
    )
    parser.add_argument(
        "--older-than", type=float, metavar="DAYS", help="clear: only what was not used in so long"
    )
    parser.add_argument("--yes", action="store_true", help="clear: do not ask")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the list")
    options = parser.parse_args(argv)

    from captioner.data.cache import cache_home

    home = cache_home(options.folder)
    if options.job == "clear":
        return _clear(home, options.older_than, sure=options.yes)
    if options.older_than is not None or options.yes:
        parser.error("--older-than and --yes are of captioner cache clear")
    return _list(home, json=options.format == "json")


def _list(home: Path, *, json: bool) -> int:
    from captioner.data.cache import cached

    found = cached(home)
    if json:
        return print_json([one.as_dict() for one in found])
    if found:
        _print(found)
    print(f"{_megabytes(found) if found else 'no features'} in {home}", file=sys.stderr)
    return 0


def _print(found: Sequence[Cached]) -> None:
    from captioner.verbs.printing import print_rows

    headings = ("encoder", "kept", "images", "MB", "last use", "folder")
    rows = [
        [
            one.encoder or "(of an earlier version)",
            "grid" if one.grid else "pooled",
            f"{one.images}",
            f"{one.size / 1e6:.1f}",
            f"{one.last_use:%Y-%m-%d %H:%M}",
            one.folder.name,
        ]
        for one in found
    ]
    print_rows(rows, headings, right=(2, 3))


def _clear(home: Path, days: float | None, *, sure: bool) -> int:
    from captioner.data.cache import clear, old

    if days is not None and not 0 <= days <= 36_500:
        raise ValueError(f"--older-than={days:g} is not accepted; give days, 0 or more")
    unused_for = timedelta(days=days or 0)
    found = old(home, unused_for)
    if not found:
        print(f"nothing to clear in {home}")
        return 0
    what = f"{_megabytes(found)} in {home}"
    if not sure and not _agreed(what):
        return 1
    removed, busy = clear(home, unused_for=unused_for)
    for one in busy:
        print(f"in use, left: {one.folder}", file=sys.stderr)
    print(f"cleared {_megabytes(removed)} in {home}")
    return 0


def _agreed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise ValueError(f"this would clear {what}; say --yes, for nobody can be asked here")
    print(f"clear {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was cleared", file=sys.stderr)
    return False


def _megabytes(found: Sequence[Cached]) -> str:
    encoders = "1 encoder" if len(found) == 1 else f"{len(found)} encoders"
    return f"features of {encoders}, {sum(one.size for one in found) / 1e6:,.1f} MB"
