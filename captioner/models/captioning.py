"""An encoder and a decoder: from images to the probabilities of words, and to captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from captioner.config import make, pick
from captioner.models.decoders.adaptive import Adaptive
from captioner.models.decoders.show_attend_tell import ShowAttendTell
from captioner.models.decoders.show_tell import ShowTell
from captioner.models.decoders.transformer import Transformer
from captioner.models.decoders.up_down import UpDown
from captioner.models.encoders.encoder import Encoder
from captioner.models.encoders.libraries import build_encoder
from captioner.models.features import Features
from captioner.models.packing import Packing
from captioner.models.recurrence.unroll import CELLS


class CaptioningModel(nn.Module):
    """image -> encoder -> Features -> decoder -> words.

    Cached features enter between the two: nothing downstream knows whether the encoder ran now.

    Args:
        encoder: images [B, 3, S, S] -> Features.
        decoder: has ``start(features)``, ``step(tokens, state)``, ``forward(features, inputs)``,
            ``stepper()``, both for many calls without gradient, ``fit(features)`` for what is not
            learned by gradient, and ``uses_grid``. With a ``Packing`` as its third argument,
            ``forward`` answers real words only: ``packing.pack`` of the logits it would give
            without, [N, V].
            A state is a dict of tensors, rows first. What belongs to A images, under names that
            begin with ``image.``, has a row an image and is what it was after each step; all else
            has a row a hypothesis, R = A * K of them, those of an image side by side, and is
            reordered by indexing. ``step`` reads R tokens; after ``start``, R is A.
            ``attends`` says whether there is ``look(features, inputs, packing)``, which gives the
            logits of ``forward`` and where the decoder looked for each word, [B, T, P] or [N, P].
    """

    def __init__(self, encoder: Encoder, decoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(
        self, source: Tensor | Features, inputs: Tensor, packing: Packing | None = None
    ) -> Tensor:
        """Images [B, 3, S, S] or their Features, and inputs [B, T] -> logits [B, T, V].

        With a packing, logits [N, V] of the real words only.
        """
        return self.decoder(self.encode(source), inputs, packing)

    def encode(self, source: Tensor | Features) -> Features:
        """Features of images [B, 3, S, S]; Features pass unchanged."""
        return source if isinstance(source, Features) else self.encoder(source)


DECODERS: dict[str, type[Any]] = {
    "show_tell": ShowTell,
    "show_attend_tell": ShowAttendTell,
    "up_down": UpDown,
    "adaptive": Adaptive,
    "transformer": Transformer,
}


def build_model(
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    *,
    vocabulary_size: int,
    initialise: bool = True,
) -> CaptioningModel:
    """Build a captioning model from two groups of a configuration.

    Args:
        encoder: the arguments of ``build_encoder``.
        decoder: ``name``, of a decoder in ``DECODERS``, and its arguments.
        vocabulary_size: V.
        initialise: load pretrained encoder weights; False where a checkpoint fills them.

    Raises:
        ValueError: an unknown name, an option the component does not have, a value out of range.
    """
    built = make(build_encoder, "encoder", encoder, initialise=initialise)
    options = dict(decoder)
    component = pick(DECODERS, options.pop("name"), "decoder.name")
    if "cell" in options:
        pick(CELLS, options["cell"], "decoder.cell")
    _check_sizes(options)
    sizes = {"vocabulary_size": vocabulary_size, "feature_size": built.feature_size}
    return CaptioningModel(built, make(component, "decoder", options, **sizes))


_SIZES = (
    *("attention_size", "embedding_size", "feedforward_size", "hidden_size"),
    *("heads", "layers", "max_words"),
)


def _check_sizes(decoder: Mapping[str, Any]) -> None:
    """Raise for a size that no decoder can have; torch's own words for it name no option."""
    for name in _SIZES:
        value = decoder.get(name, 1)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"decoder.{name}={value} is not accepted; choose 1 or more")
    dropout = decoder.get("dropout", 0.0)
    if isinstance(dropout, int | float) and not 0 <= dropout < 1:
        raise ValueError(
            f"decoder.dropout={dropout} is not accepted; choose a number from 0 to below 1"
        )
