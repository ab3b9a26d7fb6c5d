"""An encoder and a decoder: from images to the probabilities of words, and to captions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captioner.decoding import DecodingOptions, Hypothesis, decode
from captioner.models.encoders import Encoder, Features
from captioner.tokenizers import Vocabulary


class CaptioningModel(nn.Module):
    """image -> encoder -> Features -> decoder -> words.

    Cached features enter between the two: nothing downstream knows whether the encoder ran now.

    Args:
        encoder: images [B, 3, S, S] -> Features.
        decoder: has ``start(features)``, ``step(tokens, state)``, ``forward(features, inputs)``,
            ``fit(features)`` for what is not learned by gradient, and ``uses_grid``.
    """

    def __init__(self, encoder: Encoder, decoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, source: Tensor | Features, inputs: Tensor) -> Tensor:
        """Images [B, 3, S, S] or their Features, and inputs [B, T] -> logits [B, T, V]."""
        return self.decoder(self.encode(source), inputs)

    def encode(self, source: Tensor | Features) -> Features:
        """Features of images [B, 3, S, S]; Features pass unchanged."""
        return source if isinstance(source, Features) else self.encoder(source)

    @torch.inference_mode()
    def generate(
        self, source: Tensor | Features, vocabulary: Vocabulary, options: DecodingOptions
    ) -> list[list[Hypothesis]]:
        """Decode freely: for each image its hypotheses, best first.

        <pad>, <start> and <unk> are never emitted. The model must be in evaluation mode.
        """
        return decode(
            self.decoder.step,
            self.decoder.start(self.encode(source)),
            start=vocabulary.start,
            end=vocabulary.end,
            options=options,
            banned=(vocabulary.pad, vocabulary.start, vocabulary.unknown),
        )
