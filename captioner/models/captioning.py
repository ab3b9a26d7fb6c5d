"""The captioning model: an encoder and a decoder, built from a configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captioner.config import make, pick
from captioner.limits import ELEMENTS
from captioner.models.decoders.decoder import Attends, Decoder
from captioner.models.decoders.table import DECODERS
from captioner.models.encoders.encoder import Encoder
from captioner.models.encoders.libraries import build_encoder
from captioner.models.features import Features
from captioner.models.packing import Packing
from captioner.models.recurrence.cells import Cell
from captioner.models.recurrence.table import CELLS
from captioner.parts import require_interface


class CaptioningModel(nn.Module):
    """image -> encoder -> Features -> decoder -> logits of the next word.

    Cached features enter between the two: the decoder does not depend on when they were computed.

    Args:
        encoder: images [B, 3, S, S] -> Features.
        decoder: a module with the methods of ``Decoder``.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(
        self, source: Tensor | Features, inputs: Tensor, packing: Packing | None = None
    ) -> Tensor:
        """Images [B, 3, S, S] or their Features, and inputs [B, T] -> logits [B, T, V].

        With a packing, logits [N, V] of the real tokens only.
        """
        return self.decoder(self.encode(source), inputs, packing)

    def attend(
        self, source: Tensor | Features, inputs: Tensor, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the attention weights of each token, [B, T, P] or [N, P].

        Raises:
            ValueError: the decoder has no attention.
        """
        if not self.decoder.attends:
            name = type(self.decoder).__name__
            raise ValueError(f"{name} has no attention weights; choose a decoder that attends")
        return cast(Attends, self.decoder).attend(self.encode(source), inputs, packing)

    def encode(self, source: Tensor | Features) -> Features:
        """Features of images [B, 3, S, S]; Features pass unchanged."""
        return source if isinstance(source, Features) else self.encoder(source)


def build_model(
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    *,
    vocabulary_size: int,
    initialise: bool = True,
    elements: int = ELEMENTS,
) -> CaptioningModel:
    """Build a captioning model from two groups of a configuration.

    Args:
        encoder: the arguments of ``build_encoder``.
        decoder: ``name``, of a decoder in ``DECODERS``, and its arguments.
        vocabulary_size: V.
        initialise: load pretrained encoder weights; False if a checkpoint replaces them.
        elements: the maximum number of elements of the decoder's weights.

    Raises:
        ValueError: an unknown name, an option the component does not have, a value out of range, or
            a decoder with more elements.
    """
    built = make(build_encoder, "encoder", encoder, initialise=initialise)
    sizes = {"vocabulary_size": vocabulary_size, "feature_size": built.feature_size}
    return CaptioningModel(built, build_decoder(decoder, **sizes, elements=elements))


def build_decoder(
    decoder: Mapping[str, Any],
    *,
    vocabulary_size: int,
    feature_size: int,
    elements: int = ELEMENTS,
) -> Decoder:
    """Build a decoder with random weights; see ``build_model``.

    Args:
        feature_size: D of its encoder.
    """
    options = dict(decoder)
    name = options.pop("name", None)
    component = pick(DECODERS, name, "decoder.name", Decoder)
    if "cell" in options:
        pick(CELLS, options["cell"], "decoder.cell", Cell)
    _check_sizes(options)
    sizes = {"vocabulary_size": vocabulary_size, "feature_size": feature_size}
    with _Bounded(options, elements):
        made = make(component, "decoder", options, **sizes)
    require_interface(made, Decoder, f"decoder.name={name}")
    return made


class Undrawn(TorchFunctionMode):
    """A context in which models are built without drawing their weights, to be loaded afterwards.

    Those of a large vocabulary would take 50 ms.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__.endswith(("uniform_", "normal_", "orthogonal_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.arange)
_SPARE = 2**22
"""Elements that constructors use for buffers and on the way, in addition to the weights."""


class _Bounded(TorchFunctionMode):
    """Refuses tensors that are larger than all weights together, before memory is allocated.

    Args:
        options: of the decoder, for the error.
        elements: of its weights.
    """

    def __init__(self, options: Mapping[str, Any], elements: int) -> None:
        super().__init__()
        self.options, self.most = options, elements
        self.left = 2 * elements + _SPARE  # constructors make some tensors twice

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _FACTORIES:
            size = (kwargs or {}).get("size", args)
            size = size[0] if size and isinstance(size[0], (tuple, list)) else size
            self.left -= math.prod(n for n in size if isinstance(n, int))
            if self.left < 0:
                sizes = {n: v for n, v in self.options.items() if type(v) is int}
                given = ", ".join(f"decoder.{name}={value}" for name, value in sizes.items())
                raise ValueError(
                    f"{given} need more than the {self.most:,} weights that there are or may be; "
                    "choose smaller sizes"
                )
        return func(*args, **(kwargs or {}))


_SIZES = (
    *("attention_size", "embedding_size", "feedforward_size", "hidden_size"),
    *("heads", "layers", "max_words"),
)
_MOST_LAYERS = 1000  # building a billion modules would take days before the memory is exhausted


def _check_sizes(decoder: Mapping[str, Any]) -> None:
    """Raise for a size that no decoder can have; torch's own error names no option."""
    for name in _SIZES:
        value = decoder.get(name, 1)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"decoder.{name}={value} is not accepted; choose 1 or more")
    layers = decoder.get("layers", 1)
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise ValueError(f"decoder.layers={layers} is not accepted; choose {_MOST_LAYERS} or less")
    dropout = decoder.get("dropout", 0.0)
    if isinstance(dropout, int | float) and not 0 <= dropout < 1:
        raise ValueError(
            f"decoder.dropout={dropout} is not accepted; choose a number from 0 to below 1"
        )
