"""Statistics of a dataset, equal to numbers counted by hand."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from captioner.data.records import Dataset, Record
from captioner.data.statistics import statistics
from captioner.verbs.data import print_statistics


def record(name: str, split: str, *captions: str) -> Record:
    return Record(f"nowhere/{name}", name, captions, split)


DATASET = Dataset(
    (
        record("a.jpg", "train", "a dog runs", "a dog", "a"),
        record("b.jpg", "train", "a cat sits on a mat"),
        record("c.jpg", "dev", "a dog sits", "two birds"),
        record("d.jpg", "test", "one horse"),
    ),
    {"blank caption": 1234},
)


def test_statistics_are_those_counted_by_hand():
    numbers = statistics(DATASET)
    train = numbers["splits"]["train"]
    assert (train["images"], train["captions"], train["vocabulary"]) == (2, 4, 7)
    assert train["captions_per_image"] == {"min": 1, "mean": 2.0, "max": 3}
    assert train["words_per_caption"] == {"min": 1, "mean": 3.0, "median": 2.5, "p95": 6, "max": 6}
    assert numbers["splits"]["test"]["words_per_caption"]["p95"] == 2
    twice = statistics(Dataset((record("a.jpg", "train", "a", "a", "b"),)))
    assert twice["splits"]["train"]["repeated_captions"] == 1
    # a occurs 5 times in training, dog twice, each other word once
    assert numbers["vocabulary"] == {"1": 7, "2": 2, "5": 1}
    assert numbers["coverage"] == {
        "dev": {"1": 3 / 5, "2": 2 / 5, "5": 1 / 5},
        "test": {"1": 0.0, "2": 0.0, "5": 0.0},
    }
    assert numbers["oddities"] == {"blank caption": 1234}
    assert json.loads(json.dumps(numbers)) == numbers


def test_percentile_is_the_nearest_rank():
    captions = [" ".join(["word"] * length) for length in range(1, 41)]
    numbers = statistics(Dataset((record("a.jpg", "train", *captions),)))
    assert numbers["splits"]["train"]["words_per_caption"] == {
        "min": 1,
        "mean": 20.5,
        "median": 20.5,
        "p95": 38,
        "max": 40,
    }


def test_statistics_of_missing_splits_and_splits_without_captions():
    numbers = statistics(Dataset((record("a.jpg", "dev", "a dog"), record("b.jpg", "test"))))
    assert set(numbers["splits"]) == {"dev", "test"}
    assert numbers["vocabulary"] == numbers["coverage"] == {}
    assert numbers["splits"]["test"]["words_per_caption"]["mean"] == 0
    without_captions = statistics(
        Dataset((record("a.jpg", "train", "a dog"), record("b.jpg", "dev")))
    )
    assert without_captions["coverage"]["dev"] == {"1": 0.0, "2": 0.0, "5": 0.0}


def test_statistics_count_characters_with_the_character_tokenizer():
    dataset = Dataset((record("a.jpg", "train", "一个人在划船。", "一条狗"),))
    numbers = statistics(dataset, "character")
    assert numbers["splits"]["train"]["words_per_caption"]["max"] == 6
    assert numbers["splits"]["train"]["vocabulary"] == 8


def test_unknown_tokenizer_is_explained():
    with pytest.raises(ValueError, match="wrod"):
        statistics(DATASET, "wrod")


def printed(print_value, value) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_value(value, console)
    return console.file.getvalue()


def test_printed_statistics_contain_the_numbers():
    text = printed(print_statistics, statistics(DATASET))
    cells = {row[0]: row[1:] for row in (line.split("\t") for line in text.splitlines())}
    assert cells["images"] == ["2", "1", "1"]
    assert cells["captions per image (min, mean, max)"] == ["1, 2, 3", "2, 2, 2", "1, 1, 1"]
    assert cells["different words"] == ["7", "5", "2"]
    assert cells["covered by training words seen 2+ times"] == ["2 kept", "40.00%", "0.00%"]
    assert "1,234 x blank caption" in text
