"""The steps of a decoder, in which edits change values.

    steps = edited(decoder, [Set("cell.forget_gate", 0.0, step=3)])
    state = steps.start(features)
    logits, state = steps.step(tokens, state, 1)

A value is changed where the decoder observes it (``captioner.models.sites``). Where an edit is a
Swap, the other image reads the same words beside the first one. Its state is part of the state,
under other names, so that a search reorders both together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captioner.decoding.search import IMAGE
from captioner.models.decoders.decoder import Decoder, State, Stepper
from captioner.models.features import Features
from captioner.models.sites import Observe, takes_observer, unobserved
from captioner.tracing.edits import AnyEdit, Swap

Site = tuple[str, int | None]
"""A site and its layer."""

ADDED = "trace."
"""How the names of tensors begin that are not the decoder's own."""

PREVIOUS = {"h": "previous_hidden", "c": "previous_memory"}


class EditedSteps:
    """The ``start`` and ``step`` of a decoder with edits.

    Args:
        stepper: of the decoder.
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
        self.applied: set[int] = set()
        """The numbers of the edits that changed a value."""

    def without(self, site: str) -> EditedSteps:
        """The same steps without the edits of a site."""
        kept = [pair for pair in zip(self.edits, self.swaps) if pair[0].site != site]
        fewer = copy.copy(self)
        fewer.edits, fewer.swaps = tuple(zip(*kept)) if kept else ((), ())
        fewer.applied = set()
        return fewer

    def start(self, features: Features, observe: Observe = unobserved) -> State:
        """Read B images: the state before <start>.

        Args:
            features: B rows.
            observe: is shown every value after the edits.
        """
        others: list[State] = []
        swapped: list[dict[Site, Tensor]] = []
        for other in self.others:
            repeated = other.rows(torch.zeros(len(features.pooled), dtype=torch.long))
            swapped.append({})
            others.append(self.stepper.start(repeated, _keep(swapped[-1])))
        state = self.stepper.start(features, self._changing(0, swapped, observe))
        return {**state, **_joined(others)}

    def step(
        self, tokens: Tensor, state: State, number: int, observe: Observe = unobserved
    ) -> tuple[Tensor, State]:
        """Read one token in each of R rows: the logits [R, V] and the next state.

        Args:
            tokens: [R].
            state: from ``start`` or the step before.
            number: of the step; 1 reads <start>.
            observe: is shown every value after the edits.
        """
        others: list[State] = []
        swapped: list[dict[Site, Tensor]] = []
        for other in range(len(self.others)):
            swapped.append({})
            keep = _keep(swapped[-1])
            own = _before(_of_other(state, other), keep)
            others.append(self.stepper.step(tokens, own, keep)[1])
        own = {name: tensor for name, tensor in state.items() if not _is_added(name)}
        changing = self._changing(number, swapped, observe)
        logits, after = self.stepper.step(tokens, _before(own, changing), changing)
        return logits, {**after, **_joined(others)}

    def _changing(
        self, step: int, swapped: Sequence[dict[Site, Tensor]], observe: Observe
    ) -> Observe:
        """Change a value by the edits that concern it, and show the result."""

        def change(site: str, value: Tensor, layer: int | None = None) -> Tensor:
            for number, edit in enumerate(self.edits):
                if edit.concerns(site, step, layer):
                    swap = self.swaps[number]
                    other = None if swap is None else swapped[swap][site, layer]
                    value = edit.apply(value, other)
                    self.applied.add(number)
            return observe(site, value, layer)

        return change


def edited(decoder: Decoder, edits: Sequence[AnyEdit]) -> EditedSteps:
    """The steps of a decoder with edits.

    Args:
        edits: in a Swap, the other image is given as Features.
    """
    others, swaps = number_swaps(edits)
    return EditedSteps(Stepper(decoder.start, decoder.step), edits, others, swaps)


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


def _observable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A ``start`` or ``step`` with an argument ``observe``, which one of a user may not have."""
    if takes_observer(function):
        return function
    return lambda first, *others: function(first, *others[:-1])


def _keep(values: dict[Site, Tensor]) -> Observe:
    """Observe another image: its values are kept."""

    def keep(site: str, value: Tensor, layer: int | None = None) -> Tensor:
        values[site, layer] = value
        return value

    return keep


def _before(state: State, observe: Observe) -> State:
    """The state that a step reads, observed as ``previous_hidden`` and ``previous_memory``."""
    changed = {}
    for name, tensor in state.items():
        part, letter = recurrent(name)
        if letter in PREVIOUS:
            site = f"{part}.{PREVIOUS[letter]}"
            layers = tensor.unbind(1) if tensor.ndim == 3 else (tensor,)  # [R, H] each
            seen = [observe(site, value, layer) for layer, value in enumerate(layers)]
            if any(one is not value for one, value in zip(seen, layers)):
                changed[name] = torch.stack(seen, dim=1) if tensor.ndim == 3 else seen[0]
    return {**state, **changed}


def recurrent(name: str) -> tuple[str, str]:
    """The part and the letter of a recurrent state: "looking_h" -> ("attention_cell", "h")."""
    if name.startswith("looking_"):
        return "attention_cell", name.removeprefix("looking_")
    return "cell", name


def _is_added(name: str) -> bool:
    return name.removeprefix(IMAGE).startswith(ADDED)


def _joined(states: Sequence[State]) -> State:
    """The states of other images in one, which a search reorders together with the main one."""
    joined = {}
    for number, state in enumerate(states):
        for name, tensor in state.items():
            prefix = IMAGE if name.startswith(IMAGE) else ""
            joined[f"{prefix}{ADDED}{number}.{name.removeprefix(IMAGE)}"] = tensor
    return joined


def _of_other(state: State, number: int) -> State:
    own = {}
    for name, tensor in state.items():
        prefix = IMAGE if name.startswith(IMAGE) else ""
        marker = f"{prefix}{ADDED}{number}."
        if name.startswith(marker):
            own[prefix + name.removeprefix(marker)] = tensor
    return own
