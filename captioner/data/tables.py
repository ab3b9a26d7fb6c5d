"""Readers of tables: CSV, TSV, and Kaggle's layout of Flickr8k and Flickr30k.

The first line of a table has the names of its columns: one is the image, one or several are
captions (`caption`, or `caption_1`, `caption_2`, ...; see `captioner.data.entries`), one may be the
split; all others are ignored. The delimiter is the first of tab, | and ; that occurs in that line,
and the comma otherwise. A quoted cell may contain the delimiter, line breaks and doubled quotes
(RFC 4180).

If a quote is never closed, its cell would contain all following rows. So a quote ends with its line
if the next line is a complete row; in tables delimited by tabs or bars, whose captions contain
single quotes, also if no later cell ends with a quote.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.data.entries import caption_keys, image_key, missing
from captioner.data.layout import (
    IMAGE_SUFFIXES,
    ImageFolders,
    find_file,
    find_files,
    split_of_file,
)
from captioner.data.readers import FLICKR_IMAGES, Captions, add_split_lists, require_split
from captioner.data.record_builder import COLUMNS, UNCLOSED_QUOTE, RecordBuilder
from captioner.data.records import Dataset

# A longer cell is treated as a quote that is never closed; no caption is as long as this.
_LINES_OF_A_ROW = 30


def read_table(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Dataset:
    """Read a CSV or TSV file with a column for the image and one or more for captions.

    Images are paths relative to the images folder (root by default) or absolute paths; several rows
    may have the same one. An image's id is its path as written.
    """
    paths = find_files(root, captions, ("captions.csv", "captions.tsv", "*.csv", "*.tsv"))
    folders = ImageFolders(root, images, (".", "images", "Images"), absolute=True)
    builder = RecordBuilder(folders, holdout=holdout, encoding=encoding)
    for path in paths:
        _add_rows(builder, path, split_of_file(path) if len(paths) > 1 else None)
    return builder.build(paths[0])


def read_kaggle(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Dataset:
    """Read Flickr8k as on Kaggle (`captions.txt`, `Images/`), or Flickr30k (`results.csv`).

    These have no splits, so `holdout` applies, unless Flickr8k's official lists are next to the
    caption file. An image's id is its file name.
    """
    usual = ("captions.txt", "results.csv", "flickr30k_images/results.csv")
    path = find_file(root, captions, usual)
    builder = RecordBuilder(
        ImageFolders(root, images, FLICKR_IMAGES), holdout=holdout, encoding=encoding
    )
    _add_rows(builder, path, None)
    add_split_lists(builder, (path.parent, root))
    return builder.build(path)


@dataclass(frozen=True)
class _Columns:
    image: int
    captions: tuple[int, ...]
    split: int | None
    count: int
    delimiter: str

    @classmethod
    def from_header(cls, header: Sequence[str], delimiter: str, path: Path) -> _Columns:
        image, captions = image_key(header), caption_keys(header)[0]
        if image is None or not captions:
            what = "image" if image is None else "caption"
            raise missing(what, "column", header, f"{path}, first line")
        names = [name.strip().lower() for name in header]
        split = names.index("split") if "split" in names else None
        columns = tuple(i for i, name in enumerate(header) if name in captions)
        return cls(header.index(image), columns, split, len(names), delimiter)


def _add_rows(builder: RecordBuilder, path: Path, default_split: str | None) -> None:
    def warn(warning: str, line: int) -> None:
        builder.warn(warning, f"{path.name}, line {line}")

    rows = table_rows(builder.read_text(path), path, warn)
    _, delimiter, header = next(rows, (0, ",", [""]))
    columns = _Columns.from_header(header, delimiter, path)
    for other in caption_keys(header)[1]:
        warn(f"column {other!r} next to the captions, not read as one", 1)
    for line, _, row in rows:
        if len(row) > columns.count and columns.captions == (columns.count - 1,):
            warn("caption with a comma but without quotes, repaired", line)
            row[columns.count - 1 :] = [_unquote(delimiter.join(row[columns.count - 1 :]))]
        if len(row) > columns.count or len(row) <= max(columns.image, columns.captions[0]):
            warn(COLUMNS, line)
            continue
        row += [""] * (columns.count - len(row))
        name = row[columns.split].strip() if columns.split is not None else ""
        split = require_split(name, f"{path}, line {line}") if name else default_split
        texts = [row[column] for column in columns.captions]
        if len(texts) > 1:  # rows of images with fewer captions have empty cells
            texts = [text for text in texts if text.strip()]
        builder.add(row[columns.image], texts, split=split)


def table_rows(
    text: str, path: Path, warn: Callable[[str, int], None] = lambda warning, line: None
) -> Iterator[tuple[int, str, list[str]]]:
    r"""Yield line number, delimiter and cells of each row that is not empty.

    Args:
        text: the content of a table, with \n as line ends.
        path: of the table, for errors.
        warn: called with each warning and its line.

    Raises:
        ValueError: a quote is never closed.
    """
    lines = text.split("\n")
    header = next((line for line in lines if line.strip()), "")
    delimiter = next((delimiter for delimiter in "\t|;" if delimiter in header), ",")
    rows = _Rows(lines, delimiter, _split_cells(header, delimiter), path)
    place = 0
    while place < len(lines):
        cells, height = rows.at(place)
        if any(rows.begins(line) for line in lines[place + 1 : place + height]):
            warn(UNCLOSED_QUOTE, place + 1)
            cells, height = _split_cells(lines[place], delimiter), 1
        if any(cell.strip() for cell in cells):
            yield place + 1, delimiter, cells
        place += height


class _Rows:
    """The rows of a table, each identified by its first line."""

    def __init__(
        self, lines: Sequence[str], delimiter: str, header: Sequence[str], path: Path
    ) -> None:
        self.lines, self.delimiter, self.path, self.count = lines, delimiter, path, len(header)
        self.image = list(header).index(image_key(header) or header[0])

    def at(self, place: int) -> tuple[list[str], int]:
        """Return the cells of the row that begins in a line, and its number of lines."""
        line = self.lines[place]
        if self.delimiter in "\t|":
            return self._joined(place) or (_split_cells(line, self.delimiter), 1)
        if '"' not in line:
            return line.split(self.delimiter), 1
        last = min(len(self.lines), place + _LINES_OF_A_ROW + 1)
        reader = csv.reader(
            (f"{self.lines[i]}\n" for i in range(place, last)), delimiter=self.delimiter
        )
        try:
            cells = next(reader)
            below = self.lines[place + 1 : place + reader.line_num]
            if reader.line_num > _LINES_OF_A_ROW and not any(map(self.begins, below)):
                raise csv.Error(f"a row of more than {_LINES_OF_A_ROW} lines")
        except csv.Error as error:
            raise ValueError(
                f"{self.path}, line {place + 1}: not a readable table ({error}); "
                "is a quote never closed?"
            ) from None
        return cells, reader.line_num

    def begins(self, line: str) -> bool:
        """Whether a line is a complete row: its image column has the name of an image."""
        cells = _split_cells(line, self.delimiter)
        name = cells[self.image].strip() if self.image < len(cells) else ""
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            return len(cells) >= min(2, self.count)
        return name.isdigit() and len(cells) == self.count

    def _joined(self, place: int) -> tuple[list[str], int] | None:
        """A row delimited by tabs or bars; its last cell opens a quote that a later line closes."""
        *cells, quoted = self.lines[place].split(self.delimiter)
        if not quoted.strip().startswith('"') or quoted.count('"') % 2 == 0:
            return None
        for height, line in enumerate(self.lines[place + 1 : place + _LINES_OF_A_ROW], start=2):
            closing, *others = line.split(self.delimiter)
            quoted = f"{quoted}\n{closing}"
            if closing.rstrip().endswith('"') and quoted.count('"') % 2 == 0:
                row = [_unquote(cell) for cell in (*cells, quoted, *others)]
                return (row, height) if len(row) <= self.count else None
            if others:
                return None
        return None


def _split_cells(line: str, delimiter: str) -> list[str]:
    """Split a row of one line into cells."""
    if delimiter in "\t|":
        return [_unquote(cell) for cell in line.split(delimiter)]
    try:
        return next(csv.reader([line], delimiter=delimiter), []) or [""]
    except csv.Error:  # the cell is too long
        return [line]


def _unquote(cell: str) -> str:
    cell = cell.strip()
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        return cell[1:-1].replace('""', '"')
    return cell
