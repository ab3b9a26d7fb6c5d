"""Caption image files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from captioner.decoding.options import OPTIONS
from captioner.verbs.terminal import add_plugin, build_parser, plug_in


def run(argv: Sequence[str]) -> int:
    """Caption image files."""
    options = _parser().parse_intermixed_args(argv)
    plug_in(options)

    from captioner.verbs.caption_files import caption_files

    flags = ((name, getattr(options, name)) for name in OPTIONS)
    return caption_files(
        options.paths,
        model=options.model,
        device=options.device,
        batch_size=options.batch_size,
        format=options.format,
        output=options.output,
        decoding={name: value for name, value in flags if value is not None},
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
    _add_decoding(parser)
    add_plugin(parser)
    return parser


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each of ``DecodingOptions``."""
    group = parser.add_argument_group("decoding (unset: as the model was trained)")
    for name, option in OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        if option.kind is bool and name.startswith("no_"):
            group.add_argument(flag, action="store_const", const=True, help=option.help)
        elif option.kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=option.help)
        else:
            kind = option.kind if option.kind in (int, float, str) else _split_list
            group.add_argument(flag, type=kind, metavar=option.placeholder, help=option.help)


def _split_list(text: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if text and not items:
        raise argparse.ArgumentTypeError(f"{text!r} has no words; give words separated by commas")
    return items
