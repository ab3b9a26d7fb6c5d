"""Files that the user names: every verb creates their folder, and says so."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.evaluations import evaluation, system

from captioner.cli import main

ROOT = Path(__file__).parents[1]
PHOTO = str(ROOT / "golden" / "versions" / "2026-11-28" / "photo.png")
SCORED = str(ROOT / "golden" / "versions" / "2026-11-28" / "evaluation" / "captions.jsonl")


def runs(folder: Path) -> list[str]:
    return [str(evaluation(folder / name, system(seed))) for seed, name in enumerate("ab")]


def checkpoints(folder: Path) -> list[str]:
    return [str(shutil.copy(ROOT / "golden" / "old.ckpt", folder / f"{n}.ckpt")) for n in "ab"]


def photographs(folder: Path) -> list[str]:
    for name in ("one", "two"):
        Image.effect_noise((32, 24), 50).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a dog\n")
    return ["data=folder", f"data.root={folder}", "data.holdout=0.4"]


def evaluated(folder: Path) -> list[str]:
    shutil.copytree(Path(SCORED).parent, folder / "run" / "evaluation" / "x-dev" / "greedy")
    return [str(folder / "run"), "--images", "1"]


@pytest.mark.parametrize(
    ("command", "more", "output"),
    [
        ("caption", lambda folder: [PHOTO], "--output=x.csv"),
        ("inspect", lambda folder: [PHOTO], "--output=x.html"),
        ("inspect", lambda folder: [PHOTO], "--save=x.safetensors"),
        ("inspect --playground", lambda folder: [PHOTO], "--output=x.html"),
        ("states collect flickr8k --split dev", photographs, "--output=x.safetensors"),
        ("score", lambda folder: [SCORED, "--metrics=bleu"], "--output=x.txt"),
        ("score", lambda folder: [SCORED, "--metrics=bleu"], "--statistics=x"),
        ("compare --resamples 1000", runs, "--output=x.md"),
        ("compare --resamples 1000", runs, "--figure=x.svg"),
        ("average", checkpoints, "--output=x.ckpt"),
        ("report", evaluated, "--output=x.html"),
    ],
)
def test_the_folder_of_an_output_is_created(
    command: str, more: Callable[[Path], list[str]], output: str, tmp_path: Path, capsys
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    flag, name = output.split("=")
    file = tmp_path / "new" / "folder" / name
    assert main([*command.split(), *more(given), flag, str(file)]) == 0
    assert file.exists()
    printed = "".join(capsys.readouterr())
    assert f"wrote {file} (made the folder {tmp_path / 'new'})" in printed
