"""Score captions in files: of another system, of a person, of an earlier evaluation.

A file of any format becomes rows of image, caption and references; the references are in the same
rows or in a second file. Anything that would change a score silently is an error: an image with two
captions, without a caption, or without references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.data.encodings import decode, remove_surrogates
from captioner.data.entries import (
    ANNOTATION,
    IMAGE_NAMES,
    Entry,
    caption_keys,
    captions_of,
    image_key,
    json_entries,
    missing,
)
from captioner.data.fit_warnings import tokenizer_warnings
from captioner.data.tables import table_rows
from captioner.files import write_whole
from captioner.metrics.scores import CONTEXT, Scores, score
from captioner.metrics.signature import Signature, from_json, image_hash
from captioner.plain_data import read_json, shortened
from captioner.runs import CAPTIONS, SCORES, STATISTICS

# The id comes first, so that COCO's results match COCO's annotations.
_IMAGE = ("image", "image_id", *IMAGE_NAMES)
_REFERENCE = re.compile(r"(references?|refs?)([ _-]?\d+)?")
_SHAPE = '{"image": ..., "caption": ..., "references": [...]}'


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        place: file and line, or number, for errors.
        image: its id.
        caption: None if the row has none.
        references: captions by people in the same row.
        several: several captions, best first; empty if the row has only one.
        also: other ids of the image, in an order that is the same for all rows of a file.
    """

    place: str
    image: str
    caption: str | None
    references: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoredFile:
    """The scores of a file of captions.

    Attributes:
        scores: with their signatures.
        warnings: reasons why they may be misleading.
    """

    scores: Scores
    warnings: tuple[str, ...]

    def write(self, folder: str | Path) -> list[Path]:
        """Write scores.json and statistics.npz, for ``captioner compare``."""
        return [
            write_whole(Path(folder) / SCORES, self.scores.to_json()),
            self.scores.statistics.save(Path(folder) / STATISTICS),
        ]


def score_files(
    file: str | Path,
    references: str | Path | None = None,
    *,
    tokenize: str = "ptb",
    metrics: Sequence[str] = ("bleu",),
    subset: bool = False,
    training: str | Path | None = None,
) -> ScoredFile:
    """Score a file of captions.

    Args:
        file: one caption per image.
        references: captions by people; None: those of `file`.
        tokenize: a key of TOKENIZE.
        metrics: keys of METRICS.
        subset: leave out images that have no caption in `file`.
        training: a file with the training captions, for novelty.

    Raises:
        ValueError: a file cannot be read as captions, or the images of the files do not match.
        FileNotFoundError: a file does not exist.
    """
    file, references = Path(file), Path(references) if references else None
    rows, texts = matched(file, references, subset=subset)
    trained_on = read_rows(Path(training)) if training else []
    scores = score(
        [row.caption or "" for row in rows],
        texts,
        tokenize=tokenize,
        metrics=metrics,
        images=[row.image for row in rows],
        several=[row.several for row in rows],
        training=[text for row in trained_on for text in _as_references(row)] or None,
        context=context(file, references, rows),
    )
    return ScoredFile(scores, (*_few_images(scores), *_wrong_tokenization(tokenize, texts)))


def _few_images(scores: Scores) -> list[str]:
    if len(scores.statistics.images) > 1 or not {"CIDEr", "CIDEr-D"} & scores.values.keys():
        return []
    return ["one image: CIDEr weighs n-grams by the images that do not have them, so here it is 0"]


def _wrong_tokenization(tokenize: str, references: Sequence[Sequence[str]]) -> list[str]:
    if not tokenize.startswith("ptb"):
        return []
    texts = [text for several in references for text in several]
    return [
        warning.replace("tokenizer=character", "--tokenize character")
        for warning in tokenizer_warnings(texts, "word")
    ]


