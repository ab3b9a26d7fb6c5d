"""The check of a dataset with known errors."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from captioner.cli import main
from captioner.data.check import check
from captioner.data.read import read_records
from captioner.data.records import Dataset, Record
from captioner.data.worlds import draw
from captioner.verbs.data import print_report

pytestmark = pytest.mark.reliability("damaged files")


def printed(print_value, value) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_value(value, console)
    return console.file.getvalue()


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


def test_a_drawn_world_may_repeat_its_inputs(tmp_path, capsys) -> None:
    """Its images are all blank, in every split."""
    root = f"data.root={draw(tmp_path / 'sports').parent}"
    assert main(["data", "check", "data=worlds", root, "tokenizer=character"]) == 0
    printed_rows = capsys.readouterr().out.splitlines()
    assert "the same, as intended in this drawn world\t260\t" in printed_rows
    assert printed_rows[-1] == "The dataset is sound."
    assert main(["data", "check", "data=worlds", root]) == 1
    *_, warning, verdict = capsys.readouterr().out.splitlines()
    assert "set tokenizer=character" in warning
    assert verdict == "The dataset is sound, but not for these options: see the warnings."


def test_of_many_equal_images_the_first_are_named(tmp_path) -> None:
    root = draw(tmp_path / "sports").parent.rename(tmp_path / "photos")
    report = check(read_records(format="json", root=str(root)), progress=False)
    (line,) = (line for line in printed(print_report, report).splitlines() if " = " in line)
    assert "train_0019.png = 240 more" in line and "train_0020.png" not in line


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
