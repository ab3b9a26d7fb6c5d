"""The logit lens: the words that a state would give if the output layer read it now.

Nostalgebraist, "Interpreting GPT: the logit lens", 2020, sends the x between two layers of a
Transformer to its output layer. Here each state of a step t takes the place of the h_t (or x_t) of
the last layer, and what follows in the step is computed as always: the projection, a tied
embedding, the context of an attention, the word itself where the output layer reads it.

    h       h_t                             in the last layer, this is the decoder's own prediction
    C       tanh(C_t): h_t if o_t were 1    what C_t holds, whether or not the output gate shows it
    x       x_t after a layer               of a Transformer

With the real o_t the lens of C_t would be that of h_t, which is o_t * tanh(C_t). A cell with
another output (a normalized C_t, or no tanh) is read through its own. Where the h_t of this step is
also the query of the attention (``adaptive``), the context is that of the replaced h_t.

With edits, the states are those of the edited run, and edits of what leads from the state to the
word apply to the reading as well. An edit of h_t does not apply to the reading of C_t.

Step 0, which gives no word, is read by the output layer of step 1. All is computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.api import Captioner
from captioner.config import unknown
from captioner.images import Picture
from captioner.inspection.collecting import initial
from captioner.inspection.patching import features_of, require_one, with_features
from captioner.models.decoders.decoder import Decoder, State
from captioner.models.features import Features
from captioner.models.sites import Observe
from captioner.tracing.editing import EditedSteps, edited
from captioner.tracing.edits import AnyEdit

SITES = {"h": "cell.hidden", "C": "cell.memory", "x": "layer.hidden"}

Values = dict[tuple[str, int], Tensor]
"""The value of each site and layer at one step, [1, H]."""


@dataclass(frozen=True)
class Lens:
    """The words that each state would give.

    Attributes:
        text: the caption that was read.
        reads: what each of the T + 1 steps read: "X_0" (or "image"), "<start>", and the words.
        words: what each step from 1 on gave, T of them.
        log_probs: for each state ("h", "C", "x"; with several layers "h/0", "h/1", ...) those of
            all words at each step, [T + 1, V]; NaN where there is no state.
        vocabulary: the V words.
        unapplied: edits that changed nothing, because the caption does not have their steps.
    """

    text: str
    reads: tuple[str, ...]
    words: tuple[str, ...]
    log_probs: dict[str, np.ndarray]
    vocabulary: tuple[str, ...]
    unapplied: tuple[Mapping[str, Any], ...] = ()

    def top(self, state: str, step: int, count: int = 5) -> list[tuple[str, float]]:
        """The most probable words of a state with their log probabilities, best first.

        Raises:
            ValueError: there is no such state or step.
        """
        if state not in self.log_probs:
            raise unknown("state", state, self.log_probs)
        if not 0 <= step < len(self.reads):
            raise ValueError(f"step={step} does not exist; choose 0 to {len(self.reads) - 1}")
        values = self.log_probs[state][step]
        if np.isnan(values).any():
            return []
        best = np.argsort(-values, kind="stable")[:count]
        return [(self.vocabulary[token], float(values[token])) for token in best]

    def as_dict(self, count: int = 5) -> dict[str, Any]:
        """Return plain data that JSON can hold: the `count` best words of each state and step."""
        tops = {
            state: [self.top(state, step, count) for step in range(len(self.reads))]
            for state in self.log_probs
        }
        return {
            "text": self.text,
            "reads": list(self.reads),
            "words": list(self.words),
            "lens": tops,
        }


def lens(
    captioner: Captioner,
    image: Picture,
    *,
    caption: str | None = None,
    edits: Sequence[AnyEdit] = (),
    **options: Any,
) -> Lens:
    """Send every state of a caption to the output layer.

    Args:
        captioner: one model.
        image: as for ``Captioner.caption``.
        caption: read this caption instead of the one that the model generates.
        edits: changes of values on the way (``captioner.tracing.edits``).
        options: any of DecodingOptions.

    Raises:
        FileNotFoundError, ValueError: as ``Captioner.trace``; or an ensemble.
    """
    require_one(captioner)
    trace = captioner.trace(image, caption=caption, edits=edits, **options)
    words = captioner.tokenizer.vocabulary
    read = [words.start, *map(words.id, trace.words[:-1])]
    decoder = captioner.model.decoder
    weight = next(decoder.parameters())
    changes = with_features(captioner, edits, weight)
    found = state_log_probs(decoder, features_of(captioner, image, weight), read, changes)
    known = tuple(words.words)
    return Lens(trace.text, trace.reads, trace.words, found, known, trace.unapplied)


@torch.inference_mode()
def state_log_probs(
    decoder: Decoder, features: Features, read: Sequence[int], edits: Sequence[AnyEdit] = ()
) -> dict[str, np.ndarray]:
    """What each state would give, after the image and after each token.

    Args:
        decoder: in evaluation mode, with one of SITES.
        features: of the image, one row.
        read: tokens, <start> first, T of them.
        edits: changes of values; in a Swap, the other image is given as Features.

    Returns:
        as ``Lens.log_probs``.

    Raises:
        ValueError: a decoder that shows none of SITES.
    """
    values: list[Values] = [{}]
    steps = edited(decoder, edits)
    state = steps.start(features, _recording(values[0]))
    values[0] = {**initial(state), **values[0]}
    before: list[tuple[Tensor, State]] = []  # of each step: the token, and the state that it reads
    for number, token in enumerate(read, start=1):
        values.append({})
        before.append((torch.tensor([token], device=features.pooled.device), state))
        _, state = steps.step(*before[-1], number, _recording(values[-1]))
    places = _places(decoder, values[-1])
    last = max(layer for _, layer in places)
    size = len(_read(steps, before, 1, {}, last))
    found = {name: np.full((len(values), size), np.nan, np.float32) for name in _names(places)}
    for (site, layer), rows in zip(places, found.values()):
        for step, of_step in enumerate(values):
            if (site, layer) in of_step:
                replaced = {site: of_step[site, layer]}
                rows[step] = _read(steps, before, max(step, 1), replaced, last).cpu().numpy()
    return found


def _places(decoder: Decoder, values: Values) -> list[tuple[str, int]]:
    """The sites and layers of a step, in the order of SITES."""
    order = list(SITES.values())
    if not values:
        raise ValueError(f"{type(decoder).__name__} has no h, C or x that a lens could read")
    return sorted(values, key=lambda place: (order.index(place[0]), place[1]))


def _recording(values: Values) -> Observe:
    def observe(site: str, value: Tensor, layer: int | None = None) -> Tensor:
        if site in SITES.values():
            values[site, layer or 0] = value
        return value

    return observe


def _names(places: Sequence[tuple[str, int]]) -> list[str]:
    """The names of states: "h" and "C", or "h/0", "h/1" and so on with several layers."""
    letters = {site: letter for letter, site in SITES.items()}
    several = any(layer for _, layer in places)
    return [f"{letters[site]}/{layer}" if several else letters[site] for site, layer in places]


def _read(
    steps: EditedSteps,
    before: Sequence[tuple[Tensor, State]],
    number: int,
    replaced: dict[str, Tensor],
    last: int,
) -> Tensor:
    """The log probabilities of a step in which values of the last layer are replaced, [V]."""

    def observe(site: str, value: Tensor, layer: int | None = None) -> Tensor:
        if (layer or 0) != last:
            return value
        if site == "cell.output_gate" and SITES["C"] in replaced:
            return torch.ones_like(value)
        return replaced.get(site, value)

    if SITES["C"] in replaced:
        steps = steps.without("cell.hidden")
    logits, _ = steps.step(*before[number - 1], number, observe)
    return torch.log_softmax(logits[0].to(torch.promote_types(logits.dtype, torch.float32)), dim=0)
