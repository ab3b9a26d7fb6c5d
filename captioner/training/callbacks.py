"""Training callbacks: the average of the weights, sample captions, and warnings."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from captioner.config import Config, unknown
from captioner.data.records import Record
from captioner.files import append, to_json
from captioner.runs import SAMPLES
from captioner.training.restoring import require_average, require_like
from captioner.training.saving import LastCheckpoint, RandomState
from captioner.training.selection import BestCheckpoint, KeptEpochs, Patience

MONITORS = ("dev_bleu4", "dev_cider")
"""The dev scores that can select the best checkpoint and stop early; higher is better."""


def monitored(config: Config) -> str:
    """The dev score that selects the best checkpoint; BLEU-4 for runs without this option."""
    return config["callbacks"].get("monitor", MONITORS[0]) if "callbacks" in config else MONITORS[0]


def build_callbacks(
    folder: Path,
    *,
    monitor: str = "dev_bleu4",
    patience: int = 5,
    save_every: int = 200,
    samples: int = 8,
    ema: float = 0.0,
    keep: int = 0,
    progress: bool = True,
) -> list[Callback]:
    """The callbacks of a training run.

    Args:
        folder: the run folder.
        monitor: one of MONITORS: the dev score that selects the best checkpoint and stops early.
        patience: validations without a better score before the training stops; 0: never.
        save_every: optimizer steps between two writes of last.ckpt, from 1; it is also written at
            the end of every epoch.
        samples: dev captions logged at every validation; 0 for none.
        ema: decay of the moving average of the weights, which validation and best.ckpt use, [0, 1);
            0: no average.
        keep: number of best epochs whose checkpoints are kept in addition to best.ckpt, for
            ``captioner average``; 0: none.
        progress: show a progress bar if the output is a terminal.

    Raises:
        ValueError: a value out of range.
    """
    if monitor not in MONITORS:
        raise unknown("callbacks.monitor", monitor, MONITORS)
    counts = (("patience", patience, 0), ("samples", samples, 0), ("keep", keep, 0))
    for name, value, least in (*counts, ("save_every", save_every, 1)):
        if value < least:
            raise ValueError(f"callbacks.{name}={value} is not accepted; choose {least} or more")
    callbacks: list[Callback] = [WeightAverage(ema)] if ema else []
    callbacks += [EpochLine(), ImageMatters(), RandomState()]
    if samples:
        callbacks.append(SampleCaptions(folder / SAMPLES, samples))
    if progress and sys.stderr.isatty():
        callbacks.append(ProgressBar())
    if patience:
        callbacks.append(Patience(monitor, patience))
    if keep:
        callbacks.append(KeptEpochs(folder, monitor, keep))
    return [*callbacks, LastCheckpoint(folder, save_every), BestCheckpoint(folder, monitor)]


class WeightAverage(Callback):
    """Keeps an exponential moving average of the weights, which validation uses.

        a_n = d a_{n-1} + (1 - d) w_n        d = min(decay, (1 + n) / (10 + n)) at step n

    The average of many late steps is nearer to the minimum than the last step (Polyak & Juditsky,
    1992; Tarvainen & Valpola, 2017). The model contains the average from the start of a validation
    until the end of the epoch, so best.ckpt contains the average. last.ckpt contains the weights
    and, separately, the average.

    Args:
        decay: d, (0, 1); about 1 / (1 - d) steps are averaged.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"callbacks.ema={decay} is not accepted; choose a number in [0, 1)")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._steps = 0
        self._weights: dict[str, Tensor] = {}  # set while the model contains the average

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_like(state["steps"], 0, "steps of callbacks.ema")
        self.average, self._steps = dict(state["average"]), state["steps"]

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        require_average(self.average, dict(module.named_parameters()))
        start = {**_learned(module), **self.average}
        devices = {name: weight.device for name, weight in module.named_parameters()}
        self.average = {n: weight.to(devices[n]).clone() for n, weight in start.items()}

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, *unused: Any
    ) -> None:
        for name, weight in _learned(module).items():
            if name not in self.average:  # unfrozen after the last step
                self.average[name] = weight.clone()

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, *unused: Any
    ) -> None:
        if trainer.global_step == self._steps:
            return  # gradients were accumulated: the optimizer has not stepped
        self._steps = trainer.global_step
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        for name, weight in _learned(module).items():
            self.average[name].lerp_(weight, 1 - decay)

    def on_validation_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        if self.average and not self._weights:
            self._weights = {name: weight.clone() for name, weight in _learned(module).items()}
            _fill(module, self.average)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        if self._weights:
            _fill(module, self._weights)
            self._weights = {}


