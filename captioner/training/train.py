"""Training: ``train`` makes a run folder from a configuration.

Here the parts of a run are put together: data, model, the weights it starts from, the objective
(``objectives/``), the module (``module.py``), callbacks, loggers and Lightning's Trainer.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor

from captioner.checkpoints import checkpoint
from captioner.checkpoints.checkpoint import Checkpoint
from captioner.checkpoints.places import anchored
from captioner.config import Config, make
from captioner.data.datamodule import CaptionDataModule
from captioner.data.features import CachedFeatures
from captioner.data.fit_warnings import length_warnings, tokenizer_warnings
from captioner.data.read import read_records
from captioner.data.records import Dataset
from captioner.decoding.options import DecodingOptions
from captioner.files import write_whole
from captioner.metrics.novelty import CaptionHashes
from captioner.metrics.tokenize import TOKENIZE
from captioner.models.captioning import CaptioningModel, build_model
from captioner.models.decoders.standardize import Standardize, whitening_of
from captioner.models.precision import (
    AUTO,
    BF16,
    FP32,
    device_of,
    resolve,
    resolve_trainer,
    stored,
    tell_cost,
)
from captioner.runs import CONFIG, LAST, Claim, checkpoint_file, claimed
from captioner.tokenizers import Tokenizer, build_tokenizer
from captioner.training import ranks, word_vectors
from captioner.training.callbacks import build_callbacks, monitored
from captioner.training.costs import Costs
from captioner.training.duration import plural, require_batches, require_epochs, settled
from captioner.training.launcher import RankLost, require_startable, started_here, together
from captioner.training.loggers import build_loggers, close, log_configuration
from captioner.training.module import LitCaptioner, NonFiniteLoss, build_module
from captioner.training.objectives.objective import Degenerate
from captioner.training.objectives.self_critical import SelfCritical
from captioner.training.objectives.table import chosen
from captioner.training.resuming import require_same_captions
from captioner.training.selection import Patience
from captioner.training.trainer import build_trainer, optimizer_steps, require_end

__all__ = [
    "Degenerate",
    "LitCaptioner",
    "NonFiniteLoss",
    "RankLost",
    "TrainedRun",
    "build_loggers",
    "build_trainer",
    "inherit",
    "train",
]


@dataclass(frozen=True)
class TrainedRun:
    """What a training leaves behind.

    Attributes:
        folder: the run folder.
        best: its best checkpoint; the last one where dev was never looked at.
        scores: dev scores of the best checkpoint; may be empty.
        monitor: the name of the score that chose it.
        epoch: that of the best checkpoint, from 1.
        ending: why the training ended, in words.
    """

    folder: Path
    best: Path
    scores: dict[str, float]
    monitor: str
    epoch: int
    ending: str

    @property
    def score(self) -> float:
        """The monitored score; not a number where dev was never looked at."""
        return self.scores.get(self.monitor, math.nan)


def train(
    config: Config,
    folder: Path,
    *,
    resume: Path | None = None,
    command: Sequence[str] | None = None,
) -> TrainedRun:
    """Train a captioner and leave a run folder: checkpoints, configuration, logs, sample captions.

    On several devices it starts the other processes, which end where it returns (``launcher``).

    Args:
        config: a composed configuration, as plain data.
        folder: the run folder; must not hold a run yet, unless it is resumed. It is claimed, and
            named by the result: see ``runs.claimed``.
        resume: the checkpoint to go on from, exactly as if it had never stopped.
        command: on several devices, what starts this training in another process; None is the
            script that runs now, from its start.

    Raises:
        ValueError: an option that does not fit, or a folder that already holds a run.
        OSError: the folder cannot be made, or the disk is full.
        FileNotFoundError: the data are not where the configuration says.
        NonFiniteLoss: the loss or a weight became infinite or NaN.
        Degenerate: what a self-critical training says became senseless.
        RankLost: one of several processes was ended.
    """
    quieten()
    with ranks.muted():
        return _claimed(anchored(resolved(config)), folder, resume, command)


def _claimed(
    config: Config, folder: Path, resume: Path | None, command: Sequence[str] | None
) -> TrainedRun:
    with claimed(folder, resumes=resume is not None) as claim:
        config = {**config, "run_dir": str(claim.folder), "seed": _seed(config["seed"])}
        try:
            return _train(config, claim, resume, command)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(_interrupted(claim, error)) from None


def _train(
    config: Config, claim: Claim, resume: Path | None, command: Sequence[str] | None
) -> TrainedRun:
    folder = claim.folder
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    start = _start(config, resume)
    before = start.lightning if resume is not None and start is not None else None
    require_epochs(before, config["trainer"]["max_epochs"])
    dataset = make(read_records, "data", config["data"])
    decoding = make(DecodingOptions, "decoding", config["decoding"])
    model, tokenizer, new = _model(config, dataset, start, resumes=resume is not None)
    kind = chosen(config["training"])
    given = {
        "seed": config["seed"],
        "grid": model.decoder.uses_grid,
        "unfreezes": config["training"].get("unfreeze_at") is not None,
        "by_image": kind.by_image,
        "repeats": bool(config["trainer"].get("overfit_batches")),
    }
    objects = (dataset, tokenizer, model.encoder)
    data = make(CaptionDataModule, "loader", config["loader"], *objects, **given)
    config = {**config, "trainer": settled(config["trainer"], data.batches, new=new)}
    require_batches(config["trainer"], train=data.batches, val=len(data.val_dataloader()))
    require_epochs(before, config["trainer"]["max_epochs"])
    callbacks = make(build_callbacks, "callbacks", config["callbacks"], folder)
    loggers = make(build_loggers, "logger", config["logger"], folder)
    callbacks += [LearningRateMonitor("step")] if loggers else []
    trainer = make(build_trainer, "trainer", config["trainer"], folder, callbacks, loggers)
    require_startable(trainer, command)
    steps = optimizer_steps(data.batches, trainer)
    require_end(config, steps)
    module = build_module(config["training"], model, tokenizer, config, steps, decoding)
    if resume is None:  # one that goes on knows them from its checkpoint
        own = module.own_captions = _own_captions(dataset, tokenizer)
        module.training_captions = _with_earlier(own, config, start)
    if new:
        _fill_words(module, data)
        if kind is SelfCritical:
            print("rewards teach random weights little: resume_weights=RUN starts from a run's")
    if ranks.first():
        write_whole(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
    _introduce(dataset, data, module, folder)
    model.to(trainer.strategy.root_device)
    if module.unfreezing is not None and (before or {}).get("epoch", 0) >= module.unfreezing.epoch:
        data.read_live()
    data.setup("fit")
    if data.caching is not None:
        print(data.caching, flush=True)
    module.objective.prepare(data.training_records)
    trainer.callbacks.append(Costs(folder, module))  # type: ignore[attr-defined]
    with together(trainer, folder, command):
        folder = ranks.from_first(folder)
        if new:
            model.decoder.fit(data.training_features())
            ranks.align(model.decoder.buffers())
        whitening = whitening_of(model.decoder)
        if whitening is not None:
            _print_reduction(whitening, data.reduce(whitening))
        try:
            log_configuration(loggers, config)
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        except SystemExit as leaving:  # what Lightning makes of an interruption
            raise KeyboardInterrupt(*_arguments(leaving.__context__)) from None
        finally:
            claim.worth = claim.worth or trainer.global_step > 0
            close(loggers)
    return _trained(folder, config, trainer)


def _trained(folder: Path, config: Config, trainer: lightning.Trainer) -> TrainedRun:
    best = checkpoint.find(folder)
    found = checkpoint.read(best)
    epoch = found.lightning.get("epoch", 0) + 1
    return TrainedRun(folder, best, found.scores, monitored(config), epoch, _ending(trainer))


def _ending(trainer: lightning.Trainer) -> str:
    """Why a training has ended."""
    waited = [one for one in trainer.callbacks if isinstance(one, Patience) and one.exhausted]  # type: ignore[attr-defined]
    if waited:
        looks = plural(waited[0].patience, "validation", "validations")
        return f"{looks} without a better one (callbacks.patience)"
    if trainer.max_steps == trainer.global_step:
        return f"{plural(trainer.max_steps, 'step is', 'steps are')} done (trainer.max_steps)"
    if trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch:
        done = plural(trainer.max_epochs, "epoch is", "epochs are")
        return f"{done} done (trainer.max_epochs)"
    return "a callback or a limit of the trainer has ended it"


def _arguments(error: BaseException | None) -> tuple[object, ...]:
    return error.args if isinstance(error, KeyboardInterrupt) else ()


def _interrupted(claim: Claim, error: KeyboardInterrupt) -> str:
    """What an interruption leaves, and how to go on."""
    what, folder = str(error) or "interrupted", claim.folder
    if checkpoint_file(folder, LAST).is_file():
        return f"{what}; `captioner train resume={folder}` goes on from the last checkpoint"
    left = f"{folder} has the logs alone" if claim.worth else "no run folder is left"
    return f"{what} before the first checkpoint: there is nothing to resume, {left}"


def _seed(given: Any) -> int:
    """The seed of a run; null draws one, which the run's configuration then names."""
    if given is None and started_here():
        return int(os.environ["PL_GLOBAL_SEED"])  # what the first process has drawn
    if given is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("seed=null: each of several processes would draw its own; name a number")
    if given is None:
        drawn = secrets.randbelow(2**32)
        print(f"seed={drawn}, drawn at random")
        return drawn
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < 2**32:
        raise ValueError(
            f"seed={given!r} is not accepted; choose a whole number from 0 to {2**32 - 1}, or null "
            "for one at random"
        )
    return given


