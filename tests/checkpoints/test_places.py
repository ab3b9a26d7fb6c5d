"""A run uses the same files from any current folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from captioner.api import Captioner
from captioner.checkpoints import bundle, checkpoint
from captioner.checkpoints.export import export_bundle
from captioner.checkpoints.places import EMBEDDED, absolute, anchored, without_places
from captioner.cli import main
from captioner.config import compose
from captioner.metrics.novelty import CaptionHashes
from captioner.training.resuming import require_same_captions, resumed
from captioner.training.train import train


def test_paths_of_a_stored_configuration_are_absolute(tmp_path, monkeypatch) -> None:
    current = tmp_path / "Meine Fotos #1"
    current.mkdir()
    monkeypatch.chdir(current)
    overrides = ["data=table", "data.root=.", "data.captions=c.csv", "data.images=photos"]
    overrides += ["loader.cache_folder=../cache", "training.word_vectors=glove.txt"]
    config = anchored(compose([*overrides, "resume_weights=runs/x"]))
    assert config["data"]["root"] == str(current)
    assert (config["data"]["captions"], config["data"]["images"]) == ("c.csv", "photos")
    assert config["loader"]["cache_folder"] == str(tmp_path / "cache")
    assert config["training"]["word_vectors"] == str(current / "glove.txt")
    assert config["resume_weights"] == str(current / "runs" / "x")
    monkeypatch.chdir("/")
    assert anchored(config) == config
    assert absolute("~/x") == str(Path.home() / "x")


def test_names_that_are_valid_everywhere_are_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose([f"resume_weights={bundle.DEFAULT}"])
    assert EMBEDDED.items() <= config["data"].items()
    assert anchored(config) == config
    (tmp_path / bundle.DEFAULT / "checkpoints").mkdir(
        parents=True
    )  # a path takes precedence if it is a run
    assert anchored(config) == config
    (tmp_path / bundle.DEFAULT / "checkpoints" / "best.ckpt").touch()
    assert anchored(config)["resume_weights"] == str(tmp_path / bundle.DEFAULT)


def test_a_run_is_resumed_and_evaluated_on_its_own_data_from_another_folder(
    tiny, scenes, tmp_path, monkeypatch, capsys
) -> None:
    """The other folder has other captions, which are not read."""
    mine, other = tmp_path / "Meine Fotos #1", tmp_path / "other"
    shutil.copytree(scenes, mine)
    shutil.copytree(scenes, other)
    rows = [json.loads(line) for line in (other / "captions.jsonl").read_text().splitlines()]
    changed = [{**row, "captions": ["two words"]} for row in rows[::2]]
    (other / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    monkeypatch.chdir(mine)
    remaining = [line for line in tiny if not line.startswith(("data.root", "trainer.max_epochs"))]
    overrides = [
        *remaining,
        "data=json",
        "data.root=.",
        "trainer.limit_train_batches=1",
        "run_dir=r",
    ]
    assert main(["train", *overrides, "trainer.max_epochs=1"]) == 0
    assert yaml.safe_load(Path("r/config.yaml").read_text())["data"]["root"] == str(mine)
    monkeypatch.chdir(other)
    run = "../Meine Fotos #1/r"
    assert main(["train", f"resume={run}", "trainer.max_epochs=2"]) == 0
    assert "24 train and 8 dev images" in capsys.readouterr().out
    assert main(["evaluate", run, "--metrics", "bleu"]) == 0
    assert "dev: 8 images" in capsys.readouterr().out
    assert main(["evaluate", run, "data.root=.", "--metrics", "bleu"]) == 0
    assert "dev: 4 images" in capsys.readouterr().out
    stored = yaml.safe_load(
        next((mine / "r").glob("evaluation/other-dev/*/config.yaml")).read_text()
    )
    assert stored["data"]["root"] == str(other)

    before = {path: path.read_bytes() for path in (mine / "r").rglob("*") if path.is_file()}
    assert main(["train", f"resume={run}", "trainer.max_epochs=3", "data.root=."]) == 1
    error = capsys.readouterr().err
    known, now = captions_of(mine), captions_of(other)
    assert error.count("\n") == 1 and f"data.root={other} has other training captions" in error
    assert f"{len(now - known)} are new, {len(known - now)} are missing" in error
    assert f"resume_weights={mine / 'r'}" in error or "resume_weights=../Meine" in error
    assert before == {path: path.read_bytes() for path in (mine / "r").rglob("*") if path.is_file()}

    moved = mine.rename(tmp_path / "moved")  # with the same captions
    overrides = [f"resume={moved / 'r'}", "trainer.max_epochs=3", f"data.root={moved}"]
    assert main(["train", *overrides]) == 0
    last = checkpoint.read(moved / "r/checkpoints/last.ckpt")
    assert last.config["data"]["root"] == str(moved)


def captions_of(root: Path) -> set[str]:
    rows = [json.loads(line) for line in (root / "captions.jsonl").read_text().splitlines()]
    return {text for row in rows if row["split"] == "train" for text in row["captions"]}


def test_a_run_that_started_from_weights_knows_its_own_captions(
    run, tiny, scenes, tmp_path
) -> None:
    """A part of its data is refused, although the weights were trained on all of it."""
    half = tmp_path / "half"
    shutil.copytree(scenes, half)
    lines = (half / "captions.jsonl").read_text().splitlines(keepends=True)
    (half / "captions.jsonl").write_text("".join(lines[12:]))
    config = {**checkpoint.read(run).config, "resume_weights": str(run)}
    config["trainer"] = {**config["trainer"], "max_epochs": 1, "limit_train_batches": 1}
    folder = train(config, tmp_path / "warm").folder
    last = folder / "checkpoints" / "last.ckpt"
    loaded = checkpoint.read(last)
    assert loaded.own is not None and loaded.own.digest == CaptionHashes.of(words_of(scenes)).digest
    config = resumed(loaded.config, ["trainer.max_epochs=2"], run=str(folder), folder=folder)
    config["data"]["root"] = str(half)
    with pytest.raises(ValueError, match="0 are new, [1-9]"):
        train(config, folder, resume=last)


def words_of(root: Path) -> list[list[str]]:
    from captioner.metrics.tokenize import ptb_words

    return [ptb_words(text) for text in captions_of(root)]


@pytest.mark.parametrize(
    ("known", "more", "says"),
    [
        ("ab", None, None),
        ("abc", None, "0 are new, 1 are missing"),
        ("ac", None, "1 are new, 1 are missing"),
        (
            None,
            "abc",
            None,
        ),  # with those of the run it started from; older ones do not separate them
        (None, "ac", "1 are new, 0 are missing"),
        (None, None, None),  # an older checkpoint
    ],
)
def test_captions_are_compared_with_those_of_the_checkpoint(known, more, says) -> None:
    now, known, more = (
        captions if captions is None else CaptionHashes.of(captions)
        for captions in ("ab", known, more)
    )
    arguments = {"known": known, "more": more, "root": "/x", "run": Path("runs/a b")}
    if says is None:
        require_same_captions(now, **arguments)
    else:
        with pytest.raises(ValueError, match=says):
            require_same_captions(now, **arguments)


def test_a_bundle_has_no_absolute_paths(run, tmp_path) -> None:
    content = torch.load(checkpoint.find(run), weights_only=True)
    config = content["captioner"]["config"]
    config["training"]["word_vectors"] = "/home/me/glove.txt"
    config["data"]["captions"] = ["/home/me/a.json", "b.json"]
    config["loader"]["cache_folder"] = config["resume_weights"] = "/home/me/x"
    checkpoint.write(content, tmp_path / "mine.ckpt")
    text = (export_bundle(tmp_path / "mine.ckpt", tmp_path / "tiny") / bundle.MODEL).read_text()
    assert "/home/me" not in text and str(tmp_path) not in text
    stored = json.loads(text)["config"]
    assert stored["data"]["captions"] == ["a.json", "b.json"]
    assert stored["training"]["word_vectors"] == "glove.txt"
    assert Captioner.load(tmp_path / "tiny", device="cpu").config["data"]["root"].startswith("data")
    assert without_places({"a": "/x/y", "b": "/x/y", "c": 1}, ("b", "c")) == {
        "a": "/x/y",
        "b": "y",
        "c": 1,
    }
