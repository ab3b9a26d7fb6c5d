"""Checkpoints: self-contained files, and damaged or foreign ones."""

import errno
import os
import pickle
import shutil
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.serialization import get_crc32_options, set_crc32_options

import captioner
from captioner.checkpoints import bundle, checkpoint
from captioner.runs import LAST
from captioner.training.module import LitCaptioner
from captioner.training.saving import WholeFiles
from captioner.verbs.failures import explain


def changed(source: Path, target: Path, **block: object) -> Path:
    """A copy of a checkpoint with some entries of its captioner block replaced."""
    content = torch.load(source, weights_only=True)
    content["captioner"].update(block)
    torch.save(content, target)
    return target


def test_a_copied_checkpoint_is_sufficient(run, scenes, tmp_path, monkeypatch) -> None:
    """Loaded without conf/, run folder and training data, it gives the same captions."""
    images = sorted((scenes / "images").glob("test_*.png"))
    expected = [caption.text for caption in captioner.load(run).caption(images)]
    copy = shutil.copy(checkpoint.find(run), tmp_path / "copied.ckpt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("captioner.config.conf_folder", lambda: Path("/nowhere"))
    monkeypatch.setattr("captioner.data.read.read_records", None)
    assert [caption.text for caption in captioner.load(copy).caption(images)] == expected
    module = LitCaptioner.load_from_checkpoint(copy)
    state = captioner.load(run).model.state_dict()
    for name, tensor in module.model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert not module.training


def test_a_checkpoint_contains_plain_data_and_its_scores(run) -> None:
    content = torch.load(checkpoint.find(run), weights_only=True)
    block = content["captioner"]
    assert block["format"] == bundle.FORMAT
    assert block["version"] == captioner.__version__
    assert type(block["config"]) is dict
    assert block["config"]["decoder"]["hidden_size"] == 64
    assert set(block["scores"]) >= {"dev_bleu4", "dev_loss"}
    assert checkpoint.read(run).scores == block["scores"]


def test_a_run_folder_means_its_best_checkpoint(run) -> None:
    assert checkpoint.find(run) == run / "checkpoints" / "best.ckpt"
    assert checkpoint.find(run, name=LAST).name == "last.ckpt"
    assert checkpoint.run_folder(checkpoint.find(run)) == run


@pytest.mark.reliability("damaged files")
def test_out_of_memory_is_not_reported_as_a_truncated_file(run, monkeypatch) -> None:
    def fail(*unused, **options):
        torch.empty(2**60, dtype=torch.uint8)  # torch's own error, whatever its message is

    monkeypatch.setattr(checkpoint.torch, "load", fail)
    with pytest.raises(RuntimeError) as error:
        checkpoint.read(run)
    assert explain(error.value).startswith("out of memory")


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize("size", [0, 1, 100, 5000, -100])
def test_a_truncated_file_gets_one_line(run, tmp_path, size: int) -> None:
    content = checkpoint.find(run).read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"cut\.ckpt: not a checkpoint, or a truncated one") as e:
        checkpoint.read(path)
    assert "\n" not in str(e.value)


@pytest.mark.reliability("damaged files")
def test_a_zip_of_something_else_gets_one_line(tmp_path) -> None:
    path = tmp_path / "holiday.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.txt", "not a photo")
    with pytest.raises(ValueError, match="not a checkpoint"):
        checkpoint.read(path)


@pytest.mark.reliability("damaged files")
def test_a_text_file_gets_one_line(tmp_path) -> None:
    path = tmp_path / "notes.ckpt"
    path.write_text("these are notes\n" * 40)
    with pytest.raises(ValueError, match="not a c"):
        checkpoint.read(path)


@pytest.mark.parametrize("size", [-1, 800])
@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "renamed.ckpt"])
def test_an_image_is_called_an_image(tmp_path, name: str, size: int) -> None:
    path, content = tmp_path / name, BytesIO()
    Image.effect_noise((130, 120), 50).save(content, "JPEG" if name.endswith("jpg") else "PNG")
    path.write_bytes(content.getvalue()[:size])
    with pytest.raises(ValueError, match=r": an image, not a checkpoint; give a run folder, a "):
        checkpoint.read(path)


@pytest.mark.reliability("damaged files")
def test_weights_of_another_framework_get_one_line(tmp_path) -> None:
    path = tmp_path / "foreign.pt"
    torch.save({"state_dict": {"layer.weight": torch.zeros(2, 3)}}, path)
    with pytest.raises(ValueError, match="has no captioner block"):
        checkpoint.read(path)


@pytest.mark.reliability("versions")
def test_a_newer_format_gets_one_line(run, tmp_path) -> None:
    path = changed(checkpoint.find(run), tmp_path / "new.ckpt", format=99, version="9.9")
    with pytest.raises(ValueError, match=r"format 99, written by captioner 9\.9.*upgrade"):
        checkpoint.read(path)


class Evil:
    """Code that a pickle could run."""

    def __reduce__(self):
        return os.system, ("touch /tmp/captioner_was_here",)


