"""Captions image files: finds the files, captions the readable ones, and writes the captions."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from captioner.api import Caption, Captioner
from captioner.data.layout import IMAGE_SUFFIXES
from captioner.files import partial, to_json, walk, write_whole
from captioner.images import HEIC_EXTRA, RARE_SUFFIXES, unreadable_suffixes
from captioner.process import encode_names, printable
from captioner.progress import progress_bar
from captioner.verbs.terminal import TEXTS, fail, new_folder, note, require_output, wrote


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
        paths: files, folders (with their subfolders), globs, or "-" for a list on standard input.
        model: run folders, checkpoints or bundled models, several as an ensemble; None: the
            default bundled model.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: images that are captioned at a time.
        format: "text" (path: caption), "json" (a list of objects) or "csv" (with a header).
        output: the file to write; None prints the captions as they are generated.
        decoding: options of ``DecodingOptions`` that differ from the model's.

    Returns:
        the exit status: 1 if a file could not be captioned; it is named on standard error.

    Raises:
        FileNotFoundError: no path has an image.
        ValueError: the checkpoint or an option is not accepted.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size={batch_size} is not accepted; choose 1 or more")
    files, failed = _find_all(paths)
    require_output(output, TEXTS, files)
    captioner = Captioner.load(model, device=device)
    captioner.decoding(**decoding)  # errors are raised before the work starts
    for message in failed:
        fail(message)
    with progress_bar("captioning", len(files), wanted=len(files) > 1) as advance:
        rows = _caption(captioner, files, batch_size, decoding, failed, advance)
        _write(_FORMATS[format](rows), output)
    return 1 if failed else 0


def _write(texts: Iterable[str], output: str | None) -> None:
    """Print texts as they come, or write them to a file."""
    if output is None:
        for text in texts:
            sys.stdout.write(text)
            sys.stdout.flush()
    else:
        created = new_folder(output)
        _write_file(texts, output)
        print(wrote(output, created), file=sys.stderr)


def _write_file(texts: Iterable[str], output: str) -> None:
    """Write a file; the captions so far are kept after an error or interruption."""
    try:
        write_whole(output, map(encode_names, texts), keep=True)
    except BaseException:
        if partial(output).exists():
            note(f"the captions so far are in {partial(output)}")
        raise


def _find_all(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """The image files of paths, and an error for each path that has none.

    Raises:
        FileNotFoundError: no path has an image.
        ValueError: an option that is written like an override.
    """
    files, failed = dict[str, None](), []
    for path in paths:
        try:
            files |= dict.fromkeys(find_images([path]))
        except FileNotFoundError as error:
            failed.append(str(error))
    if not files:
        for message in failed[:-1]:
            fail(message)
        raise FileNotFoundError(failed[-1])
    return list(files), failed


def find_images(paths: Sequence[str]) -> Iterator[str]:
    """Yield the image files of paths (see ``caption_files``), each once, in order.

    Raises:
        FileNotFoundError: a file does not exist, or a folder has no images.
        ValueError: an option that is written like an override.
    """
    yielded: set[str] = set()
    for path in paths:
        for file in _find_files(path):
            if file not in yielded:
                yielded.add(file)
                yield file


def _find_files(path: str) -> Iterable[str]:
    if not path:
        raise FileNotFoundError("'' is an empty path; give a file, a folder, a quoted glob, or -")
    if path == "-":
        return _read_paths()
    if Path(path).is_dir():
        return _find_in_folder(path)
    if Path(path).exists():
        return [path]
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        error = f"{path}: no such file or folder, and no file matches it as a pattern"
        flag = re.match(r"\+*(?:decoding\.)?(\w+)=(.*)", path)
        if flag:
            name = flag[1].replace("_", "-")
            value = shlex.quote(flag[2])
            raise ValueError(f"{error}; options are flags here: --{name} {value}")
        raise FileNotFoundError(error)
    files = [match for match in matches if Path(match).is_file()]
    if not files:
        raise FileNotFoundError(f"{path}: matches folders only; name one without a pattern")
    return files


def _read_paths() -> list[str]:
    """Read paths from standard input, one per line or, as of ``find -print0``, ended by null bytes.

    They are read as bytes, since file names need not be UTF-8.
    """
    content = getattr(sys.stdin, "buffer", sys.stdin).read()
    text = content if isinstance(content, str) else os.fsdecode(content)
    lines = text.split("\0") if "\0" in text else text.replace("\r\n", "\n").split("\n")
    paths = [line for line in lines if line.strip()]
    if not paths:
        raise FileNotFoundError("-: standard input has no paths; write one per line")
    return paths


def _find_in_folder(path: str) -> list[str]:
    """Find the images in a folder and its subfolders; a note counts the other files."""
    entries = sorted(_walk(path))
    files = [str(entry) for entry in entries if entry.is_file()]
    broken = sum(not entry.exists() for entry in entries)
    suffixes = [Path(file).suffix.lower() for file in files]
    unreadable = unreadable_suffixes() if RARE_SUFFIXES.keys() & {*suffixes} else set()
    accepted = IMAGE_SUFFIXES - unreadable
    images = [file for file, suffix in zip(files, suffixes) if suffix in accepted]
    skipped = Counter(suffix or "without a suffix" for suffix in suffixes if suffix not in accepted)
    if broken:
        skipped["broken link" if broken == 1 else "broken links"] = broken
    counts = ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common())
    extra = f"; to read HEIC: {HEIC_EXTRA}" if unreadable & {*skipped} else ""
    if not images:
        raise FileNotFoundError(
            f"{path}: has no images (files with {', '.join(sorted(accepted))})"
            + (f", but {counts}{extra}" if skipped else "")
        )
    if skipped:
        note(f"{path}: {counts} skipped{extra}")
    return images


def _walk(path: str) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, each once; targets of links come last."""
    visited: set[tuple[int, int]] = set()
    folders = [path]
    while folders:
        for folder, names, files in walk(folders.pop(0)):
            status = os.stat(folder)
            if (here := (status.st_dev, status.st_ino)) in visited:
                names.clear()
                continue
            visited.add(here)
            folders += [os.path.join(folder, n) for n in names if Path(folder, n).is_symlink()]
            yield from (Path(folder, name) for name in files)


