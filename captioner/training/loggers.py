"""Loggers of losses and scores: CSV, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from captioner.config import Config
from captioner.process import is_first
from captioner.runs import LOGS


def build_loggers(
    folder: Path,
    report: Callable[[str], None],
    *,
    csv: bool = True,
    tensorboard: bool = True,
    wandb: bool = False,
    project: str = "captioner",
) -> list[Logger]:
    """Loggers that write below the run folder.

    Args:
        folder: the run folder; its name is that of the run in Weights & Biases.
        report: called with each line to print.
        csv: logs/csv/version_0/metrics.csv; a resumed run adds version_1, and so on.
        tensorboard: logs/tensorboard, if tensorboard is installed.
        wandb: Weights & Biases: online if the user is logged in, otherwise below logs/wandb; the
            environment variable WANDB_MODE takes precedence.
        project: the project in Weights & Biases.

    Raises:
        ValueError: wandb is true, but it is not installed.
    """
    loggers: list[Logger] = []
    if csv:
        loggers.append(CSVLogger(folder / LOGS, name="csv"))
    if tensorboard:
        if importlib.util.find_spec("tensorboard"):
            # without hp_metric, which would always be -1
            board = TensorBoardLogger(
                folder / LOGS, name="tensorboard", version="", default_hp_metric=False
            )
            loggers.append(board)
        else:
            report(
                "tensorboard is not installed, so there is no TensorBoard log: "
                "pip install 'captioner[logging]'"
            )
    if wandb:
        loggers.append(_build_wandb(folder, report, project))
    return loggers


def log_configuration(loggers: Iterable[Logger], config: Config) -> None:
    """Log the configuration to TensorBoard and Weights & Biases; the run folder has it as YAML."""
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_hyperparams(config)


def close(loggers: Iterable[Logger]) -> None:
    """End the run in Weights & Biases, so that the next training of this process starts another."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish()


def _build_wandb(folder: Path, report: Callable[[str], None], project: str) -> WandbLogger:
    if not importlib.util.find_spec("wandb"):
        raise ValueError("logger.wandb=true needs wandb: pip install 'captioner[logging]'")
    decided = os.environ.get("WANDB_MODE") or not is_first()  # other processes log nothing
    mode = None if decided else _wandb_mode(folder, report)
    return WandbLogger(folder.resolve().name, folder / LOGS, project=project, mode=mode)


def _wandb_mode(folder: Path, report: Callable[[str], None]) -> str:
    """Online if the user is logged in and the server answers, otherwise offline."""
    import wandb

    try:
        online, reason = wandb.login(prompt=False), "no user is logged in (wandb login)"
    except wandb.errors.Error as error:
        online, reason = False, str(error).rstrip(".")
    if online:
        return "online"
    report(
        f"Weights & Biases: {reason}; `wandb sync` of {folder / LOGS}/wandb uploads the run later"
    )
    return "offline"
