"""Draw, describe and check data sets."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captioner.verbs.terminal import add_config_dir, parser_of, print_json, short


def run(argv: Sequence[str]) -> int:
    """Draw, describe and check data sets."""
    options = _parser().parse_intermixed_args(argv)

    from captioner.config import compose

    config = compose(options.overrides, config_dir=options.config_dir)
    if options.job == "draw":
        seed = config["seed"] if any(o.startswith("seed=") for o in options.overrides) else 0
        return _draw(config, seed)
    return _describe(config, options.job, as_json=options.format == "json")


def _draw(config: Mapping[str, Any], seed: int) -> int:
    from captioner.data import shapes

    if config["data"]["format"] != "shapes":
        raise ValueError(f"only data=shapes is drawn, not {config['data']['format']!r}")
    print(
        f"wrote {short(shapes.draw(Path(os.path.expanduser(config['data']['root'])), seed=seed))}"
    )
    return 0


def _describe(config: Mapping[str, Any], job: str, *, as_json: bool) -> int:
    from captioner.config import make
    from captioner.data import prepare
    from captioner.data.read import read_records

    reading = make(read_records, "data", config["data"])
    fit = (
        config["tokenizer"]["name"],
        config["loader"]["max_words"],
        config["decoding"]["max_length"],
    )
    if job == "stats":
        numbers = prepare.statistics(reading, *fit)
        print_json(numbers) if as_json else prepare.print_statistics(numbers)
        return 0
    report = prepare.check(reading, warnings=prepare.fit_warnings(reading, *fit))
    print_json(report.as_dict()) if as_json else prepare.print_report(report)
    return 0 if report.sound else 1


def _parser() -> ArgumentParser:
    parser = parser_of(
        "data",
        "draw: draw the embedded data set.\n"
        "stats: counts, lengths and vocabulary coverage of each split.\n"
        "check: open every image; name broken and missing ones, empty and damaged captions,\n"
        "       images that are in two splits, and captions that do not fit tokenizer and\n"
        "       lengths. The exit status is 1 where something is wrong.",
        "  captioner data draw\n"
        "  captioner data stats data=flickr8k data.root=~/flickr8k\n"
        "  captioner data check data=coco data.root=/data/coco --format json\n",
    )
    parser.add_argument("job", choices=("draw", "stats", "check"))
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="data=NAME, data.root=…, tokenizer=…, loader.max_words=… (default: the embedded set); "
        "seed=… for draw",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    add_config_dir(parser)
    return parser
