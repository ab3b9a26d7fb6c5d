"""Collect the states of a model over a split, and search them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from captioner.verbs.printing import print_rows
from captioner.verbs.terminal import (
    add_config_dir,
    add_plugin,
    add_split,
    build_parser,
    new_folder,
    plug_in,
    print_json,
    require_output,
    wrote,
)

if TYPE_CHECKING:
    from captioner.inspection.states import StateTable
    from captioner.inspection.units import Place, WordMean

FLAGS = {
    "collect": ("output", "split", "references", "limit", "device", "config_dir"),
    "top": ("unit", "site", "layer", "count"),
    "find": ("phrase", "caption", "site", "layer", "threshold", "share", "wider", "count"),
}
"""Job -> the flags that belong to it."""


def run(argv: Sequence[str]) -> int:
    """Collect the states of a model over a split, and search them."""
    parser = _parser()
    options = parser.parse_intermixed_args(argv)
    _check(parser, options)
    if options.job == "collect":
        return _collect(options)

    from captioner.inspection.states import StateTable

    table = StateTable.load(options.source)
    return _top(table, options) if options.job == "top" else _find(table, options)


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "states",
        "collect RUN: let a model read the captions of a split, and write a table of its units\n"
        "        (h, C and the gates after every word) into one file.\n"
        "top FILE: the words and the places at which a unit is most positive and most negative.\n"
        "find FILE: the units that are on during a phrase, and where else they are on.",
        "  captioner states collect runs/demo --split test --output states.safetensors\n"
        "  captioner states collect runs/nic --references 0 --limit 100 --output own.safetensors\n"
        "  captioner states top states.safetensors --unit 17 --site cell.memory\n"
        "  captioner states find states.safetensors --phrase 'red circle'\n"
        "  captioner states find states.safetensors --phrase 'red circle' --threshold 0.3 --json\n",
    )
    parser.add_argument("job", choices=tuple(FLAGS))
    parser.add_argument(
        "source", metavar="RUN_OR_FILE", help="the model of collect, the table of top and find"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of collect: data.root=…, loader.…"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_collecting(parser)
    _add_searching(parser)
    add_plugin(parser)
    return parser


def _add_collecting(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("collect")
    group.add_argument("--output", metavar="FILE", help="the table, a safetensors file")
    add_split(parser, "of collect: whose captions are read (default dev)")
    group.add_argument(
        "--references",
        type=int,
        metavar="N",
        help="captions read for each image (default 1); 0: the caption that the model generates",
    )
    group.add_argument("--limit", type=int, metavar="N", help="number of images (default all)")
    group.add_argument("--device", help="auto, cpu, cuda or mps (default auto)")
    add_config_dir(parser)


def _add_searching(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("top and find")
    add = group.add_argument
    add("--unit", type=int, metavar="N", help="of top: the unit")
    add("--phrase", metavar="WORDS", help="of find: words that follow one another in a caption")
    add("--caption", type=int, metavar="N", help="of find: its number (default: the first)")
    add("--site", metavar="SITE", help="whose units (default cell.hidden)")
    add("--layer", type=int, metavar="N", help="of the site (default the last)")
    add("--threshold", type=float, metavar="X", help="of find: on from this size (default 0.5)")
    add(
        "--share",
        type=float,
        metavar="X",
        help="of find: of the units, how many a match has on (default 0.75)",
    )
    add(
        "--wider",
        action="store_const",
        const=True,
        help="of find: also units that are on just before or just after the phrase",
    )
    add("--count", type=int, metavar="N", help="rows of a table (default 8)")


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with status 2 for flags that do not fit the job."""
    for name in sorted({flag for flags in FLAGS.values() for flag in flags}):
        if getattr(options, name) is not None and name not in FLAGS[options.job]:
            jobs = " and ".join(job for job, flags in FLAGS.items() if name in flags)
            parser.error(f"--{name.replace('_', '-')} belongs to {jobs}")
    if options.overrides and options.job != "collect":
        parser.error(f"{options.job} accepts no {options.overrides[0]!r}")
    needed = {"collect": "output", "top": "unit", "find": "phrase"}[options.job]
    if getattr(options, needed) is None:
        parser.error(f"{options.job} needs --{needed}")
    if options.count is not None and options.count < 1:
        parser.error(f"--count {options.count} is not accepted; choose 1 or more")


def _given(options: argparse.Namespace, *names: str) -> dict[str, object]:
    """The flags that were given, by name."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _collect(options: argparse.Namespace) -> int:
    plug_in(options)
    require_output(options.output, (".safetensors",), [options.source])

    from captioner.api import Captioner
    from captioner.checkpoints.places import confined
    from captioner.config import override
    from captioner.inspection.collecting import collect
    from captioner.overrides import parse

    captioner = Captioner.load(options.source, device=options.device or "auto")
    named = [change.key_or_group for change in parse(options.overrides)]
    base = confined({group: captioner.config[group] for group in ("data", "loader")}, named)
    groups = override(base, options.overrides, config_dir=options.config_dir)
    chosen = _given(options, "split", "references", "limit")
    table = collect(captioner, data=groups["data"], loader=groups["loader"], **chosen)  # type: ignore[arg-type]
    made = new_folder(options.output)
    path = table.save(options.output)
    if options.json:
        return print_json({"captions": len(table), "steps": len(table.words), "file": str(path)})
    size = path.stat().st_size / 1e6
    print(f"{wrote(path, made)} ({len(table)} captions, {len(table.words)} steps, {size:.1f} MB)")
    return 0


def _top(table: StateTable, options: argparse.Namespace) -> int:
    from captioner.inspection.units import top_words

    chosen = _given(options, "site", "layer", "count")
    found = top_words(table, options.unit, **chosen)  # type: ignore[arg-type]
    if options.json:
        return print_json(found.as_dict())
    site = options.site or "cell.hidden"
    print(f"unit {options.unit} of {site}, mean {found.mean:+.2f}")
    headings = ["read", "mean", "rest", "steps"]
    print_rows([_word_row(word) for word in found.positive], headings, right=[1, 2, 3])
    print()
    print_rows([_word_row(word) for word in found.negative], headings, right=[1, 2, 3])
    for places in (found.highest, found.lowest):
        print()
        print_rows([_place_row(place) for place in places], ["value", "where"], right=[0])
    return 0


def _word_row(word: WordMean) -> list[str]:
    return [word.word, f"{word.mean:+.2f}", f"{word.rest:+.2f}", str(word.count)]


def _place_row(place: Place) -> list[str]:
    return [f"{place.value:+.2f}", str(place)]


def _find(table: StateTable, options: argparse.Namespace) -> int:
    from captioner.inspection.phrases import find_phrase, search_phrase

    phrase = find_phrase(table, options.phrase, options.caption)
    chosen = _given(options, "site", "layer", "threshold", "share")
    found = search_phrase(table, phrase, exactly=not options.wider, **chosen)  # type: ignore[arg-type]
    if options.json:
        return print_json(found.as_dict())
    count = options.count or 8
    units = " ".join(f"{'-' if s < 0 else '+'}{unit}" for unit, s in zip(found.units, found.signs))
    print(f"caption {phrase.caption}: {phrase}\nunits that are on: {units}")
    print(f"{len(found.matches)} places in other captions")
    print_rows([[t, str(n)] for t, n in found.counts[:count]], ["read", "times"], right=[1])
    print()
    rows = [
        [f"{100 * match.value:.0f}%", str(match.caption), match.image, str(match)]
        for match in found.matches[:count]
    ]
    print_rows(rows, ["units on", "caption", "image", "where"], right=[0, 1])
    return 0
