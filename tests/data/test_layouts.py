"""All layouts of the table satisfy the interface of a reader; violations are named errors."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captioner.data.read import DATASETS
from captioner.data.readers import read_json
from captioner.data.records import Dataset
from captioner.testing import check_data_layout

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
# Scenes and worlds are drawn if no captions are named.
OPTIONS = {name: {"captions": "captions.jsonl"} for name in ("shapes", "worlds")}


@pytest.mark.parametrize("name", DATASETS)
def test_all_layouts_satisfy_the_interface_of_a_reader(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "mine")
    dataset = check_data_layout(DATASETS[name], tmp_path / "mine", **OPTIONS.get(name, {}))
    captions = {Path(record.image).name: list(record.captions) for record in dataset.records}
    assert captions == CAPTIONS


def changed(change: Callable[[Dataset], Dataset]) -> Callable[..., Dataset]:
    """A reader that changes the dataset of read_json."""

    def read(root: Path, **options: Any) -> Dataset:
        return change(read_json(root, **options))

    return read


def with_first(dataset: Dataset, **values: Any) -> Dataset:
    first, *others = dataset.records
    return replace(dataset, records=(replace(first, **values), *others))


def without_options(root: Path, captions: Any) -> Dataset:
    return read_json(root, captions=captions, images=None, holdout=0.1, encoding="utf-8")


def without_holdout(root: Path, *, holdout: float, **options: Any) -> Dataset:
    return read_json(root, holdout=0.1, **options)


def lookup_error(root: Path, *, encoding: str, **options: Any) -> Dataset:
    codecs.lookup(encoding)
    return read_json(root, encoding=encoding, **options)


def silent(dataset: Dataset) -> Dataset:
    return replace(dataset, warnings={}, places={})


BROKEN: dict[str, tuple[Callable[..., Dataset], str]] = {
    "arguments": (
        without_options,
        "must take the arguments root, captions, images, holdout, ",
    ),
    "image": (changed(lambda d: with_first(d, image="nowhere.jpg")), "nowhere.jpg.*no such file"),
    "id": (changed(lambda d: with_first(d, image_id="1.jpg")), "image_id '1.jpg'.*twice"),
    "blank": (changed(lambda d: with_first(d, captions=(" ",))), "blank or not stripped"),
    "lines": (changed(lambda d: with_first(d, captions=("a\nb",))), "several lines"),
    "split": (changed(lambda d: with_first(d, split="val")), "split 'val'"),
    "list": (changed(lambda d: with_first(d, captions=["a"])), "captions must be a tuple"),
    "holdout": (without_holdout, r"holdout=0.7 \(allowed: 0 ≤ holdout < 0.5\)"),
    "encoding": (lookup_error, "encoding='no-such-encoding' raises LookupError.*raise ValueError"),
    "silent": (changed(silent), "without a warning"),
    "places": (changed(lambda d: replace(d, places={"x": ("1",)})), "places of 'x'"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_reader_that_violates_the_interface_is_refused(fault: str, tmp_path: Path) -> None:
    as_json(tmp_path / "mine")
    reader, demand = BROKEN[fault]
    with pytest.raises(AssertionError, match=demand):
        check_data_layout(reader, tmp_path / "mine")


def test_wrong_arguments_of_the_check_are_errors(tmp_path: Path) -> None:
    as_json(tmp_path)
    with pytest.raises(TypeError, match="has no option 'holdot'; accepted are captions, images, "):
        check_data_layout(read_json, tmp_path, holdot=0.2)
    with pytest.raises(TypeError, match="expected a function, got 'json'"):
        check_data_layout("json", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        check_data_layout(read_json, tmp_path / "nowhere")
