"""Recurrent decoders without attention.

ShowTell is the Neural Image Caption generator (Vinyals et al., "Show and Tell", CVPR 2015): the
image is the first input of the network, before the words.

    X_0     = W_I feature + b_I                 h_{-1} = c_{-1} = 0     (feature standardized)
    X_t     = W_e word_{t-1}                    word_0 = <start>
    h_t     = cell(X_t, h_{t-1})
    p_t     = softmax(W_p h_t + b_p)            until <end>

The image may enter in three other places instead (compared by Tanti et al., "Where to put the image
in an image caption generator", 2018); there is then no X_0:

    h0      h_{-1}, c_{-1} = tanh(W_I feature + b_I)                    init-inject (Devlin 2015)
    every   X_t = [W_e word_{t-1}; W_I feature + b_I]                   par-inject (Donahue 2015)
    merge   p_t = softmax(W_p tanh(W_m h_t + W_I feature + b) + b_p)    merge (Mao 2015, m-RNN)

Tied weights use W_e as W_p (Press & Wolf, EACL 2017), after a projection if H is not E.

The feature need not be that of an image: with a sentence as X_0 the same network translates, with a
zero vector it is a language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.config import pick, unknown
from captioner.models.decoders.decoder import State, Stepper, refreshing
from captioner.models.decoders.standardize import Standardize, with_image
from captioner.models.decoders.word_table import WordTable
from captioner.models.features import Features
from captioner.models.matmul import Linear
from captioner.models.packing import Packing
from captioner.models.recurrence.cells import Cell
from captioner.models.recurrence.table import CELLS
from captioner.models.recurrence.unroll import Recurrence
from captioner.models.sites import Observe, unobserved
from captioner.models.weight_layout import laid_out

IMAGES = ("x0", "h0", "every", "merge")

Advance = Callable[[Tensor, State, Observe], tuple[Tensor, State]]
"""Projected words [B, gates * H], the previous state -> h of the last layer, the next state."""


class ShowTell(nn.Module):
    """Reads the projected image feature as X_0, then <start> and words (Vinyals et al., 2015).

    Args:
        vocabulary_size: V.
        feature_size: D, width of the encoder's features.
        image: where the image enters, a name in ``IMAGES``.
        regions: 1: the encoder's pooled feature; above 1: the means of regions x regions parts of
            its grid, concatenated, so that X_0 has spatial information.
        components: number of principal components of the feature (``Standardize``); None: all.
        cell: a name in ``CELLS``.
        embedding_size: E, width of a word and of X_0.
        hidden_size: H.
        layers: L.
        dropout: probability of dropout for words, the image, h and between layers, [0, 1).
        tie_weights: use the word embedding as W_p.

    Raises:
        ValueError: a value out of range.
    """

    attends = False

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_size: int,
        image: str = "x0",
        regions: int = 1,
        components: int | None = None,
        cell: str = "lstm",
        embedding_size: int = 512,
        hidden_size: int = 512,
        layers: int = 1,
        dropout: float = 0.5,
        tie_weights: bool = False,
    ) -> None:
        super().__init__()
        _check_options(image, regions, components)
        self.enters = image
        self.regions = regions
        self.uses_grid = regions > 1
        self.standardise = Standardize(feature_size * regions**2, components)
        kind = pick(CELLS, cell, "decoder.cell", Cell)
        states = len(kind.state_names) * layers * hidden_size
        width = {"h0": states, "merge": hidden_size}.get(image, embedding_size)
        self.image = Linear(self.standardise.width, width)
        self.words = nn.Embedding(vocabulary_size, embedding_size)
        self.recurrence = Recurrence(
            cell=cell,
            input_size=embedding_size * (2 if image == "every" else 1),
            hidden_size=hidden_size,
            layers=layers,
            dropout=dropout,
        )
        if image == "merge":
            self.merge = Linear(hidden_size, hidden_size, bias=False)
        narrows = tie_weights and hidden_size != embedding_size
        self.narrow = Linear(hidden_size, embedding_size) if narrows else nn.Identity()
        self.output = Linear(embedding_size if narrows else hidden_size, vocabulary_size)
        if tie_weights:
            self.output.weight = self.words.weight
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)

    # The image --------------------------------------------------------------------------------

    def read_image(self, features: Features) -> Tensor:
        """The projected feature of each image: X_0 [B, E]; other places have another width."""
        return self.image(self.standardise(self.read(features)))

    def read(self, features: Features) -> Tensor:
        """The unprojected feature: pooled [B, D], or means of regions [B, D * regions**2]."""
        if not self.uses_grid:
            return features.pooled
        if features.grid is None:
            raise ValueError(
                f"decoder.regions={self.regions} needs features with a grid, and these have none; "
                "choose decoder.regions=1"
            )
        positions = features.grid.shape[1]
        side = math.isqrt(positions)
        if side * side != positions or self.regions > side:
            raise ValueError(
                f"decoder.regions={self.regions} does not fit a grid of {positions} positions; "
                "choose at most the side of the grid, which must be square; or 1"
            )
        maps = features.grid.transpose(1, 2).unflatten(2, (side, side))  # [B, D, side, side]
        return functional.adaptive_avg_pool2d(maps, self.regions).flatten(1)  # [B, D * regions**2]

    def fit(self, features: Features) -> None:
        """Compute the statistics from features of training images."""
        self.standardise.fit(self.read(features))

    # Step by step -----------------------------------------------------------------------------

    def start(self, features: Features, observe: Observe = unobserved) -> State:
        """The state before <start>.

        The image has been read as X_0, or determines h and c. Otherwise the state has
        ``image.part``, which is added at each step: [B, gates * H], or [B, H] for "merge".
        """
        site = "image.x0" if self.enters == "x0" else "image.vector"
        image = self.dropout(self.read_image(features))  # [B, E], or its width in other places
        image = observe(site, image)
        if self.enters == "h0":
            return self.recurrence.filled(torch.tanh(image))
        zeros = self.recurrence.zeros(len(image))
        if self.enters == "x0":
            return self.recurrence.step(image, zeros, observe)[1]
        if self.enters == "every":
            image = functional.linear(image, self._halves()[1])  # [B, gates * H]
        return {**zeros, "image.part": image}

    def step(
        self, tokens: Tensor, state: State, observe: Observe = unobserved
    ) -> tuple[Tensor, State]:
        """Read one token per row: tokens [R] -> logits of the next [R, V], the next state."""
        projected = self._project(self.dropout(self.words(tokens)))
        h, state = self._advance(projected, state, observe)
        return self._logits(h, observe), state

    def stepper(self) -> Stepper:
        """``start`` and ``step`` for decoding: each word is projected once."""
        return refreshing(self, self._make_stepper)

    @torch.no_grad()
    def _make_stepper(self) -> Stepper:
        table = WordTable(self._project, self.words.weight)  # of rows [gates * H]
        copied = laid_out(self)
        advance = partial(copied.recurrence.advance, step_cell=self.recurrence.quickest())

        @torch.no_grad()
        def step(
            tokens: Tensor, state: State, observe: Observe = unobserved
        ) -> tuple[Tensor, State]:
            h, state = copied._advance(table[tokens], state, observe, advance)
            return copied._logits(h, observe), state

        return Stepper(torch.no_grad()(copied.start), step)

    def _advance(
        self,
        projected: Tensor,
        state: State,
        observe: Observe,
        advance: Advance | None = None,
    ) -> tuple[Tensor, State]:
        """One step from projected words [R, gates * H] -> the input of the output layer, state."""
        if self.enters == "every":
            projected = with_image(projected, state["image.part"])
        own = self.recurrence.own(state)
        h, after = (advance or self.recurrence.advance)(projected, own, observe)
        if self.enters == "merge":
            h = torch.tanh(with_image(self.merge(h), state["image.part"]))
        return h, {**state, **after}

    def _project(self, words: Tensor) -> Tensor:
        """W_x + b of words in the first layer: [..., E] -> [..., gates * H]."""
        if self.enters != "every":
            return self.recurrence.project(words)
        of_words, _ = self._halves()
        return functional.linear(words, of_words, self.recurrence.first.of_input.bias)

    def _halves(self) -> tuple[Tensor, ...]:
        """W_x of the word and of the image, each [gates * H, E]."""
        return self.recurrence.first.of_input.weight.chunk(2, dim=1)

    def _logits(self, h: Tensor, observe: Observe = unobserved) -> Tensor:
        h = observe("output.hidden", self.narrow(self.dropout(h)))
        return observe("output.logits", self.output(h))

    # Whole captions ---------------------------------------------------------------------------

    def forward(self, features: Features, inputs: Tensor, packing: Packing | None = None) -> Tensor:
        """Read whole captions: inputs [B, T], <start> first -> logits [B, T, V] of the next tokens.

        Equal to ``start`` and T times ``step`` (teacher forcing). With a packing, only real tokens
        are read: logits [N, V], in its order.
        """
        whole = packing or Packing.whole(inputs)
        image = self.read_image(features)  # [B, E]
        words = self.words(whole.pack(inputs))  # [N, E]
        if self.enters == "x0":  # the packed sequence begins with X_0, whose h is not used
            sequence = self.dropout(torch.cat([image[whole.order], words]))  # [B + N, E]
            sizes = (len(image), *whole.sizes)
            h, _ = self.recurrence(sequence, self.recurrence.zeros(len(image)), sizes=sizes)
            h = h[len(image) :]  # [N, H]
        else:
            h = self._read(self.dropout(image), self.dropout(words), whole)
        return self._logits(whole.unflatten(h) if packing is None else h)  # [B, T, V], or [N, V]

    def _read(self, image: Tensor, words: Tensor, packing: Packing) -> Tensor:
        """Packed words [N, E], and images [B, E] that do not enter as X_0 -> [N, H]."""
        state = self.recurrence.zeros(len(image))
        if self.enters == "h0":
            state = self.recurrence.filled(torch.tanh(image[packing.order]))
        if self.enters == "every":
            words = torch.cat([words, image[packing.rows]], dim=1)  # [N, 2 * E]
        h, _ = self.recurrence(words, state, sizes=packing.sizes)
        if self.enters == "merge":
            h = torch.tanh(self.merge(h) + image[packing.rows])
        return h  # [N, H]


def _check_options(image: str, regions: int, components: int | None) -> None:
    """Raise for a value out of range."""
    for name, value in (("regions", regions), ("components", components)):
        if value is not None and value < 1:
            raise ValueError(f"decoder.{name}={value} is not accepted; choose 1 or more")
    if image not in IMAGES:
        raise unknown("decoder.image", image, IMAGES)
