"""Write one HTML page about an evaluation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from captioner.verbs.terminal import (
    PAGES,
    add_split,
    build_parser,
    new_folder,
    require_output,
    wrote,
)


def run(argv: Sequence[str]) -> int:
    """Write one HTML page about an evaluation."""
    options = _parser().parse_intermixed_args(argv)

    from captioner.report.report import report as write_report

    require_output(options.output, PAGES)
    created = new_folder(options.output)
    path = write_report(
        options.run,
        split=options.split,
        decoding=options.decoding,
        images=options.images,
        data_root=options.data_root,
        output=options.output,
    )
    # a page that is piped to another program must not be mixed with other text
    print(wrote(path, created), file=sys.stdout if path.is_file() else sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "report",
        "Write one HTML page about an evaluation: scores, training curves, captions with their\n"
        "pictures, errors by kind, scores by length, words by frequency, and novelty. The page\n"
        "needs no network. See docs/report.md.",
        "  captioner report runs/demo\n"
        "  captioner report runs/demo --split test --decoding beam3-lp0.7 --images 12\n"
        "  captioner report runs/nic/evaluation/flickr8k-dev/greedy --data-root ~/flickr8k \\\n"
        "      --output nic.html\n",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="evaluation folder, or run folder or bundled model (its newest evaluation)",
    )
    add_split(parser, "take an evaluation of this split from a run folder")
    parser.add_argument("--decoding", metavar="D", help="take this decoding, such as beam3-lp0.7")
    parser.add_argument(
        "--images", type=int, default=8, metavar="N", help="captions shown in each part (default 8)"
    )
    parser.add_argument(
        "--data-root", metavar="FOLDER", help="root of the dataset, if it has moved"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="default: report.html in the evaluation folder"
    )
    return parser
