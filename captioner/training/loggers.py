"""Loggers of losses and scores: CSV, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment

from captioner.config import Config
from captioner.files import append, write_whole
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
        loggers.append(WholeCSVLogger(folder / LOGS, name="csv"))
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


class WholeCSVLogger(CSVLogger):
    """Lightning's CSV log, of which a killed training leaves all complete rows."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Rows:
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = Rows(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]


class Rows(ExperimentWriter):
    """The rows of a CSV log."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir=log_dir)
        self.rows: list[dict[str, Any]] = []
        self._ahead: dict[str, Any] | None = None
        self._completed = False  # a row that may be in the file has got more values

    def log_ahead(self, metrics: dict[str, Any], step: int) -> None:
        """Log a row that Lightning will log again, perhaps with more values: it remains one."""
        super().log_metrics(metrics, step)
        self._ahead = self.metrics[-1]

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        ahead, row = self._ahead, self.metrics[-1]
        if ahead is None or row["step"] != ahead["step"] or not ahead.keys() <= row.keys():
            return
        self.metrics.pop()
        self._completed |= row.keys() > ahead.keys()
        ahead.update(row)
        self._ahead = None

    def save(self) -> None:
        """Append the new rows in one write; if others have changed, write the whole file."""
        new, self.metrics = self.metrics, []
        self.rows += new
        rows = self.rows if self._completed else new
        columns = sorted({*self.metrics_keys, *(name for row in rows for name in row)})
        if columns != self.metrics_keys or self._completed:
            self.metrics_keys, self._completed = columns, False
            write_whole(self.metrics_file_path, self._text(self.rows, header=True))
        elif new:
            append(self.metrics_file_path, self._text(new, header=False))

    def _text(self, rows: list[dict[str, Any]], *, header: bool) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def log_step(trainer: Any) -> None:
    """Log the step that has just been done to the CSV log, as Lightning does after its callbacks.

    A callback that writes a checkpoint calls it: a run that resumes from there does not repeat the
    step.
    """
    if trainer.global_step % trainer.log_every_n_steps:
        return
    metrics = trainer.callback_metrics  # also learning rates, and scores of validations
    row = {name: metrics[name].item() for name in trainer.lightning_module.logged}
    for logger in trainer.loggers:
        if isinstance(logger, WholeCSVLogger):
            row["epoch"] = trainer.current_epoch
            logger.experiment.log_ahead(row, trainer.global_step - 1)


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
