"""Images that cannot be read: a training and an evaluation stop at them, or skip and list them."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from captioner.cli import main
from captioner.data.read import read_records

pytestmark = pytest.mark.reliability("damaged files")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of nine images, of which one is truncated and one is a text."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(9):
        path = folder / f"{number}.jpg"
        Image.effect_noise((64, 48), 60 + number).convert("RGB").save(path)
        path.with_suffix(".txt").write_text(f"a dog number {number}\n")
    whole = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "7.jpg").write_text("no image")
    return folder


def test_they_are_among_the_records_unless_they_are_skipped(root: Path) -> None:
    assert len(read_records(format="folder", root=str(root)).records) == 9
    dataset = read_records(format="folder", root=str(root), on_bad_image="skip")
    assert {record.image_id for record in dataset.records} == {
        f"{n}.jpg" for n in (0, 1, 2, 4, 5, 6, 8)
    }
    assert dataset.warnings["unreadable image, skipped"] == 2
    first, second = dataset.places["unreadable image, skipped"]
    assert first.startswith("3.jpg: ") and second.startswith("7.jpg: ")


def test_a_sound_dataset_is_unchanged(root: Path) -> None:
    for name in ("3", "7"):
        (root / f"{name}.jpg").unlink()
        (root / f"{name}.txt").unlink()
    options = {"format": "folder", "root": str(root)}
    assert read_records(**options, on_bad_image="skip") == read_records(**options)


def test_a_dataset_without_a_readable_image_is_refused(root: Path) -> None:
    for path in root.glob("*.jpg"):
        path.write_text("no image")
    with pytest.raises(
        ValueError, match=r"data\.on_bad_image=skip: no image can be read; the first"
    ):
        read_records(format="folder", root=str(root), on_bad_image="skip")


def test_another_value_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.on_bad_image='skp' is not known.*skip"):
        read_records(format="folder", root=str(root), on_bad_image="skp")


def test_an_evaluation_lists_what_it_skipped(run: Path, root: Path, capsys, tmp_path) -> None:
    copied = tmp_path / "model.ckpt"
    copied.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    data = ["data=folder", f"data.root={root}", "data.split=train", "--metrics", "bleu"]
    assert main(["evaluate", str(copied), *data]) == 1
    assert "3.jpg" in capsys.readouterr().err
    assert main(["evaluate", str(copied), *data, "data.on_bad_image=skip"]) == 0
    assert "skipped 3.jpg: " in capsys.readouterr().out
    [scores] = tmp_path.glob("**/scores.json")
    assert [place[:5] for place in json.loads(scores.read_text())["skipped_images"]] == [
        "3.jpg",
        "7.jpg",
    ]


@pytest.mark.parametrize(("split", "names"), [("train", ["7"]), ("dev", []), ("test", ["3"])])
def test_an_evaluation_lists_only_the_images_of_its_split(
    run: Path, root: Path, capsys, tmp_path: Path, split: str, names: list[str]
) -> None:
    copied = tmp_path / "model.ckpt"
    copied.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    data = ["data=folder", f"data.root={root}", "data.holdout=0.3", f"data.split={split}"]
    more = ["data.on_bad_image=skip", "--metrics", "bleu"]
    assert main(["evaluate", str(copied), *data, *more]) == 0
    assert re.findall(r"skipped (\d)\.jpg: ", capsys.readouterr().out) == names


def test_a_training_skips_them(root: Path, tiny, tmp_path: Path, capsys) -> None:
    data = ["data=folder", f"data.root={root}", "data.holdout=0.3"]
    own = [o for o in tiny if not o.startswith("data")]
    command = ["train", *own, *data, f"run_dir={tmp_path / 'run'}", "trainer.max_epochs=1"]
    assert main(command) == 1
    assert "or skip with data.on_bad_image=skip: " in capsys.readouterr().err
    assert main([*command, "data.on_bad_image=skip"]) == 0
    lines = capsys.readouterr().out.splitlines()
    count = lines.index("data: unreadable image, skipped: 2")
    assert lines[count + 1].startswith("  3.jpg: ") and lines[count + 2].startswith("  7.jpg: ")


def test_a_training_names_the_first_of_many(root: Path, tiny, tmp_path: Path, capsys) -> None:
    for number in range(20, 25):
        (root / f"{number}.jpg").write_text("no image")
        (root / f"{number}.txt").write_text("a dog\n")
    own = [o for o in tiny if not o.startswith("data")]
    data = ["data=folder", f"data.root={root}", "data.holdout=0.3", "data.on_bad_image=skip"]
    assert main(["train", *own, *data, f"run_dir={tmp_path / 'run'}", "trainer.max_epochs=1"]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^  \d+\.jpg: ", printed, re.MULTILINE)) == 3
    assert "  and 4 more: `captioner data check` names them" in printed
