"""Training: the Lightning module, and ``train``, which makes a run folder from a configuration.

    loss = -Σ_t log p(word_t | image, word_0 .. word_{t-1})      over real words and <end> only

The best checkpoint is chosen by BLEU-4 of freely decoded dev captions, not by the loss: the loss
is teacher-forced and goes on falling, or rising, after the captions have stopped changing.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from captioner import checkpoint
from captioner.callbacks import MONITOR, WholeFiles, build_callbacks
from captioner.config import Config, make, unknown
from captioner.data import Reading, read_records
from captioner.data.datamodule import Batch, CaptionDataModule
from captioner.data.records import Record, write_whole
from captioner.decoding import DecodingOptions
from captioner.losses import IGNORED, cross_entropy, doubly_stochastic
from captioner.metrics import score
from captioner.models import CaptioningModel, build_model, generate, steppers
from captioner.models.packing import Packing
from captioner.tokenizers import Tokenizer, build_tokenizer
from captioner.unfreezing import Unfreezing

SCHEDULES = ("constant", "linear", "cosine")


class NonFiniteLoss(ValueError):
    """The loss or a weight is no longer a finite number."""


class LitCaptioner(lightning.LightningModule):
    """Trains a CaptioningModel with cross-entropy and AdamW.

    Args:
        model: encoder and decoder.
        tokenizer: of the training captions.
        config: the configuration of the run, kept in its checkpoints.
        total_steps: optimiser steps of the whole training, for the schedule.
        decoding: how dev captions are decoded.
        lr: peak learning rate of the decoder.
        encoder_lr: peak learning rate of a trainable encoder.
        weight_decay: of matrices; biases, normalisation and embeddings have none.
        warmup: share of the steps in which the rate rises linearly from 0, [0, 1].
        schedule: after the warm-up "constant", or falling to 0 along a "linear" or "cosine" line.
        label_smoothing: share of the target's probability spread over all words, [0, 1)
            (Szegedy et al., 2016).
        unfreeze_at: epochs after which a frozen encoder begins to learn, or a share of all epochs;
            from then on images are read live. None: never.
        unfreeze_stages: how many of its last stages; None is all of them.
        attention_penalty: weight of ``losses.doubly_stochastic`` beside the cross-entropy; for
            decoders that attend.

    Raises:
        ValueError: a value out of range, or a penalty on attention where there is none.
    """

    def __init__(
        self,
        model: CaptioningModel,
        tokenizer: Tokenizer,
        config: Config,
        total_steps: int,
        decoding: DecodingOptions,
        *,
        lr: float = 1e-3,
        encoder_lr: float = 1e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        schedule: str = "cosine",
        label_smoothing: float = 0.1,
        unfreeze_at: int | float | None = None,
        unfreeze_stages: int | None = None,
        attention_penalty: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value, high in (
            ("lr", lr, math.inf),
            ("encoder_lr", encoder_lr, math.inf),
            ("weight_decay", weight_decay, math.inf),
            ("warmup", warmup, 1.0),
            ("label_smoothing", label_smoothing, 0.999),
            ("attention_penalty", attention_penalty, math.inf),
        ):
            if not 0 <= value <= high:
                raise ValueError(
                    f"training.{name}={value} is not accepted; choose a number from 0 to {high}"
                )
        if schedule not in SCHEDULES:
            raise unknown("training.schedule", schedule, SCHEDULES)
        if attention_penalty and not model.decoder.attends:
            raise ValueError(
                f"training.attention_penalty={attention_penalty} needs a decoder that attends, and "
                f"{type(model.decoder).__name__} does not; choose 0, or another decoder"
            )
        self.attention_penalty = attention_penalty
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.total_steps, self.decoding = total_steps, decoding
        self.lr, self.encoder_lr, self.weight_decay = lr, encoder_lr, weight_decay
        self.warmup, self.schedule, self.label_smoothing = warmup, schedule, label_smoothing
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
        self._dev = _DevResults()

    # Training ---------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        packing = Packing.of((batch.targets != IGNORED).sum(1))
        logits, penalty = self._read(batch, packing)  # [N, V], of real words only
        targets = packing.pack(batch.targets)  # [N]
        loss = cross_entropy(logits, targets, label_smoothing=self.label_smoothing, in_place=True)
        loss = loss + penalty if self.attention_penalty else loss
        if not torch.isfinite(loss):
            raise NonFiniteLoss(
                f"the loss is {loss.item()} at step {self.global_step}; nothing was overwritten. "
                "Lower training.lr, set trainer.gradient_clip_val, or look at the data with "
                "`captioner data check`; resume=RUN goes on from the last checkpoint"
            )
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def _read(self, batch: Batch, packing: Packing) -> tuple[Tensor, Tensor | float]:
        """Logits of real words, and the weighted penalty on where the decoder looked."""
        if not self.attention_penalty:
            return self.model(batch.source, batch.inputs, packing), 0.0
        features = self.model.encode(batch.source)
        logits, weights = self.model.decoder.look(features, batch.inputs, packing)
        if features.grid is not None:
            weights = weights[:, : features.grid.shape[1]]  # without a sentinel's
        return logits, self.attention_penalty * doubly_stochastic(weights, packing)

    def configure_optimizers(self) -> Any:
        scaled = self.config.get("trainer", {}).get("precision") == "16-mixed"
        groups = self._parameter_groups()
        optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=not scaled)
        firsts = (self._first_step(group["params"][0]) for group in groups)
        rates: list[Any] = [partial(self.rate, first=first or 0) for first in firsts]
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

    def rate(self, step: int, *, first: int = 0) -> float:
        """The learning rate at a step, as a share of its peak, [0, 1]; 0 before step `first`."""
        step, total = step - first, self.total_steps - first
        rising = self.warmup * total
        if step < 0:
            return 0.0
        if step < rising:
            return (step + 1) / (rising + 1)
        done = (step - rising) / max(1.0, total - rising)  # 0 .. 1
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "linear":
            return max(0.0, 1.0 - done)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

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
        self._dev = _DevResults()
        self._steps = steppers([self.model], self.decoding)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        features = self.model.encode(batch.source)
        images = len(batch.records)
        # Each caption once with its own image and once with its neighbour's.
        for name, rows in (("right", batch.rows), ("shuffled", (batch.rows + 1) % images)):
            logits = self.model.decoder(features.rows(rows), batch.inputs)
            total = cross_entropy(logits, batch.targets, label_smoothing=0.0, reduction="sum")
            self._dev.loss[name] += total.item()
        self._dev.words += int((batch.targets != IGNORED).sum())
        found = generate([self.model], [features], self.tokenizer, self.decoding, steps=self._steps)
        self._dev.captions += [self.tokenizer.decode(best[0].tokens) for best in found]
        self._dev.records += batch.records

    def on_validation_epoch_end(self) -> None:
        metric = "character" if self.tokenizer.name == "character" else "ptb"
        references = [record.captions for record in self._dev.records]
        scores = score(self._dev.captions, references, tokenize=metric)
        self.dev_scores = {
            MONITOR: scores.values["BLEU-4"],
            "dev_bleu1": scores.values["BLEU-1"],
            "dev_loss": self._dev.loss["right"] / self._dev.words,
            "dev_loss_shuffled": self._dev.loss["shuffled"] / self._dev.words,
            "dev_distinct": 100 * len(set(self._dev.captions)) / len(self._dev.captions),
        }
        self.log_dict(self.dev_scores)

    @property
    def dev_captions(self) -> list[tuple[str, str, Sequence[str]]]:
        """Of the last look at the dev split: image_id, caption and references."""
        return [
            (record.image_id, caption, record.captions)
            for caption, record in zip(self._dev.captions, self._dev.records)
        ]

    # Checkpoints ------------------------------------------------------------------------------

    def on_save_checkpoint(self, content: dict[str, Any]) -> None:
        for name, tensor in content["state_dict"].items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NonFiniteLoss(
                    f"the weights {name} are not finite at step {self.global_step}; the last "
                    "checkpoint is kept. Lower training.lr or set trainer.gradient_clip_val"
                )
        content["captioner"] = checkpoint.block(
            config=self.config,
            tokenizer=self.tokenizer,
            transform=self.model.encoder.transform,
            scores=self.dev_scores,
        )

    def on_load_checkpoint(self, content: dict[str, Any]) -> None:
        self.dev_scores = dict(content["captioner"]["scores"])

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
        module = make(cls, "training", found.config["training"], *objects)
        module.dev_scores = found.scores
        return module.to(map_location or "cpu").eval()


class _DevResults:
    """What one look at the dev split gathers."""

    def __init__(self) -> None:
        self.loss = {"right": 0.0, "shuffled": 0.0}
        self.words = 0
        self.captions: list[str] = []
        self.records: list[Record] = []


# A run --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedRun:
    """What a training leaves behind.

    Attributes:
        folder: the run folder.
        best: its best checkpoint.
        scores: dev scores of the best checkpoint.
    """

    folder: Path
    best: Path
    scores: dict[str, float]

    @property
    def score(self) -> float:
        """The monitored score."""
        return self.scores[MONITOR]


def train(config: Config, folder: Path, *, resume: Path | None = None) -> TrainedRun:
    """Train a captioner and leave a run folder: checkpoints, configuration, logs, sample captions.

    Args:
        config: a composed configuration, as plain data.
        folder: the run folder; must not hold a run yet, unless it is resumed.
        resume: the checkpoint to go on from, exactly as if it had never stopped.

    Raises:
        ValueError: an option that does not fit, or a folder that already holds a run.
        FileNotFoundError: the data are not where the configuration says.
        NonFiniteLoss: the loss or a weight became infinite or NaN.
    """
    if resume is None and (folder / checkpoint.FOLDER).exists():
        raise ValueError(
            f"run_dir={folder} already holds a run: resume={folder} goes on with it, or choose "
            "another run_dir"
        )
    quieten()
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    reading = make(read_records, "data", config["data"])
    decoding = make(DecodingOptions, "decoding", config["decoding"])
    going_on = None if resume is None else checkpoint.read(resume)
    if going_on is None:
        texts = [text for record in reading.split("train") for text in record.captions]
        tokenizer = make(build_tokenizer, "tokenizer", config["tokenizer"], texts)
    else:
        tokenizer = going_on.tokenizer
    model = build_model(
        config["encoder"],
        config["decoder"],
        vocabulary_size=len(tokenizer.vocabulary),
        initialise=going_on is None,
    )
    if going_on is not None:  # before any feature is computed or looked up in the cache
        going_on.fill(model)
    unfreezes = config["training"].get("unfreeze_at") is not None
    given = {"seed": config["seed"], "grid": model.decoder.uses_grid, "unfreezes": unfreezes}
    objects = (reading, tokenizer, model.encoder)
    data = make(CaptionDataModule, "loader", config["loader"], *objects, **given)
    callbacks = make(build_callbacks, "callbacks", config["callbacks"], folder)
    loggers = make(build_loggers, "logger", config["logger"], folder)
    trainer = make(build_trainer, "trainer", config["trainer"], folder, callbacks, loggers)
    module = make(
        LitCaptioner,
        "training",
        config["training"],
        *(model, tokenizer, config, optimizer_steps(data.batches, trainer), decoding),
    )
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    _introduce(reading, module, folder)
    model.to(trainer.strategy.root_device)
    epoch = 0 if going_on is None else going_on.lightning.get("epoch", 0)
    if module.unfreezing is not None and epoch >= module.unfreezing.epoch:
        data.read_live()
    data.setup("fit")
    if going_on is None:
        model.decoder.fit(data.training_features())
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except SystemExit:  # what Lightning makes of an interruption
        print(f"interrupted; `captioner train resume={folder}` goes on from the last checkpoint")
        raise KeyboardInterrupt from None
    best = checkpoint.find(folder)
    return TrainedRun(folder, best, checkpoint.read(best).scores)


def _introduce(reading: Reading, module: LitCaptioner, folder: Path) -> None:
    """Say what is trained on what."""
    for oddity, count in reading.oddities.items():
        print(f"data: {oddity}: {count}")
    counts = [f"{len(reading.split(name))} {name}" for name in ("train", "dev")]
    learned = sum(p.numel() for p in module.parameters() if p.requires_grad)
    print(
        f"{' and '.join(counts)} images, {len(module.tokenizer.vocabulary)} words, "
        f"{learned / 1e6:.1f} million parameters to learn, into {folder}",
        flush=True,
    )


def optimizer_steps(batches: int, trainer: lightning.Trainer) -> int:
    """How many steps the optimiser takes in the whole training of `batches` batches an epoch."""
    limit = trainer.limit_train_batches
    taken = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = math.ceil(taken / trainer.accumulate_grad_batches) * (trainer.max_epochs or 1)
    return max(1, steps)


def build_trainer(
    folder: Path,
    callbacks: list[Callback],
    loggers: list[Logger],
    *,
    max_epochs: int = 15,
    accelerator: str = "auto",
    devices: int | str = 1,
    precision: str = "32-true",
    gradient_clip_val: float = 5.0,
    accumulate_grad_batches: int = 1,
    check_val_every_n_epoch: int = 1,
    limit_train_batches: int | float = 1.0,
    limit_val_batches: int | float = 1.0,
    log_every_n_steps: int = 50,
) -> lightning.Trainer:
    """A Lightning Trainer; the options have Lightning's names and meaning.

    Args:
        folder: the run folder.
        callbacks: of the run.
        loggers: of the run.
        max_epochs: passes over the training captions.
        accelerator: "auto", "cpu", "gpu", "mps".
        devices: how many, or "auto".
        precision: "32-true", "bf16-mixed" or "16-mixed".
        gradient_clip_val: largest norm of the gradient; 0 does not clip.
        accumulate_grad_batches: batches whose gradients are added up for one step.
        check_val_every_n_epoch: epochs between two looks at dev.
        limit_train_batches: a number of batches (whole number) or a share of them.
        limit_val_batches: likewise.
        log_every_n_steps: steps between two rows of the logs.

    Raises:
        ValueError: a value that Lightning does not accept.
    """
    try:
        return lightning.Trainer(
            default_root_dir=folder,
            callbacks=callbacks,
            logger=loggers,
            plugins=[WholeFiles()],
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            precision=precision,  # type: ignore[arg-type]
            gradient_clip_val=gradient_clip_val,
            accumulate_grad_batches=accumulate_grad_batches,
            check_val_every_n_epoch=check_val_every_n_epoch,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            log_every_n_steps=log_every_n_steps,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # our sampler knows its place; theirs would reorder it
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(one, ProgressBar) for one in callbacks),
        )
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"trainer: {error}") from None


def build_loggers(
    folder: Path, *, csv: bool = True, tensorboard: bool = True, wandb: bool = False
) -> list[Logger]:
    """Loggers that write below the run folder.

    Args:
        folder: the run folder.
        csv: logs/csv/version_0/metrics.csv; a resumed run adds version_1, and so on.
        tensorboard: logs/tensorboard, where tensorboard is installed.
        wandb: Weights & Biases, offline unless the user has logged in.

    Raises:
        ValueError: wandb is asked for and not installed.
    """
    found: list[Logger] = []
    if csv:
        found.append(CSVLogger(folder / "logs", name="csv"))
    if tensorboard:
        if importlib.util.find_spec("tensorboard"):
            found.append(TensorBoardLogger(folder / "logs", name="tensorboard", version=""))
        else:
            print("no TensorBoard log: pip install 'captioner[logging]' adds it")
    if wandb:
        if not importlib.util.find_spec("wandb"):
            raise ValueError("logger.wandb=true needs wandb: pip install 'captioner[logging]'")
        found.append(WandbLogger(project="captioner", save_dir=folder / "logs", offline=True))
    return found


def quieten() -> None:
    """Keep Lightning's advertisements and hints off the screen; its warnings stay."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r"Found \d+ module\(s\) in eval mode.*",  # a frozen encoder is meant to be
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*dirpath has changed.*",
        r".*number of training batches .* is smaller than the logging interval.*",
        r".*isinstance\(treespec, LeafSpec\).*",
    ):
        warnings.filterwarnings("ignore", message=message)
