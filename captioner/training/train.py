"""Training: ``train`` makes a run folder from a configuration.

This module assembles the parts of a run: data, model, the weights it starts from (``start.py``),
objective and optimization in a module (``module.py``), callbacks, loggers and Lightning's Trainer.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import Logger

from captioner.checkpoints import checkpoint
from captioner.checkpoints.checkpoint import Checkpoint
from captioner.checkpoints.places import anchored, require_apart
from captioner.config import Config, make, require_plain, to_yaml
from captioner.data.datamodule import CaptionDataModule
from captioner.data.read import read_records
from captioner.data.records import Dataset
from captioner.decoding.options import DecodingOptions
from captioner.files import cache_home, write_whole
from captioner.models.captioning import CaptioningModel
from captioner.models.decoders.standardize import whitening_of
from captioner.models.precision import (
    AUTO,
    FP32,
    device_of,
    resolve,
    resolve_trainer,
    warn_if_emulated,
)
from captioner.overrides import shell_word
from captioner.process import interruption_of
from captioner.runs import CONFIG, LAST, Claim, checkpoint_file, claimed
from captioner.tokenizers import Tokenizer
from captioner.training import ranks
from captioner.training.bad_steps import NonFiniteLoss, SkippedSteps
from captioner.training.callbacks import build_callbacks, monitored
from captioner.training.costs import Costs
from captioner.training.disk_space import checkpoint_sizes, on_same_disk, require_space
from captioner.training.duration import plural, require_batches, require_epochs, resolve_length
from captioner.training.introduction import fill_embedding, introduce
from captioner.training.isolation import isolated
from captioner.training.launcher import (
    Launch,
    RankLost,
    receive_signals,
    require_startable,
    start_ranks,
    started_here,
)
from captioner.training.loggers import build_loggers, close, log_configuration
from captioner.training.module import LitCaptioner, build_module
from captioner.training.objectives.objective import Degenerate
from captioner.training.objectives.table import objective_class
from captioner.training.restoring import RestoredState
from captioner.training.saving import WholeFiles
from captioner.training.selection import Patience, require_whole
from captioner.training.start import Start, hash_captions, inherit, read_start, read_weights
from captioner.training.trainer import TrainerOptions, build_trainer, optimizer_steps, require_end

__all__ = [
    "Degenerate",
    "LitCaptioner",
    "NonFiniteLoss",
    "RankLost",
    "TrainedRun",
    "inherit",
    "read_weights",
    "resolved",
    "result_of",
    "train",
]

log = logging.getLogger(__name__)

Report = Callable[[str], None]
"""Called with a line to print."""


@dataclass(frozen=True)
class TrainedRun:
    """The result of a training.

    Attributes:
        folder: the run folder.
        best: its best checkpoint; the last one if there was no validation.
        scores: dev scores of the best checkpoint; may be empty.
        monitor: the name of the score that selected it.
        epoch: the epoch of the best checkpoint, from 1.
        ending: why the training ended, as text.
    """

    folder: Path
    best: Path
    scores: dict[str, float]
    monitor: str
    epoch: int
    ending: str

    @property
    def score(self) -> float:
        """The monitored score; NaN if there was no validation."""
        return self.scores.get(self.monitor, math.nan)


def train(
    config: Config,
    folder: Path,
    *,
    resume: Path | Checkpoint | None = None,
    weights: Checkpoint | None = None,
    command: Sequence[str] | None = None,
    report: Report = log.info,
    report_error: Callable[[str], object] = log.error,
) -> TrainedRun:
    """Train a captioner and create a run folder: checkpoints, configuration, logs, sample captions.

    With several devices it starts the other processes, which exit when it returns (``launcher``).
    The random generators and other settings of the caller are left as they were (``isolation``).

    Args:
        config: a composed configuration, as plain data: the result of ``captioner.config.compose``.
        folder: the run folder; it must not contain a run yet, unless that run is resumed. The
            result gives the folder that is used: see ``runs.claimed``.
        resume: the checkpoint to continue from, exactly as if the run had never stopped: its file,
            or as returned by ``checkpoint.read``.
        weights: the checkpoint that ``resume_weights`` names, if `read_weights` was called already.
        command: with several devices, the command that starts this training in another process;
            None: the current script.
        report: called with each line to print, in the first process; the default is this module's
            log.
        report_error: called with one line before this process exits because another one has ended,
            if RankLost cannot be raised.

    Raises:
        ValueError: an option that does not fit, a configuration that is not plain data, or a folder
            that already holds a run or is that of the dataset.
        OSError: the folder cannot be created, or the disk is full.
        FileNotFoundError: the data do not exist.
        NonFiniteLoss: the loss or a weight became infinite or NaN.
        Degenerate: the captions of a self-critical training have become meaningless.
        RankLost: another process of this training has ended.
    """
    require_plain(config)
    report = report if ranks.first() else log.debug
    with isolated(), ranks.muted():
        config = anchored(resolved(config, report))
        start = read_start(config, resume, weights)
        require_epochs(start.progress, config["trainer"])
        if not start.resumes:
            require_apart(folder, config["data"])
        return _claimed(config, folder, start, Launch(command, report_error), report)


def _claimed(
    config: Config, folder: Path, start: Start, launch: Launch, report: Report
) -> TrainedRun:
    with claimed(folder, resumes=start.resumes) as claim:
        seed = _seed(config["seed"], report)
        config = {**config, "run_dir": str(claim.folder), "seed": seed}
        try:
            receive_signals()
            return _train(config, claim, start, launch, report)
        except BaseException as error:
            interruption = interruption_of(error)
            if interruption is None:
                raise
            if not ranks.first():  # which says the same
                raise SystemExit(130) from None
            raise KeyboardInterrupt(_interruption(claim, interruption)) from None


def _train(
    config: Config, claim: Claim, start: Start, launch: Launch, report: Report
) -> TrainedRun:
    folder = claim.folder
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    if start.resumes:
        require_whole(folder, keep=config["callbacks"].get("keep", 0))
    dataset = _read_dataset(config, start)
    model, tokenizer = start.build(config, dataset, report)
    data = _build_data(config, dataset, tokenizer, model)
    config = {
        **config,
        "trainer": resolve_length(config["trainer"], data.batches, new=start.is_random),
    }
    require_batches(config["trainer"], train=data.batches, val=len(data.val_dataloader()))
    require_epochs(start.progress, config["trainer"])
    loggers = make(build_loggers, "logger", config["logger"], folder, report)
    trainer = _build_trainer(config, folder, loggers, start)
    require_startable(trainer, launch)
    steps = optimizer_steps(data.batches, trainer)
    require_end(config, steps)
    decoding = make(DecodingOptions, "decoding", config["decoding"])
    module = build_module(config, model, tokenizer, steps, decoding)
    module.report = report
    if not start.resumes:
        _prepare_new(module, dataset, data, start, config)
    if ranks.first():
        write_whole(folder / CONFIG, to_yaml(config))
    introduce(dataset, data, module, folder, report)
    if ranks.first():
        _require_space(folder, module, data, start, report)
    _prepare_data(data, module, trainer, start)
    trainer.callbacks.append(Costs(folder, module))  # type: ignore[attr-defined]
    with start_ranks(trainer, folder, launch):
        folder = ranks.from_first(folder)
        _fit_decoder(model, data, start, report)
        try:
            log_configuration(loggers, config)
            _fit(trainer, module, data, start)
        finally:
            claim.keep = claim.keep or trainer.global_step > 0
            close(loggers)
    return result_of(folder, config, _ending(trainer))


def _prepare_new(
    module: LitCaptioner, dataset: Dataset, data: CaptionDataModule, start: Start, config: Config
) -> None:
    """Set what a resumed run reads from its checkpoint: caption hashes and word vectors."""
    own = module.own_captions = hash_captions(dataset, module.tokenizer)
    module.training_captions = start.learned_captions(own, config)
    if start.is_random:
        word_vectors = config["training"].get("word_vectors")
        fill_embedding(module, data, word_vectors, module.report)
        if module.objective.needs_start is not None:
            module.report(module.objective.needs_start)


def _read_dataset(config: Config, start: Start) -> Dataset:
    """The dataset; a run that is resumed needs its own, so no other is advised."""
    data, own = config["data"], start.checkpoint if start.resumes else None
    try:
        return make(read_records, "data", data)
    except FileNotFoundError as error:
        before = None if own is None else anchored({"data": own.config["data"]})["data"]
        if own is None or before is None or data["root"] == before["root"]:
            raise
        raise FileNotFoundError(
            f"{str(error).partition('; ')[0]}; resume={checkpoint.run_folder(own.path)} continues "
            f"on the data it was trained on (data.format={before['format']}), which were in "
            f"{before['root']}: leave data.root out, or give the folder that they are in now"
        ) from None


def _build_data(
    config: Config, dataset: Dataset, tokenizer: Tokenizer, model: CaptioningModel
) -> CaptionDataModule:
    return make(
        CaptionDataModule,
        "loader",
        config["loader"],
        *(dataset, tokenizer, model.encoder),
        seed=config["seed"],
        grid=model.decoder.uses_grid,
        unfreezes=config["training"].get("unfreeze_at") is not None,
        by_image=objective_class(config["objective"]).by_image,
        repeats=bool(config["trainer"].get("overfit_batches")),
    )


def _build_trainer(
    config: Config, folder: Path, loggers: list[Logger], start: Start
) -> lightning.Trainer:
    callbacks = make(build_callbacks, "callbacks", config["callbacks"], folder)
    callbacks += [LearningRateMonitor("step")] if loggers else []
    skipped = config["training"].get("skip_bad_steps")
    callbacks += [SkippedSteps(skipped)] if skipped else []
    resumed = start.checkpoint if start.resumes else None
    callbacks = [RestoredState(resumed), *callbacks] if resumed is not None else callbacks
    files = WholeFiles(resumed)
    options = make(TrainerOptions, "trainer", config["trainer"])
    return build_trainer(options, folder, callbacks, loggers, files)


def _prepare_data(
    data: CaptionDataModule, module: LitCaptioner, trainer: lightning.Trainer, start: Start
) -> None:
    """Compute or open the features for training and validation."""
    module.model.to(trainer.strategy.root_device)
    unfreezing, epoch = module.optimization.unfreezing, (start.progress or {}).get("epoch", 0)
    if unfreezing is not None and epoch >= unfreezing.epoch:
        data.read_live()
    data.setup("fit")
    if data.caching is not None:
        module.report(str(data.caching))
    module.objective.prepare(data.training_records)


def _require_space(
    folder: Path, module: LitCaptioner, data: CaptionDataModule, start: Start, report: Report
) -> None:
    """Check that the disk can hold the checkpoints, and the features if they are on the same."""
    callbacks = module.config["callbacks"]
    ema, keep = callbacks.get("ema", 0.0), callbacks.get("keep", 0)
    sizes = checkpoint_sizes(module, ema=ema, keep=keep)
    more = require_space(folder, sizes, report, resumes=start.resumes)
    if data.caches and on_same_disk(folder, cache_home(data.cache_folder)):
        data.reserved = more


def _fit_decoder(
    model: CaptioningModel, data: CaptionDataModule, start: Start, report: Report
) -> None:
    """Fit the decoder's standardization to the training images, and reduce their features."""
    if start.is_random:
        model.decoder.fit(data.training_features())
        ranks.align(model.decoder.buffers())
    whitening = whitening_of(model.decoder)
    cached = None if whitening is None else data.reduce(whitening)
    if whitening is not None and cached is not None:
        report(
            f"features: {whitening.width} components of {cached.feature_size} dimensions are "
            f"read, {cached.size / 1e6:,.1f} MB"
        )


