"""The names of the image and the captions in data files, and the accepted shapes of JSON.

Tables, JSON and the files of ``captioner score`` share one table of names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from captioner.plain_data import shortened

Entry = Mapping[str, Any]

IMAGE_NAMES = (
    "image",
    "image_name",
    "image_path",
    "filename",
    "file_name",
    "file",
    "path",
    "image_id",
)
# Only the first kind that occurs is used: next to `caption`, `text` is text in the image (a sign),
# and `comment` a remark of the annotator.
_CAPTION_NAMES = tuple(
    re.compile(rf"{kind}s?([ _-]?\d+)?") for kind in ("caption", "sentence", "text", "comment")
)
ANNOTATION = "annotation_id"
"""The key of a caption's own number in the entries of `coco_entries`."""
_SHAPE = '{"image": "a.jpg", "captions": ["a dog"]}'


def image_key(keys: Iterable[str], order: Sequence[str] = IMAGE_NAMES) -> str | None:
    """The key of the image, the first of `order` that is present; None if none is."""
    present = {key.strip().lower(): key for key in reversed(list(keys))}
    return next((present[name] for name in order if name in present), None)


def caption_keys(keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """The keys of captions, and further keys that would be used if these were not present."""
    keys = list(keys)
    kinds = [[k for k in keys if kind.fullmatch(k.strip().lower())] for kind in _CAPTION_NAMES]
    present = [kind for kind in kinds if kind]
    return (present[0], [key for kind in present[1:] for key in kind]) if present else ([], [])


MOST_NAMES = 20
"""Of the keys or columns that an error lists."""


def missing(what: str, unit: str, names: Iterable[str], place: str) -> ValueError:
    """The error for an entry or a table without "image" or "caption"; it lists the present names.

    Args:
        what: "image" or "caption".
        unit: "key" or "column".
        names: the present keys or columns.
        place: the file and line.
    """
    known = [shortened(name) for name in names]
    present = ", ".join(known[:MOST_NAMES]) or "nothing"
    present += f" and {len(known) - MOST_NAMES:,} others" if len(known) > MOST_NAMES else ""
    accepted = (
        ", ".join(IMAGE_NAMES) if what == "image" else "caption(s), sentence(s), text, comment"
    )
    return ValueError(f"{place}: no {unit} {what!r} among {present}; accepted names: {accepted}")


def captions_of(entry: Entry, place: str) -> list[str]:
    """The captions of an entry: a text, or a list of texts or of objects with `raw` (Karpathy's).

    Raises:
        ValueError: a caption is not a text; null counts as a blank caption.
    """
    values: list[Any] = []
    for key in caption_keys(entry)[0]:
        values += entry[key] if isinstance(entry[key], list) else [entry[key]]
    texts = []
    for value in values:
        if isinstance(value, dict):
            value = next((value[key] for key in ("raw", "caption", "text") if key in value), value)
        if not isinstance(value, str) and value is not None:
            raise ValueError(f"{place}: captions must be texts, got {shortened(value)}")
        texts.append(value or "")
    return texts


def json_entries(text: str, path: Path) -> Iterator[tuple[str, Entry]]:
    """Yield the place and content of each entry of a JSON file of captions.

    Accepted are: a list of objects; one object per line; an object that maps an image to its
    caption(s); COCO's annotations (see `coco_entries`); an object with one list of objects, as
    Karpathy's.

    Raises:
        ValueError: the file is not JSON, or has none of these shapes.
    """
    data, lines = _parse_document_or_lines(text, path)
    if lines or isinstance(data, list):
        unit = "line" if lines else "entry"
        for number, entry in data if lines else enumerate(data, start=1):
            yield _require_object(entry, f"{path}, {unit} {number}")
    elif not isinstance(data, dict):
        raise ValueError(f"{path}: neither a list of objects nor COCO's JSON; write {_SHAPE}")
    elif _is_object_list(data.get("images")) and _is_object_list(data.get("annotations")):
        yield from coco_entries(data, path)
    elif image_key(data) or caption_keys(data)[0]:
        yield f"{path}, line 1", data
    elif len(lists := [key for key in data if _is_object_list(data[key])]) == 1:
        for number, entry in enumerate(data[lists[0]], start=1):
            yield _require_object(entry, f"{path}, {lists[0]} {number}")
    else:
        for image, value in data.items():
            entry = value if isinstance(value, dict) else {"captions": value}
            yield f"{path}, key {image!r}", {**entry, "image": image}


def coco_entries(data: Any, path: Path) -> Iterator[tuple[str, Entry]]:
    """Yield COCO's captions in the order of its images, and the images without captions.

    An entry has `image_id`, `file_name` (None if the file lists no such image), and either
    `caption` and ANNOTATION, or an empty `captions`.

    Raises:
        ValueError: the file is not COCO's, or an id with captions has two images.
    """
    names = _coco_names(data, path)
    captions: dict[str, list[tuple[str, Entry]]] = {key: [] for key in names}
    for count, entry in enumerate(entries_of(data, "annotations", path)):
        place = f"{path}, annotations[{count}]"
        key, text = _coco_id(entry, "image_id", place), text_of(entry, "caption", place)
        caption: Entry = {"image_id": key, "caption": text, ANNOTATION: entry.get("id")}
        captions.setdefault(key, []).append((place, caption))
    for key, several in captions.items():
        named: list[str | None] = list(names.get(key, [None]))
        if several and len(named) > 1:
            raise _two_images(names, captions, path)
        for place, caption in several:
            yield place, {**caption, "file_name": named[0]}
        if not several:
            for name in named:
                yield str(path), {"image_id": key, "file_name": name, "captions": []}


def _coco_names(data: Any, path: Path) -> dict[str, dict[str, str]]:
    """The file names of each id, with their places; more than one only if an id is not unique."""
    names: dict[str, dict[str, str]] = {}
    for count, entry in enumerate(entries_of(data, "images", path)):
        place = f"{path}, images[{count}]"
        name = text_of(entry, "file_name", place)
        names.setdefault(_coco_id(entry, "id", place), {}).setdefault(name, f"images[{count}]")
    return names


def _two_images(
    names: Mapping[str, Mapping[str, str]], captions: Mapping[str, Sequence[Any]], path: Path
) -> ValueError:
    twice = [key for key, files in names.items() if len(files) > 1 and captions[key]]
    places = " and ".join(f"{name} ({place})" for name, place in names[twice[0]].items())
    others = len(twice) - 1
    more = "; so does 1 other id" if others == 1 else f"; so do {others:,} other ids"
    more = more if others else ""
    return ValueError(
        f"{path}: id {twice[0]} names {places}{more}, so their captions are ambiguous: number "
        "the images again, or give the files before merging as data.captions=[a.json,b.json]"
    )


def _coco_id(entry: Entry, key: str, place: str) -> str:
    """An id as text: 7, 7.0 and "7" are the same."""
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"{place}: {key!r} must be a number or a text, got {shortened(value)}")
    return str(value)


