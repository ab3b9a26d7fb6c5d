"""Score captions that lie in files: of another system, of a person, of an earlier evaluation.

A file becomes rows of image, caption and references, whatever its format; the references come from
the same rows or from a second file. What would change a score silently is an error: an image
captioned twice, left out, or unknown to the references.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.data.records import write_whole
from captioner.data.tables import table_rows
from captioner.metrics import Scores, image_hash, score
from captioner.metrics.statistics import FILE

_IMAGE = ("image", "image_id", "image_name", "filename", "file_name", "file")
_REFERENCE = re.compile(r"(references?|refs?)([ _-]?\d+)?")
_SHAPE = '{"image": ..., "caption": ..., "references": [...]}'


@dataclass(frozen=True)
class Row:
    """What a file says of an image.

    Attributes:
        place: file and line, or number, for errors.
        image: its id.
        caption: None where there is none.
        references: captions by people, where they stand beside it.
        several: several captions, best first, where there are such.
    """

    place: str
    image: str
    caption: str | None
    references: tuple[str, ...] = ()
    several: tuple[str, ...] = ()


def score_files(
    file: str,
    references: str | None = None,
    *,
    tokenize: str = "ptb",
    metrics: Sequence[str] = ("bleu",),
    subset: bool = False,
    training: str | None = None,
    format: str = "text",
    output: str | None = None,
    statistics: str | None = None,
) -> int:
    """Score a file of captions, and print or write the scores.

    Args:
        file: one caption an image.
        references: captions by people; None takes those of `file`.
        tokenize: a key of TOKENIZE.
        metrics: keys of METRICS.
        subset: leave out images that `file` does not caption.
        training: a file with the captions of training, for novelty.
        format: "text", "json" or "markdown".
        output: a file to write; None prints.
        statistics: a folder for scores.json and statistics.npz; None writes none.

    Returns:
        the exit status, 0.

    Raises:
        ValueError: a file that cannot be read as captions, or whose images do not match.
        FileNotFoundError: a file that is not there.
    """
    rows, texts = matched(Path(file), Path(references) if references else None, subset=subset)
    known = training and [t for row in read_rows(Path(training)) for t in _written_by_people(row)]
    scores = score(
        [row.caption or "" for row in rows],
        texts,
        tokenize=tokenize,
        metrics=metrics,
        images=[row.image for row in rows],
        several=[row.several for row in rows],
        training=known or None,
        context=context(Path(file), Path(references) if references else None, rows),
    )
    if len(rows) == 1 and any(name.startswith("CIDEr") for name in scores.values):
        print(
            "captioner: warning: one image: CIDEr weighs n-grams by the images that lack them, so "
            "here it is 0",
            file=sys.stderr,
        )
    text = FORMATS[format](scores)
    if output is None:
        print(text, end="")
    else:
        write_whole(output, text)
    if statistics is not None:
        write_whole(Path(statistics) / "scores.json", _as_json(scores))
        scores.statistics.save(Path(statistics) / FILE)
    return 0


def context(file: Path, references: Path | None, rows: Sequence[Row]) -> dict[str, str]:
    """What the files tell of decoding, data and images, for the signature.

    Captions that ``captioner evaluate`` left with their scores keep what it knew of them.
    """
    images = image_hash(row.image for row in rows)
    try:
        beside = json.loads(file.with_name("scores.json").read_text(encoding="utf-8"))
        known = dict(part.partition(":")[::2] for part in beside["signature"].split("|"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = {}
    if references is None and file.name == "captions.jsonl" and known.get("images") == images:
        return {name: known[name] for name in ("decoding", "data", "split") if name in known} | {
            "images": images
        }
    return {"data": (references or file).stem, "images": images}


def matched(
    file: Path, references: Path | None, *, subset: bool = False
) -> tuple[list[Row], list[tuple[str, ...]]]:
    """The captions of a file, each with its references.

    Raises:
        ValueError: an image without caption or references, captioned twice, or left out.
    """
    rows = {}
    for row in read_rows(file):
        if row.caption is None:
            raise ValueError(f"{row.place}: no caption; a row is such as {_SHAPE}")
        if row.image in rows:
            raise ValueError(f"{row.place}: image {row.image!r} has a caption already; give one")
        rows[row.image] = row
    if references is None:
        return list(rows.values()), [_references_beside(row) for row in rows.values()]
    people: dict[str, tuple[str, ...]] = {}
    for row in read_rows(references):
        people[row.image] = (*people.get(row.image, ()), *_written_by_people(row))
    strange = [image for image in rows if not people.get(image)]
    if strange:
        raise ValueError(
            f"{references}: no reference for {_some(strange, rows)} of {file}; "
            "are these captions of other images?"
        )
    absent = [image for image in people if image not in rows]
    if absent and not subset:
        raise ValueError(
            f"{file}: no caption for {_some(absent, people)} of {references}; "
            "caption them too, or leave them out with --subset"
        )
    return list(rows.values()), [people[image] for image in rows]


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of captions, by its suffix .jsonl, .json, .csv or .tsv.

    Raises:
        ValueError: another suffix, not UTF-8, not the format that the suffix says, or no rows.
        FileNotFoundError: nothing is there.
    """
    readers = {".jsonl": _lines, ".json": _objects, ".csv": _cells, ".tsv": _cells}
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or is not a file; give a file of captions")
    if suffix not in readers:
        raise ValueError(f"{path}: not a known kind of file; give {', '.join(readers)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8"
        ) from None
    if not text.strip():
        raise ValueError(f"{path}: empty file; give one or more captions")
    rows = list(readers[suffix](text, path))
    if not rows:
        raise ValueError(f"{path}: holds no captions; give one or more")
    return rows


