"""Staged fine-tuning: the last stages of a frozen encoder are unfrozen during a run.

The gradients of a random decoder are noise and would destroy what the encoder has learned. So the
decoder is first trained alone, on cached features, and then both are trained together (Vinyals et
al., 2017, "Show and Tell: Lessons learned from the 2015 MSCOCO image captioning challenge").
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from captioner.models.encoders.encoder import Encoder


class Unfreezing(Callback):
    """Unfreezes parameters of the encoder at the start of an epoch; from then on, images are read
    from their files.

    The optimizer contains these parameters from the start, but they have no gradients, and their
    learning rate is 0, until step `first_step`.

    Args:
        encoder: the frozen encoder.
        at: number of epochs before that, from 0, or a fraction of all epochs, (0, 1).
        stages: number of the last stages (``models/encoders/stages.py``); None: all.
        epochs: epochs in the whole training.
        steps: optimizer steps in the whole training.

    Attributes:
        epoch: the first epoch that trains the parameters, from 0.
        first_step: the first optimizer step of that epoch.
        parameters: the parameters of those stages.

    Raises:
        ValueError: the encoder is trainable from the start, or a value out of range.
    """

    def __init__(
        self, encoder: Encoder, *, at: int | float, stages: int | None, epochs: int, steps: int
    ) -> None:
        if encoder.trainable:
            raise ValueError(
                f"training.unfreeze_at={at} is for a frozen encoder; set encoder.trainable=false, "
                "or training.unfreeze_at=null"
            )
        fits = 0 < at < 1 if isinstance(at, float) else at >= 0
        self.epoch = round(at * epochs) if isinstance(at, float) else at
        if not fits or self.epoch >= epochs:
            raise ValueError(
                f"training.unfreeze_at={at} is not accepted; choose a whole number of epochs below "
                f"trainer.max_epochs={epochs}, or a fraction of them in (0, 1)"
            )
        self.first_step = steps * self.epoch // epochs
        self.parameters: frozenset[nn.Parameter] = frozenset(encoder.last_stages(stages))

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._unfreeze(trainer, module)  # a run that is resumed within an epoch does not start one

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._unfreeze(trainer, module)

    def _unfreeze(self, trainer: Any, module: Any) -> None:
        encoder = module.model.encoder
        if encoder.unfrozen or trainer.current_epoch < self.epoch:
            return
        encoder.unfreeze(self.parameters)
        trainer.datamodule.read_live()
        if isinstance(
            trainer.strategy, DDPStrategy
        ):  # DDP knows only the parameters trained so far
            trainer.strategy.model = module
            trainer.strategy.configure_ddp()
        count = sum(parameter.numel() for parameter in self.parameters)
        rate = module.optimization.encoder_lr
        module.report(
            f"from epoch {trainer.current_epoch + 1} on, {count / 1e6:.1f} million parameters "
            f"of the encoder are trained, with a learning rate of up to {rate:g}; images are no "
            "longer read from the feature cache"
        )