def entries_of(data: Any, key: str, place: Path | str) -> list[Entry]:
    """Return the list of objects under a key.

    Raises:
        ValueError: there is no such list.
    """
    entries = data.get(key) if isinstance(data, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{place}: {key!r} must be a list of objects; is this file of another data.format?"
        )
    return entries


def text_of(entry: Entry, key: str, place: str) -> str:
    """Return the text under a key.

    Raises:
        ValueError: it is not a text.
    """
    value = entry.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{place}: {key!r} must be a text, got {shortened(value)}")
    return value


def parse_json(text: str, place: str, line: int = 1) -> Any:
    """Parse JSON in which no object repeats a key: one of its values would be lost.

    Args:
        text: one document.
        place: the file, for errors.
        line: the line of the file in which the text begins.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place}, line {line - 1 + error.lineno}: not valid JSON ({error.msg}); "
            "the file may be truncated: download or write it again"
        ) from None
    except ValueError:  # of int()
        raise ValueError(f"{place}: a number in it has more than 4,300 digits") from None
    except RecursionError:
        raise ValueError(f"{place}: JSON nested too deeply for a caption file") from None
    except _Repeated as error:
        raise ValueError(
            f"{place}: the key {shortened(str(error))} is repeated in one object, where JSON keeps "
            "the last one only; put its captions into one list"
        ) from None


class _Repeated(Exception):
    """A key that is repeated in an object."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Repeated(next(key for key in keys if keys.count(key) > 1))
    return values


def _parse_document_or_lines(text: str, path: Path) -> tuple[Any, bool]:
    """Parse a document, or JSON lines into (number, value); and return whether it is JSON lines."""
    try:
        return parse_json(text, str(path)), False
    except ValueError:
        lines = [(count, line) for count, line in enumerate(text.split("\n"), 1) if line.strip()]
        if not _are_json_lines([line for _, line in lines], path):
            raise
    return ((count, parse_json(line, str(path), count)) for count, line in lines), True


def _are_json_lines(lines: Sequence[str], path: Path) -> bool:
    """Whether a text has one JSON document per line, even if the first line is damaged."""
    if len(lines) < 2:
        return False
    if _is_json(lines[0]):
        return True
    begins = lines[0].startswith("{") and len(lines[0].strip()) > 1
    return begins and (path.suffix.lower() == ".jsonl" or _is_json(lines[1]))


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_object_list(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(v, dict) for v in value)


def _require_object(entry: Any, place: str) -> tuple[str, Entry]:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected an object like {_SHAPE}, got {shortened(entry)}")
    return place, entry
