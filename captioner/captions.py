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

import torch

from captioner.api import Caption, Captioner
from captioner.data.files import IMAGE_SUFFIXES
from captioner.data.records import write_whole


def caption_files(
    paths: Sequence[str],
    *,
    model: str,
    device: str = "auto",
    batch_size: int = 32,
    format: str = "text",
    output: str | None = None,
    decoding: dict[str, Any],
) -> int:
    """Caption files and print or write the captions.

    Args:
        paths: files, folders (with all below them), globs, or "-" for a list on standard input.
        model: a run folder or a checkpoint.
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
    found = _captioned(captioner, _shown(files), batch_size, decoding, failed)
    if format == "text" and output is None:
        for path, caption in found:
            print(f"{path}: {caption.text}", flush=True)
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
    files: Iterable[str],
    batch_size: int,
    decoding: dict[str, Any],
    failed: list[str],
) -> Iterator[tuple[str, Caption]]:
    """Captions in the order of the files; what cannot be read is named and added to `failed`."""
    names: list[str] = []
    images: list[torch.Tensor] = []

    def flush() -> Iterator[tuple[str, Caption]]:
        if images:
            features = captioner.encode(torch.stack(images))
            yield from zip(list(names), captioner.caption_features(features, **decoding))
            names.clear()
            images.clear()

    for file in files:
        try:
            images.append(captioner.prepare(file))
        except (ValueError, OSError) as error:
            print(f"captioner: error: {error}", file=sys.stderr)
            failed.append(file)
            continue
        names.append(file)
        if len(images) == batch_size:
            yield from flush()
    yield from flush()


def _shown(files: Sequence[str]) -> Iterable[str]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if len(files) < 2 or not console.is_terminal:
        return files
    return track(files, description="captioning", console=console, transient=True)


def _as_text(rows: list[tuple[str, Caption]]) -> str:
    return "".join(f"{path}: {caption.text}\n" for path, caption in rows)


def _as_json(rows: list[tuple[str, Caption]]) -> str:
    objects = [
        {
            "image": path,
            "caption": caption.text,
            "log_prob": caption.log_prob,
            "score": caption.score,
            "words": list(caption.words),
            "log_probs": list(caption.log_probs),
        }
        for path, caption in rows
    ]
    return json.dumps(objects, indent=2, ensure_ascii=False) + "\n"


def _as_csv(rows: list[tuple[str, Caption]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "caption", "log_prob"])
    writer.writerows([path, caption.text, f"{caption.log_prob:.6f}"] for path, caption in rows)
    return file.getvalue()


_FORMATS = {"text": _as_text, "json": _as_json, "csv": _as_csv}
