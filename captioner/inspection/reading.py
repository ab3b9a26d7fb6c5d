"""One word of a caption as a function of all that was read before it.

    f(a, y) = log p(word | a_1 .. a_P, y_1 .. y_T)

a are the positions of the image's grid, y the vectors of the words before, <start> first. f may
also be the logit of the word, or the difference of two words' logits ("dog rather than cat"), which
is the difference of their log probabilities. A decoder that reads only the pooled feature is a
function of the grid if this feature is the mean of the grid.

What is absent is replaced by a baseline: a position by the mean image of the decoder's training
images (``patching.mean_features``), a word by the mean of all word vectors, or by 0.

All is computed in float64, by the steps of the decoder as they are. With edits, f is the score in
the edited run: every evaluation and every gradient of f applies them, and so does the baseline. A
value that an edit has set is a constant: nothing reaches the word through it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from captioner.config import unknown
from captioner.inspection.patching import mean_features
from captioner.models.decoders.decoder import Decoder, State
from captioner.models.features import Features
from captioner.tracing.editing import edited
from captioner.tracing.edits import Add, AnyEdit, Edit

SCORES = ("log_prob", "logit")
WORD_BASELINES = ("mean", "zero")
ROWS = 128
"""Variants of the inputs that are read together."""
_POOLED = 0.02  # relative distance to the mean of the grid: bfloat16 rounds by up to 0.004


class Inputs(NamedTuple):
    """What f depends on, for R variants.

    Args:
        grid: [R, P, D].
        words: the vectors of <start> and the words before, [R, T, E].
    """

    grid: Tensor
    words: Tensor


class Rule:
    """How the decoder is read; this one changes nothing (``relevance.py`` has another)."""

    def require(self, edits: Sequence[AnyEdit]) -> None:
        """Raise a ValueError for edits with which the decoder cannot be read in this way."""

    def begin(self, state: State) -> State:
        """Is given the state before <start>, and returns the state that is used."""
        return state

    def observe(self, site: str, value: Tensor, layer: int | None = None) -> Tensor:
        """As ``captioner.models.sites.Observe``."""
        return value


PLAIN = Rule()


@dataclass(frozen=True)
class Reading:
    """f for one word.

    Args:
        decoder: a result of ``in_float64``.
        features: of the image, one row with a grid.
        before: tokens that were read, <start> first.
        word: the token whose score is f.
        rather_than: f is the difference to the logit of this token; None: no difference.
        score: one of SCORES; without effect on differences.
        word_baseline: one of WORD_BASELINES.
        edits: changes of values; in a Swap, the other image is given as Features in float64.

    Raises:
        ValueError: an unknown name, features without a grid, or a pooled feature that is not the
            mean of the grid if the decoder reads only that; an edit that replaces f, or all that is
            read of the image.
    """

    decoder: Decoder
    features: Features
    before: Sequence[int]
    word: int
    rather_than: int | None = None
    score: str = "log_prob"
    word_baseline: str = "mean"
    edits: Sequence[AnyEdit] = ()

    def __post_init__(self) -> None:
        for name, choices in (("score", SCORES), ("word_baseline", WORD_BASELINES)):
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        if self.features.grid is None:
            raise ValueError("these features have no grid, so nothing can be attributed to it")
        if not self.decoder.uses_grid:
            self._require_mean(self.features.pooled, self.features.grid.mean(1))
        for edit in self.edits:
            self._require_effect(edit)

    def _require_mean(self, pooled: Tensor, mean: Tensor) -> None:
        distance = float((pooled - mean).norm() / pooled.norm().clamp_min(1e-12))
        if distance > _POOLED:
            raise ValueError(
                f"{type(self.decoder).__name__} reads only the pooled feature, and that of this "
                f"encoder is not the mean of its grid (relative distance {distance:.2f}), so its "
                "positions have no contributions; choose an encoder whose pooled feature is the "
                "mean (EfficientNet-Lite, ResNet), or a decoder that reads the grid"
            )

    def _require_effect(self, edit: AnyEdit) -> None:
        """Raise if an edit replaces what is attributed, or what it is attributed to."""
        if not isinstance(edit, Edit) or isinstance(edit, Add):
            return
        if edit.site.startswith("image.") and edit.units is None:
            raise ValueError(
                f"the edit of {edit.site} replaces all that is read of the image, so nothing of it "
                "can be attributed; edit single units, or a value that is computed later"
            )
        units = (edit.units,) if isinstance(edit.units, int) else edit.units
        scored = {self.word, self.rather_than}
        if edit.concerns("output.logits", len(self.before), None) and (
            units is None or scored.intersection(units)
        ):
            raise ValueError(
                f"the edit of output.logits replaces what is attributed, the score of word "
                f"{len(self.before)}; edit a value that is computed earlier, or attribute another "
                "word"
            )

    def by(self, decoder: Decoder) -> Reading:
        """The same question to another decoder."""
        return replace(self, decoder=decoder)

    @cached_property
    def inputs(self) -> Inputs:
        """x: what was read, one row."""
        grid = self.features.grid
        assert grid is not None
        weight = self.decoder.words.weight.detach()
        return Inputs(grid.to(weight), weight[list(self.before)].unsqueeze(0))

    @cached_property
    def baseline(self) -> Inputs:
        """b: the mean image, and mean or zero word vectors, one row."""
        _, grid = mean_features(self.decoder, self.features)
        assert grid is not None
        words = self.inputs.words
        mean = self.decoder.words.weight.detach().mean(0).expand_as(words)
        absent = mean if self.word_baseline == "mean" else torch.zeros_like(words)
        return Inputs(grid.to(words), absent)

    def values(self, inputs: Inputs) -> Tensor:
        """f of R variants, without gradient: [R]."""
        parts = zip(inputs.grid.split(ROWS), inputs.words.split(ROWS))
        with torch.no_grad():
            return torch.cat([self.compute(Inputs(*part)) for part in parts])

    def gradients(self, inputs: Inputs, rule: Rule = PLAIN) -> Inputs:
        """df/dx for each of R variants."""
        rule.require(self.edits)
        parts = []
        for part in zip(inputs.grid.split(ROWS), inputs.words.split(ROWS)):
            leaves = Inputs(*(tensor.detach().requires_grad_(True) for tensor in part))
            with torch.enable_grad():
                total = self.compute(leaves, rule).sum()
            found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
            parts.append(found)
        grids, words = zip(*parts)
        return Inputs(torch.cat(grids), torch.cat(words))

    def compute(self, inputs: Inputs, rule: Rule = PLAIN) -> Tensor:
        """f of R variants: [R]."""
        grid, words = inputs
        pooled = grid.mean(1)
        if not self.decoder.uses_grid:  # exactly that of the encoder, where nothing is replaced
            own = self.inputs.grid.detach().mean(1)
            pooled = self.features.pooled.to(own) + pooled - own  # [R, D]
        rows, steps = words.shape[:2]
        tokens = torch.arange(rows * steps, device=words.device).view(rows, steps)
        logits = functional_call(
            _Steps(self.decoder),
            {"decoder.words.weight": words.flatten(0, 1)},
            (Features(pooled, grid), tokens, rule, self.edits),
            tie_weights=False,
        )  # [R, V]
        if self.rather_than is not None:
            return logits[:, self.word] - logits[:, self.rather_than]
        scores = logits if self.score == "logit" else torch.log_softmax(logits, dim=1)
        return scores[:, self.word]


class _Steps(nn.Module):
    """The steps of a decoder: features of R images, tokens [R, T] -> the last logits [R, V]."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, features: Features, tokens: Tensor, rule: Rule, edits: Sequence[AnyEdit]
    ) -> Tensor:
        steps = edited(self.decoder, edits)
        state = rule.begin(steps.start(features, rule.observe))
        for number, step in enumerate(tokens.T, start=1):
            logits, state = steps.step(step, state, number, rule.observe)
        return logits


def in_float64(decoder: Decoder) -> Decoder:
    """A copy in float64 that evaluates, without gradients of weights (of MPS, on the CPU)."""
    copied: Any = copy.deepcopy(decoder)
    if next(copied.parameters()).device.type == "mps":
        copied = copied.cpu()
    return copied.double().eval().requires_grad_(False)


def randomized(decoder: Decoder, seed: int) -> Decoder:
    """A copy that has learned nothing: the values of each parameter in a random order.

    Their distribution is that of the trained weights, so that the scale of activations remains.
    """
    copied: Any = copy.deepcopy(decoder)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copied.parameters():
            order = torch.randperm(parameter.numel(), generator=source).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return copied
