"""The interface of a decoder, on which training, decoding and inspection rely.

A decoder computes the logits of the next token from the features of an image and the tokens so far.
It is an ``nn.Module`` with the methods below and needs no other base class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from captioner.models.features import Features
from captioner.models.packing import Packing
from captioner.models.sites import Observe, unobserved
from captioner.models.snapshot import Snapshot

State = dict[str, Tensor]
"""The tensors that a decoder passes from one step to the next, by name, rows first.

Tensors whose name begins with ``image.`` have one row per image (B); ``step`` does not change them.
All other tensors have one row per hypothesis, R = B * K; the K rows of an image are consecutive.
Searches reorder, repeat and drop these rows by indexing. After ``start``, R is B.
"""


class Start(Protocol):
    """``Decoder.start`` as a function."""

    def __call__(self, features: Features, observe: Observe = unobserved) -> State: ...


class Step(Protocol):
    """``Decoder.step`` as a function."""

    def __call__(
        self, tokens: Tensor, state: State, observe: Observe = unobserved
    ) -> tuple[Tensor, State]: ...


class Stepper(NamedTuple):
    """The ``start`` and ``step`` of a decoder for many calls without gradient (``refreshing``).

    Attributes:
        start: as ``Decoder.start``.
        step: as ``Decoder.step``.
    """

    start: Start
    step: Step


@runtime_checkable
class Decoder(Protocol):
    """The members that every decoder has.

    Its constructor takes keyword-only arguments: ``vocabulary_size`` (V), ``feature_size`` (D) and
    its own options. ``captioner.testing.check_decoder`` tests a class against this contract.
    """

    @property
    def attends(self) -> bool:
        """Whether the decoder has attention weights over positions of the grid (``Attends``)."""

    @property
    def uses_grid(self) -> bool:
        """Whether the decoder reads ``Features.grid``; otherwise it needs only ``pooled``."""

    @property
    def words(self) -> nn.Embedding:
        """The word embedding, [V, E]."""

    @property
    def output(self) -> nn.Module:
        """The layer that computes the logits, [..., V]."""

    def fit(self, features: Features) -> None:
        """Compute statistics of the features of training images, once, before training."""

    def start(self, features: Features, observe: Observe = unobserved) -> State:
        """The state of B images before <start>.

        Args:
            observe: is called with the values of the sites that it computes (``sites.py``); what it
                returns is used instead.
        """

    def step(
        self, tokens: Tensor, state: State, observe: Observe = unobserved
    ) -> tuple[Tensor, State]:
        """Read one token per row: tokens [R] -> logits of the next token [R, V], the new state.

        The state that is passed in must not be changed.

        Args:
            observe: as in ``start``.
        """

    def forward(self, features: Features, inputs: Tensor, packing: Packing | None = None) -> Tensor:
        """Read whole captions (teacher forcing): inputs [B, T] -> logits [B, T, V].

        Equal to ``start`` and T times ``step``. With a packing, the result has the logits of real
        tokens only: ``packing.pack`` of these logits, [N, V].
        """

    def stepper(self) -> Stepper:
        """``start`` and ``step`` for decoding: equal results, without gradient."""

    # Members of nn.Module

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def buffers(self, recurse: bool = True) -> Iterator[Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def train(self, mode: bool = True) -> Decoder: ...


class Attends(Decoder, Protocol):
    """A decoder whose ``attends`` is true."""

    def attend(
        self, features: Features, inputs: Tensor, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the attention weights of each token: [B, T, P] or [N, P].

        The weights sum to 1; a decoder with a sentinel appends the weight of the sentinel: P + 1.
        """


def refreshing(decoder: nn.Module, make: Callable[[], Stepper]) -> Stepper:
    """A stepper that ``start`` creates again if weights of the decoder have changed.

    It does not detect changes that torch does not count, such as those through ``.data``, numpy or
    fused optimizers: call ``stepper()`` again after such a change.

    Args:
        decoder: the module whose parameters and buffers are compared.
        make: creates a stepper from the current weights.
    """
    stepper, weights = make(), Snapshot([decoder])

    def start(features: Features, observe: Observe = unobserved) -> State:
        nonlocal stepper, weights
        if not weights.counted([decoder]):
            with torch.no_grad():
                stepper, weights = make(), Snapshot([decoder])
        return stepper.start(features, observe)

    def step(tokens: Tensor, state: State, observe: Observe = unobserved) -> tuple[Tensor, State]:
        return stepper.step(tokens, state, observe)

    return Stepper(start, step)
