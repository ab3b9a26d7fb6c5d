"""Captions of image files: find the files, caption those that can be read, write what was said."""

from __future__ import annotations

import csv
import glob
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from captioner.api import Caption, Captioner
from captioner.data.files import IMAGE_SUFFIXES
from captioner.data.records import write_whole
from captioner.progress import shown


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
        output: a file to write; None prints.
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
    found = _captioned(captioner, files, batch_size, decoding, failed)
    if format == "text" and output is None:
        for row in found:
            sys.stdout.write(_as_text([row]))
            sys.stdout.flush()
    else:
        text = _FORMATS[format](list(found))
        if output is None:
            sys.stdout.write(text)
        else:
            write_whole(output, text)
    return 1 if failed else 0


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
        listed = [line.strip() for line in sys.stdin]
        return [line for line in listed if line]
    if Path(path).is_dir():
        found = [str(one) for one in sorted(Path(path).rglob("*")) if one.is_file()]
        found = [one for one in found if Path(one).suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise FileNotFoundError(
                f"{path}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))} are looked for)"
            )
        return found
    if Path(path).exists():
        return [path]
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        raise FileNotFoundError(f"{path}: no such file or folder, and no file fits it as a pattern")
    return [one for one in matches if Path(one).is_file()]


def _captioned(
    captioner: Captioner,
    files: Sequence[str],
    batch_size: int,
    decoding: dict[str, Any],
    failed: list[str],
) -> Iterator[tuple[str, Caption]]:
    """Captions in the order of the files; what cannot be read is named and added to `failed`."""
    found = captioner.caption_each(files, batch_size=batch_size, **decoding)
    for name, caption in zip(shown(files, "captioning", wanted=len(files) > 1), found):
        if not isinstance(caption, Caption):
            print(f"captioner: error: {caption}", file=sys.stderr)
            failed.append(name)
            continue
        if caption.note:
            print(f"captioner: note: {name}: {caption.note}", file=sys.stderr)
        yield name, caption


def _as_text(rows: list[tuple[str, Caption]]) -> str:
    return "".join(f"{path}: {one.text}\n" for path, one in _each(rows))


def _as_json(rows: list[tuple[str, Caption]]) -> str:
    objects = [{"image": path, **_object(caption)} for path, caption in rows]
    return json.dumps(objects, indent=2, ensure_ascii=False) + "\n"


def _object(caption: Caption) -> dict[str, Any]:
    """A caption as plain data; what could not be done and others only where there are any."""
    found = {"caption": caption.text, "log_prob": caption.log_prob, **caption.as_dict()}
    del found["text"]
    found["alternatives"] = [_object(one) for one in caption.alternatives]
    optional = ("missing", "broken", "alternatives")
    return {name: value for name, value in found.items() if value or name not in optional}


def _as_csv(rows: list[tuple[str, Caption]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "caption", "log_prob"])
    writer.writerows([path, one.text, f"{one.log_prob:.6f}"] for path, one in _each(rows))
    return file.getvalue()


def _each(rows: list[tuple[str, Caption]]) -> Iterator[tuple[str, Caption]]:
    """Every caption of every image, the best first."""
    for path, caption in rows:
        for one in (caption, *caption.alternatives):
            yield path, one


_FORMATS = {"text": _as_text, "json": _as_json, "csv": _as_csv}
