"""What the loggers are given, and when Weights & Biases goes online."""

import pytest
import yaml
from pytorch_lightning.loggers import WandbLogger

from captioner.config import compose
from captioner.training.loggers import build_loggers
from captioner.training.train import train


@pytest.fixture
def wandb(monkeypatch):
    """Weights & Biases for somebody who has not logged in, and without any network."""
    module = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.mark.parametrize(("logged_in", "mode"), [(True, "online"), (False, "offline")])
def test_it_goes_online_where_the_user_has_logged_in(
    wandb, monkeypatch, tmp_path, capsys, logged_in, mode
) -> None:
    monkeypatch.setattr(wandb, "login", lambda prompt: logged_in)
    (logger,) = build_loggers(
        tmp_path / "gru", print, csv=False, tensorboard=False, wandb=True, project="photos"
    )
    assert isinstance(logger, WandbLogger)
    asked = logger._wandb_init
    assert (asked["project"], asked["name"], asked["mode"]) == ("photos", "gru", mode)
    assert ("wandb sync" in capsys.readouterr().out) is not logged_in


def test_a_server_that_does_not_answer_does_not_stop_a_training(
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


def test_its_own_variable_comes_first(wandb, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "login", None)  # is not asked
    (logger,) = build_loggers(tmp_path, print, csv=False, tensorboard=False, wandb=True)
    assert logger._wandb_init["mode"] is None


def test_tensorboard_has_the_configuration(tiny, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    others = [one for one in tiny if not one.startswith("logger.")]
    config = compose([*others, "trainer.max_epochs=1", "logger.csv=false"])
    run = train(config, tmp_path / "run")
    given = yaml.safe_load((run.folder / "logs" / "tensorboard" / "hparams.yaml").read_text())
    assert given["decoder"]["hidden_size"] == 24
    assert given["run_dir"] == str(run.folder)


def test_a_training_without_loggers_runs(tiny, tmp_path) -> None:
    run = train(compose([*tiny, "trainer.max_epochs=1", "logger.csv=false"]), tmp_path / "run")
    assert not (run.folder / "logs").exists()
    assert run.scores
