"""Score captions that are already there."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from captioner.verbs.terminal import add_metrics, metrics_of, new_folder, parser_of, wrote


def run(argv: Sequence[str]) -> int:
    """Score captions that are already there."""
    parser = parser_of(
        "score",
        "Score captions of any system. FILE holds one caption an image; its references stand\n"
        "beside it or in REFERENCES. Both may be JSON lines (captions.jsonl of evaluate), JSON\n"
        "(COCO's results and annotations, or a list of objects), or CSV with columns named image,\n"
        "caption, and reference or reference_1, reference_2, ...; in REFERENCES an image may come\n"
        "again and again, with a caption by a person each time, or be any data that train reads.",
        "  captioner score runs/demo/evaluation/shapes-dev/greedy/captions.jsonl\n"
        "  captioner score results.json captions_val2014.json --subset --metrics bleu,cider-d\n"
        "  captioner score mine.csv references.csv --format markdown --output scores.md\n"
        "  captioner score mine.jsonl --training train.csv --statistics scores/mine\n",
    )
    parser.add_argument("file", metavar="FILE", help="captions: .jsonl, .json, .csv or .tsv")
    parser.add_argument(
        "references", metavar="REFERENCES", nargs="?", help="captions by people, in such a file"
    )
    parser.add_argument(
        "--tokenize",
        default="ptb",
        metavar="NAME",
        help="ptb (English, default), ptb-jar (the same, by java), character (Chinese)",
    )
    add_metrics(parser)
    parser.add_argument(
        "--subset", action="store_true", help="leave out images that FILE does not caption"
    )
    parser.add_argument("--training", metavar="FILE", help="captions of training, for novelty")
    parser.add_argument("--format", choices=("text", "json", "markdown"), default="text")
    parser.add_argument("--output", metavar="FILE", help="write there instead of standard output")
    parser.add_argument(
        "--statistics", metavar="FOLDER", help="write scores.json and statistics.npz there"
    )
    options = parser.parse_intermixed_args(argv)

    from captioner.evaluation.score_files import score_files

    made = new_folder(options.output)
    status = score_files(
        options.file,
        options.references,
        tokenize=options.tokenize,
        metrics=metrics_of(options.metrics),
        subset=options.subset,
        training=options.training,
        format=options.format,
        output=options.output,
        statistics=options.statistics,
    )
    if options.output:
        print(wrote(options.output, made), file=sys.stderr)
    return status
