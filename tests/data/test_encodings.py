"""Text files in other encodings: the error suggests the encoding, with which they are then read."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest
from PIL import Image

from captioner.data.encodings import decode, likely_encodings
from captioner.data.read import read_records

pytestmark = pytest.mark.reliability("damaged files")

TEXTS = [
    ("gb18030", "一个盒子"),
    ("gb18030", "两个男孩在公园里踢足球，一只狗在看着他们"),
    ("gb18030", "穿着红色T恤的人"),
    ("big5", "一個盒子"),
    ("big5", "兩個男孩在公園裡踢足球，一隻狗在看著他們"),
    ("cp932", "犬が走っている"),
    ("cp949", "남자가 공원에서 개와 놀고 있다"),
    ("cp1251", "собака бежит по траве"),
    ("cp1252", "the man’s box – “red”"),
    ("cp1252", "a café"),
    ("cp1252", "ein Mädchen läuft über die Straße"),
    ("cp1252", "El señor de España"),
]


@pytest.mark.parametrize(("encoding", "text"), TEXTS)
def test_the_encoding_of_a_text_is_the_first_suggestion(encoding: str, text: str) -> None:
    raw = f"image,caption\n0.png,{text}\n".encode(encoding)
    texts = likely_encodings(raw)
    assert next(iter(texts)) == encoding
    assert text in texts[encoding]


@pytest.mark.parametrize(("encoding", "text"), TEXTS)
def test_the_error_suggests_an_encoding_that_reads_the_table(encoding, text, tmp_path) -> None:
    (tmp_path / "0.png").write_bytes(b"not read by a reader")
    (tmp_path / "captions.csv").write_bytes(f"image,caption\n0.png,{text}\n".encode(encoding))
    with pytest.raises(ValueError, match="captions.csv, line 2: not valid utf-8") as error:
        read_records(format="table", root=str(tmp_path))
    assert f"data.encoding={encoding}" in str(error.value)
    assert "\n" not in str(error.value)
    dataset = read_records(format="table", root=str(tmp_path), encoding=encoding)
    assert dataset.records[0].captions == (text,)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_determines_the_encoding(encoding: str) -> None:
    raw = "image,caption\n0.png,一个\n".encode(encoding)
    text = decode(raw, "utf-8", Path("a.csv")).removeprefix("\ufeff")
    assert text == "image,caption\n0.png,一个\n"


def test_utf16_without_a_byte_order_mark_is_recognized() -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        raw = "image,caption\n0.png,a dog\n".encode(encoding)
        fault = rf"NUL characters; {encoding} reads 'image,.*={encoding}"
        with pytest.raises(ValueError, match=fault):
            decode(raw, "utf-8", Path("a.csv"), "data.encoding")


def test_a_single_invalid_line_is_reported_for_correction() -> None:
    raw = "0.png,café\n1.png,naïve\n".encode() + "2.png,é\n".encode("cp1252")
    with pytest.raises(ValueError, match="line 3: not valid utf-8; 2 other lines .*correct the 1"):
        decode(raw, "utf-8", Path("a.csv"), "data.encoding")


def test_bytes_that_are_no_text_get_no_suggestion() -> None:
    assert likely_encodings(bytes(range(128, 256))) == {}
    fault = r"not valid utf-8; save it as UTF-8, or set data.encoding=\.\.\.$"
    with pytest.raises(ValueError, match=fault):
        decode(bytes(range(128, 256)), "utf-8", Path("a.csv"), "data.encoding")


@pytest.mark.parametrize("kind, name", [("JPEG", "JPEG"), ("PNG", "PNG"), ("TIFF", "TIFF")])
def test_image_files_are_refused_as_text(kind, name, tmp_path) -> None:
    path = tmp_path / "photo"
    Image.new("RGB", (9, 7), "red").save(path, kind)
    with pytest.raises(ValueError, match=f"photo: not a text file but a {name} image; name"):
        decode(path.read_bytes(), "utf-8", path)


def test_archives_are_refused_as_text(tmp_path) -> None:
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        with pytest.raises(ValueError, match="not a text file but an? .* archive"):
            decode(pack(b"image,caption"), "utf-8", tmp_path)
