"""List and clear the feature cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.verbs.terminal import build_parser, print_json

if TYPE_CHECKING:
    from captioner.data.cache import Cached


def run(argv: Sequence[str]) -> int:
    """List the feature cache, or clear it."""
    parser = build_parser(
        "cache",
        "list (default): encoders, the number of images, and when they were last used.\n"
        "clear: remove the features, except those in use by a training. They are computed again\n"
        "       when needed.",
        "  captioner cache\n"
        "  captioner cache --format json\n"
        "  captioner cache clear --older-than 30\n"
        "  captioner cache clear --folder /data/features --yes\n",
    )
    parser.add_argument("job", nargs="?", choices=("list", "clear"), default="list")
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        help="as loader.cache_folder (default: $CAPTIONER_CACHE, or captioner/ in the system's "
        "folder for caches, on Linux $XDG_CACHE_HOME or ~/.cache)",
    )
    parser.add_argument(
        "--older-than",
        type=float,
        metavar="DAYS",
        help="clear: only features not used for this number of days",
    )
    parser.add_argument("--yes", action="store_true", help="clear: without asking")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the list")
    options = parser.parse_args(argv)

    from captioner.data.cache import cache_home

    if options.folder == "":
        raise ValueError("--folder='' is empty; give a folder, or leave it out for the default")
    home = cache_home(options.folder)
    if options.folder is not None and not home.is_dir():
        raise FileNotFoundError(f"--folder={options.folder}: no such folder")
    if options.job == "clear":
        return _clear(home, options.older_than, sure=options.yes)
    if options.older_than is not None or options.yes:
        parser.error("--older-than and --yes are options of captioner cache clear")
    return _list(home, json=options.format == "json")


def _list(home: Path, *, json: bool) -> int:
    from captioner.data.cache import cached, networks

    features = cached(home)
    if json:
        return print_json([entry.as_dict() for entry in features])
    if features:
        _print_features(features)
    print(f"{_summarize(features, networks(home))} in {home}", file=sys.stderr)
    return 0


def _print_features(features: Sequence[Cached]) -> None:
    from captioner.verbs.printing import print_rows

    headings = ("encoder", "kept", "images", "MB", "last use", "folder")
    rows = [
        [
            entry.encoder or "(of an earlier version)",
            "grid" if entry.grid else "pooled",
            f"{entry.images}",
            f"{entry.size / 1e6:.1f}",
            f"{entry.last_use:%Y-%m-%d %H:%M}",
            entry.folder.name,
        ]
        for entry in features
    ]
    print_rows(rows, headings, right=(2, 3), no_wrap=(5,))


def _clear(home: Path, days: float | None, *, sure: bool) -> int:
    from captioner.data.cache import clear, networks, old

    if days is not None and not 0 <= days <= 36_500:
        raise ValueError(f"--older-than={days:g} is not accepted; give days, 0 or more")
    unused_for = timedelta(days=days or 0)
    features, files = old(home, unused_for), networks(home, unused_for)
    if not features and not files:
        print(f"nothing to clear in {home}")
        return 0
    description = f"{_summarize(features, files)} in {home}"
    if not sure and not _confirm(description):
        return 1
    removed, busy = clear(home, unused_for=unused_for)
    for entry in busy:
        print(f"in use, kept: {entry.folder}", file=sys.stderr)
    summary = _summarize(removed, files)
    for file in files:
        file.unlink(missing_ok=True)
    print(f"cleared {summary} in {home}")
    return 0


def _confirm(description: str) -> bool:
    if not sys.stdin.isatty():
        raise ValueError(
            f"this would clear {description}; add --yes, as standard input is not a terminal"
        )
    print(f"clear {description}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was cleared", file=sys.stderr)
    return False


def _summarize(features: Sequence[Cached], networks: Sequence[Path]) -> str:
    """Number and size of features, and the size of networks if there are any."""
    encoders = "1 encoder" if len(features) == 1 else f"{len(features)} encoders"
    size = sum(entry.size for entry in features) / 1e6
    summary = f"features of {encoders}, {size:,.1f} MB" if features else "no features"
    if networks:
        size = sum(file.stat().st_size for file in networks) / 1e6
        summary += f", and networks, {size:,.1f} MB,"
    return summary
