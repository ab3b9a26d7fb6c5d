"""Overrides: ``key=value`` as people type them, parsed once, by Hydra.

Hydra's grammar refuses many paths as they are typed (``data.root=My Data (1)``, ``data.root=~/x``,
``resume=runs/sw/0_seed=1``). ``as_hydra_reads`` quotes these, and leaves what has a meaning in the
grammar: lists, dicts, functions, sweeps, interpolations, numbers and quoted text. All other code
takes the parsed values and never reads the text again.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from captioner.old_names import Warn, renamed, warn_renamed
from captioner.plain_data import shortened

Override = Any
"""Hydra's ``Override``, whose ``value()`` is of any type that plain data has, or a sweep."""

PATHS = frozenset(
    {
        "run_dir",
        "resume",
        "resume_weights",
        "data.root",
        "data.captions",
        "data.images",
        "loader.cache_folder",
        "training.word_vectors",
        "hydra.run.dir",
        "hydra.sweep.dir",
    }
)
"""Keys whose value is a path: a path that exists as typed is used, and 2024 is a name."""

_SINGLE = ("resume",)  # never a sweep, even with -m
_ELEMENT = re.compile(r"""\s*(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")\s*(?=,|$)|[^,]*""")
_LISTS = re.compile(r"(\[|choice\()(.*)(\]|\))", re.DOTALL)
_FUNCTIONS = re.compile(
    r"(choice|range|interval|glob|tag|sort|shuffle|int|float|str|bool|json_str|extend_list)\(.*\)",
    re.DOTALL,
)


def parse(
    lines: Sequence[str | Override],
    *,
    several: bool = False,
    loader: Any = None,
    warn: Warn = warn_renamed,
) -> list[Override]:
    """The overrides of a command line, as Hydra understands them, under their present names.

    Args:
        lines: ``key=value`` as typed; those that are parsed already are returned as they are.
        several: whether a comma separates the values of a sweep, as after ``train -m``; otherwise
            it is part of the value unless it has a meaning in Hydra's grammar.
        loader: Hydra's, which knows the options that ``glob`` matches.
        warn: called with each old name and the present one.

    Raises:
        ValueError: a line is not an override, or Hydra cannot parse it even if it is quoted.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create(config_loader=loader)
    changes: list[Override] = []
    for line in lines:
        if not isinstance(line, str):
            changes.append(line)
            continue
        try:
            present = as_hydra_reads(renamed(line, warn), several=several)
            changes += parser.parse_overrides([present])
        except HydraException:
            raise ValueError(
                f"{shortened(line, 200)} is not an override; write key=value, such as "
                "optimizer.lr=1e-3 or decoder.cell=gru, and a text with special characters in "
                "quotes: 'key=\"a {b}\"'"
            ) from None
    return changes


def as_hydra_reads(line: str, *, several: bool = False) -> str:
    """The override with its value quoted if Hydra's grammar would refuse or change it.

    Args:
        line: ``key=value`` as typed; other lines (``~key``) are returned as they are.
        several: see ``parse``.
    """
    key, equals, value = line.partition("=")
    if not equals:
        return line
    name = key.lstrip("+~").partition("@")[0]
    if name in PATHS:
        value = _path(value, several=several and name not in _SINGLE)
    elif not _accepts(value):
        value = _quoted_parts(value, several=several)
    return f"{key}={value}"


def quote(text: str) -> str:
    """A text in quotes, which Hydra reads as one string, whatever characters it has."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text, Quote.single).with_quotes())


def shell_word(key: str, value: Any) -> str:
    """The override as one word of a shell, for advice to copy: ``'data.root=My Data'``."""
    return shlex.quote(f"{key}={value}")


def line_of(key: str, value: Any) -> str:
    """The override that gives a key a value of YAML: plain data, or an interpolation."""
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, str) and "${" not in value:
        value = quote(value)
    return f"{key}={value}"


def _path(value: str, *, several: bool) -> str:
    """A path: as typed if it exists, otherwise as Hydra reads it, if that is a text."""
    if value and value != "null" and os.path.lexists(os.path.expanduser(value)):
        return quote(_at_home(value))
    if not _accepts(value):
        return _quoted_parts(value, several=several)
    change = _change(value)
    if change.is_sweep_override():
        plain = change.is_choice_sweep() and change.value().simple_form
        return quote(value) if plain and not several else value
    read = change.value()
    if isinstance(read, (bool, int, float)):
        return quote(value)
    return quote(_at_home(read)) if isinstance(read, str) and read.startswith("~") else value


def _quoted_parts(value: str, *, several: bool) -> str:
    """A value that Hydra refuses, quoted: whole, or the elements of a list, choice or sweep."""
    listed = _LISTS.fullmatch(value)
    if listed:
        begin, inner, end = listed.groups()
        elements = _elements(inner)
        nested = any(element.lstrip()[:1] in ("[", "{") for element in elements)
        return value if nested else begin + ",".join(map(_quoted, elements)) + end
    if _FUNCTIONS.fullmatch(value) or value.startswith("{"):
        return value
    return ",".join(map(_quoted, _elements(value))) if several else _quoted(value)


def _elements(text: str) -> list[str]:
    """The parts between commas that are not in quotes."""
    elements, place = [], 0
    while place <= len(text):
        element = _ELEMENT.match(text, place)
        assert element is not None  # it matches the empty text as well
        elements.append(element[0])
        place = element.end() + 1
    return elements


def _quoted(value: str) -> str:
    return value if _accepts(value) else quote(_at_home(value.strip()))


def _at_home(path: str) -> str:
    """A path with ~ expanded, which shells do not expand after ``=``."""
    return os.path.expanduser(path)


def _accepts(value: str) -> bool:
    from hydra.errors import HydraException

    try:
        _change(value)
    except HydraException:
        return False
    return True


def _change(value: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides([f"key={value}"])[0]
