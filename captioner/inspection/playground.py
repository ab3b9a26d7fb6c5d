"""A page in which trained decoders run: weights, pictures and a script that computes the cells.

The page needs no network. A weight takes 16 bits if it is a float16 exactly, as in a bundled model,
and 32 otherwise.
What does not depend on words is computed here: X_0 of each picture, or the values of an attention.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from captioner import __version__
from captioner.api import Captioner
from captioner.files import write_whole
from captioner.inspection.page import cropped, script_json
from captioner.models.decoders.decoder import Decoder
from captioner.models.decoders.show_attend_tell import ShowAttendTell
from captioner.models.decoders.show_tell import ShowTell
from captioner.models.features import Features
from captioner.models.recurrence.cells import GRU, LSTM, RNN, Cell
from captioner.progress import progress_bar
from captioner.report.page import rendered
from captioner.report.view import detect_language

CELLS: Mapping[type[Cell], str] = {RNN: "rnn", GRU: "gru", LSTM: "lstm"}
"""The cells that ``playground.js`` computes."""


def write_playground(
    captioners: Sequence[Captioner],
    names: Sequence[str],
    photos: Sequence[str | Path],
    path: str | Path,
) -> Path:
    """Write the page.

    Args:
        captioners: one model each, shown side by side.
        names: of them.
        photos: to choose from.
        path: of the file.

    Returns:
        the path.

    Raises:
        ValueError: a decoder or a cell that the page cannot compute.
        OSError: the file cannot be written, or a photograph cannot be read.
    """
    return write_whole(path, playground(captioners, names, photos))


def playground(
    captioners: Sequence[Captioner], names: Sequence[str], photos: Sequence[str | Path]
) -> str:
    """The HTML of the page; see ``write_playground``."""
    values = {
        "models": [_model(one, name) for one, name in zip(captioners, names)],
        "pictures": _pictures(captioners, photos),
    }
    kinds = ", ".join(f"{name}: {_describe(one)}" for one, name in zip(captioners, names))
    return rendered(
        "playground.html",
        folder="inspection",
        styles=("report/page.css", "inspection/playground.css"),
        script="inspection/playground.js",
        title="A captioning network that runs in this page",
        about=f"The weights are in the page, and each word is computed here ({kinds}). Hold a gate "
        "at a value, erase the memory between two words, swap the picture, and see the sentence "
        "change at once.",
        source=f"captioner {__version__}: captioner inspect --playground",
        data=script_json(values),
    )


def _describe(captioner: Captioner) -> str:
    decoder: Any = captioner.model.decoder
    size = sum(parameter.numel() for parameter in decoder.parameters())
    return f"{type(decoder).__name__}, {size:,} numbers"


def _model(captioner: Captioner, name: str) -> dict[str, Any]:
    """A model as the script reads it."""
    decoder: Any = captioner.model.decoder
    describe = _DECODERS.get(type(decoder))
    if len(captioner.models) > 1 or describe is None:
        kind = "an ensemble" if describe is not None else type(decoder).__name__
        raise ValueError(
            f"{name}: the playground computes ShowTell and ShowAttendTell, one model each; this is "
            f"{kind}"
        )
    cell = decoder.recurrence.first
    if type(cell) not in CELLS:
        raise ValueError(
            f"{name}: the playground computes the cells {', '.join(CELLS.values())}; this is "
            f"{type(cell).__name__}"
        )
    vocabulary = captioner.tokenizer.vocabulary
    tensors, same = _tensors(cast(nn.Module, decoder))
    return {
        "name": name,
        "language": detect_language("".join(vocabulary.ordinary)) or "en",
        "joined": captioner.tokenizer.scored_by == "character",
        "cell": CELLS[type(cell)],
        "layers": len(decoder.recurrence.cells),
        "hidden_size": cell.hidden_size,
        "vocabulary": list(vocabulary.words),
        "start_token": vocabulary.start,
        "end": vocabulary.end,
        "never": list(vocabulary.never_generated),
        "tensors": tensors,
        "same": same,
        **describe(decoder),
    }


def _show_tell(decoder: ShowTell) -> dict[str, Any]:
    return {"decoder": "show_tell", "image": decoder.enters, "deep": False}


def _show_attend_tell(decoder: ShowAttendTell) -> dict[str, Any]:
    return {"decoder": "show_attend_tell", "image": "attention", "deep": decoder.deep}


_DECODERS: Mapping[type[Any], Callable[[Any], dict[str, Any]]] = {
    ShowTell: _show_tell,
    ShowAttendTell: _show_attend_tell,
}
_OF_IMAGES = ("image.", "standardise.", "positions.")
"""What is computed before the first word, and is not in the page."""


def _tensors(decoder: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
    """The weights that steps need, by name; and names of the same tensor: tied weights."""
    tensors: dict[str, Any] = {}
    same: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, tensor in decoder.state_dict(keep_vars=True).items():
        if name.startswith(_OF_IMAGES):
            continue
        first = names.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = encode_tensor(tensor)
        else:
            same[name] = first
    return tensors, same


def encode_tensor(tensor: Tensor) -> dict[str, Any]:
    """A tensor as base64: 16 bits for each number if that is exact, otherwise 32."""
    values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
    half = values.astype("<f2")
    exact = np.array_equal(half.astype(np.float32), values)
    bits, raw = (16, half.tobytes()) if exact else (32, values.astype("<f4").tobytes())
    encoded = base64.b64encode(raw).decode()
    return {"shape": list(values.shape), "bits": bits, "bytes": encoded}


def _pictures(
    captioners: Sequence[Captioner], photos: Sequence[str | Path]
) -> list[dict[str, Any]]:
    pictures = []
    with progress_bar("encoding images", len(photos)) as advance:
        for photo in photos:
            pictures.append(_picture(captioners, photo))
            advance(1)
    return pictures


def _picture(captioners: Sequence[Captioner], photo: str | Path) -> dict[str, Any]:
    """A photograph, and for each model what its decoder reads of it."""
    inputs = []
    for captioner in captioners:
        [features] = captioner.encode([captioner.prepare(photo)])
        inputs.append(encode_tensor(_read(captioner.model.decoder, features)))
    picture = cropped(captioners[0], photo, side=224)
    return {"name": Path(photo).name, "source": picture.source, "inputs": inputs}


@torch.no_grad()
def _read(decoder: Decoder, features: Features) -> Tensor:
    """X_0 [E], the image vector [W], or the values of the attention [P, H]."""
    if isinstance(decoder, ShowTell):
        return decoder.read_image(features)[0]
    return cast(ShowAttendTell, decoder).values(features)[0]