def _learned(module: lightning.LightningModule) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _fill(module: lightning.LightningModule, values: dict[str, Tensor]) -> None:
    for name, weight in _learned(module).items():
        weight.copy_(values[name])


class ProgressBar(RichProgressBar):
    """Lightning's progress bar; it reads the loss from a GPU only when the logs are written."""

    _values: dict[str, Any] | None = None

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """The values to show: those of the last row of the logs if the device is not a CPU."""
        waits = trainer.strategy.root_device.type != "cpu" and trainer.training
        if self._values is None or not waits or not trainer.global_step % trainer.log_every_n_steps:
            self._values = dict(super().get_metrics(trainer, pl_module))
        return self._values


class EpochLine(Callback):
    """Reports one line for each validation."""

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_start(self, *unused: Any) -> None:
        self._started = time.monotonic()

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.sanity_checking:
            return
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        last = "∞" if trainer.max_epochs == -1 else trainer.max_epochs
        label, name = module.objective.measure
        train_value = f"{label} {scores.get(name, float('nan')):.3f}"
        shuffled = ""
        if "dev_loss_shuffled" in scores:
            shuffled = f" (wrong image {scores['dev_loss_shuffled']:.3f})"
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        module.report(
            f"epoch {trainer.current_epoch + 1:>3}/{last}"
            f"   {train_value}"
            f"   dev loss {scores['dev_loss']:.3f}{shuffled}"
            f"   BLEU-4 {scores['dev_bleu4']:5.1f}"
            f"   CIDEr-D {scores['dev_cider']:5.1f}"
            f"   distinct {scores['dev_distinct']:3.0f} %"
            f"   {minutes}:{seconds:02d}"
        )


class ImageMatters(Callback):
    """Warns when the captions do not depend on the image.

    Two values are checked after every epoch except the first: the dev loss of captions with a wrong
    image, which must be higher than with their own image, and the percentage of distinct captions.
    A decoder that has become a plain language model fails both checks. With a single dev image, or
    if all are equal (a dataset without images has blank ones), nothing is checked.

    Args:
        least_gain: minimum relative increase of the dev loss with the wrong image.
        least_distinct: minimum percentage of dev captions that are distinct.
    """

    def __init__(self, least_gain: float = 0.01, least_distinct: float = 2.0) -> None:
        self.least_gain, self.least_distinct = least_gain, least_distinct

    def on_validation_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        if trainer.sanity_checking or trainer.current_epoch == 0:
            return
        scores = trainer.callback_metrics
        if "dev_loss_shuffled" not in scores:
            return
        gain = float(scores["dev_loss_shuffled"] / scores["dev_loss"]) - 1
        distinct = float(scores["dev_distinct"])
        ignored = gain < self.least_gain or distinct < self.least_distinct
        if ignored and _differ(trainer.datamodule.dev):  # type: ignore[attr-defined]
            warnings.warn(
                f"the captions hardly depend on the images: the wrong image raises the dev loss by "
                f"{100 * gain:.1f} %, and {distinct:.0f} % of the captions are distinct. Check the "
                "encoder, its transform and optimizer.lr",
                stacklevel=2,
            )


def _differ(records: Sequence[Record]) -> bool:
    """Whether the files of the images are not all equal, as far as they can be read."""
    contents = (Path(record.image).read_bytes() for record in records)
    try:
        first = next(contents)
        return any(content != first for content in contents)
    except OSError:  # deleted after their features were cached
        return True


class SampleCaptions(Callback):
    """Appends a few dev captions to a file at each validation, and logs them to TensorBoard.

    A resumed run removes the captions that were appended after its checkpoint was written.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self._resumed: int | None = None  # bytes of the file when the checkpoint was written

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self.path.stat().st_size if self.path.exists() else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_like(state["bytes"], 0, f"the size of {SAMPLES}")
        self._resumed = state["bytes"]

    def on_train_start(self, trainer: lightning.Trainer, *unused: Any) -> None:
        size = 0 if trainer.ckpt_path is None else self._resumed  # None: of an older version
        if trainer.is_global_zero and size is not None and self.path.exists():
            os.truncate(self.path, min(size, self.path.stat().st_size))

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        rows = [
            {
                "epoch": trainer.current_epoch + 1,
                "image": image,
                "caption": caption,
                "references": list(references),
            }
            for image, caption, references in module.dev_captions[: self.count]
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append(self.path, "".join(to_json(row) + "\n" for row in rows))
        text = "\n\n".join(f"{row['image']}: **{row['caption']}**" for row in rows)
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("dev captions", text, trainer.global_step)
