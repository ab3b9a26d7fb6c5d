"""Caption image files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from captioner.verbs.decoding_flags import add_decoding, decoding_of
from captioner.verbs.terminal import add_plugin, build_parser, plug_in


def run(argv: Sequence[str]) -> int:
    """Caption image files."""
    options = _parser().parse_intermixed_args(argv)
    plug_in(options)

    from captioner.verbs.caption_files import caption_files

    return caption_files(
        options.paths,
        model=options.model,
        device=options.device,
        batch_size=options.batch_size,
        format=options.format,
        output=options.output,
        decoding=decoding_of(options),
    )


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "caption",
        "Caption image files, by default with the bundled model for photographs. Files that\n"
        "cannot be read are named on standard error; the others are captioned, and the exit\n"
        "status is 1. Files in a folder that are not images are skipped and counted.",
        "  captioner caption photo.jpg\n"
        "  captioner caption photos/ '*.png' --beam-size 5 --format csv --output captions.csv\n"
        "  find . -name '*.jpg' | captioner caption - --format json\n"
        "  captioner caption photo.jpg --beam-size 5 --captions 5\n"
        "  captioner caption photo.jpg --beam-size 20 --consensus 5\n"
        "  captioner caption photo.jpg --temperature 1 --top-p 0.9 --seed 3\n"
        "  captioner caption photo.jpg --required-words 'dog,red ball'\n"
        "  captioner caption photo.jpg --prefix 'a dog'\n"
        "drawn scenes, with a model that was trained on them and with an ensemble of two:\n"
        "  captioner caption datasets/shapes/images/test_00000.png --model runs/demo\n"
        "  captioner caption datasets/shapes/images/ --model runs/a --model runs/b\n",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a file, a folder with its subfolders, a quoted glob, or - for paths on stdin",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="RUN",
        help="run folder, checkpoint or bundled model (default: the bundled one, see captioner "
        "models); several form an ensemble",
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="images at a time")
    parser.add_argument("--format", choices=("text", "json", "csv"), default="text")
    parser.add_argument("--output", metavar="FILE", help="write the captions to a file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    add_decoding(parser)
    add_plugin(parser)
    return parser
