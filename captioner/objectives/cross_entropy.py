"""Cross-entropy: what people said, word by word.

    loss = -Σ_t log p(word_t | image, word_0 .. word_{t-1})      over real words and <end> only

With scheduled sampling the decoder reads, at a share of the places that grows over the training, a
word drawn from itself instead of word_{t-1}, as it will have to when it decodes; what it must
answer stays word_t (Bengio et al., "Scheduled Sampling for Sequence Prediction", NeurIPS 2015).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captioner.config import check_range
from captioner.data.datamodule import Batch
from captioner.decoding import DecodingOptions
from captioner.losses import IGNORED, cross_entropy
from captioner.models import CaptioningModel, Features
from captioner.models.packing import Packing
from captioner.objectives.objective import Objective, Outcome
from captioner.tokenizers import Tokenizer

SPECIALS = 4
"""<pad>, <start>, <end> and <unk> are the first ids of a vocabulary."""


class CrossEntropy(Objective):
    """Learn what people said.

    Args:
        label_smoothing: share of the target's probability spread over all words, [0, 1)
            (Szegedy et al., 2016).
        scheduled_sampling: share of the words read that are the model's own at the training's end,
            rising from 0 along a line, [0, 1]. Words are then read one after the other.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        decoding: DecodingOptions,
        *,
        label_smoothing: float = 0.1,
        scheduled_sampling: float = 0.0,
    ) -> None:
        super().__init__(tokenizer, decoding)
        check_range("training.label_smoothing", label_smoothing, 0.999)
        check_range("training.scheduled_sampling", scheduled_sampling, 1.0)
        self.label_smoothing, self.scheduled_sampling = label_smoothing, scheduled_sampling

    def outcome(self, model: CaptioningModel, batch: Batch, done: float) -> Outcome:
        packing = Packing.of((batch.targets != IGNORED).sum(1))
        share = self.scheduled_sampling * done
        if share:
            features = model.encode(batch.source)
            logits = read_own_words(model.decoder, features, batch.inputs, packing, share=share)
        else:
            logits = model(batch.source, batch.inputs, packing)  # [N, V], of real words only
        targets = packing.pack(batch.targets)  # [N]
        smoothing = self.label_smoothing
        return Outcome(cross_entropy(logits, targets, label_smoothing=smoothing, in_place=True), {})


def read_own_words(
    decoder: Any, features: Features, inputs: Tensor, packing: Packing, *, share: float
) -> Tensor:
    """Read captions as ``forward`` does, but some words of them drawn from the decoder.

    Each word waits for the one before: one ``step`` a place instead of one product for all.

    Args:
        decoder: any.
        features: of each caption's image.
        inputs: <start> and the words of captions, [B, T].
        packing: where they are real.
        share: of the words after <start> that are drawn, [0, 1].

    Returns:
        logits [N, V], in the packing's order.
    """
    given = inputs[packing.order]  # [B, T], longest first
    state = decoder.start(features.rows(packing.order))
    tokens, found = given[:, 0], []
    for place, rows in enumerate(packing.sizes):
        state = {name: tensor[:rows] for name, tensor in state.items()}
        logits, state = decoder.step(tokens[:rows], state)  # [rows, V]
        found.append(logits)
        if place + 1 < len(packing.sizes):
            own = torch.rand(rows, device=logits.device) < share
            tokens = torch.where(own, draw_words(logits), given[:rows, place + 1])
    return torch.cat(found)


def draw_words(logits: Tensor) -> Tensor:
    """Draw a word a row, never a special one, since decoding never reads one: [R, V] -> [R]."""
    words = torch.softmax(logits.detach()[:, SPECIALS:].float(), dim=1)
    return SPECIALS + torch.multinomial(words, 1).squeeze(1)
