"""From tables to records: CSV, TSV and the layout in which Kaggle offers Flickr8k and Flickr30k.

A table's first line names its columns: one is the image, one or several are captions (`caption`,
or `caption_1`, `caption_2`, ...; see `captioner.data.entries`), one may be the split; all others
are left alone. The mark between the columns is the first of tab, | and ; that stands in that line,
and the comma otherwise. A cell in quotes may hold the mark, a new line, and a doubled quote
(RFC 4180).

People forget to close quotes, and a quote would then swallow the rows behind it. So a quote ends
with its line where the next line is a row again, and between tabs or bars, where captions hold lone
quotes, also where no cell ends in a quote later.
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
from captioner.data.ledger import COLUMNS, SWALLOWED, Ledger
from captioner.data.readers import FLICKR_IMAGES, Captions, enter_split_lists, require_split
from captioner.data.records import Reading

# A quote that is never closed swallows line after line; no caption is as long as this.
_LINES_OF_A_ROW = 30


def read_table(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read a CSV or TSV file with a column for the image and one or more for captions.

    Images are given below the images folder (root by default) or by absolute paths; several rows
    may name the same one. An image's id is its path as written.
    """
    paths = find_files(root, captions, ("captions.csv", "captions.tsv", "*.csv", "*.tsv"))
    folders = ImageFolders(root, images, (".", "images", "Images"), absolute=True)
    ledger = Ledger(folders, holdout=holdout, encoding=encoding)
    for path in paths:
        _enter_rows(ledger, path, split_of_file(path) if len(paths) > 1 else None)
    return ledger.close(paths[0])


def read_kaggle(
    root: Path, *, captions: Captions, images: str | None, holdout: float, encoding: str
) -> Reading:
    """Read Flickr8k as Kaggle has it (`captions.txt`, `Images/`), or Flickr30k (`results.csv`).

    These come without splits, so `holdout` applies; Flickr8k's official lists, laid beside the
    caption file, are used. An image's id is its file name.
    """
    usual = ("captions.txt", "results.csv", "flickr30k_images/results.csv")
    path = find_file(root, captions, usual)
    ledger = Ledger(ImageFolders(root, images, FLICKR_IMAGES), holdout=holdout, encoding=encoding)
    _enter_rows(ledger, path, None)
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
        image, captions = image_key(header), caption_keys(header)[0]
        if image is None or not captions:
            what = "image" if image is None else "caption"
            raise missing(what, "column", header, f"{path}, first line")
        names = [name.strip().lower() for name in header]
        split = names.index("split") if "split" in names else None
        columns = tuple(i for i, name in enumerate(header) if name in captions)
        return cls(header.index(image), columns, split, len(names), mark)


def _enter_rows(ledger: Ledger, path: Path, split_of_all: str | None) -> None:
    def note(oddity: str, line: int) -> None:
        ledger.note(oddity, f"{path.name}, line {line}")

    rows = table_rows(ledger.read(path), path, note)
    _, mark, header = next(rows, (0, ",", [""]))
    columns = _Columns.named(header, mark, path)
    for other in caption_keys(header)[1]:
        note(f"column {other!r} beside the captions, not read as one", 1)
    for line, _, row in rows:
        if len(row) > columns.count and columns.captions == (columns.count - 1,):
            note("caption with a comma but without quotes, mended", line)
            row[columns.count - 1 :] = [_unquoted(mark.join(row[columns.count - 1 :]))]
        if len(row) > columns.count or len(row) <= max(columns.image, columns.captions[0]):
            note(COLUMNS, line)
            continue
        row += [""] * (columns.count - len(row))
        name = row[columns.split].strip() if columns.split is not None else ""
        split = require_split(name, f"{path}, line {line}") if name else split_of_all
        texts = [row[column] for column in columns.captions]
        if len(texts) > 1:  # a table as wide as its most captioned image has empty cells
            texts = [text for text in texts if text.strip()]
        ledger.enter(row[columns.image], texts, split=split)


def table_rows(
    text: str, path: Path, note: Callable[[str, int], None] = lambda oddity, line: None
) -> Iterator[tuple[int, str, list[str]]]:
    r"""Yield line number, column mark and cells of each row that is not empty.

    Args:
        text: the content of a table, with \n as line ends.
        path: where it comes from, for errors.
        note: told of what was odd, and in which line.

    Raises:
        ValueError: a quote is never closed.
    """
    lines = text.split("\n")
    header = next((line for line in lines if line.strip()), "")
    mark = next((mark for mark in "\t|;" if mark in header), ",")
    rows = _Rows(lines, mark, _cells(header, mark), path)
    place = 0
    while place < len(lines):
        cells, height = rows.at(place)
        if any(rows.begins(line) for line in lines[place + 1 : place + height]):
            note(SWALLOWED, place + 1)
            cells, height = _cells(lines[place], mark), 1
        if any(cell.strip() for cell in cells):
            yield place + 1, mark, cells
        place += height


class _Rows:
    """The rows of a table by the line in which they begin."""

    def __init__(self, lines: Sequence[str], mark: str, header: Sequence[str], path: Path) -> None:
        self.lines, self.mark, self.path, self.count = lines, mark, path, len(header)
        self.image = list(header).index(image_key(header) or header[0])

    def at(self, place: int) -> tuple[list[str], int]:
        """The cells of the row that begins in a line, and how many lines it takes."""
        line = self.lines[place]
        if self.mark in "\t|":
            return self._joined(place) or (_cells(line, self.mark), 1)
        if '"' not in line:
            return line.split(self.mark), 1
        last = min(len(self.lines), place + _LINES_OF_A_ROW + 1)
        reader = csv.reader((f"{self.lines[i]}\n" for i in range(place, last)), delimiter=self.mark)
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
        """Whether a line is a row by itself: where the image stands, it names one."""
        cells = _cells(line, self.mark)
        name = cells[self.image].strip() if self.image < len(cells) else ""
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            return len(cells) >= min(2, self.count)
        return name.isdigit() and len(cells) == self.count

    def _joined(self, place: int) -> tuple[list[str], int] | None:
        """A row between tabs or bars whose last cell opens a quote that a later line closes."""
        *cells, held = self.lines[place].split(self.mark)
        if not held.strip().startswith('"') or held.count('"') % 2 == 0:
            return None
        for height, line in enumerate(self.lines[place + 1 : place + _LINES_OF_A_ROW], start=2):
            closing, *others = line.split(self.mark)
            held = f"{held}\n{closing}"
            if closing.rstrip().endswith('"') and held.count('"') % 2 == 0:
                found = [*cells, held, *others]
                return ([_unquoted(c) for c in found], height) if len(found) <= self.count else None
            if others:
                return None
        return None


def _cells(line: str, mark: str) -> list[str]:
    """The cells of a row of one line."""
    if mark in "\t|":
        return [_unquoted(cell) for cell in line.split(mark)]
    try:
        return next(csv.reader([line], delimiter=mark), []) or [""]
    except csv.Error:  # longer than a cell may be
        return [line]


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        return cell[1:-1].replace('""', '"')
    return cell
