"""Collects a table of states: a model reads the captions of a split, and its units are recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.api import Captioner
from captioner.checkpoints.places import data_name
from captioner.config import Config, make
from captioner.data.batches import pad
from captioner.data.read import read_records
from captioner.data.records import Record
from captioner.evaluation.evaluate import cached_features, over_records
from captioner.inspection.patching import require_one
from captioner.inspection.states import SITES, StateTable
from captioner.models.decoders.decoder import Decoder, State
from captioner.models.features import Features
from captioner.progress import progress_bar
from captioner.tokenizers import Tokenizer
from captioner.tracing.tracing import describe

Values = dict[tuple[str, int], Tensor]
"""The value of each site and layer at one step, [R, H]."""

_INITIAL = {"h": "cell.hidden", "c": "cell.memory"}


def collect(
    captioner: Captioner,
    *,
    data: Config,
    loader: Config,
    split: str = "dev",
    references: int = 1,
    limit: int | None = None,
    sites: Sequence[str] = SITES,
    progress: bool = True,
    **decoding: Any,
) -> StateTable:
    """Let a model read the captions of a split, and record its units, in float32.

    Args:
        captioner: one model, with a recurrent cell or a Transformer as decoder.
        data: the arguments of ``read_records``.
        loader: the loader options, of which cache and cache_folder are used.
        split: "train", "dev" or "test".
        references: how many captions of each image it reads, from the first on; 0: the caption that
            it generates itself.
        limit: the number of images; None: all.
        sites: which to record, of SITES; those that the model does not have are left out.
        progress: show a progress bar if the output is a terminal.
        decoding: options of DecodingOptions, for generated captions.

    Raises:
        ValueError: an ensemble, an option or split that does not exist, a value out of range, a
            model that has none of the sites, or images without captions.
        FileNotFoundError: the configured data do not exist.
    """
    require_one(captioner)
    for name, value, least in (("references", references, 0), ("limit", limit, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} is not accepted; choose {least} or more")
    records = make(read_records, "data", data).split(split)[:limit]
    cached = cached_features(captioner, records, loader)
    parts: list[StateTable] = []
    done = 0
    with progress_bar("reading", len(records), wanted=progress) as advance:
        for features, keys in over_records(captioner, records, cached, lambda *batch: batch):
            batch = records[done : done + len(keys)]
            texts = [_references(captioner, record, references) for record in batch]
            if not references:
                texts = _generated(captioner, features, keys, decoding)
            parts.append(_table(captioner, features[0], batch, texts, sites))
            done += len(keys)
            advance(len(keys))
    about = {"data": data_name(data), "split": split, "references": references}
    return _joined(parts, describe(captioner.model), about)


def _references(captioner: Captioner, record: Record, count: int) -> list[list[int]]:
    """The token ids of the first captions of an image."""
    return [captioner.tokenizer.encode(text) for text in record.captions[:count]]


def _generated(
    captioner: Captioner, features: list[Features], keys: list[int], decoding: Any
) -> list[list[list[int]]]:
    """The token ids of the caption that the model generates for each image."""
    captions = captioner.caption_features(features, keys=keys, **decoding)
    number = captioner.tokenizer.vocabulary.id
    return [[[number(word) for word in caption.words]] for caption in captions]


def _table(
    captioner: Captioner,
    features: Features,
    records: Sequence[Record],
    captions: Sequence[Sequence[Sequence[int]]],
    sites: Sequence[str],
) -> StateTable:
    """The table of one batch: token ids of each caption of each image."""
    images = [row for row, of_image in enumerate(captions) for _ in of_image]
    tokens = [caption for of_image in captions for caption in of_image]
    if not tokens:
        return StateTable((), (), {})
    inputs, _ = pad(tokens, captioner.tokenizer)
    rows = features.rows(torch.tensor(images)).to(captioner.device)
    first, values = read_states(
        captioner.model.decoder, rows, inputs.to(captioner.device), sites
    )  # [R, T + 1, L, H] each
    lengths = [len(caption) + 2 for caption in tokens]
    real = np.arange(inputs.shape[1] + 1) < np.array(lengths)[:, None]  # [R, T + 1]
    return StateTable(
        tuple(records[row].image_id for row in images),
        tuple(_reads(first, caption, captioner.tokenizer) for caption in tokens),
        {site: array[real] for site, array in values.items()},  # [N, L, H]
    )


def _reads(first: str, tokens: Sequence[int], tokenizer: Tokenizer) -> tuple[str, ...]:
    words = tokenizer.vocabulary
    return (first, *(words.word(token) for token in (words.start, *tokens)))


def _joined(parts: Sequence[StateTable], model: Any, data: Any) -> StateTable:
    filled = [part for part in parts if len(part)]
    if not filled:
        raise ValueError("these images have no captions to read; choose references=0")
    return StateTable(
        tuple(image for part in filled for image in part.images),
        tuple(reads for part in filled for reads in part.reads),
        {site: np.concatenate([part.sites[site] for part in filled]) for site in filled[0].sites},
        model,
        data,
    )


@torch.inference_mode()
def read_states(
    decoder: Decoder, features: Features, inputs: Tensor, sites: Sequence[str] = SITES
) -> tuple[str, dict[str, np.ndarray]]:
    """Let a decoder read captions, and return the values of its units after each step.

    Args:
        decoder: in evaluation mode.
        features: of each caption's image, R rows.
        inputs: <start> and the tokens, padded: [R, T].
        sites: which to record; those that the decoder does not have are left out.

    Returns:
        what step 0 reads, "X_0" or "image"; and the arrays, [R, T + 1, L, H] in float32, NaN where
        a step has no value.

    Raises:
        ValueError: the decoder has none of the sites.
    """
    steps: list[Values] = [{}]
    names: set[str] = set()

    def observe(site: str, value: Tensor, layer: int | None = None) -> Tensor:
        names.add(site)
        if site in sites:
            steps[-1][site, layer or 0] = value
        return value

    state = decoder.start(features, observe)
    before = {place: value for place, value in initial(state).items() if place[0] in sites}
    steps[0] = {**before, **steps[0]}
    for tokens in inputs.T:
        steps.append({})
        _, state = decoder.step(tokens, state, observe)
    known = [site for site in sites if (site, 0) in steps[-1]]
    if not known:
        raise ValueError(f"{type(decoder).__name__} has none of the sites {', '.join(sites)}")
    return ("X_0" if "image.x0" in names else "image"), {
        site: _stack(steps, site) for site in known
    }


def initial(state: State) -> Values:
    """h and C of each layer in the state before <start>; nothing without a recurrence."""
    return {
        (site, layer): value
        for name, site in _INITIAL.items()
        if name in state and state[name].ndim == 3
        for layer, value in enumerate(state[name].unbind(1))  # [R, H] each
    }


def _stack(steps: Sequence[Values], site: str) -> np.ndarray:
    """A site at all steps and layers: [R, T + 1, L, H]."""
    layers = sorted(layer for name, layer in steps[-1] if name == site)
    arrays = [
        torch.stack([of_step.get((site, layer), _absent(steps, site)) for of_step in steps], dim=1)
        for layer in layers
    ]  # [R, T + 1, H] each
    return torch.stack(arrays, dim=2).float().cpu().numpy()


def _absent(steps: Sequence[Values], site: str) -> Tensor:
    return torch.full_like(steps[-1][site, 0], float("nan"))
