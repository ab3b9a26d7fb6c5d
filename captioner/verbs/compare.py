"""Compare evaluated runs, with intervals and tests."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from captioner.progress import progress_bar
from captioner.verbs.terminal import add_split, new_folder, parser_of, wrote


def run(argv: Sequence[str]) -> int:
    """Compare evaluated runs, with intervals and tests."""
    options = _compare_parser().parse_intermixed_args(argv)

    from captioner.evaluation import comparison_figure, comparison_tables
    from captioner.evaluation.comparison import compare
    from captioner.evaluation.results import read_systems, runs_among

    draw = comparison_figure.drawing(options.figure) if options.figure else None
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
    files = [path for path in (options.output, options.figure) if path]
    made = [new_folder(path) for path in files]
    result = replace(result, notes=(*result.notes, *skipped))
    if draw:
        draw(result, Path(options.figure))
    if options.format == "text" and sys.stdout.isatty() and not options.output:
        text = comparison_tables.as_text(result, width=shutil.get_terminal_size().columns)
    else:
        text = comparison_tables.FORMATS[options.format](result)
    if options.output:
        from captioner.files import write_whole

        write_whole(options.output, text)
    else:
        print(text, end="")
    for path, folder in zip(files, made):
        print(wrote(path, folder), file=sys.stderr)
    if options.figure and (lack := comparison_figure.missing_letters(result, options.figure)):
        print(f"{Path(options.figure).name}: {lack}", file=sys.stderr)
    return 0


def _compare_parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "compare",
        "Compare evaluated runs with the first of them: scores with intervals, differences with\n"
        "intervals and paired tests, and a verdict. Runs that differ only in their seed become\n"
        "one system. Runs scored on other images, references or words are refused.",
        "  captioner compare runs/lstm runs/gru\n"
        "  captioner compare runs/lstm runs/gru --split test --decoding beam3-lp0.7\n"
        "  captioner compare runs/a1,runs/a2,runs/a3 runs/b1,runs/b2,runs/b3 --metrics CIDEr-D\n"
        "  captioner compare runs/a/evaluation/flickr8k-dev/greedy runs/a/evaluation/flickr8k-dev/"
        "beam3\n"
        "  captioner compare runs/* --format markdown --output table.md --figure table.svg\n",
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run folder or bundled model (its newest evaluation), an evaluation folder or a "
        "scores.json; the first is the baseline; commas join seeds of one configuration; of a "
        "sweep's folder, what is no run and jobs without an evaluation are skipped",
    )
    add_split(parser, "of run folders, take evaluations of this split")
    add("--decoding", metavar="D", help="of run folders, take this decoding, such as beam3-lp0.7")
    add(
        "--metrics",
        metavar="A,B",
        help="compare only these, such as bleu or BLEU-4; fewer tests are corrected less",
    )
    add("--no-group", action="store_true", help="keep runs that differ only in their seed apart")
    add("--anyway", action="store_true", help="compare what should not be compared, and say so")
    add("--resamples", type=int, default=10_000, metavar="R", help="of each kind (default 10000)")
    add("--seed", type=int, default=1, metavar="N", help="of the resamples (default 1)")
    add("--format", choices=("text", "markdown", "json"), default="text")
    add("--output", metavar="FILE", help="write there instead of standard output")
    add(
        "--figure",
        metavar="FILE",
        help="draw the intervals into a .svg or .png (needs pip install 'captioner[figures]')",
    )
    return parser
