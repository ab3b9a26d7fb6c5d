"""All layouts of the table satisfy the interface of a reader; violations are named errors."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.layouts import CAPTIONS, WRITERS, as_json

from captioner.data.read import DATASETS
from captioner.data.readers import read_json
from captioner.data.records import Dataset
from captioner.testing import check_data_layout

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