# Where a run starts ---------------------------------------------------------------------------

_INHERITED = ("tokenizer", "encoder", "decoder", "data")


def inherit(config: Config, overrides: Sequence[str]) -> Config:
    """A composed configuration with what ``resume_weights`` brings along.

    The groups tokenizer, encoder, decoder and data become those of the checkpoint, except for what
    the overrides name; an experiment names its data, too. Everything else stays as it was composed.

    Args:
        config: composed with the overrides.
        overrides: as given to ``compose``.

    Raises:
        FileNotFoundError: ``resume_weights`` is not there.
        ValueError: it is not a checkpoint of this package.
    """
    if config.get("resume_weights") is None:
        return config
    try:
        saved = checkpoint.read(config["resume_weights"]).config
    except FileNotFoundError as error:
        raise FileNotFoundError(f"resume_weights={error}") from None
    keys = [one.partition("=")[0].lstrip("+~") for one in overrides]
    result = dict(config)
    for group in _INHERITED:
        if group in keys or (group == "data" and "experiment" in keys):
            continue
        named = [key.split(".")[1] for key in keys if key.startswith(f"{group}.")]
        changed = {name: config[group][name] for name in named if name in config[group]}
        inherited: Config = dict(saved.get(group) or config[group])
        if group == "encoder" and "precision" in inherited and "precision" not in named:
            inherited["precision"] = stored(inherited["precision"], "encoder.precision")
        result[group] = {**inherited, **changed}
    return result


