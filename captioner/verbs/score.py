"""Score captions of any system."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.verbs.terminal import (
    TEXTS,
    add_metrics,
    build_parser,
    new_folder,
    parse_metrics,
    require_output,
    warn,
    wrote,
)

if TYPE_CHECKING:
    from captioner.metrics.scores import Scores


def run(argv: Sequence[str]) -> int:
    """Score captions of any system."""
    options = _parser().parse_intermixed_args(argv)

    from captioner.evaluation.score_files import score_files
    from captioner.files import write_whole
    from captioner.runs import SCORES

    require_output(options.output, TEXTS, [options.file, *filter(None, [options.references])])
    created = new_folder(options.output)
    scored = score_files(
        options.file,
        options.references,
        tokenize=options.tokenize,
        metrics=parse_metrics(options.metrics),
        subset=options.subset,
        training=options.training,
    )
    for warning in scored.warnings:
        warn(warning)
    if options.output is not None:
        write_whole(options.output, FORMATS[options.format](scored.scores))
    elif options.format == "text":
        _print(scored.scores)
    else:
        print(FORMATS[options.format](scored.scores), end="")
    if options.statistics is not None:
        created_for_statistics = new_folder(Path(options.statistics, SCORES))
        scored.write(options.statistics)
        print(wrote(options.statistics, created_for_statistics), file=sys.stderr)
    if options.output:
        print(wrote(options.output, created), file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "score",
        "Score captions of any system. FILE has one caption for each image; references are in\n"
        "the same file or in REFERENCES. Both may be JSON lines (captions.jsonl of evaluate),\n"
        "JSON (COCO's results and annotations, or a list of objects), or CSV with columns named\n"
        "image, caption, and reference or reference_1, reference_2, ... REFERENCES may have\n"
        "several rows for an image, each with a caption by a person, or be any dataset that\n"
        "train reads.",
        "  captioner score runs/demo/evaluation/shapes-dev/greedy/captions.jsonl\n"
        "  captioner score results.json captions_val2014.json --subset --metrics bleu,cider-d\n"
        "  captioner score mine.csv references.csv --format markdown --output scores.md\n"
        "  captioner score mine.jsonl --training train.csv --statistics scores/mine\n",
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="captions: .jsonl, .json, .csv or .tsv")
    add(
        "references",
        metavar="REFERENCES",
        nargs="?",
        help="captions by people, in any of these formats",
    )
    add(
        "--tokenize",
        default="ptb",
        metavar="NAME",
        help="ptb (English, default), ptb-jar (the same, by java), character (Chinese)",
    )
    add_metrics(parser)
    add("--subset", action="store_true", help="leave out images that FILE does not caption")
    add("--training", metavar="FILE", help="the training captions, for novelty")
    add("--format", choices=("text", "json", "markdown"), default="text")
    add("--output", metavar="FILE", help="write there instead of standard output")
    add("--statistics", metavar="FOLDER", help="write scores.json and statistics.npz there")
    return parser


def _print(scores: Scores) -> None:
    from captioner.verbs.printing import print_rows

    print_rows([(name, f"{value:.2f}") for name, value in scores.values.items()], right=(1,))
    for line in _footnotes(scores):
        print(line)


def _as_text(scores: Scores) -> str:
    width = max(map(len, scores.values), default=0)
    lines = [f"{name:<{width}} {value:9.2f}" for name, value in scores.values.items()]
    return "\n".join([*lines, "", *_footnotes(scores)]) + "\n"


def _footnotes(scores: Scores) -> list[str]:
    """The signatures, and the metrics that were not computed."""
    absent = [f"no {metric}: {reason}" for metric, reason in scores.missing.items()]
    return [*_signatures(scores), *absent]


def _as_markdown(scores: Scores) -> str:
    lines = ["| score | value |", "|---|---:|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in scores.values.items()]
    lines += ["", *(f"- `{text}`" for text in _signatures(scores))]
    lines += [f"- no {metric}: {reason}" for metric, reason in scores.missing.items()]
    return "\n".join(lines) + "\n"


def _as_json(scores: Scores) -> str:
    return scores.to_json()


def _signatures(scores: Scores) -> list[str]:
    """The different signatures as text."""
    return list(dict.fromkeys(map(str, scores.signatures.values())))


FORMATS = {"text": _as_text, "json": _as_json, "markdown": _as_markdown}
