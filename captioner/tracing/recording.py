"""Records what a decoder computes while captions are generated, and applies edits on the way.

A Recording wraps the ``start`` and ``step`` of a model, and does nothing else than observe them
(``captioner.models.sites``): a caption is the same, to the bit, as without. A search reorders,
repeats and drops hypotheses between two steps. The state therefore has one more tensor, the number
of the row at the step before, from which the values of one caption are found afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.decoding.search import IMAGE
from captioner.models.decoders.decoder import State, Stepper
from captioner.models.features import Features
from captioner.models.sites import Observe, takes_observer, unobserved
from captioner.tracing.edits import AnyEdit, Swap

ROW = "trace.row"
"""The name of the additional tensor of a state: each row's number at the step before, [R]."""

Site = tuple[str, int | None]
"""A site and its layer."""

_PREVIOUS = {"h": "previous_hidden", "c": "previous_memory"}
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
        stepper: of the model.
        edits: the changes; those with a Swap need `others`.
        others: for each image that an edit swaps with, by its number in `swaps`, its features, with
            one row.
        swaps: for each edit, the number of the other image; None where it has none.
    """

    def __init__(
        self,
        stepper: Stepper,
        edits: Sequence[AnyEdit] = (),
        others: Sequence[Features] = (),
        swaps: Sequence[int | None] = (),
    ) -> None:
        self.stepper = Stepper(_observable(stepper.start), _observable(stepper.step))
        self.edits, self.others = tuple(edits), tuple(others)
        self.swaps = tuple(swaps) or (None,) * len(self.edits)
        self.steps: list[_Step] = []
        self.image: dict[str, Tensor] = {}
        self.applied: set[int] = set()
        """The numbers of the edits that changed a value."""
        self._swapped: list[dict[Site, Tensor]] = []  # of the other images, at this step

    @property
    def wrapped(self) -> Stepper:
        """The stepper that decoding uses in place of the model's."""
        return Stepper(self._start, self._step)

    # While captions are generated -----------------------------------------------------------------

    def _start(self, features: Features, observe: Observe = unobserved) -> State:
        images = len(features.pooled)
        self.steps = [_Step(None, torch.arange(images))]
        others = []
        self._swapped = [{} for _ in self.others]
        for number, other in enumerate(self.others):
            repeated = other.rows(torch.zeros(images, dtype=torch.long))
            others.append(self.stepper.start(repeated, self._keep(number)))
        state = self.stepper.start(features, self._observe)
        self._record_initial(state)
        state = {**state, **_joined(others)}
        return {**state, ROW: torch.arange(images, device=features.pooled.device)}

    def _step(
        self, tokens: Tensor, state: State, observe: Observe = unobserved
    ) -> tuple[Tensor, State]:
        self.steps.append(_Step(tokens, state[ROW]))
        others = []
        for number in range(len(self.others)):
            self._swapped[number] = {}
            own = self._before(_of_other(state, number), self._keep(number))
            others.append(self.stepper.step(tokens, own, self._keep(number))[1])
        own = {name: tensor for name, tensor in state.items() if not _is_added(name)}
        logits, after = self.stepper.step(tokens, self._before(own, self._observe), self._observe)
        self.steps[-1].values.setdefault(("output.logits", None), logits)
        rows = torch.arange(len(tokens), device=tokens.device)
        return logits, {**after, **_joined(others), ROW: rows}

    def _observe(self, site: str, value: Tensor, layer: int | None = None) -> Tensor:
        """Change a value by the edits that concern it, and record the result."""
        step = len(self.steps) - 1
        for number, edit in enumerate(self.edits):
            if edit.concerns(site, step, layer):
                swap = self.swaps[number]
                other = None if swap is None else self._swapped[swap][site, layer]
                value = edit.apply(value, other)
                self.applied.add(number)
        if site.startswith(IMAGE):
            self.image[site] = value
        else:
            self.steps[-1].values[site, layer] = value
        return value

    def _keep(self, number: int) -> Observe:
        """Observe another image: its values are kept for this step."""

        def keep(site: str, value: Tensor, layer: int | None = None) -> Tensor:
            self._swapped[number][site, layer] = value
            return value

        return keep

    def _before(self, state: State, observe: Observe) -> State:
        """The state that a step reads, observed as ``previous_hidden`` and ``previous_memory``."""
        changed = {}
        for name, tensor in state.items():
            part, letter = _recurrent(name)
            if letter in _PREVIOUS:
                site = f"{part}.{_PREVIOUS[letter]}"
                layers = tensor.unbind(1) if tensor.ndim == 3 else (tensor,)  # [R, H] each
                seen = [observe(site, value, layer) for layer, value in enumerate(layers)]
                if any(one is not value for one, value in zip(seen, layers)):
                    changed[name] = torch.stack(seen, dim=1) if tensor.ndim == 3 else seen[0]
        return {**state, **changed}

    def _record_initial(self, state: State) -> None:
        """Record h and C at step 0 where there is no X_0, and zeros before X_0."""
        values = self.steps[0].values
        for name, tensor in state.items():
            part, letter = _recurrent(name)
            if letter not in _AFTER:
                continue
            for layer, value in enumerate(tensor.unbind(1) if tensor.ndim == 3 else (tensor,)):
                after, before = (f"{part}.{kind[letter]}" for kind in (_AFTER, _PREVIOUS))
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


def _observable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A ``start`` or ``step`` with an argument ``observe``, which one of a user may not have."""
    if takes_observer(function):
        return function
    return lambda first, *others: function(first, *others[:-1])


def _recurrent(name: str) -> tuple[str, str]:
    """The part and the letter of a recurrent state: "looking_h" -> ("attention_cell", "h")."""
    if name.startswith("looking_"):
        return "attention_cell", name.removeprefix("looking_")
    return "cell", name


def _is_added(name: str) -> bool:
    return name == ROW or name.removeprefix(IMAGE).startswith("trace.")


def _joined(states: Sequence[State]) -> State:
    """The states of other images in one, which a search reorders together with the main one."""
    joined = {}
    for number, state in enumerate(states):
        for name, tensor in state.items():
            prefix = IMAGE if name.startswith(IMAGE) else ""
            joined[f"{prefix}trace.{number}.{name.removeprefix(IMAGE)}"] = tensor
    return joined


def _of_other(state: State, number: int) -> State:
    own = {}
    for name, tensor in state.items():
        prefix = IMAGE if name.startswith(IMAGE) else ""
        marker = f"{prefix}trace.{number}."
        if name.startswith(marker):
            own[prefix + name.removeprefix(marker)] = tensor
    return own


def _as_array(value: Tensor) -> np.ndarray:
    return value.detach().float().cpu().numpy().copy()


def number_swaps(edits: Sequence[AnyEdit]) -> tuple[list[Any], list[int | None]]:
    """The distinct images that edits swap with, and for each edit the number of its image."""
    images: list[Any] = []
    numbers: list[int | None] = []
    for edit in edits:
        if not isinstance(edit, Swap):
            numbers.append(None)
            continue
        known = [number for number, image in enumerate(images) if image is edit.from_image]
        if not known and isinstance(edit.from_image, str):
            known = [number for number, image in enumerate(images) if image == edit.from_image]
        numbers.append(known[0] if known else len(images))
        if not known:
            images.append(edit.from_image)
    return images, numbers


def unapplied(edits: Sequence[AnyEdit], recordings: Sequence[Recording]) -> list[AnyEdit]:
    """The edits that changed nothing, because the captions did not reach their steps."""
    applied = set().union(*(recording.applied for recording in recordings))
    return [edit for number, edit in enumerate(edits) if number not in applied]
