"""From tables to records: CSV, TSV and the layout in which Kaggle offers Flickr8k and Flickr30k.

A table's first line names its columns. One is the image, one or several are captions (`caption`,
or `caption_1`, `caption_2`, ...), one may be the split; all others are left alone. The mark between
the columns is the first of tab, | and ; that stands in that line, and the comma otherwise. Commas
and semicolons follow RFC 4180: a cell in quotes may hold the mark, and a doubled quote. Tabs and
bars end a cell wherever they stand, and a lone quote in a caption means nothing.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.data.files import ImageFolders, find_file
from captioner.data.ledger import Ledger
from captioner.data.readers import FLICKR_IMAGES, enter_split_lists, require_split
from captioner.data.records import Reading

_IMAGE_COLUMNS = ("image", "image_name", "image_path", "filename", "file_name", "file", "path")
_CAPTION_COLUMN = re.compile(r"(captions?([ _-]?\d+)?|comment|sentence|text)")
# A quote that is never closed swallows line after line; no caption is as long as this.
_LINES_OF_A_ROW = 30


def read_table(
    root: Path, *, captions: str | None, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read a CSV or TSV file with a column for the image and one or more for captions.

    Images are given below the images folder (root by default) or by absolute paths; several rows
    may name the same one. An image's id is its path as written.
    """
    path = find_file(root, captions, ("captions.csv", "captions.tsv", "*.csv", "*.tsv"))
    folders = ImageFolders(root, images, (".", "images", "Images"), absolute=True)
    ledger = Ledger(folders, holdout=holdout, encoding=encoding)
    _enter_rows(ledger, path)
    return ledger.close(path)


def read_kaggle(
    root: Path, *, captions: str | None, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read Flickr8k as Kaggle has it (`captions.txt`, `Images/`), or Flickr30k (`results.csv`).

    These come without splits, so `holdout` applies; Flickr8k's official lists, laid beside the
    caption file, are used. An image's id is its file name.
    """
    usual = ("captions.txt", "results.csv", "flickr30k_images/results.csv")
    path = find_file(root, captions, usual)
    ledger = Ledger(ImageFolders(root, images, FLICKR_IMAGES), holdout=holdout, encoding=encoding)
    _enter_rows(ledger, path)
    enter_split_lists(ledger, (path.parent, root))
    return ledger.close(path)


@dataclass(frozen=True)
class _Columns:
    image: int
    captions: tuple[int, ...]
    split: int | None
    count: int
    mark: str

    @classmethod
    def named(cls, header: Sequence[str], mark: str, path: Path) -> _Columns:
        names = [name.strip().lower() for name in header]
        images = [names.index(name) for name in _IMAGE_COLUMNS if name in names]
        captions = tuple(i for i, name in enumerate(names) if _CAPTION_COLUMN.fullmatch(name))
        if not images or not captions:
            missing = "image" if not images else "caption"
            raise ValueError(
                f"{path}: no column {missing!r} among {', '.join(map(repr, header))}; "
                "the first line must name the columns, as in: image,caption"
            )
        split = names.index("split") if "split" in names else None
        return cls(images[0], captions, split, len(names), mark)


def _enter_rows(ledger: Ledger, path: Path) -> None:
    rows = table_rows(ledger.read(path), path)
    _, mark, header = next(rows, (0, ",", [""]))
    columns = _Columns.named(header, mark, path)
    for line, _, row in rows:
        place = f"{path.name}, line {line}"
        if len(row) > columns.count and columns.captions == (columns.count - 1,):
            ledger.note("caption with a comma but without quotes, mended", place)
            row[columns.count - 1 :] = [_unquoted(mark.join(row[columns.count - 1 :]))]
        if len(row) > columns.count or len(row) <= max(columns.image, columns.captions[0]):
            ledger.note("row with too many or too few columns", place)
            continue
        row += [""] * (columns.count - len(row))
        name = row[columns.split].strip() if columns.split is not None else ""
        split = require_split(name, f"{path}, line {line}") if name else None
        texts = [row[column] for column in columns.captions]
        if len(texts) > 1:  # a table as wide as its most captioned image has empty cells
            texts = [text for text in texts if text.strip()]
        ledger.enter(row[columns.image], texts, split=split)


def table_rows(text: str, path: Path) -> Iterator[tuple[int, str, list[str]]]:
    r"""Yield line number, column mark and cells of each row that is not empty.

    Args:
        text: the content of a table, with \n as line ends.
        path: where it comes from, for errors.

    Raises:
        ValueError: a quote is never closed.
    """
    header = text.lstrip().partition("\n")[0]
    mark = next((mark for mark in "\t|;" if mark in header), ",")
    if mark in "\t|":
        for line, row in enumerate(text.split("\n"), start=1):
            if row.strip():
                yield line, mark, [_unquoted(cell) for cell in row.split(mark)]
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    line = 0
    try:
        for cells in reader:
            if reader.line_num - line > _LINES_OF_A_ROW:
                raise csv.Error(f"a row of {reader.line_num - line} lines")
            if any(cell.strip() for cell in cells):
                yield line + 1, mark, cells
            line = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line + 1}: not a readable table ({error}); is a quote never closed?"
        ) from None


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        return cell[1:-1].replace('""', '"')
    return cell
