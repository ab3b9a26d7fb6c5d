"""Steps whose loss or gradient is not finite: the training stops, or they are skipped."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from captioner.training import ranks
from captioner.training.restoring import require_like


class NonFiniteLoss(ValueError):
    """The loss or a weight is no longer a finite number."""


class SkippedSteps(Callback):
    """Skips the steps whose loss or gradient is not finite, up to a number of them.

    A skipped step changes no weight, no state of the optimizer and no running statistics of a
    trained encoder; the schedule counts it. On a GPU each step waits for the gradient. With
    16-mixed precision the scaling of the loss skips steps whose gradient overflows, which are not
    counted.

    Args:
        most: number of steps in the whole training that may be skipped, from 1.

    Attributes:
        count: number of steps that were skipped.
    """

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self._loss: Tensor | float = 0.0  # the sum since the last step; remains infinite or NaN
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_like(state["count"], 0, "the number of skipped steps")
        self.count = state["count"]

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, *unused: Any) -> None:
        if not self._statistics and any(p.requires_grad for p in module.model.encoder.parameters()):
            self._statistics = [(b, b.clone()) for b in module.model.encoder.buffers()]

    def on_before_backward(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, loss: Tensor
    ) -> None:
        self._loss = loss.detach() + self._loss

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        loss, statistics = ranks.mean(torch.as_tensor(self._loss)), self._statistics
        self._loss, self._statistics = 0.0, []
        what = "loss"
        if math.isfinite(loss) and trainer.precision != "16-mixed":
            what = "gradient"
            loss = nn.utils.clip_grad_norm_(module.parameters(), math.inf)  # clips nothing
        if math.isfinite(loss):
            return
        for before, values in statistics:
            before.copy_(values)
        optimizer.zero_grad()  # an optimizer skips weights without a gradient
        self._counted(what, trainer.global_step, module)

    def _counted(self, what: str, step: int, module: Any) -> None:
        self.count += 1
        if self.count > self.most:
            raise NonFiniteLoss(
                f"the {what} is not finite at step {step}, after {self.most} skipped steps "
                f"(training.skip_bad_steps={self.most}); nothing was overwritten. Lower "
                "optimizer.lr, set trainer.gradient_clip_val, or check the data with "
                "`captioner data check`; resume=RUN resumes from the last checkpoint"
            )
        module.report(
            f"step {step}: the {what} is not finite, skipped ({self.count} of at most {self.most} "
            "steps, training.skip_bad_steps)"
        )
