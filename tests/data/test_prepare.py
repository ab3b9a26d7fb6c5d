"""Statistics, equal to numbers counted by hand, and the check of a dataset with known errors."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from captioner.cli import main
from captioner.data.prepare import check, statistics
from captioner.data.read import read_records
from captioner.data.records import Dataset, Record
from captioner.verbs.data import print_report, print_statistics


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


def save(path: Path, color: tuple[int, int, int]) -> None:
    Image.new("RGB", (9, 7), color).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset with one error of each kind, and file names that look like markup."""
    save(tmp_path / "good[red].png", (200, 0, 0))
    save(tmp_path / "other.png", (0, 200, 0))
    for copy in ("twice.png", "leak.png", "leaked.png"):
        source = "other.png" if copy == "twice.png" else "good[red].png"
        (tmp_path / copy).write_bytes((tmp_path / source).read_bytes())
    Image.effect_noise((64, 48), 90).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page[1].jpg").write_text("<html>404</html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    save(tmp_path / "mute.png", (0, 0, 200))
    splits = {
        "good[red].png": "train",
        "other.png": "train",
        "twice.png": "train",
        "leak.png": "dev",
        "leaked.png": "test",
        "cut.jpg": "train",
        "page[1].jpg": "train",
        "empty.jpg": "test",
        "gone.jpg": "train",
    }
    lines = [
        {"image": name, "caption": "a dog", "split": split} for name, split in splits.items()
    ] + [
        {"image": "mute.png", "captions": [" "], "split": "train"},
        {"image": "other.png", "caption": "", "split": "train"},
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return tmp_path


def test_check_finds_every_known_error(folder):
    report = check(read_records(format="json", root=str(folder)), progress=False)
    assert report.images == 8
    assert set(report.broken) == {"cut.jpg", "page[1].jpg", "empty.jpg"}
    for name, fault in report.broken.items():
        assert name in fault and "\n" not in fault
    assert report.missing == ("gone.jpg",)
    assert report.uncaptioned == ("mute.png", "other.png")
    assert report.leaks == (("train/good[red].png", "dev/leak.png", "test/leaked.png"),)
    assert report.duplicates == (("train/other.png", "train/twice.png"),)
    assert not report.sound
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["sound"] is False
    assert plain["places"]["caption of an absent image"] == ["gone.jpg"]
    assert plain["leaks"] == [list(report.leaks[0])]
    assert plain["broken"] == report.broken


def test_the_printed_report_contains_the_file_names_unchanged(folder):
    text = printed(print_report, check(read_records(format="json", root=str(folder))))
    for name in ("page[1].jpg", "train/good[red].png = dev/leak.png", "gone.jpg", "mute.png"):
        assert name in text
    assert "not sound" in text


def test_a_duplicate_within_a_split_is_sound(tmp_path):
    save(tmp_path / "a.png", (1, 2, 3))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    records = tuple(Record(str(tmp_path / f"{name}.png"), name, ("x",), "dev") for name in "ab")
    report = check(Dataset(records), progress=False)
    assert report.sound and report.duplicates == (("dev/a", "dev/b"),)
    assert "dataset is sound" in printed(print_report, report)
    (tmp_path / "b.png").unlink()  # gone since it was read
    late = check(Dataset(records), progress=False)
    assert not late.sound and list(late.broken) == ["b"]


DAMAGES = {
    "quote.csv": ('image,caption\n0.png,"a box\n0.png,a cat\n', "quote.csv, line 2"),
    "columns.csv": ("image,caption,x\n0.png,a box,,,\n0.png,a cat,\n", "columns.csv, line 2"),
    "half.jsonl": ('{"image": "0.png", "caption": "a box \\ud83d"}', "0.png"),
    "spoilt.jsonl": ('{"image": "0.png", "caption": "a caf\\ufffd"}', "0.png"),
    "unlisted.json": (
        '{"images": [{"id": 1, "file_name": "0.png"}], "annotations": '
        '[{"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "b"}]}',
        "unlisted.json, annotations[1]",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_check_reports_damaged_places_of_the_caption_file(name, tmp_path, capsys):
    text, place = DAMAGES[name]
    save(tmp_path / "0.png", (1, 2, 3))
    (tmp_path / name).write_text(text)
    data = [f"data={'table' if name.endswith('csv') else 'json'}", f"data.root={tmp_path}"]
    assert main(["data", "check", "--format", "json", *data, f"data.captions={name}"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["sound"] is False
    (damaged,) = report["damaged"]
    assert damaged.endswith(place)
    assert [damaged] in report["places"].values()
    assert main(["data", "check", *data, f"data.captions={name}"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "damaged in the caption file" in printed and "The dataset is not sound" in printed


def test_check_and_stats_print_the_warnings(tmp_path, capsys):
    save(tmp_path / "0.png", (1, 2, 3))
    save(tmp_path / "1.png", (2, 2, 3))
    rows = [{"image": "0.png", "caption": "两只狗在雪地里奔跑", "split": "train"}]
    rows += [{"image": "1.png", "caption": "a dog", "split": "dev"}]
    (tmp_path / "zh.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["data=json", f"data.root={tmp_path}"]
    assert main(["data", "check", *data]) == 1
    assert "set tokenizer=character" in capsys.readouterr().out
    assert main(["data", "check", *data, "tokenizer=character"]) == 0
    assert "The dataset is sound" in capsys.readouterr().out
    short = ["tokenizer=character", "loader.max_words=8", "decoding.max_length=9"]
    assert main(["data", "stats", *data, *short, "--format", "json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning.startswith("1 of 1 training captions are longer than loader.max_words=8")
    assert main(["data", "stats", *data, *short]) == 0
    assert f"warning: {warning}" in capsys.readouterr().out


def test_long_lists_are_cut_in_print_and_whole_in_json(tmp_path):
    records = tuple(Record(str(tmp_path / f"{n}.png"), f"{n}", ("x",), "dev") for n in range(33))
    report = check(Dataset(records), progress=False)
    assert len(report.as_dict()["broken"]) == 33
    assert "and 13 more" in printed(print_report, report)
