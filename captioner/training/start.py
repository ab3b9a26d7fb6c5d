"""The start of a run: random weights, weights of another run, or its own last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.checkpoints import checkpoint
from captioner.checkpoints.checkpoint import Checkpoint
from captioner.checkpoints.places import anchored
from captioner.config import Config, make
from captioner.data.records import Dataset
from captioner.metrics.novelty import CaptionHashes
from captioner.metrics.tokenize import TOKENIZE
from captioner.models.captioning import CaptioningModel, build_model
from captioner.models.precision import stored
from captioner.overrides import Override, parse, shell_word
from captioner.tokenizers import Tokenizer, build_tokenizer
from captioner.training.objectives.table import objective_class
from captioner.training.resuming import require_same_captions

_INHERITED = ("tokenizer", "encoder", "decoder", "data")


def read_weights(config: Config) -> Checkpoint | None:
    """The checkpoint that ``resume_weights`` names; None where it is null.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not a checkpoint of this package.
    """
    if config.get("resume_weights") is None:
        return None
    try:
        return checkpoint.read(config["resume_weights"])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"resume_weights={error}") from None


def inherit(
    config: Config, overrides: Sequence[str | Override], weights: Checkpoint | None
) -> Config:
    """A composed configuration with the groups that ``resume_weights`` provides.

    The groups tokenizer, encoder, decoder and data become those of the checkpoint, except for
    options that are set by an override; ``experiment=NAME`` also sets the data. All other groups
    stay as composed.

    Args:
        config: the configuration, composed with the overrides.
        overrides: as given to ``compose``.
        weights: as returned by `read_weights`; None changes nothing.
    """
    if weights is None:
        return config
    saved = weights.config
    keys = [str(change.key_or_group) for change in parse(overrides, several=True)]
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


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        checkpoint: the checkpoint with weights and vocabulary; None: random weights.
        resumes: whether the run continues from this checkpoint, which is its own.
    """

    checkpoint: Checkpoint | None
    resumes: bool

    @property
    def is_random(self) -> bool:
        """Whether the decoder's weights are random."""
        return self.checkpoint is None

    @property
    def progress(self) -> dict[str, Any] | None:
        """The checkpoint as Lightning wrote it, if the run is resumed; otherwise None."""
        resumed = self.checkpoint if self.resumes else None
        return None if resumed is None else resumed.lightning

    def build(
        self, config: Config, dataset: Dataset, report: Callable[[str], None]
    ) -> tuple[CaptioningModel, Tokenizer]:
        """The model to train and its tokenizer.

        Args:
            config: the configuration of the run.
            dataset: its captions give the vocabulary if there is no checkpoint.
            report: called with each line to print.

        Raises:
            ValueError: the weights do not fit the configuration, or a resumed run has other
                training captions.
        """
        source = self.checkpoint
        if source is not None and self.resumes:
            require_same_captions(
                hash_captions(dataset, source.tokenizer),
                known=source.own,
                more=source.training,
                root=config["data"]["root"],
                run=checkpoint.run_folder(source.path),
            )
        tokenizer = _new_tokenizer(config, dataset) if source is None else source.tokenizer
        model = build_model(
            config["encoder"],
            config["decoder"],
            vocabulary_size=len(tokenizer.vocabulary),
            initialise=source is None or source.without_encoder,
        )
        if source is not None and not self.resumes:
            _load_weights(model, source, config, report)
        elif source is not None:  # before Lightning does it: the features are cached first
            source.fill(model)
            model.encoder.transform = source.transform
        return model, tokenizer

    def learned_captions(self, own: CaptionHashes, config: Config) -> CaptionHashes | None:
        """Hashes of all captions of this run and of earlier ones; None if unknown.

        Args:
            own: hashes of the captions of the run's dataset.
            config: the configuration of the run.
        """
        before = self.checkpoint
        if before is None:
            return own
        same = anchored({"data": before.config["data"]})["data"] == config["data"]
        earlier = own if before.training is None and same else before.training
        return CaptionHashes.union([own, earlier])


def read_start(
    config: Config, resume: Path | Checkpoint | None, weights: Checkpoint | None = None
) -> Start:
    """Read the checkpoint that a run starts from.

    Args:
        config: the configuration of the run.
        resume: the checkpoint to continue from, or its file; None: the run is new.
        weights: as returned by `read_weights`, if that has been called already.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a checkpoint, or it has another objective.
    """
    if resume is None:
        return Start(weights or read_weights(config), resumes=False)
    source = resume if isinstance(resume, Checkpoint) else checkpoint.read(resume)
    before, now = (objective_class(values["objective"]) for values in (source.config, config))
    if before is not now:
        raise ValueError(
            f"resume={source.path} continues with the objective it was trained with; start another "
            f"run with {shell_word('resume_weights', source.path)} and a run_dir of its own"
        )
    return Start(source, resumes=True)


def hash_captions(dataset: Dataset, tokenizer: Tokenizer) -> CaptionHashes:
    """Hashes of the training captions of a dataset."""
    texts = [text for record in dataset.split("train") for text in record.captions]
    return CaptionHashes.of(TOKENIZE[tokenizer.scored_by](texts))


def _new_tokenizer(config: Config, dataset: Dataset) -> Tokenizer:
    texts = [text for record in dataset.split("train") for text in record.captions]
    return make(build_tokenizer, "tokenizer", config["tokenizer"], texts)


def _other_options(config: Config, saved: Config) -> str:
    """The options of encoder and decoder that differ from those of another run.

    Args:
        config: the configuration of the new training.
        saved: that of the run whose weights it starts from.

    Returns:
        ``decoder.cell=gru, which has lstm``; empty if no option differs.
    """
    differing = []
    for group in ("encoder", "decoder"):
        after, before = config[group], saved[group]
        if after.get("name") != before.get("name"):
            differing.append(f"{group}={after.get('name')}, which has {before.get('name')}")
            continue
        differing += [
            f"{group}.{name}={after[name]}, which has {before[name]}"
            for name in sorted(set(after) & set(before))
            if after[name] != before[name] and not isinstance(after[name], float)
        ]
    return "; ".join(differing)


def _load_weights(
    model: CaptioningModel, source: Checkpoint, config: Config, report: Callable[[str], None]
) -> None:
    """Load the weights of another run into a model.

    Raises:
        ValueError: they do not fit the model, the vocabulary or the options.
    """
    option = f"resume_weights={config['resume_weights']}"
    if config["training"].get("word_vectors"):
        raise ValueError(f"{option} already has an embedding: remove training.word_vectors")
    if config["tokenizer"] != source.config.get("tokenizer", config["tokenizer"]):
        raise ValueError(
            f"{option} has a vocabulary of its own: leave tokenizer unchanged, "
            f"{source.config['tokenizer']}"
        )
    try:
        source.fill(model)
    except ValueError as error:
        reason = _other_options(config, source.config) or str(error).rstrip(" .")
        raise ValueError(
            f"{option} does not fit: {reason}; leave encoder and decoder unchanged"
        ) from None
    if checkpoint.same_part(config["encoder"], source.config["encoder"]):
        model.encoder.transform = source.transform
    scores = ", ".join(f"{name} {value:.2f}" for name, value in source.scores.items())
    report(f"weights of {source.path}{f' ({scores})' if scores else ''}")
