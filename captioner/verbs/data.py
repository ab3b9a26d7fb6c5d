"""Draw, describe and check datasets."""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from captioner.process import printable
from captioner.verbs.terminal import add_config_dir, build_parser, print_json, short

if TYPE_CHECKING:
    from rich.console import Console

    from captioner.data.check import Report

LISTED_NAMES = 20
"""Names of each kind in the printed report; JSON has all of them."""


USED = ("data", "tokenizer", "loader", "decoding", "seed")
"""The groups and values of a configuration that this verb uses."""


def run(argv: Sequence[str]) -> int:
    """Draw, describe and check datasets."""
    options = _parser().parse_intermixed_args(argv)

    from captioner.config import compose

    config = compose(options.overrides, config_dir=options.config_dir)
    for line in options.overrides:
        group = re.split(r"[.=@]", line.lstrip("+~"), maxsplit=1)[0]
        if group in config and group not in USED:
            raise ValueError(f"{line}: changes nothing in a dataset; give {', '.join(USED)}")
    if options.job == "draw":
        seed = config["seed"] if any(o.startswith("seed=") for o in options.overrides) else 0
        return _draw(config, seed)
    return _describe(config, options.job, as_json=options.format == "json")


def _draw(config: Mapping[str, Any], seed: int) -> int:
    from captioner.data import shapes, worlds

    drawing: dict[str, Any] = {"shapes": shapes.draw, "worlds": worlds.draw}
    kind = config["data"]["format"]
    if kind not in drawing:
        raise ValueError(f"only data=shapes and data=worlds are drawn, not {kind!r}")
    root = Path(os.path.expanduser(config["data"]["root"]))
    print(f"wrote {short(drawing[kind](root, seed=seed))}")
    return 0


def _describe(config: Mapping[str, Any], job: str, *, as_json: bool) -> int:
    from captioner.config import make
    from captioner.data.check import check
    from captioner.data.fit_warnings import fit_warnings
    from captioner.data.read import read_records
    from captioner.data.readers import SCENES
    from captioner.data.statistics import statistics

    data = dict(config["data"])
    if data["format"] in ("shapes", "worlds") and data.get("captions") is None:
        data["captions"] = SCENES  # a named file is not drawn if it is missing
    dataset = make(read_records, "data", data)
    fit = (
        config["tokenizer"]["name"],
        config["loader"]["max_words"],
        config["decoding"]["max_length"],
    )
    if job == "stats":
        numbers = statistics(dataset, *fit)
        print_json(numbers) if as_json else print_statistics(numbers)
        return 0
    report = check(dataset, fit_warnings=fit_warnings(dataset, *fit))
    print_json(report.as_dict()) if as_json else print_report(report)
    return 0 if report.sound else 1


def print_statistics(numbers: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the statistics of a dataset.

    Args:
        numbers: the result of `captioner.data.statistics.statistics`.
        console: None: standard output.
    """
    from rich.console import Console

    from captioner.verbs.printing import print_rows

    console = console or Console()
    rows = [(label, *cells) for label, cells in _statistics_rows(numbers)]
    headings = (f"words by the {numbers['tokenizer']} tokenizer", *numbers["splits"])
    print_rows(rows, headings, console=console)
    _print_reader_warnings(numbers["oddities"], console)
    _print_fit_warnings(numbers["warnings"], console)


def _statistics_rows(numbers: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    splits = numbers["splits"]
    for key in ("images", "captions", "repeated_captions"):
        yield key.replace("_", " "), [f"{split[key]:,}" for split in splits.values()]
    for key in ("captions_per_image", "words_per_caption"):
        names = next(iter(splits.values()))[key] if splits else {}
        label = f"{key.replace('_', ' ')} ({', '.join(names)})"
        yield (
            label,
            [", ".join(f"{n:.4g}" for n in split[key].values()) for split in splits.values()],
        )
    yield "different words", [f"{split['vocabulary']:,}" for split in splits.values()]
    for least, size in numbers["vocabulary"].items():
        covered = [numbers["coverage"].get(split, {}).get(least) for split in splits]
        cells = [f"{size:,} kept" if part is None else f"{part:.2%}" for part in covered]
        yield f"covered by training words seen {least}+ times", cells


def _print_reader_warnings(
    warnings: Mapping[str, int],
    console: Console,
    places: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    for warning, times in warnings.items():
        place = f" (first: {printable(places[warning][0])})" if places.get(warning) else ""
        console.print(
            f"{times:,} x {warning}{place}", markup=False, highlight=False, soft_wrap=True
        )


def _print_fit_warnings(warnings: Iterable[str], console: Console) -> None:
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the result of a check, with the first names of each kind.

    Args:
        report: the result of `captioner.data.check.check`.
        console: None: standard output.
    """
    from rich.console import Console

    from captioner.verbs.printing import print_rows

    console = console or Console()
    rows = [("images", f"{report.images:,}", "")]
    findings: dict[str, Sequence[str]] = {
        "broken": list(report.broken.values()),
        "missing": report.missing,
        "the same in two splits": [_join_equal(group) for group in report.leaks],
        "twice in a split": [_join_equal(group) for group in report.duplicates],
        "without captions, or with a blank one": report.uncaptioned,
        "damaged in the caption file": report.damaged,
    }
    for finding, names in findings.items():
        more = [f"and {len(names) - LISTED_NAMES:,} more"] if len(names) > LISTED_NAMES else []
        listed = map(printable, names[:LISTED_NAMES])
        rows.append((finding, f"{len(names):,}", "\n".join([*listed, *more])))
    if report.repeated:
        rows.append(("the same, as intended in this drawn world", f"{report.repeated:,}", ""))
    print_rows(rows, ("finding", "how many", "which"), no_wrap=(2,), console=console)
    _print_reader_warnings(report.reader_warnings, console, report.places)
    _print_fit_warnings(report.fit_warnings, console)
    console.print(f"The dataset is {_verdict(report)}.", highlight=False)


def _join_equal(group: Sequence[str]) -> str:
    """The names of equal images, at most LISTED_NAMES of them."""
    more = [f"{len(group) - LISTED_NAMES:,} more"] if len(group) > LISTED_NAMES else []
    return " = ".join([*group[:LISTED_NAMES], *more])


def _verdict(report: Report) -> str:
    if report.sound:
        return "sound"
    if replace(report, fit_warnings=()).sound:
        return "sound, but not for these options: see the warnings"
    return "not sound: repair or remove the files and captions named above"


def _parser() -> ArgumentParser:
    parser = build_parser(
        "data",
        "draw: draw the built-in dataset.\n"
        "stats: counts, lengths and vocabulary coverage of each split.\n"
        "check: open every image; name broken and missing ones, empty and damaged captions,\n"
        "       images that are in two splits, and captions that do not fit the tokenizer\n"
        "       or the lengths. The exit status is 1 if something is wrong.",
        "  captioner data draw\n"
        "  captioner data stats data=flickr8k data.root=~/flickr8k\n"
        "  captioner data check data=coco data.root=/data/coco --format json\n",
    )
    parser.add_argument("job", choices=("draw", "stats", "check"))
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="data=NAME, data.root=…, tokenizer=…, loader.max_words=… (default: the built-in one); "
        "seed=… for draw",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    add_config_dir(parser)
    return parser
