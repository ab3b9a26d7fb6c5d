"""What a decoder is: the contract that training, decoding and inspection rely on.

A decoder turns the features of an image and the words so far into logits of the next word. It is an
``nn.Module`` with the methods below; it need not inherit from anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from captioner.models.features import Features
from captioner.models.packing import Packing
from captioner.models.snapshot import Snapshot

State = dict[str, Tensor]
"""What a decoder passes from one step to the next: tensors by name, rows first.

Names that begin with ``image.`` hold what belongs to the B images: one row per image, unchanged by
``step``. All other tensors have one row per hypothesis, R = B * K, the K of an image being
consecutive; searches reorder, repeat and drop these rows by indexing. After ``start``, R is B.
"""


class Stepper(NamedTuple):
    """The ``start`` and ``step`` of a decoder for many calls without gradient (``refreshing``).

    Attributes:
        start: as ``Decoder.start``.
        step: as ``Decoder.step``.
    """

    start: Callable[[Features], State]
    step: Callable[[Tensor, State], tuple[Tensor, State]]


@runtime_checkable
class Decoder(Protocol):
    """What is required of a decoder.

    Its constructor takes keyword-only arguments: ``vocabulary_size`` (V), ``feature_size`` (D) and
    its own options. ``captioner.testing.check_decoder`` tests a class against this contract.
    """

    @property
    def attends(self) -> bool:
        """Whether it has attention weights over the positions of the grid (``Attends``)."""

    @property
    def uses_grid(self) -> bool:
        """Whether it reads ``Features.grid``; otherwise ``Features.pooled`` is sufficient."""

    @property
    def words(self) -> nn.Embedding:
        """The word embedding, [V, E]."""

    @property
    def output(self) -> nn.Module:
        """The layer that computes the logits, [..., V]."""

    def fit(self, features: Features) -> None:
        """Set what is not learned by gradient from features of training images, once."""

    def start(self, features: Features) -> State:
        """The state before <start>, of B images."""

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token per row: tokens [R] -> logits of the next token [R, V], the new state.

        The state that is passed in must not be changed.
        """

    def forward(self, features: Features, inputs: Tensor, packing: Packing | None = None) -> Tensor:
        """Read whole captions (teacher forcing): inputs [B, T] -> logits [B, T, V].

        Equal to ``start`` and T times ``step``. With a packing, the result is for real tokens only:
        ``packing.pack`` of these logits, [N, V].
        """

    def stepper(self) -> Stepper:
        """``start`` and ``step`` for decoding: equal results, without gradient."""

    # What every nn.Module has

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

        They sum to 1 over P; a decoder with a sentinel appends its weight: P + 1.
        """


def refreshing(decoder: nn.Module, make: Callable[[], Stepper]) -> Stepper:
    """A stepper that is made again at ``start`` if weights of the decoder have changed.

    Changes that torch does not count, such as those through ``.data``, numpy or fused optimizers,
    are not noticed: call ``stepper()`` again after these.

    Args:
        decoder: whose parameters and buffers are compared.
        make: makes a stepper from the weights as they are.
    """
    stepper, weights = make(), Snapshot([decoder])

    def start(features: Features) -> State:
        nonlocal stepper, weights
        if not weights.counted([decoder]):
            with torch.no_grad():
                stepper, weights = make(), Snapshot([decoder])
        return stepper.start(features)

    def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        return stepper.step(tokens, state)

    return Stepper(start, step)
