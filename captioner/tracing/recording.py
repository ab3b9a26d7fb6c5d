"""Records what a decoder computes while captions are generated, with edits on the way.

A Recording wraps the ``start`` and ``step`` of a model (``editing.py``). Without edits it does
nothing else than observe them: a caption is the same, to the bit, as without. A search reorders,
repeats and drops hypotheses between two steps. The state therefore has one more tensor, the number
of the row at the step before, from which the values of one caption are found afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from captioner.decoding.search import IMAGE
from captioner.models.decoders.decoder import State, Stepper
from captioner.models.features import Features
from captioner.models.sites import Observe, unobserved
from captioner.tracing.editing import ADDED, PREVIOUS, EditedSteps, Site, recurrent
from captioner.tracing.edits import AnyEdit

ROW = f"{ADDED}row"
"""The name of the additional tensor of a state: each row's number at the step before, [R]."""

_AFTER = {"h": "hidden", "c": "memory"}


@dataclass
class _Step:
    """What was observed in one step, of all rows.

    Attributes:
        tokens: that were read, [R]; None at step 0.
        parents: the row at the step before, [R].
        values: of each site and layer, [R, ...].
    """

    tokens: Tensor | None
    parents: Tensor
    values: dict[Site, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Path:
    """The values of one caption.

    Attributes:
        values: of each site and layer at each step, step -> [...].
        image: of each site of the image, [...].
    """

    values: dict[Site, dict[int, np.ndarray]]
    image: dict[str, np.ndarray]


class Recording:
    """Observes one model while it generates captions of B images.

    Args:
        edited: the steps of the model, with edits or none.
    """

    def __init__(self, edited: EditedSteps) -> None:
        self.edited = edited
        self.steps: list[_Step] = []
        self.image: dict[str, Tensor] = {}

    @property
    def wrapped(self) -> Stepper:
        """The stepper that decoding uses in place of the model's."""
        return Stepper(self._start, self._step)

    # While captions are generated -----------------------------------------------------------------

    def _start(self, features: Features, observe: Observe = unobserved) -> State:
        images = len(features.pooled)
        self.steps = [_Step(None, torch.arange(images))]
        state = self.edited.start(features, self._record)
        self._record_initial(state)
        return {**state, ROW: torch.arange(images, device=features.pooled.device)}

    def _step(
        self, tokens: Tensor, state: State, observe: Observe = unobserved
    ) -> tuple[Tensor, State]:
        number = len(self.steps)
        self.steps.append(_Step(tokens, state[ROW]))
        logits, after = self.edited.step(tokens, state, number, self._record)
        self.steps[-1].values.setdefault(("output.logits", None), logits)
        return logits, {**after, ROW: torch.arange(len(tokens), device=tokens.device)}

    def _record(self, site: str, value: Tensor, layer: int | None = None) -> Tensor:
        if site.startswith(IMAGE):
            self.image[site] = value
        else:
            self.steps[-1].values[site, layer] = value
        return value

    def _record_initial(self, state: State) -> None:
        """Record h and C at step 0 where there is no X_0, and zeros before X_0."""
        values = self.steps[0].values
        for name, tensor in state.items():
            part, letter = recurrent(name)
            if letter not in _AFTER:
                continue
            for layer, value in enumerate(tensor.unbind(1) if tensor.ndim == 3 else (tensor,)):
                after, before = (f"{part}.{kind[letter]}" for kind in (_AFTER, PREVIOUS))
                if (after, layer) in values:
                    values[before, layer] = torch.zeros_like(value)
                values.setdefault((after, layer), value)

    # Afterwards -----------------------------------------------------------------------------------

    def sites(self) -> dict[str, int]:
        """The sites that were observed, and how many layers each has; 0 for none."""
        layers = dict.fromkeys(self.image, 0)
        for step in self.steps:
            for site, layer in step.values:
                layers[site] = max(layers.get(site, 0), 0 if layer is None else layer + 1)
        return layers

    def path(self, image: int, tokens: Sequence[int]) -> Path:
        """The values of the caption of an image.

        Args:
            image: its number in the batch.
            tokens: that the model read, <start> first.

        Raises:
            LookupError: no hypothesis read these tokens.
        """
        rows = self._rows(image, tokens)
        values: dict[Site, dict[int, np.ndarray]] = {}
        for number, (step, row) in enumerate(zip(self.steps, rows)):
            for site, value in step.values.items():
                values.setdefault(site, {})[number] = _as_array(value[row])
        return Path(values, {site: _as_array(value[image]) for site, value in self.image.items()})

    def _rows(self, image: int, tokens: Sequence[int]) -> list[int]:
        """The row of the caption at each step, the image's own at step 0."""
        parents = [step.parents.cpu().numpy() for step in self.steps]
        candidates = np.arange(len(parents[0])) == image  # which rows have read the tokens so far
        for number, token in enumerate(tokens, start=1):
            if number >= len(self.steps):
                raise LookupError(f"no hypothesis of image {image} read {list(tokens)}")
            read = self.steps[number].tokens
            assert read is not None
            candidates = candidates[parents[number]] & (read.cpu().numpy() == token)
        if not candidates.any():
            raise LookupError(f"no hypothesis of image {image} read {list(tokens)}")
        row = int(candidates.argmax())
        rows = [row]
        for number in range(len(tokens), 0, -1):
            row = int(parents[number][row])
            rows.append(row)
        return rows[::-1]

    def logits(self, image: int, tokens: Sequence[int]) -> Tensor:
        """The logits after each token that was read, [T, V] in float32."""
        rows = self._rows(image, tokens)
        steps = zip(self.steps[1:], rows[1:])
        return torch.stack([step.values["output.logits", None][row].float() for step, row in steps])


def _as_array(value: Tensor) -> np.ndarray:
    return value.detach().float().cpu().numpy().copy()


def unapplied(edits: Sequence[AnyEdit], recordings: Sequence[Recording]) -> list[AnyEdit]:
    """The edits that changed nothing, because the captions did not reach their steps."""
    applied = set().union(*(recording.edited.applied for recording in recordings))
    return [edit for number, edit in enumerate(edits) if number not in applied]