def resolved(config: Config) -> Config:
    """The configuration with the precisions that its device gives to each ``auto``.

    Raises:
        ValueError: ``trainer.precision`` is not one that the device trains in.
    """
    device = device_of(config["trainer"].get("accelerator", AUTO))
    groups = {name: dict(config[name]) for name in ("trainer", "encoder", "decoding")}
    trainer, encoder, decoding = groups.values()
    trainer["precision"] = resolve_trainer(trainer.get("precision", AUTO), device)
    decoding["precision"] = resolve(decoding.get("precision", FP32), device)
    copied = device == "cpu" and not encoder.get("trainable")  # its copy alone has a precision
    known = encoder.get("precision", FP32)
    encoder["precision"] = FP32 if known == AUTO and not copied else resolve(known)
    for name, group in groups.items():
        if copied or name != "encoder":
            tell_cost(f"{name}.precision", group["precision"], device, print)
    return {**config, **groups}


def _model(
    config: Config, dataset: Dataset, start: Checkpoint | None, *, resumes: bool
) -> tuple[CaptioningModel, Tokenizer, bool]:
    """The model to be trained, its tokenizer, and whether it starts from nothing."""
    if start is not None and resumes:
        require_same_captions(
            _own_captions(dataset, start.tokenizer),
            known=start.own,
            more=start.training,
            root=config["data"]["root"],
            run=checkpoint.run_folder(start.path),
        )
    tokenizer = _tokenizer(config, dataset) if start is None else start.tokenizer
    model = build_model(
        config["encoder"],
        config["decoder"],
        vocabulary_size=len(tokenizer.vocabulary),
        initialise=start is None or start.without_encoder,
    )
    if start is not None and not resumes:
        _warm_up(model, start, config)
    elif start is not None:  # now, not when Lightning does: features are cached before
        start.fill(model)
        model.encoder.transform = start.transform
    return model, tokenizer, start is None


def _start(config: Config, resume: Path | None) -> Checkpoint | None:
    """The checkpoint that the weights and the vocabulary come from."""
    if resume is None:
        weights = config.get("resume_weights")
        return None if weights is None else checkpoint.read(weights)
    found = checkpoint.read(resume)
    before, now = (chosen(one["training"]) for one in (found.config, config))
    if before is not now:
        raise ValueError(
            f"resume={resume} goes on with the objective it was trained with; start another with "
            f"resume_weights={resume} and a run_dir of its own"
        )
    return found