def _fit(
    trainer: lightning.Trainer, module: LitCaptioner, data: CaptionDataModule, start: Start
) -> None:
    """Train with Lightning.

    Raises:
        SystemExit: the training was interrupted: Lightning raises it.
        ValueError: a worker process has died while it read an image, or the state of a resumed
            training is damaged.
    """
    resumed = start.checkpoint if start.resumes else None
    path = None if resumed is None else resumed.path
    handler = signal.getsignal(signal.SIGINT)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    restored = [call for call in callbacks if isinstance(call, RestoredState)]
    try:
        with restored[0].explained() if restored else contextlib.nullcontext():
            trainer.fit(module, data, ckpt_path=path, weights_only=True)
    except RuntimeError as error:
        raise data.explained(error) from error.__cause__
    finally:  # after an interruption, Lightning leaves Ctrl-C ignored
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


def result_of(folder: Path, config: Config, ending: str) -> TrainedRun:
    """The result of a training that has ended.

    Args:
        folder: the run folder.
        config: the configuration of the run.
        ending: why the training ended, as text.

    Raises:
        ValueError: its best checkpoint is damaged.
    """
    best = checkpoint.find(folder)
    content = checkpoint.read(best)
    epoch = content.lightning.get("epoch", 0) + 1
    return TrainedRun(folder, best, content.scores, monitored(config), epoch, ending)


