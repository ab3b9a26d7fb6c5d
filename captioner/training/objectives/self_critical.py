"""Self-critical training: increase the expected reward of captions sampled from the model.

    c_1 .. c_N ~ p(. | image)
    loss = -1/N Σ_i (r(c_i) - b_i) Σ_t log p(c_it | image, c_i1 .. c_i(t-1))

    b_i = r(greedy caption)                     "greedy": Rennie et al., "Self-critical Sequence
                                                Training for Image Captioning", CVPR 2017
    b_i = 1/(N-1) Σ_{j≠i} r(c_j)                "leave_one_out": Mnih & Rezende, ICML 2016; Luo, "A
                                                Better Variant of Self-Critical Sequence
                                                Training", arXiv:2003.09971

Neither baseline depends on c_i, so the gradient is that of the expected reward. The sum over the
tokens of a caption is not divided by their number, which would weigh tokens of long captions less.

p is the distribution that decoding samples from: <pad>, <start> and <unk> have probability 0, and
the other tokens are renormalized; with a temperature τ it is softmax(logits / τ). If τ < 1, samples
are closer to the captions of a search, and training makes the distribution of the model less sharp.

The decoder's ``stepper`` draws the samples without a gradient, all images and samples in one batch;
one teacher-forced ``forward`` then computes their probabilities. So any decoder can be trained.
Dropout is off in both: with different masks in sampling and gradient, the samples would not come
from the distribution that is differentiated. ``dropout`` turns it on anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy
import torch
from torch import Tensor

from captioner.config import check_range, unknown
from captioner.data.batches import Batch, pad
from captioner.data.records import Record
from captioner.decoding.decode import decode
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis
from captioner.metrics.corpus import Rows
from captioner.metrics.diversity import repeated_bigrams
from captioner.metrics.ngrams import Integers
from captioner.models.captioning import CaptioningModel
from captioner.models.decoders.decoder import Decoder
from captioner.models.features import Features, on_device
from captioner.models.packing import Packing
from captioner.tokenizers import END, Tokenizer
from captioner.training import ranks
from captioner.training.losses import cross_entropy, policy_gradient
from captioner.training.objectives.objective import Degenerate, Objective, Outcome
from captioner.training.objectives.rewards import Rewards, check_weights

BASELINES = ("leave_one_out", "greedy")


class SelfCritical(Objective):
    """Trains with rewards of sampled captions.

    Args:
        samples: N, captions sampled per image; "leave_one_out" needs 2 or more.
        baseline: "leave_one_out" or "greedy".
        temperature: τ > 0 of the sampling distribution.
        rewards: keys of `rewards.REWARDS` and their weights; None: only CIDEr-D.
        dropout: leave the decoder's dropout on, with different masks in sampling and gradient.
        cross_entropy_weight: λ ≥ 0; adds λ times the mean cross-entropy per token of the reference
            captions, which keeps the language close to theirs.
        least_distinct: minimum percentage of dev captions that are distinct, [0, 100].
        most_repeats: maximum percentage of bigrams of the dev captions that repeat an earlier one
            of the same caption, [0, 100].
        most_endless: maximum percentage of dev captions without <end>, [0, 100].

    Raises:
        ValueError: a value out of range, or an unknown name.
    """

    by_image = True
    needs_start = "rewards do not train random weights well: resume_weights=RUN loads trained ones"
    measure = ("reward", "train_reward")

    def __init__(
        self,
        tokenizer: Tokenizer,
        decoding: DecodingOptions,
        *,
        samples: int = 5,
        baseline: str = "leave_one_out",
        temperature: float = 1.0,
        rewards: Mapping[str, float] | None = None,
        dropout: bool = False,
        cross_entropy_weight: float = 0.0,
        least_distinct: float = 2.0,
        most_repeats: float = 30.0,
        most_endless: float = 30.0,
    ) -> None:
        super().__init__(tokenizer, decoding)
        if baseline not in BASELINES:
            raise unknown("objective.baseline", baseline, BASELINES)
        least = 2 if baseline == "leave_one_out" else 1
        if samples < least:
            raise ValueError(
                f"objective.samples={samples} is not accepted; objective.baseline={baseline} needs "
                f"{least} or more"
            )
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"objective.temperature={temperature} is not accepted; choose a number above 0"
            )
        self.weights = {"cider": 1.0} if rewards is None else dict(rewards)
        check_weights(self.weights)
        check_range("objective.cross_entropy_weight", cross_entropy_weight)
        check_range("objective.least_distinct", least_distinct, 100)
        check_range("objective.most_repeats", most_repeats, 100)
        check_range("objective.most_endless", most_endless, 100)
        self.samples, self.baseline, self.dropout = samples, baseline, dropout
        self.temperature = temperature
        self.cross_entropy_weight = cross_entropy_weight
        self.least_distinct, self.most_repeats = least_distinct, most_repeats
        self.most_endless = most_endless

    def prepare(self, records: Sequence[Record]) -> None:
        """Index the references, and count in how many images each n-gram occurs."""
        split = self.tokenizer.split
        self._images = {record.image_id: index for index, record in enumerate(records)}
        self._rewards = Rewards(
            [[split(text) for text in record.captions] for record in records], self.weights
        )

    def outcome(self, model: CaptioningModel, batch: Batch, done: float) -> Outcome:
        decoder = model.decoder.train(self.dropout)
        features = model.encode(batch.source)
        keys = None if batch.share is None else batch.share.places
        sample = self._sampler(decoder, features, keys)
        images = numpy.array([self._images[record.image_id] for record in batch.records])
        samples = sample(self.samples)  # B * N of them
        rewards = self._reward(samples, images.repeat(self.samples)).reshape(len(images), -1)
        if self.baseline == "greedy":
            baseline = self._reward(sample(0), images)[:, None]  # [B, 1]
        else:
            baseline = leave_one_out(rewards)  # [B, N]
        advantages = rewards - baseline  # [B, N]
        captions = None if batch.share is None else self.samples * batch.share.images
        loss = self._loss(decoder, features, samples, advantages.ravel(), captions)
        if self.cross_entropy_weight:
            loss = loss + self.cross_entropy_weight * _reference_loss(decoder, features, batch)
        tokens = [hypothesis.tokens for hypothesis in samples]
        endless = sum(not hypothesis.finished for hypothesis in samples)
        logs = {
            "train_reward": rewards.mean(),
            "train_baseline": baseline.mean(),
            "train_advantage": numpy.abs(advantages).mean(),
            "sample_length": sum(map(len, tokens)) / len(tokens),
            "sample_repeats": 100 * repeated_bigrams(tokens),
            "sample_endless": 100 * endless / len(samples),
        }
        return Outcome(loss, {name: float(value) for name, value in logs.items()})

    def check(self, scores: Mapping[str, float], captions: Sequence[str]) -> None:
        """Stop if too many dev captions are equal, repeat themselves, or do not end."""
        for name, bound, is_minimum, text in (
            ("dev_distinct", "least_distinct", True, "of the dev captions are distinct"),
            ("dev_repeats", "most_repeats", False, "of their bigrams repeat an earlier one"),
            ("dev_endless", "most_endless", False, "of the dev captions have no <end>"),
        ):
            value, limit = scores[name], getattr(self, bound)
            if value < limit if is_minimum else value > limit:
                raise Degenerate(
                    f"the captions degenerate: {value:.0f} % {text} (objective.{bound}={limit:g}), "
                    f"such as {captions[0]!r}; best.ckpt contains the best epoch before, if "
                    "there is one. Lower optimizer.lr, or set objective.cross_entropy_weight"
                )

    @torch.no_grad()
    def _sampler(
        self, decoder: Decoder, features: Features, keys: Sequence[int] | None = None
    ) -> Callable[[int], list[Hypothesis]]:
        """A function that samples a number of captions per image, or the greedy captions for 0.

        The random numbers of an image depend on its index in the whole batch, so that the captions
        do not depend on the number of ranks.
        """
        vocabulary = self.tokenizer.vocabulary
        stepper = decoder if self.dropout else decoder.stepper()
        state, step = stepper.start(features), stepper.step

        @torch.no_grad()
        def sample(count: int) -> list[Hypothesis]:
            options = DecodingOptions(max_length=self.decoding.max_length)
            if count:
                # The state of this generator is in checkpoints.
                seed = ranks.from_first(int(torch.randint(2**31, ())))
                options = options.changed(temperature=self.temperature, captions=count, seed=seed)
            hypotheses = decode(
                step,
                state,
                start=vocabulary.start,
                end=vocabulary.end,
                options=options,
                banned=self._banned,
                keys=keys,
            )
            return [sample for samples in hypotheses for sample in samples]

        return sample

    def _reward(self, hypotheses: Sequence[Hypothesis], images: Integers) -> Rows:
        """The reward of captions, with <end> if it was generated, [C]."""
        words = self.tokenizer.vocabulary.words
        texts = [
            [*(words[token] for token in caption.tokens), *([END] if caption.finished else [])]
            for caption in hypotheses
        ]
        return self._rewards(texts, images)

    def _loss(
        self,
        decoder: Decoder,
        features: Features,
        samples: Sequence[Hypothesis],
        advantages: Rows,
        captions: float | None = None,
    ) -> Tensor:
        """The policy gradient of samples; those of an image are consecutive rows.

        It is divided by their number or, if the batch is split over several ranks, by `captions`.
        """
        device = features.pooled.device
        inputs, targets = (
            on_device(t, device) for t in pad([sample.tokens for sample in samples], self.tokenizer)
        )
        # With <end>, except for truncated samples.
        lengths = torch.tensor([len(sample.log_probs) for sample in samples])
        packing = Packing.of(lengths, device)
        rows = torch.arange(len(features.pooled), device=device).repeat_interleave(self.samples)
        logits = decoder(features.rows(rows), inputs, packing)  # [N, V]
        if self.temperature != 1:
            logits = logits / self.temperature
        with torch.no_grad():  # these entries have no gradient
            logits[:, list(self._banned)] = -torch.inf
        weights = on_device(torch.from_numpy(advantages).float(), device)[packing.rows]  # [N]
        tokens = packing.pack(targets)  # [N]
        captions = len(samples) if captions is None else captions
        return policy_gradient(logits, tokens, weights, captions=captions, in_place=True)

    @property
    def _banned(self) -> tuple[int, ...]:
        return self.tokenizer.vocabulary.never_generated


def leave_one_out(rewards: Rows) -> Rows:
    """The mean reward of the other samples of the same image: [B, N] -> [B, N]."""
    return (rewards.sum(axis=1, keepdims=True) - rewards) / (rewards.shape[1] - 1)


def _reference_loss(decoder: Decoder, features: Features, batch: Batch) -> Tensor:
    """The mean cross-entropy per token of the reference captions."""
    packing = batch.packing()
    logits = decoder(features.rows(batch.rows), batch.inputs, packing)
    targets = packing.pack(batch.targets)
    tokens = None if batch.share is None else batch.share.words
    return cross_entropy(logits, targets, label_smoothing=0.0, divisor=tokens, in_place=True)
