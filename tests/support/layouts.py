"""A small dataset in each layout that can be read."""

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

CAPTIONS = {f"{number}.jpg": [f"{number} dogs run", "a café"] for number in range(7)}


def write_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (9, 7), (30, 60, 90)).save(folder / name)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def flickr(root: Path) -> None:
    write_images(root / "Flicker8k_Dataset", [*CAPTIONS])
    pairs = [(name, n, text) for name in CAPTIONS for n, text in enumerate(CAPTIONS[name])]
    write_lines(root / "Flickr8k.token.txt", [f"{name}#{n}\t{text}" for name, n, text in pairs])


def kaggle(root: Path) -> None:
    write_images(root / "Images", [*CAPTIONS])
    rows = [f"{name},{text}" for name, texts in CAPTIONS.items() for text in texts]
    write_lines(root / "captions.txt", ["image,caption", *rows])


def karpathy(root: Path) -> None:
    write_images(root, [*CAPTIONS])
    images = [
        {"filename": name, "split": "train", "sentences": [{"raw": text} for text in texts]}
        for name, texts in CAPTIONS.items()
    ]
    write_lines(root / "dataset_mine.json", [json.dumps({"images": images})])


def coco(root: Path) -> None:
    write_images(root / "train2017", [*CAPTIONS])
    images = [{"id": number, "file_name": name} for number, name in enumerate(CAPTIONS)]
    texts = [(number, text) for number, name in enumerate(CAPTIONS) for text in CAPTIONS[name]]
    captions = [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(texts)]
    content = json.dumps({"images": images, "annotations": captions})
    write_lines(root / "annotations" / "captions_train2017.json", [content])


def table(root: Path) -> None:
    write_images(root, [*CAPTIONS])
    rows = ["\t".join([name, *texts]) for name, texts in CAPTIONS.items()]
    write_lines(root / "captions.tsv", ["image\tcaption 1\tcaption 2", *rows])


def as_json(root: Path) -> None:
    write_images(root, [*CAPTIONS])
    rows = [json.dumps({"image": n, "captions": texts}) for n, texts in CAPTIONS.items()]
    write_lines(root / "captions.jsonl", rows)


def folder(root: Path) -> None:
    write_images(root, [*CAPTIONS])
    for name, texts in CAPTIONS.items():
        write_lines((root / name).with_suffix(".txt"), texts)


WRITERS: dict[str, Callable[[Path], None]] = {
    "flickr": flickr,
    "kaggle": kaggle,
    "karpathy": karpathy,
    "coco": coco,
    "table": table,
    "json": as_json,
    "folder": folder,
    "shapes": as_json,
    "worlds": as_json,
}
"""For each layout of DATASETS, a function that writes a small dataset."""
