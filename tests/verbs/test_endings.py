"""How a training may end early, and the messages and files that remain."""

import csv
import errno
import gc
import math
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from captioner.checkpoints import checkpoint
from captioner.cli import main
from captioner.config import compose
from captioner.data import loaders
from captioner.runs import LAST
from captioner.training.duration import resolve_length
from captioner.training.module import LitCaptioner
from captioner.training.train import train


@pytest.fixture
def at_step(monkeypatch):
    """Calls a function at the start of one step of a training."""
    original = LitCaptioner.training_step

    def arrange(step: int, happen) -> None:
        def watched(self, batch, batch_index):
            if self.global_step == step:
                happen()
            return original(self, batch, batch_index)

        monkeypatch.setattr(LitCaptioner, "training_step", watched)

    return arrange


def interrupt() -> None:
    raise KeyboardInterrupt


def command(tiny, folder: Path, *more: str) -> int:
    return main(["train", *tiny, f"run_dir={folder}", *more])


def error_of(capsys) -> str:
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("captioner: error: ")]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0].removeprefix("captioner: error: ")


# 24 images of five captions in batches of 20 are 6 steps an epoch.
@pytest.mark.reliability("interrupted")
@pytest.mark.parametrize(
    ("step", "says"),
    [
        (0, "interrupted before the first step: there is nothing to resume, no run folder"),
        (2, "interrupted; `captioner train resume={}` resumes from the last checkpoint"),
        (7, "interrupted; `captioner train resume={}` resumes from the last checkpoint"),
    ],
)
def test_an_interrupt_says_whether_the_run_can_be_resumed(
    tiny, tmp_path, at_step, capsys, step, says
) -> None:
    at_step(step, interrupt)
    run = tmp_path / "run"
    assert command(tiny, run) == 130
    assert error_of(capsys).startswith(says.format(run))
    assert run.exists() is (step > 0)


