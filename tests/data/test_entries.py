"""JSON files of all accepted shapes give the same records; errors name what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from captioner.config import compose, make
from captioner.data.read import read_records
from captioner.data.records import Dataset

PEOPLE = {"0.png": ("a box", "a red box"), "1.png": ("a dog",)}


def touch(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not read by a reader")


def read(root: Path, format: str = "json", **options: Any) -> Dataset:
    return read_records(format=format, root=str(root), holdout=0.0, **options)


def captions(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    return {record.image_id: record.captions for record in dataset.records}


def splits(dataset: Dataset) -> dict[str, str]:
    return {record.image_id: record.split for record in dataset.records}


def coco(images: Iterable[tuple[Any, str]], annotations: Iterable[tuple[Any, str]]) -> str:
    return json.dumps(
        {
            "images": [{"id": key, "file_name": name} for key, name in images],
            "annotations": [
                {"id": 1, "image_id": key, "caption": text} for key, text in annotations
            ],
        }
    )


def objects(image: str, captions: str, single: bool = False) -> str:
    """A JSON list with one object per caption if `single`, otherwise one per image."""
    rows: list[dict[str, Any]] = [{image: name, captions: list(PEOPLE[name])} for name in PEOPLE]
    if single:
        rows = [{image: name, captions: text} for name in PEOPLE for text in PEOPLE[name]]
    return json.dumps(rows)


RAW = [
    {"filename": name, "imgid": 3, "sentences": [{"raw": text, "sentid": 1} for text in texts]}
    for name, texts in PEOPLE.items()
]
SHAPES = {
    "list": objects("image", "captions"),
    "AI Challenger": objects("image_id", "caption"),
    "Hugging Face": objects("file_name", "text", single=True),
    "path and sentences": objects("path", "sentences"),
    "Filename": objects("Filename", "Caption", single=True),
    "lines": "\n".join(json.dumps(row) for row in json.loads(objects("filename", "sentence"))),
    "dict": json.dumps(PEOPLE, indent=1),
    "dict in one line": json.dumps({"0.png": ["a box", "a red box"], "1.png": "a dog"}),
    "dict of objects": json.dumps({name: {"captions": PEOPLE[name]} for name in PEOPLE}),
    "COCO": coco([(0, "0.png"), (7, "1.png")], [(0, "a box"), (7.0, "a dog"), ("0", "a red box")]),
    "Karpathy": json.dumps({"dataset": "mine", "images": RAW}),
    "Karpathy's images": json.dumps(RAW),
    "annotations alone": json.dumps({"annotations": json.loads(objects("image_id", "caption"))}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_give_the_same_records(shape: str, tmp_path: Path) -> None:
    touch(tmp_path / "images", PEOPLE)
    (tmp_path / "mine.json").write_text(SHAPES[shape], encoding="utf-8")
    dataset = read(tmp_path, images="images")
    assert captions(dataset) == PEOPLE
    assert dataset.warnings == {}


def test_a_single_object_is_an_entry(tmp_path: Path) -> None:
    touch(tmp_path, ["0.png"])
    (tmp_path / "mine.json").write_text('{\n "image": "0.png",\n "caption": "a box"\n}')
    assert captions(read(tmp_path)) == {"0.png": ("a box",)}


def test_text_and_comment_next_to_a_caption_are_ignored_with_a_warning(tmp_path: Path) -> None:
    touch(tmp_path, PEOPLE)
    rows = [{"image": name, "text": "STOP", "caption": "a sign", "comment": "?"} for name in PEOPLE]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    dataset = read(tmp_path)
    assert captions(dataset) == {"0.png": ("a sign",), "1.png": ("a sign",)}
    assert dataset.warnings == {"'text' next to 'caption', not read as a caption": 2}


@pytest.mark.reliability("damaged files")
def test_lone_surrogates_are_removed_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, PEOPLE)
    lines = [
        '{"image": "0.png", "captions": ["a box", "a funny box \\ud83d", "\\ude00"]}',
        '{"image": "1.png", "captions": ["a dog \\ud83d\\ude00 runs"]}',
        '{"image": "\\ud83d.png", "captions": ["a dog"]}',
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    dataset = read(tmp_path)
    assert captions(dataset) == {"0.png": ("a box", "a funny box"), "1.png": ("a dog 😀 runs",)}
    surrogate = "lone surrogate in a caption, removed"
    assert dataset.warnings == {surrogate: 2, "blank caption": 1, "caption of an absent image": 1}
    assert dataset.places[surrogate] == ("0.png",)
    assert dataset.places["caption of an absent image"] == ("\\ud83d.png",)  # can be printed
    "".join(place for places in dataset.places.values() for place in places).encode("utf-8")


@pytest.mark.reliability("damaged files")
def test_accents_are_composed_and_replacement_characters_counted(tmp_path: Path) -> None:
    touch(tmp_path, ["cafe\u0301.png", "1.png"])  # as a Mac writes file names
    rows = {"caf\u00e9.png": ["a cafe\u0301"], "1.png": ["a caf\ufffd", "the man\x92s dog"]}
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    dataset = read(tmp_path)
    assert captions(dataset)["caf\u00e9.png"] == ("a caf\u00e9",)
    replacement = "caption with characters of a wrong encoding, kept"
    assert dataset.warnings == {replacement: 2}


# COCO -----------------------------------------------------------------------------------------


@pytest.mark.reliability("damaged files")
def test_an_ambiguous_image_id_is_an_error_with_its_places(tmp_path: Path) -> None:
    names = [f"{count}.png" for count in range(4)]
    touch(tmp_path, names)
    text = coco(zip((1, 2, 1, 2), names), [(1, "of 0"), (2, "of 1"), (1, "of 2"), (2, "of 3")])
    (tmp_path / "merged.json").write_text(text)
    for format in ("coco", "json"):
        with pytest.raises(ValueError, match=r"merged\.json: id 1 names 0\.png") as error:
            read(tmp_path, format, captions="merged.json")
        places = "0.png (images[0]) and 2.png (images[2]); so does 1 other id,"
        assert places in str(error.value)
        assert "data.captions=[a.json,b.json]" in str(error.value)


@pytest.mark.reliability("damaged files")
def test_a_repeated_but_unambiguous_image_id_is_accepted(tmp_path: Path) -> None:
    touch(tmp_path, ["0.png", "1.png", "2.png"])
    images = [(1, "0.png"), (1, "0.png"), (2, "1.png"), (2, "2.png"), (3, "2.png")]
    (tmp_path / "mine.json").write_text(coco(images, [(1, "of 0"), (3, "of 2")]))
    dataset = read(tmp_path, "coco", captions="mine.json")
    assert captions(dataset) == {"0.png": ("of 0",), "2.png": ("of 2",)}  # id 2 has no captions
    assert dataset.warnings == {"image without captions": 1}


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize(
    ("images", "annotations", "fault"),
    [
        ([(None, "0.png")], [(None, "a")], r"images\[0\]: 'id' must be a number or a text, got"),
        ([(1, "0.png")], [(None, "a")], r"annotations\[0\]: 'image_id' must be .* got None"),
        ([(True, "0.png")], [(True, "a")], r"images\[0\]: 'id' must be .* got True"),
        ([(1, "0.png")], [(1, None)], r"annotations\[0\]: 'caption' must be a text"),
    ],
)
def test_invalid_ids_and_captions_of_coco_are_errors(
    images, annotations, fault, tmp_path: Path
) -> None:
    touch(tmp_path, ["0.png"])
    (tmp_path / "mine.json").write_text(coco(images, annotations))
    with pytest.raises(ValueError, match=fault):
        read(tmp_path, "coco", captions="mine.json")


def test_coco_reads_several_files_with_splits_from_their_names(tmp_path: Path) -> None:
    """Ids begin at 1 in each file; two images in different folders have the same name."""
    touch(tmp_path, ["train/a.png", "my_val/a.png", "b.png", "c.png"])
    (tmp_path / "my_train.json").write_text(
        coco([(1, "a.png"), (2, "b.png")], [(1, "of train/a"), (2, "of b")])
    )
    (tmp_path / "my_val.json").write_text(coco([(1, "a.png")], [(1, "of my_val/a")]))
    (tmp_path / "Test-2.json").write_text(coco([(1, "c.png")], [(1, "of c")]))
    files = ["my_train.json", "my_val.json", "Test-2.json"]
    dataset = read(tmp_path, "coco", captions=files)
    assert captions(dataset) == {
        "train/a.png": ("of train/a",),
        "b.png": ("of b",),
        "my_val/a.png": ("of my_val/a",),
        "c.png": ("of c",),
    }
    assert list(splits(dataset).values()) == ["train", "train", "dev", "test"]
    globbed = read(tmp_path, "coco", captions="*.json")
    assert sorted(globbed.records, key=str) == sorted(dataset.records, key=str)
    config = compose(["data=coco", f"data.captions=[{','.join(files)}]", f"data.root={tmp_path}"])
    assert make(read_records, "data", config["data"]).records == dataset.records


def test_coco_reads_its_test_file(tmp_path: Path) -> None:
    touch(tmp_path, ["train2014/1.jpg", "val2014/1.jpg", "test2014/1.jpg"])
    for split in ("train", "val", "test"):
        name = f"captions_{split}2014.json"
        (tmp_path / name).write_text(coco([(1, "1.jpg")], [(1, f"of {split}")]))
    dataset = read(tmp_path, "coco")
    assert captions(dataset)["test2014/1.jpg"] == ("of test",)
    assert list(splits(dataset).values()) == ["train", "dev", "test"]


def test_json_and_tables_read_several_files(tmp_path: Path) -> None:
    touch(tmp_path, ["a.jpg", "b.jpg"])
    for suffix, format, first, second in (
        ("json", "json", '{"a.jpg": "A cat."}', '{"b.jpg": "A dog."}'),
        ("csv", "table", "image,caption\na.jpg,A cat.", "image,caption\nb.jpg,A dog."),
    ):
        (tmp_path / f"train.{suffix}").write_text(first)
        (tmp_path / f"dev.{suffix}").write_text(second)
        for given in (None, f"*.{suffix}", [f"train.{suffix}", f"dev.{suffix}"]):
            dataset = read(tmp_path, format, captions=given)
            assert splits(dataset) == {"a.jpg": "train", "b.jpg": "dev"}
        (tmp_path / f"more.{suffix}").write_text(first)
        with pytest.raises(ValueError, match=r"has dev.*more.*train.*data.captions=\[a,b\]"):
            read(tmp_path, format)


def test_layouts_with_one_caption_file_refuse_several(tmp_path: Path) -> None:
    for format in ("flickr", "kaggle", "karpathy", "folder"):
        with pytest.raises(ValueError, match="names 2 files; this data.format reads one"):
            read(tmp_path, format, captions=["a", "b"], images=".")
    with pytest.raises(ValueError, match=r"captions=5 is not accepted; choose a text or a list"):
        make(read_records, "data", {"format": "json", "root": ".", "captions": 5})
