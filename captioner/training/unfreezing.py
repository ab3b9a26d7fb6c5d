"""Staged fine-tuning: the last stages of a frozen encoder begin to learn in the middle of a run.

The gradients of a random decoder are noise, and would destroy what the encoder has learned; so the
decoder first learns without the encoder, from cached features, and then both learn together
(Vinyals et al., 2017, "Show and Tell: Lessons learned from the 2015 MSCOCO image captioning
challenge").
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

    The optimizer has them from the start, without gradients; their rate begins at `first_step`.

    Args:
        encoder: frozen.
        at: epochs before that, from 0, or a share of all epochs, (0, 1).
        stages: how many of the last stages (``models/encoders/stages.py``); None: all of them.
        epochs: of the whole training.
        steps: of the optimizer in the whole training.

    Attributes:
        epoch: the first in which the parameters learn, from 0.
        first_step: the optimizer's first step in it.
        parameters: of those stages.

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
                f"trainer.max_epochs={epochs}, or a share of them in (0, 1)"
            )
        self.first_step = steps * self.epoch // epochs
        self.parameters: frozenset[nn.Parameter] = frozenset(encoder.last_stages(stages))

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._unfreeze(trainer, module)  # a run that is resumed within an epoch starts none

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._unfreeze(trainer, module)

    def _unfreeze(self, trainer: Any, module: Any) -> None:
        encoder = module.model.encoder
        if encoder.unfrozen or trainer.current_epoch < self.epoch:
            return
        encoder.unfreeze(self.parameters)
        trainer.datamodule.read_live()
        if isinstance(trainer.strategy, DDPStrategy):  # it holds the parameters that learned so far
            trainer.strategy.model = module
            trainer.strategy.configure_ddp()
        count = sum(parameter.numel() for parameter in self.parameters)
        rate = module.optimization.encoder_lr
        module.report(
            f"from epoch {trainer.current_epoch + 1} on the encoder learns {count / 1e6:.1f} "
            f"million parameters, at a rate of up to {rate:g}; images are read live"
        )
