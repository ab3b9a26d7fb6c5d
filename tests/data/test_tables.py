"""Tables: each row is read correctly, or counted in a warning with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

import captioner
from captioner.data.read import read_records
from captioner.data.records import Dataset

UNCLOSED_QUOTE = "quote that is never closed, ended with its line"


def read(root: Path, text: str, name: str = "captions.csv") -> Dataset:
    for count in range(5):
        (root / f"{count}.png").write_bytes(b"not read by a reader")
    (root / name).write_text(text, encoding="utf-8")
    return read_records(format="table", root=str(root), captions=name, holdout=0.0)


def captions(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    return {record.image_id: record.captions for record in dataset.records}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("image,caption,comment,x", ("b",)),
        ("image,text,caption,x", ("c",)),
        ("image,sentence,text,x", ("b",)),
        ("image,comment,text,x", ("c",)),
        ("image,text_1,text 2,x", ("b", "c")),
        ("image,Caption,captions,x", ("b", "c")),
        ("image,number,comment,comment_number", ("c",)),
    ],
)
def test_columns_of_text_and_comments_next_to_captions_are_ignored(
    header, expected, tmp_path
) -> None:
    dataset = read(tmp_path, f"{header}\n0.png,b,c,d\n")
    assert captions(dataset) == {"0.png": expected}


def test_an_unread_column_is_named_with_its_line(tmp_path) -> None:
    dataset = read(tmp_path, "image,caption,comment\n0.png,a red box,check again\n")
    warning = "column 'comment' next to the captions, not read as one"
    assert dataset.places == {warning: ("captions.csv, line 1",)}


def test_an_unclosed_quote_ends_with_its_line(tmp_path) -> None:
    text = 'image,caption\n0.png,a box\n1.png,"Hello on a wall”\n2.png,a cat\n3.png,says "stop"\n'
    dataset = read(tmp_path, text)
    assert captions(dataset) == {
        "0.png": ("a box",),
        "1.png": ("Hello on a wall”",),
        "2.png": ("a cat",),
        "3.png": ('says "stop"',),
    }
    assert dataset.warnings == {UNCLOSED_QUOTE: 1}
    assert dataset.places[UNCLOSED_QUOTE] == ("captions.csv, line 3",)


def test_all_unclosed_quotes_are_counted(tmp_path) -> None:
    rows = "".join(f'{count % 5}.png,"box {count}\n' for count in range(60))
    dataset = read(tmp_path, f"image,caption\n{rows}")
    assert captions(dataset)["4.png"] == tuple(f"box {count}" for count in range(4, 60, 5))
    assert dataset.warnings == {UNCLOSED_QUOTE: 59}  # the file's end closes the last


def test_a_quoted_cell_may_contain_line_breaks(tmp_path) -> None:
    text = 'image,caption\n0.png,"a box,\nwhite, ""new""\n\n on paper"\n1.png,a cat\n'
    dataset = read(tmp_path, text)
    assert captions(dataset) == {"0.png": ('a box, white, "new" on paper',), "1.png": ("a cat",)}
    assert dataset.warnings == {"caption of several lines, joined": 1}


@pytest.mark.parametrize("mark", ["\t", "|"])
def test_quoted_cells_between_tabs_or_bars_may_contain_line_breaks(mark, tmp_path) -> None:
    rows = [
        ("image", "caption", "split"),
        ("0.png", '"a box\non paper"', "train"),
        ("1.png", '"Up', "train"),  # a single quote, as in Flickr30k
        ("3.png", '"Up" and "down', "train"),
        ("4.png", 'a 5" box', "train"),
    ]
    dataset = read(tmp_path, "\n".join(map(mark.join, rows)), "captions.tsv")
    assert captions(dataset) == {
        "0.png": ("a box on paper",),
        "1.png": ('"Up',),
        "3.png": ('"Up" and "down',),
        "4.png": ('a 5" box',),
    }
    second = read(tmp_path, f'image{mark}caption\n0.png{mark}"a box\non paper"\n1.png{mark}a cat\n')
    assert captions(second) == {"0.png": ("a box on paper",), "1.png": ("a cat",)}
    assert second.warnings == {"caption of several lines, joined": 1}


@pytest.mark.parametrize("numbered", ["photo #3.jpg#0", "photo #3.jpg#zhc#0", "photo #3.jpg #1"])
def test_image_names_of_flickr_may_contain_a_number_sign(numbered, tmp_path) -> None:
    (tmp_path / "Images").mkdir()
    (tmp_path / "Images" / "photo #3.jpg").write_bytes(b"not read by a reader")
    (tmp_path / "mine.token").write_text(f"{numbered}\tA dog .\ngone #1.jpg#0\tA cat .\n")
    dataset = read_records(format="flickr", root=str(tmp_path), captions="mine.token", holdout=0)
    assert captions(dataset) == {"photo #3.jpg": ("A dog .",)}
    assert dataset.places["caption of an absent image"] == ("gone #1.jpg",)


def test_a_folder_name_may_begin_with_a_tilde(tmp_path, monkeypatch) -> None:
    (tmp_path / "~nobody-of-this-name").mkdir()
    monkeypatch.chdir(tmp_path)
    dataset = read(Path("~nobody-of-this-name"), "image,caption\n0.png,a dog\n")
    assert captions(dataset) == {"0.png": ("a dog",)}


def test_no_module_uses_expanduser_of_pathlib() -> None:
    # For an unknown user it raises, whereas os.path.expanduser returns the name unchanged.
    for file in Path(captioner.__file__).parent.rglob("*.py"):
        assert ".expanduser()" not in file.read_text(encoding="utf-8"), file
