"""Caption image files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from captioner.verbs.terminal import add_plugin, parser_of, plug_in


def run(argv: Sequence[str]) -> int:
    """Caption image files."""
    parser = parser_of(
        "caption",
        "Caption image files, photographs by the model that comes with the package. Files that\n"
        "are not readable images are named on standard error, the others are captioned, and the\n"
        "exit status is 1. Of a folder, other files are counted and skipped.",
        "  captioner caption photo.jpg\n"
        "  captioner caption photos/ '*.png' --beam-size 5 --format csv --output captions.csv\n"
        "  find . -name '*.jpg' | captioner caption - --format json\n"
        "  captioner caption photo.jpg --beam-size 5 --captions 5\n"
        "  captioner caption photo.jpg --beam-size 20 --consensus 5\n"
        "  captioner caption photo.jpg --temperature 1 --top-p 0.9 --seed 3\n"
        "  captioner caption photo.jpg --required-words 'dog,red ball'\n"
        "  captioner caption photo.jpg --prefix 'a dog'\n"
        "drawn scenes by a model that was trained on them, and by two together:\n"
        "  captioner caption datasets/shapes/images/test_00000.png --model runs/demo\n"
        "  captioner caption datasets/shapes/images/ --model runs/a --model runs/b\n",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a file, a folder with all below it, a quoted glob, or - for a list on standard input",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="RUN",
        help="run folder, checkpoint or bundled model (default: the bundled one, see captioner "
        "models); given several times, the models decode together",
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="images at a time")
    parser.add_argument("--format", choices=("text", "json", "csv"), default="text")
    parser.add_argument(
        "--output", metavar="FILE", help="write there, as captions come, instead of standard output"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    _add_decoding(parser)
    add_plugin(parser)
    options = parser.parse_intermixed_args(argv)
    plug_in(options)

    from captioner.verbs.caption_files import caption_files

    given = ((name, getattr(options, name)) for name in DECODING)
    decoding = {name: value for name, value in given if value is not None}
    return caption_files(
        options.paths,
        model=options.model,
        device=options.device,
        batch_size=options.batch_size,
        format=options.format,
        output=options.output,
        decoding=decoding,
    )


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


DECODING: dict[str, tuple[Any, str, str]] = {
    "beam_size": (int, "K", "hypotheses kept; 1 is greedy"),
    "length_penalty": (float, "A", "rank by log p / n^A: 0 none, 1 average by word"),
    "length_rule": (str, "RULE", "power, or gnmt: log p / ((5 + n) / 6)^A"),
    "early_stopping": (bool, "", "stop once K captions have ended"),
    "captions": (int, "N", "captions of each image: the n best, or n samples"),
    "consensus": (float, "T", "above 0, the caption that most of those found agree with"),
    "temperature": (float, "T", "above 0 draws words instead of searching"),
    "top_k": (int, "N", "draw from the N most probable words"),
    "top_p": (float, "P", "draw from the fewest words that hold this share of the probability"),
    "seed": (int, "S", "of the draws"),
    "groups": (int, "G", "diverse beam search in G groups of K / G"),
    "diversity": (float, "D", "what a word costs for each earlier group that says it"),
    "min_length": (int, "N", "fewest words"),
    "max_length": (int, "N", "most words, the end included"),
    "no_repeat_ngram": (int, "N", "no N words twice in the same order"),
    "no_repeat_word": (bool, "", "no word directly follows itself"),
    "banned_words": (_listed, "LIST", "words and phrases never said, separated by commas"),
    "required_words": (_listed, "LIST", "words and phrases that must be said, separated by commas"),
    "prefix": (str, "TEXT", "how each caption begins"),
    "ensemble": (str, "RULE", "with several models, average probability or log_probability"),
    "precision": (str, "FORMAT", "of the decoder's products: fp32, bf16, or auto, the faster one"),
}
"""The options of decoding.DecodingOptions as flags: type, placeholder, help."""


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding (unset: as the model was trained)")
    for name, (kind, placeholder, text) in DECODING.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "no_repeat_word":
            group.add_argument(flag, action="store_const", const=True, help=text)
        elif kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            group.add_argument(flag, type=kind, metavar=placeholder, help=text)