@pytest.mark.reliability("interrupted")
@pytest.mark.parametrize("text", ["", "terminated (SIGTERM)"])
@pytest.mark.parametrize("place", ["captioner.config.checked", "captioner.training.train.train"])
def test_an_interrupt_before_the_start_says_whether_the_run_can_be_resumed(
    run, tmp_path, monkeypatch, capsys, place: str, text: str
) -> None:
    def stop(*unused: object, **named: object) -> None:
        raise KeyboardInterrupt(*[text] * bool(text))

    reason = text or "interrupted"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(place, stop)
    monkeypatch.setattr("captioner.checkpoints.checkpoint.read", stop)
    for name in (run, checkpoint.find(run, name=LAST)):
        assert main(["train", f"resume={name}", "trainer.max_epochs=16"]) == 130
        says = f"{reason}; `captioner train resume={name}` resumes from the last checkpoint"
        assert error_of(capsys) == says
    assert main(["train", "run_dir=run"]) == 130
    assert error_of(capsys).startswith(f"{reason} before the first step: there is nothing to res")
    if "config" in place:
        assert main(["train", "-m", "seed=1,2"]) == 130
        assert error_of(capsys).startswith(f"{reason} before the first job; the same command ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.reliability("interrupted")
def test_an_interrupt_while_features_are_cached_leaves_no_run(
    tiny, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("captioner.data.datamodule.cache_features", lambda *a, **b: interrupt())
    assert command(tiny, tmp_path / "run") == 130
    assert "before the first step" in error_of(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_removed_during_training_is_named(
    tiny, scenes, tmp_path, at_step, capsys, workers: int
) -> None:
    root = shutil.copytree(scenes, tmp_path / "data")
    at_step(1, lambda: shutil.rmtree(root / "images"))
    live = ("loader.cache=false", f"loader.workers={workers}", f"data.root={root}")
    assert command(tiny, tmp_path / "run", *live) == 1
    error = error_of(capsys)
    assert error.startswith(str(root / "images"))
    assert "no such file" in error.lower()


@pytest.mark.reliability("limits")
@pytest.mark.parametrize(
    "image", ["train_00007.png", pytest.param("dev_00005.png", marks=pytest.mark.slow)]
)
def test_a_dead_worker_names_the_image_that_it_was_reading(
    tiny, tmp_path, monkeypatch, capsys, image: str
) -> None:
    """As the system kills a process if the memory is full, or a decoder crashes."""
    original = loaders.open_image

    def die(path, **options):
        if Path(path).name == image and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path, **options)

    monkeypatch.setattr(loaders, "open_image", die)
    # Seconds in which torch waits for a worker, before it looks whether it lives and when it ends.
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    live = ("loader.cache=false", "loader.workers=2", "encoder.trainable=true")
    assert command(tiny, tmp_path / "run", *live) == 1
    error = error_of(capsys)
    ended = r"(is killed by signal: Killed|exited unexpectedly)"
    assert re.match(rf"\S+/images/{image}: a worker process \(\d+\) {ended} while it", error)
    assert error.endswith("needs more memory than there is; try loader.workers=0")
    gc.collect()  # the loader ends its workers now


@pytest.mark.reliability("disks")
def test_a_full_disk_is_reported_and_nothing_is_lost(tiny, tmp_path, monkeypatch, capsys) -> None:
    original = checkpoint._save
    written = []

    def save(content, file) -> None:
        written.append(1)
        if len(written) > 2:  # last.ckpt and best.ckpt of the first epoch
            raise OSError(errno.ENOSPC, "No space left on device")
        original(content, file)

    monkeypatch.setattr(checkpoint, "_save", save)
    run = tmp_path / "run"
    assert command(tiny, run) == 1
    error = error_of(capsys)
    assert error.startswith(f"{run}/checkpoints/")
    assert "no space left on device; free some space and try again" in error
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]
    assert checkpoint.read(checkpoint.find(run, name=LAST)).lightning["epoch"] == 0


@pytest.mark.reliability("damaged files")
def test_a_damaged_checkpoint_is_not_resumed(run, tmp_path, capsys) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    last = copy / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    assert main(["train", f"resume={copy}", "trainer.max_epochs=16"]) == 1
    assert error_of(capsys).startswith(f"{last}: damaged (the checksum of ")
    assert last.read_bytes() == data


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize("name", ["best.ckpt", "epoch-03.ckpt"])
def test_a_run_with_another_damaged_checkpoint_is_refused_before_it_trains(
    run, tmp_path, capsys, monkeypatch, name: str
) -> None:
    """One flipped bit of its weights."""
    copy = shutil.copytree(run, tmp_path / "run")
    file, last = (copy / "checkpoints" / each for each in (name, "last.ckpt"))
    data = bytearray((copy / "checkpoints" / "best.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    before = last.read_bytes()
    resume = ["train", f"resume={copy}", "trainer.max_epochs=16", "callbacks.keep=1"]
    with monkeypatch.context() as patch:
        patch.setattr(LitCaptioner, "training_step", lambda *unused: 1 / 0)
        assert main(resume) == 1
    error = error_of(capsys)
    assert error.startswith(f"{file}: damaged (the checksum of ")
    assert error.endswith(f"or remove it: then resume={copy} selects among the epochs that follow")
    assert last.read_bytes() == before
    file.unlink()
    assert main(resume) == 0
    assert name != "best.ckpt" or checkpoint.read(copy).lightning["epoch"] == 15


@pytest.mark.parametrize(
    "option", ["trainer.limit_val_batches=0", "trainer.check_val_every_n_epoch=5"]
)
def test_without_validation_the_last_checkpoint_is_used(
    tiny, tmp_path, capsys, option: str
) -> None:
    run = tmp_path / "run"
    assert command(tiny, run, option, "trainer.max_epochs=1") == 0
    assert "no dev scores: no validation took place" in capsys.readouterr().out
    assert checkpoint.find(run).name == "last.ckpt"
    checkpoint.read(run).model()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            "trainer.limit_val_batches=0.1",
            "trainer.limit_val_batches=0.1 of 1 batch is less",
        ),
        (
            "trainer.limit_train_batches=0.01",
            "trainer.limit_train_batches=0.01 of 6 batches is",
        ),
        ("trainer.max_epochs=0", "trainer.max_epochs=0 is not accepted; choose a whole number fr"),
        ("trainer.max_steps=0", "trainer.max_steps=0 is not accepted; choose a whole number fro"),
        ("trainer.max_time=abc", "trainer.max_time='abc' is not accepted; choose days:hours:minu"),
        ("trainer.max_time=00:00:00:00", "trainer.max_time='00:00:00:00' is not accepted; choose"),
        ("optimizer.lr=inf", "optimizer.lr=inf is not accepted; choose a finite number"),
        ("optimizer.lr=nan", "optimizer.lr=nan is not accepted; choose a finite number"),
        ("decoder.dropout=nan", "decoder.dropout=nan is not accepted; choose a finite number"),
        (
            "loader.cache_folder=",
            "loader.cache_folder='' is not accepted; give a path, or leave it",
        ),
        ("data.root=", "data.root='' is not accepted; give a path, or leave it out"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0 is not accepted"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 is not accepted"),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0 is not accepted"),
        ("seed=-1", "seed=-1 is not accepted"),
        ("seed=abc", "seed='abc' is not accepted"),
        ("decoder.hidden_size=0", "decoder.hidden_size=0 is not accepted; choose 1 or more"),
        ("decoder.layers=1000000000", "decoder.layers=1000000000 is not accepted; choose 1000"),
        ("decoder.layers=-1", "decoder.layers=-1 is not accepted; choose 1 or more"),
        ("decoder.dropout=2", "decoder.dropout=2 is not accepted"),
        ("decoder.hidden_size=100000000000", "decoder.regions=1, decoder.embedding_size=16"),
        ("run_dir=", "run_dir='' is not accepted"),
        ("run_dir=null", "run_dir=None is not accepted"),
    ],
)
def test_a_training_that_cannot_start_gets_one_line_and_leaves_nothing(
    tiny, tmp_path, capsys, monkeypatch, option: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(tiny, Path("run"), option) == 1
    assert error_of(capsys).startswith(says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["", "images"])
def test_a_training_into_the_folder_of_its_dataset_is_refused(
    tiny, scenes, capsys, folder: str
) -> None:
    before = sorted(scenes.rglob("*"))
    images = ["data.images=images"] if folder else []
    assert command(tiny, scenes / folder, *images) == 1
    assert error_of(capsys).startswith(f"run_dir={scenes / folder} is the folder of the ")
    assert sorted(scenes.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            OmegaConf.create,
            "the configuration is a DictConfig, not plain data; pass captioner.conf",
        ),
        (
            lambda config: {**config, "data": OmegaConf.create(config["data"])},
            "the configuration has data, which is a DictConfig, not plain data",
        ),
        (
            lambda config: {**config, "optimizer": {"lr": np.float64(0.1)}},
            "the configuration has optimizer.lr, which is a float64, not plain data",
        ),
        (
            lambda config: {**config, "optimizer": {"betas": [0.9, math.inf]}},
            "optimizer.betas=inf is not accepted",
        ),
    ],
)
def test_a_configuration_that_is_not_plain_data_is_refused_at_the_start(
    tiny, tmp_path, change, says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        train(change(compose(tiny)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unset_seed_is_drawn_and_recorded(tiny, tmp_path, capsys) -> None:
    config = {**compose([*tiny, "trainer.max_epochs=1"]), "seed": None}
    run = train(config, tmp_path / "run", report=print)
    seed = checkpoint.read(run.best).config["seed"]
    assert 0 <= seed < 2**32
    assert f"seed={seed}, drawn at random" in capsys.readouterr().out


def test_a_finished_run_says_how_to_continue_it(tiny, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert command(tiny, run, "trainer.max_epochs=1") == 0
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    for more in ((), ("trainer.max_epochs=1",)):
        assert main(["train", f"resume={run}", *more]) == 1
        assert "1 epoch is done" in error_of(capsys)
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("batches", "given", "epochs", "every"),
    [
        (235, {}, 15, 1),  # Flickr8k in batches of 128
        (1, {}, 300, 20),  # forty photographs
        (8, {}, 38, 2),
        (7, {}, 44, 2),  # 43 would end with an epoch that is not validated
        (30, {}, 15, 1),
        (200, {"limit_train_batches": 2}, 150, 10),
        (200, {"limit_train_batches": 0.01, "accumulate_grad_batches": 2}, 300, 20),
        (1, {"max_epochs": 7}, 7, 1),
        (1, {"max_epochs": -1}, -1, 1),
        (1, {"max_epochs": 7, "check_val_every_n_epoch": 2}, 7, 2),
        (1, {"check_val_every_n_epoch": 1}, 300, 1),
    ],
)
def test_a_small_dataset_gets_more_epochs_by_default(batches, given, epochs, every) -> None:
    trainer = {**compose([])["trainer"], **given}
    trainer_options = resolve_length(trainer, batches, new=True)
    warm = resolve_length(trainer, batches, new=False)
    assert warm["max_epochs"] == given.get("max_epochs", 15)
    assert warm["check_val_every_n_epoch"] == given.get("check_val_every_n_epoch", 1)
    assert (trainer_options["max_epochs"], trainer_options["check_val_every_n_epoch"]) == (
        epochs,
        every,
    )
    assert set(trainer_options) == set(trainer)


@pytest.mark.parametrize(
    ("batches", "given", "every"),
    [
        (235, {}, 50),
        (1, {}, 1),
        (7, {"accumulate_grad_batches": 2}, 4),
        (200, {"limit_train_batches": 3}, 3),
        (200, {"log_every_n_steps": 10}, 10),
        (200, {"log_every_n_steps": 0}, 0),  # never
    ],
)
def test_the_log_has_at_least_one_row_per_epoch(batches, given, every) -> None:
    trainer = {**compose([])["trainer"], **given}
    assert resolve_length(trainer, batches, new=True)["log_every_n_steps"] == every


def test_the_loss_of_an_epoch_of_few_steps_is_logged(tiny, tmp_path, recwarn) -> None:
    config = compose([*tiny, "trainer.log_every_n_steps=50", "trainer.limit_train_batches=2"])
    train(config, tmp_path / "run")
    with (tmp_path / "run/logs/csv/version_0/metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train_loss"]]
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "1"), ("1", "3")]
    assert not [warning for warning in recwarn if "logging interval" in str(warning.message)]


def test_resolved_trainer_options_are_recorded(tiny, tmp_path) -> None:
    remaining = [line for line in tiny if not line.startswith("trainer.max_epochs")]
    more = ("trainer.limit_train_batches=1", "callbacks.patience=1", "optimizer.lr=0")
    run = train(compose([*remaining, *more]), tmp_path / "run")
    trainer = checkpoint.read(run.best).config["trainer"]
    assert (trainer["max_epochs"], trainer["check_val_every_n_epoch"]) == (300, 20)
    assert run.epoch == 20
    assert "max_epochs: 300" in (run.folder / "config.yaml").read_text()


@pytest.mark.reliability("disks")
def test_a_disk_that_is_full_before_the_first_checkpoint_leaves_no_run(
    tiny, tmp_path, monkeypatch, capsys
) -> None:
    def save(content, file) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_save", save)
    assert command(tiny, tmp_path / "run") == 1
    assert "no space left on device; free some space and try again" in error_of(capsys)
    assert not (tmp_path / "run").exists()
