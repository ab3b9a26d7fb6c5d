"""Held-out images: a split depends only on the name, with about the requested fraction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.data.read import read_records
from captioner.data.record_builder import hash_fraction, held_out_split


def touch(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).write_bytes(b"not read by a reader")


def read_lines(root: Path, lines: Iterable[dict[str, str]], holdout: float) -> dict[str, str]:
    (root / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    dataset = read_records(format="json", root=str(root), holdout=holdout)
    return {record.image_id: record.split for record in dataset.records}


def test_dev_is_taken_from_train_if_the_data_names_train_and_test(tmp_path):
    names = [f"{count}.jpg" for count in range(300)]
    touch(tmp_path, names)
    lines = [
        {"image": name, "caption": "A", "split": "test" if count % 5 == 0 else "train"}
        for count, name in enumerate(names)
    ]
    splits = read_lines(tmp_path, lines, 0.25)
    assert [name for name in names if splits[name] == "test"] == names[::5]
    assert 40 <= Counter(splits.values())["dev"] <= 80  # 240 x 0.25 = 60, three deviations of 7
    unnamed = read_lines(tmp_path, [{"image": name, "caption": "A"} for name in names], 0.25)
    assert all(unnamed[name] == "dev" for name in names if splits[name] == "dev")
    assert read_lines(tmp_path, lines, 0.0)[names[1]] == "train"


@given(
    st.lists(st.text(), min_size=1, max_size=40, unique=True),
    st.randoms(use_true_random=False),
    st.floats(0, 0.49),
)
def test_holdout_depends_only_on_the_name_and_grows_with_the_fraction(names, source, holdout):
    splits = {name: held_out_split(name, holdout) for name in names}
    shuffled = source.sample(names, len(names))
    assert {name: held_out_split(name, holdout) for name in shuffled} == splits
    for name, split in splits.items():
        if split == "dev":
            assert held_out_split(name, 0.499) == "dev"
        if split == "test":
            assert held_out_split(name, holdout, ("dev",)) == "train"


@given(st.floats(0, 0.49), st.text(max_size=8))
def test_the_held_out_fraction_is_close_to_holdout(holdout, prefix):
    counts = Counter(held_out_split(f"{prefix}{count}.jpg", holdout) for count in range(2000))
    for split in ("dev", "test"):  # six deviations of a binomial, and a few where p is tiny
        spread = (2000 * holdout * (1 - holdout)) ** 0.5
        assert abs(counts[split] - 2000 * holdout) <= 6 * spread + 4


def test_splits_are_the_same_in_all_versions():
    # SHA-1 begins 0x8843... for "foobar": its fraction is 0x8843d7f92416211d / 2**64 = 0.53228
    assert held_out_split("foobar", 0.27) == "test"
    assert held_out_split("foobar", 0.26) == "train"
    assert held_out_split("foobar", 0.49) == "test"


def test_splits_do_not_depend_on_the_order_of_lines(tmp_path):
    names = [f"{count}.jpg" for count in range(50)]
    touch(tmp_path, names)
    lines = [{"image": name, "caption": f"About {name}"} for name in names]
    forward, backward = read_lines(tmp_path, lines, 0.3), read_lines(tmp_path, lines[::-1], 0.3)
    assert forward == backward
    assert list(backward) == names[::-1]
    assert len(set(forward.values())) == 3


@pytest.mark.parametrize(
    ("count", "least"), [(2, 1), (3, 1), (9, 1), (12, 2), (40, 8), (50, 10), (90, 10)]
)
def test_small_datasets_have_a_minimum_of_dev_images(tmp_path, count, least):
    for start in range(5):  # several sets of names
        names = [f"{start}-{place}.jpg" for place in range(count)]
        touch(tmp_path, names)
        splits = read_lines(tmp_path, [{"image": name, "caption": "A"} for name in names], 0.1)
        by_hash = {name: held_out_split(name, 0.1) for name in names}
        counts = Counter(splits.values())
        assert counts["dev"] >= least
        assert counts["dev"] == max(least, Counter(by_hash.values())["dev"])
        assert counts["train"] >= 1
        moved = [name for name in names if splits[name] != by_hash[name]]
        assert {by_hash[name] for name in moved} <= {"train"} or count == 3
        left = [name for name in names if splits[name] == "train"]
        if moved:  # those with the smallest hashes
            assert max(map(hash_fraction, moved)) < min(map(hash_fraction, left))


def test_large_datasets_are_held_out_by_hash_only(tmp_path):
    names = [f"{place}.jpg" for place in range(400)]
    touch(tmp_path, names)
    splits = read_lines(tmp_path, [{"image": name, "caption": "A"} for name in names], 0.1)
    assert splits == {name: held_out_split(name, 0.1) for name in names}


def test_holdout_0_holds_out_no_image(tmp_path):
    touch(tmp_path, [f"{place}.jpg" for place in range(5)])
    lines = [{"image": f"{place}.jpg", "caption": "A"} for place in range(5)]
    assert set(read_lines(tmp_path, lines, 0.0).values()) == {"train"}
    dataset = read_records(format="json", root=str(tmp_path), holdout=0.0)
    with pytest.raises(
        ValueError, match=r"split='dev' is empty.*data\.holdout=0\.1 holds"
    ) as error:
        dataset.split("dev")
    assert "name dev images in the data (a column or key `split`)" in str(error.value)


def test_dev_from_few_named_training_images(tmp_path):
    names = [f"{place}.jpg" for place in range(25)]
    touch(tmp_path, names)
    lines = [
        {"image": name, "caption": "A", "split": "train" if place < 20 else "test"}
        for place, name in enumerate(names)
    ]
    splits = read_lines(tmp_path, lines, 0.01)
    assert Counter(splits.values()) == {"train": 16, "dev": 4, "test": 5}
