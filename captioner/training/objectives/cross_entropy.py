"""Cross-entropy: predict each token of the reference captions.

    loss = -Σ_t log p(word_t | image, word_0 .. word_{t-1})      over words and <end>, no padding

With scheduled sampling a fraction of the input tokens, which grows during the training, is sampled
from the decoder instead of word_{t-1}, as in decoding; the target remains word_t (Bengio et al.,
"Scheduled Sampling for Sequence Prediction", NeurIPS 2015).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captioner.config import check_range
from captioner.data.batches import Batch, Share
from captioner.decoding.options import DecodingOptions
from captioner.models.captioning import CaptioningModel
from captioner.models.decoders.decoder import Decoder
from captioner.models.features import Features
from captioner.models.packing import Packing
from captioner.tokenizers import Tokenizer, Vocabulary
from captioner.training.losses import cross_entropy, doubly_stochastic
from captioner.training.objectives.objective import Objective, Outcome


class CrossEntropy(Objective):
    """Learn to predict the reference captions.

    Args:
        label_smoothing: fraction of the target's probability spread over all tokens, [0, 1)
            (Szegedy et al., 2016).
        scheduled_sampling: fraction of the input tokens sampled from the model at the end of the
            training, [0, 1]; it rises linearly from 0. Tokens are then processed one at a time.
        attention_penalty: weight of ``losses.doubly_stochastic``, from 0; for decoders with
            attention.
        end_token: <end> is a target. Without it, a model does not learn where captions end.
    """

    length_options = ("scheduled_sampling",)

    def __init__(
        self,
        tokenizer: Tokenizer,
        decoding: DecodingOptions,
        *,
        label_smoothing: float = 0.1,
        scheduled_sampling: float = 0.0,
        attention_penalty: float = 0.0,
        end_token: bool = True,
    ) -> None:
        super().__init__(tokenizer, decoding)
        check_range("objective.label_smoothing", label_smoothing, 0.999)
        check_range("objective.scheduled_sampling", scheduled_sampling, 1.0)
        check_range("objective.attention_penalty", attention_penalty)
        if scheduled_sampling and attention_penalty:
            raise ValueError(
                "objective.attention_penalty and objective.scheduled_sampling cannot be combined; "
                "set one of them to 0"
            )
        self.label_smoothing, self.scheduled_sampling = label_smoothing, scheduled_sampling
        self.attention_penalty, self.end_token = attention_penalty, end_token

    def accept(self, model: CaptioningModel) -> None:
        if self.attention_penalty and not model.decoder.attends:
            raise ValueError(
                f"objective.attention_penalty={self.attention_penalty} needs a decoder that "
                f"attends, and {type(model.decoder).__name__} does not; choose 0, or another "
                "decoder"
            )

    def _count(self, whole: Share) -> float:
        """The number of targets by which this rank's sum is divided; inf if it has no captions."""
        if self.end_token or math.isinf(whole.words):
            return whole.words
        return whole.words - whole.captions

    def outcome(self, model: CaptioningModel, batch: Batch, done: float) -> Outcome:
        left_out = 0 if self.end_token else 1  # the last target, <end>
        packing = batch.packing(left_out=left_out)
        features = model.encode(batch.source)
        whole = batch.share
        fraction = self.scheduled_sampling * done
        penalty: Tensor | None = None
        if fraction:
            logits = forward_sampled(model.decoder, features, batch.inputs, packing, fraction)
        elif self.attention_penalty:
            logits, weights = model.attend(features, batch.inputs, packing)
            if features.grid is not None:
                weights = weights[:, : features.grid.shape[1]]  # [N, P], without the sentinel
            captions = None if whole is None else whole.captions
            deviation = doubly_stochastic(weights, packing, captions=captions)
            penalty = self.attention_penalty * deviation
        else:
            logits = model(features, batch.inputs, packing)  # [N, V], without padding
        targets = packing.pack(batch.targets)  # [N]
        loss = cross_entropy(
            logits,
            targets,
            label_smoothing=self.label_smoothing,
            divisor=None if whole is None else self._count(whole),
            in_place=True,
        )
        return Outcome(loss if penalty is None else loss + penalty, {})


def forward_sampled(
    decoder: Decoder, features: Features, inputs: Tensor, packing: Packing, fraction: float
) -> Tensor:
    """The logits of captions as in ``forward``, but some input tokens are sampled from the decoder.

    Each input can depend on the logits before it, so tokens are processed one ``step`` at a time.

    Args:
        decoder: the decoder.
        features: the features of each caption's image.
        inputs: <start> and the token ids of captions, [B, T].
        packing: the packing of the captions.
        fraction: fraction of the tokens after <start> that are sampled, [0, 1].

    Returns:
        logits [N, V], in the packing's order.
    """
    references = inputs[packing.order]  # [B, T], longest first
    state = decoder.start(features.rows(packing.order))
    tokens, steps = references[:, 0], []
    for place, rows in enumerate(packing.sizes):
        state = {name: tensor[:rows] for name, tensor in state.items()}
        logits, state = decoder.step(tokens[:rows], state)  # [rows, V]
        steps.append(logits)
        if place + 1 < len(packing.sizes):
            sampled = torch.rand(rows, device=logits.device) < fraction
            tokens = torch.where(sampled, sample_tokens(logits), references[:rows, place + 1])
    return torch.cat(steps)


def sample_tokens(logits: Tensor) -> Tensor:
    """Sample a token for each row, without special tokens, as in decoding: [R, V] -> [R]."""
    first = Vocabulary.special_count
    probabilities = torch.softmax(logits.detach()[:, first:].float(), dim=1)
    return first + torch.multinomial(probabilities, 1).squeeze(1)
