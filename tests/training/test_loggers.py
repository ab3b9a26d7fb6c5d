"""The arguments of the loggers, and when Weights & Biases is online."""

import csv
import math
from pathlib import Path

import pytest
import yaml
from pytorch_lightning.loggers import WandbLogger

from captioner.config import compose
from captioner.training.loggers import Rows, build_loggers
from captioner.training.module import LitCaptioner
from captioner.training.objectives.cross_entropy import CrossEntropy
from captioner.training.train import train


@pytest.fixture
def wandb(monkeypatch):
    """Weights & Biases for a user who is not logged in, without a network."""
    module = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.mark.parametrize(("logged_in", "mode"), [(True, "online"), (False, "offline")])
def test_wandb_is_online_if_the_user_is_logged_in(
    wandb, monkeypatch, tmp_path, capsys, logged_in, mode
) -> None:
    monkeypatch.setattr(wandb, "login", lambda prompt: logged_in)
    (logger,) = build_loggers(
        tmp_path / "gru", print, csv=False, tensorboard=False, wandb=True, project="photos"
    )
    assert isinstance(logger, WandbLogger)
    arguments = logger._wandb_init
    assert (arguments["project"], arguments["name"], arguments["mode"]) == ("photos", "gru", mode)
    assert ("wandb sync" in capsys.readouterr().out) is not logged_in


def test_wandb_is_offline_if_its_server_refuses_the_login(
    wandb, monkeypatch, tmp_path, capsys
) -> None:
    def login(prompt: bool) -> bool:
        raise wandb.errors.AuthenticationError("Failed to authenticate with https://api.wandb.ai.")

    monkeypatch.setattr(wandb, "login", login)
    (logger,) = build_loggers(tmp_path, print, csv=False, tensorboard=False, wandb=True)
    assert logger._wandb_init["mode"] == "offline"
    assert "Failed to authenticate with https://api.wandb.ai; `wandb sync` of" in (
        capsys.readouterr().out
    )


def test_wandb_mode_takes_precedence(wandb, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "login", None)  # is not called
    (logger,) = build_loggers(tmp_path, print, csv=False, tensorboard=False, wandb=True)
    assert logger._wandb_init["mode"] is None


def test_tensorboard_has_the_configuration(tiny, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    others = [line for line in tiny if not line.startswith("logger.")]
    config = compose([*others, "trainer.max_epochs=1", "logger.csv=false"])
    run = train(config, tmp_path / "run")
    logged = yaml.safe_load((run.folder / "logs" / "tensorboard" / "hparams.yaml").read_text())
    assert logged["decoder"]["hidden_size"] == 24
    assert logged["run_dir"] == str(run.folder)


def test_a_training_without_loggers_runs(tiny, tmp_path) -> None:
    run = train(compose([*tiny, "trainer.max_epochs=1", "logger.csv=false"]), tmp_path / "run")
    assert not (run.folder / "logs").exists()
    assert run.scores


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["train_loss"]]


def test_values_of_an_own_objective_and_callback_are_in_every_row(
    tiny, tmp_path, monkeypatch
) -> None:
    """Also at the steps where last.ckpt is written; their names are any."""
    outcome, finish = CrossEntropy.outcome, LitCaptioner.on_before_zero_grad

    def with_value(self, *arguments):
        loss, logs = outcome(self, *arguments)
        return loss, {**logs, "my_value": loss.detach() * 0 + math.nan}

    def with_late_value(self, optimizer):
        self.log("late_value", float(self.global_step))
        return finish(self, optimizer)

    monkeypatch.setattr(CrossEntropy, "outcome", with_value)
    monkeypatch.setattr(LitCaptioner, "on_before_zero_grad", with_late_value)
    run = train(compose([*tiny, "callbacks.save_every=1"]), tmp_path / "run")
    rows = rows_of(run.folder)
    assert [int(row["step"]) for row in rows] == list(range(len(rows))) and len(rows) > 4
    assert {row["my_value"] for row in rows} == {"nan"}
    assert [float(row["late_value"]) for row in rows] == list(range(len(rows)))


def test_a_row_that_was_logged_ahead_gets_the_values_that_follow(tmp_path) -> None:
    rows = Rows(str(tmp_path))
    rows.log_metrics({"lr": 0.5}, 0)
    rows.log_ahead({"train_loss": 2.0}, 0)
    rows.save()  # with a checkpoint
    rows.log_metrics({"other": 7.0}, 0)  # by a callback, of the same step
    rows.log_metrics({"train_loss": 2.0, "late_value": 3.0}, 0)
    rows.save()
    rows.log_metrics({"train_loss": 1.0}, 1)
    rows.save()
    text = Path(rows.metrics_file_path).read_text().splitlines()
    assert text[0] == "late_value,lr,other,step,train_loss"
    assert text[1:] == [",0.5,,0,", "3.0,,,0,2.0", ",,7.0,0,", ",,,1,1.0"]