def context(file: Path, references: Path | None, rows: Sequence[Row]) -> dict[str, Any]:
    """Decoding, data and images for the signature, as far as the files contain them.

    For captions.jsonl of ``captioner evaluate`` they are those in scores.json in the same folder.
    """
    images = image_hash(row.image for row in rows)
    try:
        content = read_json(file.with_name(SCORES), fault="")
        known, _ = from_json(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = Signature()
    if references is None and file.name == CAPTIONS and known.images == images:
        return {name: getattr(known, name) for name in CONTEXT}
    return {"data": (references or file).stem, "images": images}


def matched(
    file: Path, references: Path | None, *, subset: bool = False
) -> tuple[list[Row], list[tuple[str, ...]]]:
    """The captions of a file, each with its references.

    Raises:
        ValueError: an image has no caption, two captions or no references.
    """
    rows = {}
    for row in read_rows(file):
        if row.caption is None:
            raise ValueError(f"{row.place}: no caption; write rows such as {_SHAPE}")
        if row.image in rows:
            raise ValueError(
                f"{row.place}: image {shortened(row.image)} has a caption already; "
                "give one per image"
            )
        rows[row.image] = row
    if references is None:
        return list(rows.values()), [_references_beside(row) for row in rows.values()]
    texts = _read_references(references, rows)
    unknown = [image for image in rows if not texts.get(image)]
    if unknown:
        raise ValueError(
            f"{references}: no reference for {_count(unknown, rows)} of {file}; "
            "are these captions of other images?"
        )
    missing = [image for image in texts if image not in rows]
    if missing and not subset:
        raise ValueError(
            f"{file}: no caption for {_count(missing, texts)} of {references}; "
            "caption them too, or leave them out with --subset"
        )
    return list(rows.values()), [texts[image] for image in rows]


def _read_references(file: Path, rows: Mapping[str, Row]) -> dict[str, tuple[str, ...]]:
    """Image id -> its references, by the kind of id that most of `rows` use.

    COCO gives an image a number and a file name, and its reader here the id `val2017/name.jpg`.
    """
    kinds: list[dict[str, tuple[str, ...]]] = []  # of each kind of id, its texts
    for row in read_rows(file):
        for kind, image in enumerate((row.image, *row.also)):
            if kind == len(kinds):
                kinds.append({})
            kinds[kind][image] = (*kinds[kind].get(image, ()), *_as_references(row))
    return max(kinds, key=lambda texts: len(texts.keys() & rows.keys()))


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of captions, by its suffix .jsonl, .json, .csv or .tsv.

    Raises:
        ValueError: the file has another suffix, is not UTF-8 or not in the format of its suffix, or
            has no rows.
        FileNotFoundError: the file does not exist.
    """
    readers = {".jsonl": _objects, ".json": _objects, ".csv": _cells, ".tsv": _cells}
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a file of captions")
    if suffix not in readers:
        raise ValueError(f"{path}: not a known kind of file; give {', '.join(readers)}")
    text = decode(path.read_bytes(), "utf-8", path).removeprefix("\ufeff")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise ValueError(f"{path}: empty file; give one or more captions")
    rows = list(readers[suffix](text, path))
    if not rows:
        raise ValueError(f"{path}: has no captions; give one or more")
    return rows


def _objects(text: str, path: Path) -> Iterator[Row]:
    for place, entry in json_entries(text, path):
        yield _row(entry, place)


def _cells(text: str, path: Path) -> Iterator[Row]:
    rows = table_rows(text, path)
    _, _, header = next(rows, (0, ",", [""]))
    names = [name.strip().lower() for name in header]
    if any(names) and image_key(names, _IMAGE) is None:
        raise missing("image", "column", header, str(path))
    if any(names) and not caption_keys(names)[0] and not any(map(_REFERENCE.fullmatch, names)):
        raise missing("caption", "column", header, str(path))
    for line, _, cells in rows:
        place = f"{path}, line {line}"
        if len(cells) != len(names):
            raise ValueError(
                f"{place}: {len(cells)} cells under {len(names)} column names; "
                "quote texts that contain the separator"
            )
        # Images with fewer captions than columns have empty cells.
        pairs = list(zip(names, cells))
        references = [cell for name, cell in pairs if _REFERENCE.fullmatch(name) and cell.strip()]
        texts = [cell for name, cell in pairs if name in caption_keys(names)[0]]
        entry: dict[str, Any] = {n: c for n, c in pairs if n == image_key(names, _IMAGE)}
        if len(texts) == 1:
            entry["caption"] = texts[0]
        elif texts:
            entry["captions"] = [text for text in texts if text.strip()]
        yield _row({**entry, "references": references}, place)


def _row(content: Entry, place: str) -> Row:
    key = image_key(content, _IMAGE)
    image = None if key is None else content[key]
    if isinstance(image, (dict, list, float, bool, type(None))) or image == "":
        raise ValueError(f"{place}: no image id; give it as {_IMAGE[0]!r} or {_IMAGE[1]!r}")
    keys = caption_keys(content)[0]
    single = next((key for key in keys if isinstance(content[key], str)), None)
    several = captions_of({key: content[key] for key in keys if key != single}, place)
    texts = [*_list(content, "references", place), *several]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{place}: {shortened(text)} is not a caption; captions are texts")
    texts = [remove_surrogates(text) for text in texts]
    return Row(
        place,
        str(image),
        None if single is None else remove_surrogates(content[single]),
        tuple(texts[: len(texts) - len(several)]),
        tuple(texts[len(texts) - len(several) :]),
        _other_names(content, Path(place.partition(",")[0]).stem),
    )


def _other_names(content: Entry, file: str) -> tuple[str, ...]:
    """The image ids that the readers of COCO and of Karpathy's files give."""
    if ANNOTATION in content and content["file_name"] is not None:
        return content["file_name"], f"{file.removeprefix('captions_')}/{content['file_name']}"
    if isinstance(content.get("filepath"), str) and "filename" in content:
        return (f"{content['filepath']}/{content['filename']}",)
    return ()


def _list(content: Mapping[str, Any], name: str, place: str) -> list[Any]:
    value = content.get(name) or []
    if not isinstance(value, list):
        raise ValueError(f"{place}: {name!r} is {shortened(value)}; give a list")
    return value


def _as_references(row: Row) -> tuple[str, ...]:
    """The references of a row in a file of references, in which captions are references too."""
    return row.references or (*(() if row.caption is None else (row.caption,)), *row.several)


def _references_beside(row: Row) -> tuple[str, ...]:
    if not row.references:
        raise ValueError(
            f"{row.place}: image {shortened(row.image)} has no references; put them next to the "
            "caption, or give a file of references: captioner score FILE REFERENCES"
        )
    return row.references


def _count(images: Sequence[str], all_images: Iterable[str]) -> str:
    return f"{len(images)} of {len(list(all_images))} images (first {shortened(images[0])})"
