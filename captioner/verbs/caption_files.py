"""Captions of image files: find the files, caption those that can be read, write what was said."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from captioner.api import Caption, Captioner
from captioner.data.layout import IMAGE_SUFFIXES
from captioner.files import partial, to_json, write_whole
from captioner.images import HEIC_EXTRA, RARE_SUFFIXES, unreadable_suffixes
from captioner.process import encode_names
from captioner.progress import progress_bar


def caption_files(
    paths: Sequence[str],
    *,
    model: Sequence[str] | None = None,
    device: str = "auto",
    batch_size: int = 32,
    format: str = "text",
    output: str | None = None,
    decoding: dict[str, Any],
) -> int:
    """Caption files and print or write the captions.

    Args:
        paths: files, folders (with all below them), globs, or "-" for a list on standard input.
        model: run folders, checkpoints or bundled models, which decode together; None takes the
            bundled model.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: images at a time.
        format: "text" (path: caption), "json" (a list of objects) or "csv" (with a header).
        output: a file to write, as the captions come; None prints.
        decoding: changed options of ``DecodingOptions``.

    Returns:
        the exit status: 1 where a file could not be captioned, and standard error names it.

    Raises:
        FileNotFoundError: a path leads nowhere, or a folder holds no images.
        ValueError: the checkpoint or an option is not accepted.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size={batch_size} is not accepted; choose 1 or more")
    files = list(find_images(paths))
    captioner = Captioner.load(model, device=device)
    captioner.decoding(**decoding)  # a wrong option is told before the work starts
    failed: list[str] = []
    with progress_bar("captioning", len(files), wanted=len(files) > 1) as advance:
        rows = _captioned(captioner, files, batch_size, decoding, failed, advance)
        pieces = _FORMATS[format](rows)
        if output is None:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
        else:
            _write(output, pieces)
    return 1 if failed else 0


def _write(output: str, pieces: Iterable[str]) -> None:
    """Write a file as the captions come; what there is of it is kept where the work breaks off."""
    try:
        write_whole(output, map(encode_names, pieces), keep=True)
    except BaseException:
        if partial(output).exists():
            print(f"captioner: note: what was said is in {partial(output)}", file=sys.stderr)
        raise


def find_images(paths: Sequence[str]) -> Iterator[str]:
    """The image files that paths mean: see ``caption_files``; each file once, in order.

    Raises:
        FileNotFoundError: a path leads nowhere, or a folder holds no images.
    """
    seen: set[str] = set()
    for path in paths:
        for file in _of(path):
            if file not in seen:
                seen.add(file)
                yield file


def _of(path: str) -> Iterable[str]:
    if path == "-":
        return _listed()
    if Path(path).is_dir():
        return _in_folder(path)
    if Path(path).exists():
        return [path]
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        flag = re.match(r"\+*(?:decoding\.)?(\w+)=(.*)", path)
        hint = f"; options are flags here: --{flag[1].replace('_', '-')} {flag[2]}" if flag else ""
        raise FileNotFoundError(
            f"{path}: no such file or folder, and no file fits it as a pattern{hint}"
        )
    return [one for one in matches if Path(one).is_file()]


def _listed() -> list[str]:
    """The paths on standard input, one a line or, as of ``find -print0``, ended by null bytes.

    They are read as bytes: a file's name need not be UTF-8.
    """
    content = getattr(sys.stdin, "buffer", sys.stdin).read()
    text = content if isinstance(content, str) else os.fsdecode(content)
    lines = text.split("\0") if "\0" in text else text.replace("\r\n", "\n").split("\n")
    return [line for line in lines if line.strip()]


def _in_folder(path: str) -> list[str]:
    """The images in a folder and all below it; other files are counted in a line."""
    files = [str(one) for one in sorted(Path(path).rglob("*")) if one.is_file()]
    suffixes = [Path(one).suffix.lower() for one in files]
    lacking = {one for one in suffixes if one in RARE_SUFFIXES} and unreadable_suffixes()
    accepted = IMAGE_SUFFIXES - lacking
    found = [file for file, suffix in zip(files, suffixes) if suffix in accepted]
    skipped = Counter(suffix or "without a suffix" for suffix in suffixes if suffix not in accepted)
    counts = ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common())
    extra = f"; {HEIC_EXTRA} reads HEIC" if lacking & {*skipped} else ""
    if not found:
        raise FileNotFoundError(
            f"{path}: holds no images ({', '.join(sorted(accepted))} are looked for)"
            + (f", but {counts}{extra}" if skipped else "")
        )
    if skipped:
        print(f"captioner: note: {path}: {counts} skipped{extra}", file=sys.stderr)
    return found


def _captioned(
    captioner: Captioner,
    files: Sequence[str],
    batch_size: int,
    decoding: dict[str, Any],
    failed: list[str],
    advance: Callable[[int], None],
) -> Iterator[tuple[str, Caption]]:
    """Captions in the order of the files; what cannot be read is named and added to `failed`."""
    found = captioner.caption_each(files, batch_size=batch_size, **decoding)
    for name, caption in zip(files, found):
        advance(1)
        if not isinstance(caption, Caption):
            print(f"captioner: error: {caption}", file=sys.stderr)
            failed.append(name)
            continue
        if caption.note:
            print(f"captioner: note: {name}: {caption.note}", file=sys.stderr)
        yield name, caption


Rows = Iterable[tuple[str, Caption]]
"""A file and its caption."""


def _as_text(rows: Rows) -> Iterator[str]:
    for path, one in _each(rows):
        yield f"{path}: {one.text}\n"


def _as_json(rows: Rows) -> Iterator[str]:
    """A list of objects, one after the other."""
    before = "[\n"
    for path, caption in rows:
        text = to_json({"image": path, **_object(caption)}, indent=2)
        yield before + textwrap.indent(text, "  ")
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _object(caption: Caption) -> dict[str, Any]:
    """A caption as plain data; what could not be done and others only where there are any."""
    found = {"caption": caption.text, "log_prob": caption.log_prob, **caption.as_dict()}
    del found["text"]
    found["alternatives"] = [_object(one) for one in caption.alternatives]
    optional = ("missing", "broken", "alternatives")
    return {name: value for name, value in found.items() if value or name not in optional}


def _as_csv(rows: Rows) -> Iterator[str]:
    yield _csv_line("image", "caption", "log_prob")
    for path, one in _each(rows):
        yield _csv_line(path, one.text, f"{one.log_prob:.6f}")


def _csv_line(*cells: str) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(cells)
    return file.getvalue()


def _each(rows: Rows) -> Iterator[tuple[str, Caption]]:
    """Every caption of every image, the best first."""
    for path, caption in rows:
        for one in (caption, *caption.alternatives):
            yield path, one


_FORMATS = {"text": _as_text, "json": _as_json, "csv": _as_csv}
