"""A flag for each decoding option, for the verbs that generate captions."""

from __future__ import annotations

import argparse
from typing import Any

from captioner.decoding.options import OPTIONS


def add_decoding(parser: argparse.ArgumentParser) -> None:
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


def decoding_of(options: argparse.Namespace) -> dict[str, Any]:
    """The decoding options whose flags were given."""
    flags = ((name, getattr(options, name)) for name in OPTIONS)
    return {name: value for name, value in flags if value is not None}


def _split_list(text: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if text and not items:
        raise argparse.ArgumentTypeError(f"{text!r} has no words; give words separated by commas")
    return items