def _warm_up(model: CaptioningModel, start: Checkpoint, config: Config) -> None:
    """Take the weights of a checkpoint, where they fit what is to be trained."""
    said = f"resume_weights={config['resume_weights']}"
    if config["training"].get("word_vectors"):
        raise ValueError(f"{said} brings its words along: leave training.word_vectors out")
    if config["tokenizer"] != start.config.get("tokenizer", config["tokenizer"]):
        raise ValueError(
            f"{said} brings its vocabulary along: leave tokenizer as it is there, "
            f"{start.config['tokenizer']}"
        )
    try:
        start.fill(model)
    except ValueError as error:
        raise ValueError(
            f"{said} does not fit: {error}; leave encoder and decoder as they are there"
        ) from None
    if checkpoint.same_part(config["encoder"], start.config["encoder"]):
        model.encoder.transform = start.transform
    scores = ", ".join(f"{name} {value:.2f}" for name, value in start.scores.items())
    print(f"weights of {start.path}{f' ({scores})' if scores else ''}")


def _tokenizer(config: Config, dataset: Dataset) -> Tokenizer:
    texts = [text for record in dataset.split("train") for text in record.captions]
    return make(build_tokenizer, "tokenizer", config["tokenizer"], texts)


def _own_captions(dataset: Dataset, tokenizer: Tokenizer) -> CaptionHashes:
    """The captions of the data set that the model learns from."""
    texts = [text for record in dataset.split("train") for text in record.captions]
    return CaptionHashes.of(TOKENIZE[tokenizer.scored_by](texts))


def _with_earlier(
    own: CaptionHashes, config: Config, before: Checkpoint | None
) -> CaptionHashes | None:
    """All captions that the model has learned from, those before a warm start included."""
    if before is None:
        return own
    same = anchored({"data": before.config["data"]})["data"] == config["data"]
    return CaptionHashes.union([own, own if before.training is None and same else before.training])


def _fill_words(module: LitCaptioner, data: CaptionDataModule) -> None:
    """Copy pretrained word vectors, where some are named, and say what they cover."""
    if module.word_vectors is None:
        return
    captions = (words for _, words in data.pairs.pairs)
    vocabulary = module.tokenizer.vocabulary
    found = word_vectors.fill(module.model.decoder, vocabulary, module.word_vectors, captions)
    print(
        f"word vectors of {module.word_vectors}: {100 * found.words:.1f} % of the vocabulary, "
        f"{100 * found.tokens:.1f} % of the words of the training captions",
        flush=True,
    )


def _print_reduction(whitening: Standardize, cached: CachedFeatures | None) -> None:
    """Print how much is read of each cached grid, where grids are cached."""
    if cached is not None:
        print(
            f"features: {whitening.width} components of {cached.feature_size} dimensions are "
            f"read, {cached.size / 1e6:,.1f} MB",
            flush=True,
        )


def _introduce(
    dataset: Dataset, data: CaptionDataModule, module: LitCaptioner, folder: Path
) -> None:
    """Say what is trained on what, and what of it does not fit."""
    for warning, count in dataset.warnings.items():
        print(f"data: {warning}: {count}")
    texts = (text for record in dataset.split("train") for text in record.captions)
    lengths, max_words = data.pairs.whole_lengths, module.config["loader"]["max_words"]
    for warning in (
        *tokenizer_warnings(texts, module.tokenizer.name),
        *length_warnings(lengths, max_words, module.decoding.max_length),
    ):
        print(f"warning: {warning}")
    names = (module.config[group]["precision"] for group in ("trainer", "encoder", "decoding"))
    device = device_of(module.config["trainer"].get("accelerator", AUTO))
    has = "with" if resolve(AUTO, device) == BF16 else "without"
    print("precision {}, encoder {}, decoding {}".format(*names), f"({device} {has} bfloat16)")
    counts = [f"{len(dataset.split(name))} {name}" for name in ("train", "dev")]
    learned = sum(p.numel() for p in module.parameters() if p.requires_grad)
    print(
        f"{' and '.join(counts)} images, {len(module.tokenizer.vocabulary)} words, "
        f"{learned / 1e6:.1f} million parameters to learn, into {folder}",
        flush=True,
    )


def quieten() -> None:
    """Keep Lightning's advertisements and hints off the screen; its warnings stay."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r"Found \d+ module\(s\) in eval mode.*",  # a frozen encoder is meant to be
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*dirpath has changed.*",
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*`broadcast_buffers` is deprecated.*",  # the new name is not in every torch that we take
        r".*It is recommended to use `self\.log\(.*sync_dist=True.*",  # all ranks have one value
    ):
        warnings.filterwarnings("ignore", message=message)