@pytest.mark.reliability("files decide nothing")
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_code_in_a_checkpoint_is_not_executed(tmp_path, kind: str) -> None:
    path, trace = tmp_path / "evil.ckpt", Path("/tmp/captioner_was_here")
    content = {"state_dict": {}, "captioner": {"format": 1, "config": Evil()}}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="not a c"):
        checkpoint.read(path)
    assert not trace.exists()


@pytest.mark.reliability("files decide nothing")
@pytest.mark.parametrize(
    ("group", "values", "says"),
    [
        ("decoder", {"name": "os:system"}, "decoder.name=os:system: os has no class 'system'"),
        ("decoder", {"_target_": "os.system"}, "decoder._target_ is not an option"),
        ("encoder", {"network": "hf-hub:someone/model"}, "is not known"),
        ("decoder", {"hidden_size": 23}, "weights and configuration disagree"),
    ],
)
def test_a_configuration_in_a_checkpoint_cannot_name_code(run, tmp_path, group, values, says):
    config = torch.load(checkpoint.find(run), weights_only=True)["captioner"]["config"]
    config[group] = {**config[group], **values}
    path = changed(checkpoint.find(run), tmp_path / "odd.ckpt", config=config)
    with pytest.raises(ValueError, match=says):
        captioner.load(path)


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize("entry", ["tokenizer", "transform", "scores", "config"])
def test_a_damaged_block_gets_one_line(run, tmp_path, entry: str) -> None:
    path = changed(checkpoint.find(run), tmp_path / "bad.ckpt", **{entry: "?"})
    with pytest.raises(ValueError) as error:
        captioner.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_checkpoint_is_an_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such run folder or checkpoint"):
        captioner.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        captioner.load(tmp_path)


@pytest.mark.reliability("interrupted")
def test_a_failed_save_keeps_the_old_file(tmp_path) -> None:
    path = tmp_path / "last.ckpt"
    writer = WholeFiles()
    writer.save_checkpoint({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        writer.save_checkpoint({"a": lambda: None}, path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.reliability("disks")
def test_a_full_disk_is_reported_and_keeps_the_old_file(tmp_path) -> None:
    """In a process that may write 3 MB; torch's own message would be another."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.ckpt"
    checkpoint.write({"a": torch.ones(3)}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, limits[1]))
    try:
        with pytest.raises(OSError) as error:
            checkpoint.write({"a": torch.ones(2_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize("sums", [True, False])
def test_a_flipped_bit_is_detected(tmp_path, run, sums: bool) -> None:
    """Whatever the process has set for torch's checksums."""
    content = checkpoint.read(run).lightning
    content["state_dict"] = dict(list(content["state_dict"].items())[-12:])
    set_crc32_options(sums)
    try:
        checkpoint.write(content, tmp_path / "a.ckpt")
        assert get_crc32_options() is sums
    finally:
        set_crc32_options(True)
    checkpoint.read(tmp_path / "a.ckpt")
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        parts = [part for part in archive.infolist() if part.file_size]
    for part in parts:
        name, extra = struct.unpack_from("<HH", data, part.header_offset + 26)  # their lengths
        place = part.header_offset + 30 + name + extra + part.file_size // 2
        data[place] ^= 4
        (tmp_path / "b.ckpt").write_bytes(data)
        with pytest.raises(ValueError, match=r"b\.ckpt: damaged \(the checksum of .* is wrong\)"):
            checkpoint.read(tmp_path / "b.ckpt")
        if part.filename.endswith("data.pkl"):
            with pytest.raises(ValueError, match="damaged"):
                checkpoint.read_block(tmp_path / "b.ckpt")
        data[place] ^= 4


def test_the_average_of_checkpoints_is_the_mean_of_their_weights(run, tmp_path) -> None:
    content = checkpoint.read(run).lightning
    paths = []
    for number in range(3):
        scaled = {
            name: tensor + number if tensor.is_floating_point() else tensor
            for name, tensor in content["state_dict"].items()
        }
        paths.append(tmp_path / f"epoch-{number}.ckpt")
        torch.save({**content, "state_dict": scaled}, paths[-1])
    checkpoint.average(paths, tmp_path / "mean.ckpt")
    mean = checkpoint.read(tmp_path / "mean.ckpt")
    for name, tensor in checkpoint.read(paths[1]).weights.items():
        torch.testing.assert_close(mean.weights[name], tensor)
    mean.model()  # it fits its own configuration
    with pytest.raises(ValueError, match="already exists"):
        checkpoint.average(paths, tmp_path / "mean.ckpt")
    with pytest.raises(ValueError, match="give two or more"):
        checkpoint.average(paths[:1], tmp_path / "other.ckpt")
    content["captioner"]["config"]["decoder"]["dropout"] = 0.77
    torch.save(content, paths[0])
    with pytest.raises(ValueError, match="another decoder"):
        checkpoint.average(paths, tmp_path / "other.ckpt")
    assert not (tmp_path / "other.ckpt").exists()


def test_averaging_a_run_without_kept_epochs_is_an_error(run) -> None:
    with pytest.raises(FileNotFoundError, match="callbacks.keep=5"):
        checkpoint.average_files(run)
