"""Compare evaluated runs, with intervals and tests."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.progress import progress_bar
from captioner.verbs.terminal import (
    TEXTS,
    add_split,
    build_parser,
    new_folder,
    require_output,
    wrote,
)

if TYPE_CHECKING:
    from captioner.evaluation.comparison import Comparison

    Draw = Callable[[Comparison, Path], Path]

EXAMPLES = """\
  captioner compare runs/lstm runs/gru
  captioner compare runs/lstm runs/gru --split test --decoding beam3-lp0.7
  captioner compare runs/a1,runs/a2,runs/a3 runs/b1,runs/b2,runs/b3 --metrics CIDEr-D
  captioner compare runs/a/evaluation/flickr8k-dev/greedy runs/a/evaluation/flickr8k-dev/beam3
  captioner compare runs/* --format markdown --output table.md --figure table.svg
"""


def run(argv: Sequence[str]) -> int:
    """Compare evaluated runs, with intervals and tests."""
    options = _parser().parse_intermixed_args(argv)

    from captioner.evaluation.comparison import compare
    from captioner.evaluation.comparison_figure import drawing
    from captioner.evaluation.results import read_systems, runs_among

    draw = drawing(options.figure) if options.figure else None
    metrics = None if options.metrics is None else options.metrics.split(",")
    runs, skipped = runs_among(options.runs)
    systems = read_systems(
        runs, split=options.split, decoding=options.decoding, group=not options.no_group
    )
    with progress_bar("comparing", 2 * options.resamples, unit="resamples") as progress:
        result = compare(
            systems,
            metrics=metrics,
            resamples=options.resamples,
            seed=options.seed,
            anyway=options.anyway,
            progress=progress,
        )
    result = replace(result, notes=(*result.notes, *skipped))
    _write(result, options, draw)
    return 0


def _write(result: Comparison, options: argparse.Namespace, draw: Draw | None) -> None:
    """Print or write the table, draw the figure, and name the files."""
    from captioner.evaluation.comparison_figure import missing_letters
    from captioner.evaluation.comparison_tables import FORMATS, as_text

    require_output(options.output, TEXTS)
    require_output(options.figure, (".svg", ".png"))
    files = [path for path in (options.output, options.figure) if path]
    new_folders = [new_folder(path) for path in files]
    if draw:
        draw(result, Path(options.figure))
    if options.output:
        from captioner.files import write_whole

        write_whole(options.output, FORMATS[options.format](result))
    elif options.format != "text":
        print(FORMATS[options.format](result), end="")
    elif sys.stdout.isatty():
        print(as_text(result, width=shutil.get_terminal_size().columns), end="")
    else:
        _print_rows(result)
    for path, folder in zip(files, new_folders):
        print(wrote(path, folder), file=sys.stderr)
    if options.figure and (note := missing_letters(result, options.figure)):
        print(f"{Path(options.figure).name}: {note}", file=sys.stderr)


def _print_rows(result: Comparison) -> None:
    """Print the comparison for other programs: one line a row, cells separated by tabs."""
    from captioner.evaluation.comparison_tables import explanations, tables, title
    from captioner.verbs.printing import print_rows

    for warning in result.warnings:
        print(f"WARNING: {warning}")
    print(title(result))
    for name, (head, *rows) in tables(result, repeat=True).items():
        if name:
            print(f"{name}:")
        print_rows(rows, head)
    for line in explanations(result):
        print(f"- {line}")


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "compare",
        "Compare evaluated runs with the first of them: scores with intervals, differences with\n"
        "intervals and paired tests, and a verdict. Runs that differ only in their seed are\n"
        "grouped as one system. Runs with other images, references or tokenization are refused.",
        EXAMPLES,
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder or bundled model (its newest evaluation), evaluation folder or "
        "scores.json; the first is the baseline; commas join seeds of one configuration; of a "
        "folder/* files, and jobs of a sweep without an evaluation, are skipped",
    )
    add_split(parser, "take evaluations of this split from run folders")
    add("--decoding", metavar="D", help="take this decoding from run folders, such as beam3-lp0.7")
    add(
        "--metrics",
        metavar="A,B",
        help="compare only these, such as bleu or BLEU-4; fewer tests need less correction",
    )
    add("--no-group", action="store_true", help="do not group runs that differ only in their seed")
    add("--anyway", action="store_true", help="compare runs that are not comparable, with warnings")
    add(
        "--resamples",
        type=int,
        default=10_000,
        metavar="R",
        help="bootstrap resamples, and swaps (default 10000)",
    )
    add("--seed", type=int, default=1, metavar="N", help="of the resamples (default 1)")
    add("--format", choices=("text", "markdown", "json"), default="text")
    add("--output", metavar="FILE", help="write there instead of standard output")
    add(
        "--figure",
        metavar="FILE",
        help="draw the intervals as .svg or .png (needs pip install 'captioner[figures]')",
    )
    return parser
