"""The arguments of the loggers, and when Weights & Biases is online."""

import pytest
import yaml
from pytorch_lightning.loggers import WandbLogger

from captioner.config import compose
from captioner.training.loggers import build_loggers
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
