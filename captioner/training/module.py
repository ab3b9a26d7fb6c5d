"""The Lightning module: an objective, an optimization, and validation.

The best checkpoint is chosen by a score of freely decoded dev captions, BLEU-4 or CIDEr-D, not by
the loss: the teacher-forced loss can still fall, or rise, when the captions no longer change, and a
reward can rise while captions get worse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from captioner.checkpoints import checkpoint
from captioner.config import Config, make
from captioner.data.batches import Batch
from captioner.decoding.options import DecodingOptions
from captioner.generation import generate, make_steppers
from captioner.metrics.novelty import CaptionHashes
from captioner.models.captioning import CaptioningModel
from captioner.tokenizers import Tokenizer
from captioner.training import ranks
from captioner.training.bad_steps import NonFiniteLoss
from captioner.training.callbacks import monitored
from captioner.training.objectives.objective import Objective
from captioner.training.objectives.table import build_objective
from captioner.training.optimization import Optimization, build_optimization
from captioner.training.selection import rank
from captioner.training.validation import DevBatch, dev_losses, dev_scores

log = logging.getLogger(__name__)


def build_module(
    config: Config,
    model: CaptioningModel,
    tokenizer: Tokenizer,
    total_steps: int,
    decoding: DecodingOptions,
) -> LitCaptioner:
    """Build the module of a configuration.

    Args:
        config: of the run; its groups objective, optimizer, schedule and training are used.
        model: encoder and decoder.
        tokenizer: of the training captions.
        total_steps: optimizer steps in the whole training.
        decoding: how dev captions are decoded.

    Raises:
        ValueError: an unknown name or option, or a value out of range.
    """
    objective = build_objective(config["objective"], tokenizer, decoding)
    optimization = build_optimization(config, model, total_steps)
    return LitCaptioner(model, tokenizer, config, decoding, objective, optimization)


class LitCaptioner(lightning.LightningModule):
    """Trains a CaptioningModel.

    Args:
        model: encoder and decoder.
        tokenizer: of the training captions.
        config: the configuration of the run, which its checkpoints contain.
        decoding: how dev captions are decoded.
        objective: computes the loss.
        optimization: how the weights change.

    Attributes:
        report: called with each line to print; the default is this module's log.
        training_captions: hashes of all captions that the model has learned from; None if unknown.
        own_captions: hashes of those of the run's own dataset; None if unknown.
        dev_scores: the scores of the last validation, by name.
        logged: the names of the values that the last step has logged.

    Raises:
        ValueError: an option of the objective does not fit the model.
    """

    def __init__(
        self,
        model: CaptioningModel,
        tokenizer: Tokenizer,
        config: Config,
        decoding: DecodingOptions,
        objective: Objective,
        optimization: Optimization,
    ) -> None:
        super().__init__()
        objective.accept(model)
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.decoding, self.objective, self.optimization = decoding, objective, optimization
        self.report: Callable[[str], None] = log.info
        self.training_captions: CaptionHashes | None = None
        self.own_captions: CaptionHashes | None = None
        self.dev_scores: dict[str, float] = {}
        self.logged: tuple[str, ...] = ()
        self._dev: list[DevBatch] = []
        self._sum: Tensor | float = 0.0  # of the losses that were not checked yet, on a GPU

    # Training ---------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        done = min(1.0, self.global_step / self.optimization.schedule.total_steps)
        loss, logs = self.objective.outcome(self.model, batch, done)
        total, logs = _mean_over_ranks(loss, logs, batch)
        self._require_finite(total)
        self.log("train_loss", total, prog_bar=True)
        self.log_dict(logs)
        self.logged = ("train_loss", *logs)
        return loss

    def _require_finite(self, loss: Tensor) -> None:
        """Raise if the loss is not finite, unless such steps are skipped (`SkippedSteps`).

        A GPU is asked only when the logs are written: until it answers, it has nothing to do.
        Checkpoints check the weights in any case.
        """
        if self.config["training"].get("skip_bad_steps"):
            return
        if loss.device.type != "cpu":
            self._sum = loss.detach() + self._sum  # remains infinite or NaN
            trainer: Any = self.trainer
            if (self.global_step + 1) % trainer.log_every_n_steps:
                return
            loss, self._sum = self._sum, 0.0
        if not torch.isfinite(loss):
            raise NonFiniteLoss(
                f"the loss is {loss.item()} at step {self.global_step}; nothing was overwritten. "
                "Lower optimizer.lr, set trainer.gradient_clip_val, or check the data with "
                "`captioner data check`; training.skip_bad_steps=N skips up to N such steps; "
                "resume=RUN resumes from the last checkpoint"
            )

    def on_train_batch_end(self, *unused: Any) -> None:
        if 0 <= self.trainer.max_steps <= self.global_step:
            self.trainer.should_stop = True  # validation then runs, even in the middle of an epoch

    def configure_optimizers(self) -> Any:
        scaled = self.config.get("trainer", {}).get("precision") == "16-mixed"
        optimizer, scheduler = self.optimization.configure(self.model, fused=not scaled)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm; Lightning's clipping refuses fused optimizers even if no loss is scaled."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_callbacks(self) -> list[Callback]:
        unfreezing = self.optimization.unfreezing
        return [] if unfreezing is None else [unfreezing]

    # Validation -------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._dev = []
        if self.model.encoder.trainable:  # its running statistics may differ between ranks
            ranks.align(self.model.encoder.buffers())
        self._steppers = make_steppers([self.model], self.decoding)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if not batch.records:  # no images are left for this rank
            return
        features = self.model.encode(batch.source)
        losses, tokens = dev_losses(self.model.decoder, features, batch)
        hypotheses = generate(
            [self.model], [features], self.tokenizer, self.decoding, steppers=self._steppers
        )
        best = [candidates[0] for candidates in hypotheses]
        self._dev.append(DevBatch(losses, tokens, best, batch.records))

    def on_validation_epoch_end(self) -> None:
        self._dev = ranks.interleave(ranks.gather(self._dev))
        self.dev_scores = ranks.from_first(dev_scores(self._dev, self.tokenizer))
        self.log_dict(self.dev_scores)
        self.objective.check(self.dev_scores, [caption for _, caption, _ in self.dev_captions])
        self.optimization.schedule.validated(rank(self.dev_scores, monitored(self.config)))

    @property
    def dev_captions(self) -> list[tuple[str, str, Sequence[str]]]:
        """Image id, caption and references of each dev image in the last validation."""
        return [
            (record.image_id, self.tokenizer.decode(caption.tokens), record.captions)
            for batch in self._dev
            for caption, record in zip(batch.captions, batch.records)
        ]

    # Checkpoints ------------------------------------------------------------------------------

    def on_save_checkpoint(self, content: dict[str, Any]) -> None:
        for name, tensor in content["state_dict"].items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NonFiniteLoss(
                    f"the weights {name} are not finite at step {self.global_step}; nothing was "
                    "overwritten. Lower optimizer.lr or set trainer.gradient_clip_val"
                )
        content["schedule"] = self.optimization.schedule.state_dict()
        content["captioner"] = checkpoint.block(
            config=self.config,
            tokenizer=self.tokenizer,
            transform=self.model.encoder.transform,
            scores=self.dev_scores,
            training=self.training_captions,
            own=self.own_captions,
        )

    def on_load_checkpoint(self, content: dict[str, Any]) -> None:
        self.dev_scores = dict(content["captioner"]["scores"])
        self.training_captions = checkpoint.training_hashes(content["captioner"])
        self.own_captions = checkpoint.own_hashes(content["captioner"])
        if "schedule" in content:  # checkpoints of captioner 0.1 do not have it
            self.optimization.schedule.load_state_dict(content["schedule"])

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, **unused: Any
    ) -> LitCaptioner:
        """The module of a checkpoint, in evaluation mode; needs no training data.

        Args:
            checkpoint_path: a checkpoint file or a run folder.
            map_location: the device of the module; None: the CPU.

        Raises:
            ValueError: the file is damaged, not of this package, or of a newer version.
        """
        if unused:
            raise ValueError(
                f"load_from_checkpoint does not accept {', '.join(unused)}; "
                "the checkpoint contains everything"
            )
        saved = checkpoint.read(checkpoint_path)
        decoding = make(DecodingOptions, "decoding", saved.config["decoding"])
        module = build_module(saved.config, saved.model(), saved.tokenizer, 1, decoding)
        module.dev_scores, module.training_captions = saved.scores, saved.training
        module.own_captions = saved.own
        return module.to(map_location or "cpu").eval()


def _mean_over_ranks(
    loss: Tensor, logs: Mapping[str, float], batch: Batch
) -> tuple[Tensor, dict[str, float]]:
    """The loss and the logged means of the whole batch, from those of this rank's part of it."""
    if batch.share is None:
        return loss, dict(logs)
    weight = len(batch.records) / batch.share.images
    values = torch.tensor([weight * value for value in logs.values()]).to(loss)
    means = ranks.mean(torch.cat([loss.detach().reshape(1), values]))
    return means[0], dict(zip(logs, means[1:].tolist()))
