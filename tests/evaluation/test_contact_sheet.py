"""Contact sheets and the fonts of a machine; the tests create their own fonts."""

import io
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageFont

from captioner.evaluation import contact_sheet as sheets
from captioner.evaluation import fonts
from captioner.evaluation.contact_sheet import SIDE, contact_sheet, missing_letters


def make_font(path: Path, letters: str) -> Path:
    """A font whose letters are black squares; letters that it does not have are empty."""
    pen = TTGlyphPen(None)
    for move, corner in zip(
        (pen.moveTo, *[pen.lineTo] * 3), ((0, 0), (0, 800), (800, 800), (800, 0))
    ):
        move(corner)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"u{ord(letter):X}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):X}" for letter in letters})
    builder.setupGlyf(
        {name: square if name[0] == "u" else TTGlyphPen(None).glyph() for name in names}
    )
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of fonts, with empty caches."""
    monkeypatch.setattr(fonts, "_ROOTS", (str(tmp_path / "fonts"),))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    (tmp_path / "fonts").mkdir()
    for function in (fonts._files, fonts._best, fonts._has):
        function.cache_clear()
    yield tmp_path / "fonts"
    for function in (fonts._files, fonts._best, fonts._has):
        function.cache_clear()


def ink(rows: sheets.Rows) -> int:
    """The number of dark pixels below the picture."""
    sheet = Image.open(io.BytesIO(contact_sheet(rows))).convert("L")
    text = sheet.crop((0, sheets.MARGIN + SIDE, *sheet.size))
    return sum(count for count, shade in text.getcolors() if shade < 128)


def test_a_font_with_the_letters_is_found_and_used(machine: Path) -> None:
    make_font(machine / "Latin.ttf", "abc")
    chinese = make_font(machine / "Some.ttf", "狗跑")
    assert fonts.find_font("狗在跑") == chinese  # the most letters, as no font has all
    assert fonts.find_font("ab c") == machine / "Latin.ttf"
    assert fonts.find_font("กขค") is None
    rows = [("gone.png", "狗跑" * 4, [])]
    squares = 8 * (0.8 * sheets.TEXT) ** 2  # the area of eight letters
    assert ink(rows) == pytest.approx(squares, rel=0.15)
    assert missing_letters(rows) is None


def test_a_missing_font_is_reported_in_one_line(machine: Path) -> None:
    make_font(machine / "Some.ttf", "狗跑")
    message = missing_letters([("gone.png", "狗在跑", ["สุนัข", "a dog", "unseen: กกก"])])
    assert message is not None and "\n" not in message
    assert (
        "has 4 of its letters (Chinese, Thai)" in message
    )  # 在, and the letters of สุนัข that are not combining marks
    assert missing_letters([("gone.png", "a dog", [])]) is None


def test_plain_fonts_come_first_and_invalid_files_are_ignored(
    machine: Path,
) -> None:
    for name in ("Noto Sans Bold", "Noto Serif", "Noto Sans", "A Mono Italic"):
        make_font(machine / f"{name}.ttf", "狗")
    (machine / "0.otf").write_bytes(b"no font")
    assert fonts.font_files()[0].stem == "Noto Sans"
    assert fonts.find_font("狗") == machine / "Noto Sans.ttf"


@pytest.mark.parametrize("text", ["w" * 90, "a dog " + "x" * 50 + " runs", "狗" * 40, "a b " * 30])
def test_lines_fit_the_cell_and_contain_every_letter(text: str) -> None:
    font = ImageFont.load_default(15)
    lines = sheets._wrapped(text, font)
    assert max(map(font.getlength, lines)) <= SIDE
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_mark_stays_with_its_letter() -> None:
    font = ImageFont.load_default(15)
    lines = sheets._wrapped("e\u0301" * 60, font)
    assert len(lines) > 1
    assert all(line.startswith("e") and line.endswith("\u0301") for line in lines)


def test_a_missing_picture_becomes_a_grey_square(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    rows = [(str(tmp_path / name), "a dog", ["a cat"]) for name in ("gone.png", "bad.jpg")]
    sheet = Image.open(io.BytesIO(contact_sheet(rows)))
    assert sheet.getpixel((sheets.MARGIN + 5, sheets.MARGIN + 5)) == sheets.GREY