def _ending(trainer: lightning.Trainer) -> str:
    """The reason why a training has ended, and how many steps were skipped."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    skipped = sum(call.count for call in callbacks if isinstance(call, SkippedSteps))
    more = f"; {plural(skipped, 'step was', 'steps were')} skipped" if skipped else ""
    return f"{_reason(trainer, callbacks)}{more}"


def _reason(trainer: lightning.Trainer, callbacks: list[Any]) -> str:
    exhausted = [call for call in callbacks if isinstance(call, Patience) and call.exhausted]
    if exhausted:
        validations = plural(exhausted[0].patience, "validation", "validations")
        return f"{validations} without a better one (callbacks.patience)"
    if trainer.max_steps == trainer.global_step:
        return f"{plural(trainer.max_steps, 'step is', 'steps are')} done (trainer.max_steps)"
    if trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch:
        done = plural(trainer.max_epochs, "epoch is", "epochs are")
        return f"{done} done (trainer.max_epochs)"
    return "a callback or a limit of the trainer has ended the training"


def _interruption(claim: Claim, error: KeyboardInterrupt) -> str:
    """What remains of an interrupted training, and how to continue it."""
    reason, folder = str(error) or "interrupted", claim.folder
    if claim.keep and checkpoint_file(folder, LAST).is_file():
        command = f"captioner train {shell_word('resume', folder)}"
        return f"{reason}; `{command}` resumes from the last checkpoint"
    return f"{reason} before the first step: there is nothing to resume, no run folder is left"


def _seed(seed: Any, report: Report) -> int:
    """The seed of a run; for null it is drawn, and the run's configuration contains it."""
    if seed is None and started_here():
        return int(os.environ["PL_GLOBAL_SEED"])  # drawn by the first process
    if seed is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("seed=null: each process would draw another seed; choose a number")
    if seed is None:
        drawn = secrets.randbelow(2**32)
        report(f"seed={drawn}, drawn at random")
        return drawn
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(
            f"seed={seed!r} is not accepted; choose a whole number from 0 to {2**32 - 1}, or null "
            "for one at random"
        )
    return seed


def resolved(config: Config, report: Report = log.info) -> Config:
    """The configuration with each precision of ``auto`` replaced by that of the device.

    Args:
        config: the configuration of the run.
        report: called with a line if a precision is slow on the device.

    Raises:
        ValueError: the device cannot train in ``trainer.precision``.
    """
    device = device_of(config["trainer"].get("accelerator", AUTO))
    groups = {name: dict(config[name]) for name in ("trainer", "encoder", "decoding")}
    trainer, encoder, decoding = groups.values()
    trainer["precision"] = resolve_trainer(trainer.get("precision", AUTO), device)
    decoding["precision"] = resolve(decoding.get("precision", FP32), device)
    copied = device == "cpu" and not encoder.get("trainable")  # the frozen encoder runs as a copy
    precision = encoder.get("precision", FP32)
    encoder["precision"] = FP32 if precision == AUTO and not copied else resolve(precision)
    for name, group in groups.items():
        if copied or name != "encoder":
            warn_if_emulated(f"{name}.precision", group["precision"], device, report)
    return {**config, **groups}