def _lines(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield _row(_parsed(line, place), place)


def _objects(text: str, path: Path) -> Iterator[Row]:
    content = _parsed(text, str(path))
    if isinstance(content, dict):  # COCO's annotations
        content = content.get("annotations")
    if not isinstance(content, list):
        raise ValueError(
            f"{path}: neither a list of objects nor COCO's annotations; an object is such as "
            f"{_SHAPE}"
        )
    for number, one in enumerate(content, start=1):
        yield _row(one, f"{path}, object {number}")


def _cells(text: str, path: Path) -> Iterator[Row]:
    rows = table_rows(text, path)
    _, _, header = next(rows)
    names = [name.strip().lower() for name in header]
    for line, _, cells in rows:
        place = f"{path}, line {line}"
        if len(cells) != len(names):
            raise ValueError(
                f"{place}: {len(cells)} cells under {len(names)} column names; "
                "put a text with the mark between columns in quotes"
            )
        # A table as wide as its most captioned image has empty cells.
        pairs = [(name, cell) for name, cell in zip(names, cells)]
        references = [cell for name, cell in pairs if _REFERENCE.fullmatch(name) and cell.strip()]
        found: dict[str, Any] = {n: c for n, c in pairs if not _REFERENCE.fullmatch(n)}
        yield _row({**found, "references": references}, place)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON ({error})") from None


def _row(content: Any, place: str) -> Row:
    if not isinstance(content, Mapping):
        raise ValueError(f"{place}: not an object such as {_SHAPE}")
    ids = [content[name] for name in _IMAGE if name in content]
    if not ids or isinstance(ids[0], (dict, list, float, bool, type(None))) or ids[0] == "":
        raise ValueError(f"{place}: no image id; give it as {_IMAGE[0]!r} or {_IMAGE[1]!r}")
    caption, references = content.get("caption"), _list(content, "references", place)
    several: list[Any] = [
        one.get("caption") if isinstance(one, Mapping) else one
        for one in _list(content, "captions", place)
    ]
    for text in (caption or "", *references, *several):
        if not isinstance(text, str):
            raise ValueError(f"{place}: {text!r} is not a caption; captions are texts")
    return Row(place, str(ids[0]), caption, tuple(references), tuple(several))


def _list(content: Mapping[str, Any], name: str, place: str) -> list[Any]:
    found = content.get(name) or []
    if not isinstance(found, list):
        raise ValueError(f"{place}: {name!r} is {found!r}; give a list")
    return found


def _written_by_people(row: Row) -> tuple[str, ...]:
    """In a file of references the caption is one, unless there are references beside it."""
    return row.references or (() if row.caption is None else (row.caption,))


def _references_beside(row: Row) -> tuple[str, ...]:
    if not row.references:
        raise ValueError(
            f"{row.place}: image {row.image!r} has no references; put them beside the caption, or "
            "name a file of them: captioner score FILE REFERENCES"
        )
    return row.references


def _some(images: Sequence[str], among: Iterable[str]) -> str:
    return f"{len(images)} of {len(list(among))} images (first {images[0]!r})"


# What is printed ------------------------------------------------------------------------------


def _as_text(scores: Scores) -> str:
    width = max(map(len, scores.values), default=0)
    lines = [f"{name:<{width}} {value:9.2f}" for name, value in scores.values.items()]
    lines += ["", *dict.fromkeys(scores.signatures.values())]
    lines += [f"no {metric}: {reason}" for metric, reason in scores.missing.items()]
    return "\n".join(lines) + "\n"


def _as_json(scores: Scores) -> str:
    return json.dumps(scores.as_dict(), indent=2, ensure_ascii=False) + "\n"


def _as_markdown(scores: Scores) -> str:
    lines = ["| score | value |", "|---|---:|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in scores.values.items()]
    lines += ["", *(f"- `{one}`" for one in dict.fromkeys(scores.signatures.values()))]
    lines += [f"- no {metric}: {reason}" for metric, reason in scores.missing.items()]
    return "\n".join(lines) + "\n"


FORMATS = {"text": _as_text, "json": _as_json, "markdown": _as_markdown}