def _caption(
    captioner: Captioner,
    files: Sequence[str],
    batch_size: int,
    decoding: dict[str, Any],
    failed: list[str],
    advance: Callable[[int], None],
) -> Iterator[tuple[str, Caption]]:
    """Yield the captions in the order of the files; unreadable files are added to `failed`.

    The first one is captioned before the second is read, so that there is something to see.
    """
    results = (
        captioner.caption_each(part, batch_size=batch_size, **decoding)
        for part in (files[:1], files[1:])
    )
    for name, caption in zip(files, chain.from_iterable(results)):
        advance(1)
        if not isinstance(caption, Caption):
            fail(printable(str(caption)))
            failed.append(name)
            continue
        if caption.note:
            note(f"{name}: {caption.note}")
        yield name, caption


Rows = Iterable[tuple[str, Caption]]
"""Files and their captions."""


def _as_text(rows: Rows) -> Iterator[str]:
    for path, caption in _all_captions(rows):
        yield printable(f"{path}: {caption.text}") + "\n"


def _as_json(rows: Rows) -> Iterator[str]:
    """A list of objects, one text for each."""
    separator = "[\n"
    for path, caption in rows:
        text = to_json({"image": path, **_as_object(caption)}, indent=2)
        yield separator + textwrap.indent(text, "  ")
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def _as_object(caption: Caption) -> dict[str, Any]:
    """A caption as plain data, without optional fields that are empty."""
    fields = {"caption": caption.text, "log_prob": caption.log_prob, **caption.as_dict()}
    del fields["text"]
    fields["alternatives"] = [_as_object(alternative) for alternative in caption.alternatives]
    optional = ("missing", "broken", "alternatives")
    return {name: value for name, value in fields.items() if value or name not in optional}


def _as_csv(rows: Rows) -> Iterator[str]:
    yield _csv_line("image", "caption", "log_prob")
    for path, caption in _all_captions(rows):
        yield _csv_line(path, caption.text, f"{caption.log_prob:.6f}")


def _csv_line(*cells: str) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(cells)
    return file.getvalue()


def _all_captions(rows: Rows) -> Iterator[tuple[str, Caption]]:
    """Yield all captions of each image, the best first."""
    for path, best in rows:
        for caption in (best, *best.alternatives):
            yield path, caption


_FORMATS = {"text": _as_text, "json": _as_json, "csv": _as_csv}
