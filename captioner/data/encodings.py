"""Decodes text files, and suggests an encoding if the given one does not fit.

Most bytes can be decoded by most old encodings, so successful decoding alone is weak evidence. An
encoding is suggested if the decoded characters are *usual*: standards for Chinese, Japanese and
Korean have frequent characters in ranges of their own, and accented letters occur next to plain
ones. Text decoded with the wrong encoding is mostly outside these ranges.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

_BYTE_ORDER_MARKS = {  # the longer first: UTF-32 begins as UTF-16 does
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_ENOUGH = 0.8  # fraction of usual characters from which an encoding is suggested
_SAMPLE_BYTES = 100_000  # the first bytes, from which encodings are suggested


def decode(raw: bytes, encoding: str, path: Path, option: str | None = None) -> str:
    """Decode a text file.

    Args:
        raw: its content.
        encoding: a text encoding of Python; a byte-order mark of UTF-16 or UTF-32 takes
            precedence.
        path: of the file, for errors.
        option: name of the option that sets the encoding, for errors.

    Raises:
        ValueError: the encoding is not known, or does not fit; the message has the line, and the
            encodings that fit with a sample of the decoded text.
    """
    for magic, kind in _NO_TEXT.items():
        if raw.startswith(magic):
            raise ValueError(f"{path}: not a text file but {kind}; name the file with the captions")
    marked = next((name for mark, name in _BYTE_ORDER_MARKS.items() if raw.startswith(mark)), None)
    try:
        text = raw.decode(marked or encoding)
    except LookupError:
        raise ValueError(
            f"{option}={encoding!r} is not known; choose utf-8, cp1252, gb18030, big5 or "
            "another text encoding of Python"
        ) from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fault = f"{path}, line {line}: not valid {marked or encoding}"
        raise ValueError(f"{fault}; {_advice(raw, encoding, option)}") from None
    if "\x00" in text:
        raise ValueError(f"{path}: has NUL characters; {_advice(raw, encoding, option)}")
    return text


_NO_TEXT = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG\r\n": "a PNG image",
    b"GIF87a": "a GIF image",
    b"GIF89a": "a GIF image",
    b"RIFF": "an image or a sound",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"PK\3\4": "a zip archive or an office document",
    b"\xd0\xcf\x11\xe0": "an office document",
    b"\x1f\x8b": "a gzip archive",
    b"BZh9": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"%PDF-": "a PDF document",
    b"\x93NUMPY": "an array of numpy",
    b"SQLite format 3\0": "an SQLite database",
}
"""First bytes of files that are no text files -> their kind."""


def remove_surrogates(text: str) -> str:
    """Remove lone surrogates, which JSON accepts but no encoding of files does.

    They come from software that truncates texts within an emoji.
    """
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return " ".join(_SURROGATE.sub("", text).split())


def _advice(raw: bytes, encoding: str, option: str | None) -> str:
    """Advice for bytes that cannot be decoded: the encodings that fit."""
    lines = [line for line in raw.split(b"\n") if not line.isascii()]
    foreign = [line for line in lines if _decoded(line, encoding) is None]
    good = len(lines) - len(foreign)
    if encoding.lower() in ("utf-8", "utf8") and 0 < len(foreign) <= good:
        return (
            f"{good:,} other lines with non-ASCII letters are valid: correct the {len(foreign):,} "
            "that are not"
        )
    fitting = likely_encodings(raw if b"\x00" in raw else b"\n".join(foreign))
    ways = [f"{name} reads {_sample(text)!r}" for name, text in fitting.items()]
    ways += [
        "save it as UTF-8" + (f", or set {option}={'|'.join(fitting) or '...'}" if option else "")
    ]
    return "; ".join(ways)


def likely_encodings(raw: bytes) -> dict[str, str]:
    """The encodings that fit best, at most two, each with the decoded text."""
    raw = raw[:_SAMPLE_BYTES]
    if b"\x00" in raw:
        even, odd = raw[::2].count(0), raw[1::2].count(0)
        name = "utf-16-le" if odd > even else "utf-16-be"
        text = _decoded(raw[: len(raw) // 2 * 2], name)
        return {name: text} if text is not None and "\x00" not in text else {}
    raw = raw[: raw.rfind(b"\n")] if len(raw) == _SAMPLE_BYTES and b"\n" in raw else raw
    decoded: dict[str, tuple[float, str]] = {}
    for name, usual in _JUDGES.items():
        text = _decoded(raw, name)
        if text is not None and all(text != other for _, other in decoded.values()):
            decoded[name] = (_usual_fraction(text, usual), text)
    best = max((fraction for fraction, _ in decoded.values()), default=0.0)
    fitting = {name: text for name, (fraction, text) in decoded.items() if fraction >= best - 0.02}
    return dict(list(fitting.items())[:2]) if best >= _ENOUGH else {}


def _decoded(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None


def _sample(text: str) -> str:
    """Some text around the first character that is not ASCII."""
    line = next((line for line in text.split("\n") if not line.isascii()), text)
    start = next((i for i, character in enumerate(line) if not character.isascii()), 0)
    return line[max(0, start - 12) : start + 12].strip()


_PUNCTUATION = frozenset("‘’“”–—…•«»°№€£\u3000、。，！？：；（）《》「」")
_LATIN = frozenset(chr(c) for c in range(0xC0, 0x180) if unicodedata.category(chr(c))[0] == "L")
_CYRILLIC = re.compile("[А-ЯЁ]?[а-яёіїє]+|[А-ЯЁ]+")


def _latin(word: str) -> int:
    """The number of accented letters, in words that are half plain letters."""
    accented = [character for character in word if not character.isascii()]
    if len(word) > 1 and 2 * len(accented) > len(word):
        return 0
    return sum(character in _LATIN for character in accented)


def _cyrillic(word: str) -> int:
    return len(word) if _CYRILLIC.fullmatch(word) else 0


def _asian(
    codec: str, first: int, last: int, *, second: int = 0, also: str = ""
) -> Callable[[str], int]:
    """Count characters whose two bytes are in the range of a standard's frequent ones."""

    def usual(word: str) -> int:
        if (
            sum(not character.isascii() for character in word) == 1 < len(word)
        ):  # one among Latin letters
            return 0
        codes = [character.encode(codec, "ignore") for character in word if not character.isascii()]
        frequent = [c for c in codes if len(c) == 2 and first <= c[0] <= last and c[1] >= second]
        return len(frequent) + sum(character in also for character in word)

    return usual


def _usual_fraction(text: str, usual: Callable[[str], int]) -> float:
    """The fraction of the non-ASCII characters that are usual."""
    foreign = [character for character in text if not character.isascii()]
    marks = sum(character in _PUNCTUATION for character in foreign)
    words = (word for word in re.findall(r"[^\W\d_]+", text) if not word.isascii())
    return (marks + sum(map(usual, words))) / max(1, len(foreign))


_KANA = "".join(map(chr, range(0x3041, 0x30FD)))
# Narrower ranges first: if all characters are usual in two encodings, the narrower range is less
# likely to fit by accident.
_JUDGES: dict[str, Callable[[str], int]] = {
    "cp1252": _latin,
    "cp1250": _latin,
    "cp1251": _cyrillic,
    "cp932": _asian("cp932", 0x88, 0x97, also=_KANA),
    "cp949": _asian("cp949", 0xB0, 0xC8, second=0xA1),
    "gb18030": _asian("gb18030", 0xB0, 0xD7, second=0xA1),
    "big5": _asian("big5", 0xA4, 0xC6),
}
