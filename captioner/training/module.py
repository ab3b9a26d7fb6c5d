"""The Lightning module: an objective, its optimiser, and the looks at dev.

The best checkpoint is chosen by a score of freely decoded dev captions, BLEU-4 or CIDEr-D, not by
the loss: the loss is teacher-forced and goes on falling, or rising, after the captions have stopped
changing; and a reward can rise where captions get worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from captioner.checkpoints import checkpoint
from captioner.config import Config, arguments, check_range, make, unknown_key
from captioner.data.batches import Batch
from captioner.data.records import Record
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis
from captioner.generation import generate, make_steppers
from captioner.metrics.diversity import repeated_bigrams
from captioner.metrics.novelty import CaptionHashes
from captioner.metrics.scores import score
from captioner.models.captioning import CaptioningModel
from captioner.models.decoders.decoder import Decoder
from captioner.models.features import Features
from captioner.models.packing import IGNORED, Packing
from captioner.tokenizers import Tokenizer
from captioner.training import ranks
from captioner.training.callbacks import monitored
from captioner.training.losses import cross_entropy
from captioner.training.objectives.objective import Objective
from captioner.training.objectives.table import chosen
from captioner.training.schedules import Schedule
from captioner.training.selection import rank
from captioner.training.unfreezing import Unfreezing


def build_module(
    training: Mapping[str, Any],
    model: CaptioningModel,
    tokenizer: Tokenizer,
    config: Config,
    total_steps: int,
    decoding: DecodingOptions,
) -> LitCaptioner:
    """Build the module from the group ``training`` of a configuration.

    Args:
        training: ``objective``, a key of OBJECTIVES (cross-entropy where it is not named), its
            arguments, and those of LitCaptioner.
        model, tokenizer, config, total_steps, decoding: as of LitCaptioner.

    Raises:
        ValueError: an unknown objective, an option that neither has, or a value out of range.
    """
    kind = chosen(training)
    names = ["objective", *arguments(LitCaptioner), *arguments(kind)]
    for name in training:
        if name not in names:
            raise unknown_key("training", name, names)
    own = {name: training[name] for name in arguments(kind) if name in training}
    shared = {name: training[name] for name in arguments(LitCaptioner) if name in training}
    objective = make(kind, "training", own, tokenizer, decoding)
    objects = (model, tokenizer, config, total_steps, decoding, objective)
    return make(LitCaptioner, "training", shared, *objects)


class NonFiniteLoss(ValueError):
    """The loss or a weight is no longer a finite number."""


class LitCaptioner(lightning.LightningModule):
    """Trains a CaptioningModel by an objective, with AdamW.

    Args:
        model: encoder and decoder.
        tokenizer: of the training captions.
        config: the configuration of the run, kept in its checkpoints.
        total_steps: optimiser steps of the whole training, for the schedule.
        decoding: how dev captions are decoded.
        objective: what is learned from.
        lr: peak learning rate of the decoder.
        encoder_lr: peak learning rate of a trainable encoder.
        weight_decay: of matrices; biases, normalisation and embeddings have none.
        warmup: share of the steps in which the rate rises linearly from 0, [0, 1].
        schedule: a name in SCHEDULES: after the warm-up "constant", falling to 0 along a "linear"
            or "cosine" line, or falling at each "plateau" of the monitored dev score.
        plateau_factor: by which a "plateau" lowers the rate, (0, 1).
        plateau_patience: looks at dev without a better score before it does, from 1.
        word_vectors: a file of word vectors from which ``train`` fills the decoder's words.
        freeze_words: do not learn the decoder's words.
        unfreeze_at: epochs after which a frozen encoder begins to learn, or a share of all epochs;
            from then on images are read live. None: never.
        unfreeze_stages: how many of its last stages; None is all of them.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        model: CaptioningModel,
        tokenizer: Tokenizer,
        config: Config,
        total_steps: int,
        decoding: DecodingOptions,
        objective: Objective,
        *,
        lr: float = 1e-3,
        encoder_lr: float = 1e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        schedule: str = "cosine",
        plateau_factor: float = 0.5,
        plateau_patience: int = 2,
        word_vectors: str | None = None,
        freeze_words: bool = False,
        unfreeze_at: int | float | None = None,
        unfreeze_stages: int | None = None,
    ) -> None:
        super().__init__()
        check_range("training.lr", lr)
        check_range("training.encoder_lr", encoder_lr)
        check_range("training.weight_decay", weight_decay)
        check_range("training.warmup", warmup, 1.0)
        self.schedule = Schedule(
            schedule,
            total_steps,
            warmup=warmup,
            factor=plateau_factor,
            patience=plateau_patience,
        )
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.decoding, self.objective = decoding, objective
        self.training_captions: CaptionHashes | None = None
        self.own_captions: CaptionHashes | None = None
        objective.accept(model)
        self.lr, self.encoder_lr, self.weight_decay = lr, encoder_lr, weight_decay
        self.word_vectors = word_vectors
        if freeze_words:
            model.decoder.words.requires_grad_(False)
        self.unfreezing: Unfreezing | None = None
        if unfreeze_at is not None:
            self.unfreezing = Unfreezing(
                model.encoder,
                at=unfreeze_at,
                stages=unfreeze_stages,
                epochs=config["trainer"]["max_epochs"],
                steps=total_steps,
            )
        self.dev_scores: dict[str, float] = {}
        self._dev: list[_DevBatch] = []

    # Training ---------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        done = min(1.0, self.global_step / self.schedule.total_steps)
        loss, logs = self.objective.outcome(self.model, batch, done)
        of_all, logs = _over_ranks(loss, logs, batch)
        if not torch.isfinite(of_all):
            raise NonFiniteLoss(
                f"the loss is {of_all.item()} at step {self.global_step}; nothing was overwritten. "
                "Lower training.lr, set trainer.gradient_clip_val, or look at the data with "
                "`captioner data check`; resume=RUN goes on from a checkpoint, if any"
            )
        self.log("train_loss", of_all, prog_bar=True)
        self.log_dict(logs)
        return loss

    def on_train_batch_end(self, *unused: Any) -> None:
        if 0 <= self.trainer.max_steps <= self.global_step:
            self.trainer.should_stop = True  # then dev is scored, also within an epoch

    def configure_optimizers(self) -> Any:
        scaled = self.config.get("trainer", {}).get("precision") == "16-mixed"
        groups = self._parameter_groups()
        optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=not scaled)
        firsts = (self._first_step(group["params"][0]) for group in groups)
        rates: list[Any] = [partial(self.schedule.rate, first=first or 0) for first in firsts]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
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
        """By norm; Lightning's own refuses fused optimisers even where no loss is scaled."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_callbacks(self) -> list[Callback]:
        return [] if self.unfreezing is None else [self.unfreezing]

    def _first_step(self, parameter: nn.Parameter) -> int | None:
        """The step that a parameter begins to learn in; None for one that never learns."""
        if self.unfreezing is not None and parameter in self.unfreezing.parameters:
            return self.unfreezing.first_step
        return 0 if parameter.requires_grad else None

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups = []
        for part, lr in ((self.model.decoder, self.lr), (self.model.encoder, self.encoder_lr)):
            owners: dict[nn.Parameter, nn.Module] = {}  # of tied weights the first: the embedding
            for module in part.modules():
                for parameter in module.parameters(recurse=False):
                    owners.setdefault(parameter, module)
            learned = [(m, p) for p, m in owners.items() if self._first_step(p) is not None]
            matrices = [p for m, p in learned if p.ndim > 1 and not isinstance(m, nn.Embedding)]
            others = [p for m, p in learned if p.ndim <= 1 or isinstance(m, nn.Embedding)]
            for parameters, decay in ((matrices, self.weight_decay), (others, 0.0)):
                if parameters:
                    groups.append({"params": parameters, "lr": lr, "weight_decay": decay})
        return groups

    # Dev --------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._dev = []
        if self.model.encoder.trainable:  # its statistics may have been taken from a rank's share
            ranks.align(self.model.encoder.buffers())
        self._steppers = make_steppers([self.model], self.decoding)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if not batch.records:  # nothing is left for this rank
            return
        features = self.model.encode(batch.source)
        losses, words = _dev_losses(self.model.decoder, features, batch)
        found = generate(
            [self.model], [features], self.tokenizer, self.decoding, steppers=self._steppers
        )
        best = [one[0] for one in found]
        self._dev.append(_DevBatch(losses, words, best, batch.records))

    def on_validation_epoch_end(self) -> None:
        self._dev = ranks.in_turn(ranks.gather(self._dev))
        found = [one for batch in self._dev for one in batch.found]
        captions = [caption for _, caption, _ in self.dev_captions]
        references = [record.captions for batch in self._dev for record in batch.records]
        scores = score(
            captions, references, tokenize=self.tokenizer.scored_by, metrics=("bleu", "cider-d")
        )
        share, words = 100 / len(captions), sum(batch.words for batch in self._dev)
        right, *wrong = (sum(losses) for losses in zip(*(batch.losses for batch in self._dev)))
        scores_of_all = {
            "dev_bleu4": scores.values["BLEU-4"],
            "dev_bleu1": scores.values["BLEU-1"],
            "dev_cider": scores.values["CIDEr-D"],
            "dev_loss": right / words,
            **dict(zip(["dev_loss_shuffled"], [total / words for total in wrong])),
            "dev_distinct": share * len(set(captions)),
            "dev_repeats": 100 * repeated_bigrams([one.tokens for one in found]),
            "dev_endless": share * sum(not one.finished for one in found),
        }
        self.dev_scores = ranks.from_first(scores_of_all)
        self.log_dict(self.dev_scores)
        self.objective.check(self.dev_scores, captions)
        self.schedule.look(rank(self.dev_scores, monitored(self.config)))

    @property
    def dev_captions(self) -> list[tuple[str, str, Sequence[str]]]:
        """Of the last look at the dev split: image_id, caption and references."""
        return [
            (record.image_id, self.tokenizer.decode(one.tokens), record.captions)
            for batch in self._dev
            for one, record in zip(batch.found, batch.records)
        ]

    # Checkpoints ------------------------------------------------------------------------------

    def on_save_checkpoint(self, content: dict[str, Any]) -> None:
        for name, tensor in content["state_dict"].items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NonFiniteLoss(
                    f"the weights {name} are not finite at step {self.global_step}; nothing was "
                    "overwritten. Lower training.lr or set trainer.gradient_clip_val"
                )
        content["schedule"] = self.schedule.state_dict()
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
        self.training_captions = checkpoint.training_of(content["captioner"])
        self.own_captions = checkpoint.own_of(content["captioner"])
        if "schedule" in content:  # checkpoints of captioner 0.1 lack it
            self.schedule.load_state_dict(content["schedule"])

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, **unused: Any
    ) -> LitCaptioner:
        """The module of a checkpoint, in evaluation mode; needs no training data.

        Args:
            checkpoint_path: a checkpoint file or a run folder.
            map_location: the device to put it on; None is the CPU.

        Raises:
            ValueError: the file is not a checkpoint of this package, damaged or newer.
        """
        if unused:
            raise ValueError(
                f"load_from_checkpoint does not take {', '.join(unused)}: the checkpoint suffices"
            )
        found = checkpoint.read(checkpoint_path)
        decoding = make(DecodingOptions, "decoding", found.config["decoding"])
        objects = (found.model(), found.tokenizer, found.config, 1, decoding)
        module = build_module(found.config["training"], *objects)
        module.dev_scores, module.training_captions = found.scores, found.training
        module.own_captions = found.own
        return module.to(map_location or "cpu").eval()


_CAPTIONS = 320  # of which the dev loss is computed at once: 64 images with five each


def _dev_losses(
    decoder: Decoder, features: Features, batch: Batch, captions: int = _CAPTIONS
) -> tuple[list[float], int]:
    """The loss of captions with their own images and with each other's, and of how many words.

    All captions at once would take too much memory where an image has fifty.

    Args:
        decoder: gives the logits.
        features: of B images.
        batch: of those images and R captions.
        captions: how many are computed at once.

    Returns:
        the sums over all words, of one image only the first; and the number of words.
    """
    images = len(batch.records)
    losses, words = [0.0] * min(images, 2), 0
    for first in range(0, len(batch.rows), captions):
        part = slice(first, first + captions)
        packing = Packing.of((batch.targets[part] != IGNORED).sum(1))
        targets = packing.pack(batch.targets[part])  # [N], of real words only
        for place in range(len(losses)):
            rows = (batch.rows[part] + place) % images
            logits = decoder(features.rows(rows), batch.inputs[part], packing)
            total = cross_entropy(logits, targets, label_smoothing=0.0, reduction="sum")
            losses[place] += total.item()
        words += len(targets)
    return losses, words


class _DevBatch(NamedTuple):
    """What a validation leaves of B images."""

    losses: list[float]  # with their own images, and each other's; of all words. One of one image
    words: int
    found: list[Hypothesis]
    records: list[Record]


def _over_ranks(
    loss: Tensor, logs: Mapping[str, float], batch: Batch
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the whole batch, and the means over its images, from those of a rank's share."""
    if batch.share is None:
        return loss, dict(logs)
    weight = len(batch.records) / batch.share.images
    values = torch.tensor([weight * value for value in logs.values()]).to(loss)
    of_all = ranks.mean(torch.cat([loss.detach().reshape(1), values]))
    return of_all[0], dict(zip(logs, of_all[1:].tolist()))
