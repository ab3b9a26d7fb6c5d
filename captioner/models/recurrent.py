"""Recurrent decoders.

ShowTell is the Neural Image Caption generator (Vinyals et al., "Show and Tell", CVPR 2015): the
image is the first word the network reads.

    X_0     = W_I feature + b_I                 h_{-1} = c_{-1} = 0     (feature standardised)
    X_t     = W_e word_{t-1}                    word_0 = <start>
    h_t     = cell(X_t, h_{t-1})
    p_t     = softmax(W_p h_t + b_p)            until <end>

Nothing in it knows that the feature came from a picture: with a sentence as X_0 the same network
translates, with a zero vector it is a language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.models.cells import State
from captioner.models.encoders import Features
from captioner.models.packing import Packing
from captioner.models.unroll import Recurrence, laid_out


class Standardise(nn.Module):
    """Features with mean 0 and variance 1, by dimension or by principal component.

        x -> (x - μ) / σ            each of the D dimensions by itself
        x -> (x - μ) V / sqrt(λ)    λ, V: the K largest eigenvalues of the covariance, whitening

    Encoders differ widely in scale, and X_0 would be heard late beside the words where the features
    are small. The statistics are those of training images (``fit``) and do not learn.

    Args:
        feature_size: D.
        components: K, at most D; None takes the dimensions as they are.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, feature_size: int, components: int | None) -> None:
        super().__init__()
        self.width = feature_size if components is None else min(components, feature_size)
        self.whitens = components is not None
        self.register_buffer("mean", torch.zeros(feature_size))
        scale = torch.eye(feature_size)[:, : self.width] if self.whitens else torch.ones(self.width)
        self.register_buffer("scale", scale.contiguous())  # [D, K], or [D]

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Take the statistics from features [n, D] of training images."""
        features = features.double()
        centred = features - features.mean(0)
        self.mean.copy_(features.mean(0))
        if self.whitens:
            values, vectors = torch.linalg.eigh(centred.T @ centred / len(features))  # rising
            values, vectors = values[-self.width :], vectors[:, -self.width :]
            self.scale.copy_(vectors / values.clamp_min(1e-4 * values[-1] + 1e-12).sqrt())
        else:
            variance = centred.square().mean(0)
            self.scale.copy_((variance + 1e-4 * variance.mean() + 1e-12).rsqrt())

    def forward(self, features: Tensor) -> Tensor:
        """Standardise features: [B, D] -> [B, K], or [B, D]."""
        centred = features - self.mean
        return centred @ self.scale if self.whitens else centred * self.scale


class ShowTell(nn.Module):
    """X_0 = projected image feature, then <start>, then words until <end> (Vinyals et al., 2015).

    Args:
        vocabulary_size: V.
        feature_size: D, width of the encoder's features.
        regions: 1 reads the encoder's pooled feature; R the means of R x R regions of its grid,
            side by side, so that X_0 knows where things are.
        components: K, to read the feature by its principal components (``Standardise``).
        cell: a name in ``CELLS``.
        embedding_size: E, width of a word and of X_0.
        hidden_size: H.
        layers: L.
        dropout: share dropped from words, X_0, h and between layers while training, [0, 1).
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_size: int,
        regions: int = 1,
        components: int | None = None,
        cell: str = "lstm",
        embedding_size: int = 512,
        hidden_size: int = 512,
        layers: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value in (("regions", regions), ("components", components)):
            if value is not None and value < 1:
                raise ValueError(f"decoder.{name}={value} is not accepted; choose 1 or more")
        self.regions = regions
        self.uses_grid = regions > 1
        self.standardise = Standardise(feature_size * regions**2, components)
        self.image = nn.Linear(self.standardise.width, embedding_size)
        self.words = nn.Embedding(vocabulary_size, embedding_size)
        self.recurrence = Recurrence(
            cell=cell,
            input_size=embedding_size,
            hidden_size=hidden_size,
            layers=layers,
            dropout=dropout,
        )
        self.output = nn.Linear(hidden_size, vocabulary_size)
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)

    def read_image(self, features: Features) -> Tensor:
        """X_0 [B, E], the projected feature of each image."""
        return self.image(self.standardise(self.read(features)))

    def read(self, features: Features) -> Tensor:
        """The feature as the encoder gives it: pooled [B, D], or R x R regions side by side."""
        if not self.uses_grid:
            return features.pooled
        if features.grid is None:
            raise ValueError("decoder.regions above 1 needs features with a grid")
        positions = features.grid.shape[1]
        side = math.isqrt(positions)
        if side * side != positions or self.regions > side:
            raise ValueError(
                f"decoder.regions={self.regions} does not fit a grid of {positions} positions; "
                "choose 1, or no more than its side, and a square image"
            )
        maps = features.grid.transpose(1, 2).unflatten(2, (side, side))  # [B, D, side, side]
        return functional.adaptive_avg_pool2d(maps, self.regions).flatten(1)  # [B, D * R * R]

    def fit(self, features: Features) -> None:
        """Fit what is not learned by gradient to features of training images."""
        self.standardise.fit(self.read(features))

    def start(self, features: Features) -> State:
        """The state after the network has read the image as X_0, h and c being zero before."""
        x0 = self.dropout(self.read_image(features))  # [B, E]
        _, state = self.recurrence.step(x0, self.recurrence.zeros(len(x0)))
        return state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one word for each row: tokens [B] -> logits of the next [B, V], the state after."""
        h, state = self.recurrence.step(self.dropout(self.words(tokens)), state)
        return self.output(self.dropout(h)), state

    @torch.no_grad()
    def stepper(self) -> Callable[[Tensor, State], tuple[Tensor, State]]:
        """``step`` for one decoding, in evaluation mode: W_x of every word is computed once.

        A word's projected input is then a row of a table [V, gates * H].
        """
        table = self.recurrence.project(self.words.weight)  # [V, gates * H]
        advance, output = self.recurrence.stepper(), laid_out(self.output)

        def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
            h, state = advance(table[tokens], state)
            return output(h), state

        return step

    def forward(self, features: Features, inputs: Tensor, packing: Packing | None = None) -> Tensor:
        """Read whole captions: inputs [B, T], <start> first -> logits [B, T, V] of the next words.

        Equal to ``start`` and T times ``step`` (teacher forcing). With a packing, only real words
        are read and answered: logits [N, V], in its order.
        """
        x0 = self.read_image(features)  # [B, E]
        nothing = self.recurrence.zeros(len(x0))
        if packing is None:
            sequence = torch.cat([x0.unsqueeze(1), self.words(inputs)], dim=1)  # [B, 1 + T, E]
            h, _ = self.recurrence(self.dropout(sequence), nothing)
            return self.output(self.dropout(h[:, 1:]))  # [B, T, V]: X_0 is read, not answered
        words = self.words(packing.pack(inputs))  # [N, E]
        sequence = torch.cat([x0[packing.order], words])  # [B + N, E]: every X_0, then every word
        sizes = (len(x0), *packing.sizes)
        h, _ = self.recurrence(self.dropout(sequence), nothing, sizes=sizes)
        return self.output(self.dropout(h[len(x0) :]))  # [N, V]
