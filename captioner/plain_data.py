"""Plain data from files of unknown origin: dicts, lists, texts and numbers, within limits.

Nothing is resolved or looked up: ``${oc.env:HOME}`` in a file is a text. Files that are too large,
nested too deeply, or that would expand (aliases in YAML, references in a pickle) are refused with
one line.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captioner import __version__, limits
from captioner.files import open_regular

NUMPY_DAMAGES = (
    *(ValueError, TypeError, KeyError, EOFError, OverflowError, MemoryError, SyntaxError),
    *(NotImplementedError, RuntimeError, struct.error, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What ``numpy.load`` raises for a damaged file: its header is a Python literal, or a zip."""

_CONTAINERS = (dict, list, tuple)
_SCALARS = (str, int, float, bool, type(None))
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SOURCE = "no such file is written by captioner: get it again from where it came"


def read_text(path: Path, *, most: int) -> str:
    """Read a text file in UTF-8.

    Args:
        path: of the file.
        most: its maximum size in bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, is a device or a pipe, or is not UTF-8 (UnicodeDecodeError).
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path}: has more than {most / 2**20:,.3g} MiB; {_SOURCE}")
    return content.decode("utf-8")


def read_json(path: Path, *, fault: str, most: int = limits.JSON_BYTES) -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        fault: what is wrong if it is not JSON, and what to do, for the error.
        most: its maximum size in bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, too large, or nested too deeply.
    """
    try:
        text = read_text(path, most=most)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {fault}") from None
    return parse_json(text, str(path), fault=fault)


def parse_json(text: str, place: str, *, fault: str) -> Any:
    """Parse JSON.

    Args:
        text: one document.
        place: the file, for errors.
        fault: see `read_json`.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise _too_deep(place) from None
    except ValueError:
        raise ValueError(f"{place}: {fault}") from None
    for _ in containers(content, place, most=len(text)):
        pass
    return content


def read_yaml(path: Path, *, fault: str) -> Any:
    """Read a YAML file, without aliases: they can expand to more than the memory.

    Args:
        path: of the file.
        fault: what is wrong if it is not YAML, and what to do, for the error.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML, too large, nested too deeply, or has aliases.
    """
    import yaml

    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    try:
        text = read_text(path, most=limits.CONFIG_BYTES)
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{path}: has an alias (*{event.anchor}); {_SOURCE}")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > limits.DEPTH:
                raise _too_deep(path)
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{path}: {fault}") from None
    try:
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, TypeError):  # of a date or number that cannot be
        raise ValueError(f"{path}: {fault}") from None


class NewerFormat(ValueError):
    """A file that a later version of captioner has written."""


def require_format(
    place: str | Path, kind: str, *, found: Any, written_by: Any, reads: int
) -> None:
    """Check the number of the format of a file.

    Args:
        place: the file, for errors.
        kind: of the file, for errors: "a trace".
        found: the number in the file.
        written_by: the version of captioner in the file; None if it is not known.
        reads: the number that this version reads.

    Raises:
        NewerFormat: it is a higher number; with the version that is needed.
        ValueError: it is another one.
    """
    if type(found) is int and found == reads:
        return
    if type(found) is not int or found < reads:
        raise ValueError(f"{place}: damaged {kind} (format {shortened(found)})")
    version = _version(written_by)
    raise NewerFormat(
        f"{place}: {kind} of format {shortened(found)}, written by captioner {version}; "
        f"this is {__version__} and reads format {reads}: upgrade to that version or a later one"
    )


def _version(text: Any) -> str:
    plain = isinstance(text, str) and len(text) <= 40 and text.isprintable()
    return text if plain else shortened(text)


def shortened(value: Any, most: int = 60) -> str:
    """A value from a file as Python writes it, on one line of about `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def require_config(config: Any, place: str | Path) -> dict[str, Any]:
    """Check that a stored configuration is plain data of a plausible size.

    Args:
        config: as read from a file.
        place: the file, for errors.

    Returns:
        the configuration.

    Raises:
        ValueError: it is not a dict, or contains something else than plain data, control characters
            or too much.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{place}: its configuration is {_type(config)}, not a dict; {_SOURCE}")
    count = 0
    for container in containers(config, place, most=limits.CONFIG_VALUES):
        count += len(container)
        if count > limits.CONFIG_VALUES:
            raise _too_many(place, limits.CONFIG_VALUES)
        for key in container if isinstance(container, dict) else ():
            if not isinstance(key, str):
                raise ValueError(f"{place}: its configuration has a key that is {_type(key)}")
            _require_scalar(key, "a key", place)
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in pairs:
            if not isinstance(value, _CONTAINERS):
                _require_scalar(value, shortened(key), place)
    return config


def _require_scalar(value: Any, key: str, place: str | Path) -> None:
    if type(value) not in _SCALARS:
        fault = f"is {_type(value)}"
    elif isinstance(value, str) and len(value) > limits.CONFIG_TEXT:
        fault = f"has {len(value):,} characters; at most {limits.CONFIG_TEXT:,} are accepted"
    elif isinstance(value, str) and _CONTROL.search(value):
        fault = f"has a control character, {_CONTROL.findall(value)[0]!r}"
    elif isinstance(value, int) and abs(value) >= 2**63:
        fault = f"is a whole number of {value.bit_length()} bits; at most 63 are accepted"
    else:
        return
    raise ValueError(f"{place}: in its configuration {key} {fault}; {_SOURCE}")


def containers(tree: Any, place: str | Path, *, most: int) -> Iterator[Any]:
    """Yield the dicts, lists and tuples of plain data, the outer ones first.

    Args:
        tree: the data.
        place: the file, for errors.
        most: their maximum number; those with several references are counted as often.

    Raises:
        ValueError: there are more, or they are nested too deeply.
    """
    layer = [tree] if isinstance(tree, _CONTAINERS) else []
    for _ in range(limits.DEPTH):
        yield from layer
        below = (
            item
            for outer in layer
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, _CONTAINERS)
        )
        layer = list(itertools.islice(below, most + 1))
        if len(layer) > most:
            raise _too_many(place, most)
    if layer:
        raise _too_deep(place)


def _too_deep(place: str | Path) -> ValueError:
    return ValueError(f"{place}: nested more than {limits.DEPTH} levels deep; {_SOURCE}")


def _too_many(place: str | Path, most: int) -> ValueError:
    return ValueError(f"{place}: has more than {most:,} values; {_SOURCE}")


def _type(value: Any) -> str:
    return f"of the type {type(value).__name__}"
