"""Generates captions, or reads given ones, while everything is recorded.

Nothing is computed twice: decoding runs as always (``captioner.generation``), with steppers that
observe (``recording.py``), and the traces are collected afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.decoding.ensemble import combined
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis
from captioner.generation import generate, precision_of
from captioner.models.captioning import CaptioningModel
from captioner.models.decoders.decoder import Stepper
from captioner.models.features import Features
from captioner.tokenizers import Tokenizer
from captioner.tracing.editing import EditedSteps
from captioner.tracing.edits import AnyEdit, check_sites
from captioner.tracing.recording import Path, Recording, unapplied
from captioner.tracing.trace import Array, Trace, split_memory

ALTERNATIVES = 5


@dataclass(frozen=True)
class Traced:
    """What is traced, and how.

    Attributes:
        models: one, or several as an ensemble.
        steppers: of each model.
        tokenizer: of all models.
        options: how captions are chosen.
        edits: changes of values, of each model alike.
        swaps: for each edit, the number of the image that it swaps with; None where it has none.
        others: the features of these images, one row each; a list for each model.
    """

    models: Sequence[CaptioningModel]
    steppers: Sequence[Stepper]
    tokenizer: Tokenizer
    options: DecodingOptions
    edits: Sequence[AnyEdit] = ()
    swaps: Sequence[int | None] = ()
    others: Sequence[Sequence[Features]] = ()

    def recordings(self) -> list[Recording]:
        """A new Recording of each model."""
        others = self.others or [()] * len(self.models)
        return [
            Recording(EditedSteps(stepper, self.edits, of_model, self.swaps))
            for stepper, of_model in zip(self.steppers, others)
        ]


def trace_generation(
    traced: Traced, sources: Sequence[Features], *, key: int | None = None, hypotheses: bool = False
) -> Trace:
    """Caption one image, and trace it.

    Args:
        sources: for each model the features of the image, one row.
        key: of the image, to seed its samples.
        hypotheses: trace the other captions of the search as well.

    Raises:
        ValueError: an edit of a site, layer or unit that the model does not have.
    """
    recordings = traced.recordings()
    [ranked] = generate(
        traced.models,
        sources,
        traced.tokenizer,
        traced.options,
        keys=None if key is None else [key],
        steppers=[recording.wrapped for recording in recordings],
    )
    best, *others = ranked
    return _trace(traced, recordings, best, others=others if hypotheses else ())


@torch.inference_mode()
def trace_reading(traced: Traced, sources: Sequence[Features], tokens: Sequence[int]) -> Trace:
    """Let the models read a given caption (teacher forcing), and trace it.

    Args:
        sources: for each model the features of the image, one row.
        tokens: of the caption, without <start>; with <end> to have its log probability as well.

    Raises:
        ValueError: as ``trace_generation``.
    """
    vocabulary = traced.tokenizer.vocabulary
    recordings = traced.recordings()
    with precision_of(traced.models, traced.options):
        for recording, features in zip(recordings, sources):
            state = recording.wrapped.start(features)
            for token in (vocabulary.start, *tokens[:-1]):
                read = torch.tensor([token], device=features.pooled.device)
                _, state = recording.wrapped.step(read, state)
    log_probs = _log_probs(traced, recordings, (vocabulary.start, *tokens[:-1]))
    own = log_probs[range(len(tokens)), list(tokens)].tolist()
    finished = tokens[-1] == vocabulary.end
    kept = tuple(tokens[:-1] if finished else tokens)
    return _trace(traced, recordings, Hypothesis(kept, tuple(own), sum(own), finished))


def _trace(
    traced: Traced,
    recordings: Sequence[Recording],
    hypothesis: Hypothesis,
    *,
    others: Sequence[Hypothesis] = (),
) -> Trace:
    check_sites(traced.edits, recordings[0].sites())
    words = traced.tokenizer.vocabulary
    emitted = [*hypothesis.tokens, *([words.end] if hypothesis.finished else [])]
    read = (words.start, *emitted[:-1])
    log_probs = _log_probs(traced, recordings, read)  # [T, V]
    sites: dict[str, Array] = {}
    for number, recording in enumerate(recordings, start=1):
        prefix = f"{number}:" if len(recordings) > 1 else ""
        of_model = _arrays(recording.path(0, read), len(read) + 1)
        sites.update({prefix + site: array for site, array in of_model.items()})
    spelled = [words.word(token) for token in hypothesis.tokens]
    first = "X_0" if any(site.endswith("image.x0") for site in sites) else "image"
    return Trace(
        text=traced.tokenizer.join(spelled),
        reads=(first, *(words.word(token) for token in read)),
        words=tuple(words.word(token) for token in emitted),
        log_probs=hypothesis.log_probs,
        end_log_probs=tuple(log_probs[:, words.end].tolist()),
        alternatives=_alternatives(log_probs, traced.tokenizer),
        score=hypothesis.score,
        finished=hypothesis.finished,
        sites=sites,
        model=describe(traced.models[0]),
        decoding=traced.options.as_dict(),
        edits=tuple(edit.as_dict() for edit in traced.edits),
        unapplied=tuple(edit.as_dict() for edit in unapplied(traced.edits, recordings)),
        hypotheses=tuple(_trace(traced, recordings, other) for other in others),
    )


def _log_probs(traced: Traced, recordings: Sequence[Recording], read: Sequence[int]) -> Tensor:
    """The log probabilities after each token that was read, as decoding had them, [T, V]."""
    of_models = [torch.log_softmax(recording.logits(0, read), dim=-1) for recording in recordings]
    if len(of_models) == 1:
        return of_models[0]
    return torch.log_softmax(combined(of_models, traced.options.ensemble), dim=-1)


def _alternatives(
    log_probs: Tensor, tokenizer: Tokenizer
) -> tuple[tuple[tuple[str, float], ...], ...]:
    words = tokenizer.vocabulary
    values, tokens = log_probs.topk(min(ALTERNATIVES, log_probs.shape[1]), dim=1)
    return tuple(
        tuple((words.word(token), value) for token, value in zip(*step))
        for step in zip(tokens.tolist(), values.tolist())
    )


def _arrays(path: Path, steps: int) -> dict[str, Array]:
    """The values of a caption as arrays by site: [steps, ...], or [steps, L, ...]."""
    layers: dict[str, list[Array]] = {}
    for (site, _), by_step in sorted(path.values.items(), key=lambda item: item[0][1] or 0):
        layers.setdefault(site, []).append(_stack(by_step, steps))
    arrays = {
        site: np.stack(parts, axis=1) if (site, None) not in path.values else parts[0]
        for site, parts in layers.items()
    }
    arrays.update(path.image)
    for part in ("cell", "attention_cell"):
        arrays.update(split_memory(arrays, part))
    return arrays


def _stack(by_step: Mapping[int, Array], steps: int) -> Array:
    """One site and layer over the steps; NaN where there is no value, 0 after fewer positions."""
    shape = np.max([value.shape for value in by_step.values()], axis=0)
    array = np.full((steps, *shape), np.nan, dtype=np.float32)
    for step, value in by_step.items():
        missing = [(0, size - own) for size, own in zip(shape, value.shape)]
        array[step] = np.pad(value, missing)
    return array


def describe(model: CaptioningModel) -> dict[str, Any]:
    """The decoder, its cell and its sizes, as plain data."""
    decoder = model.decoder
    described: dict[str, Any] = {"decoder": type(decoder).__name__}
    for name in ("recurrence", "language"):
        if hasattr(decoder, name):
            recurrence = getattr(decoder, name)
            described["cell"] = type(recurrence.first).__name__
            described["layers"] = len(recurrence.cells)
            described["hidden_size"] = recurrence.first.hidden_size
    return described
