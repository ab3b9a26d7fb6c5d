"""The common part of recurrent decoders with attention, which attend to the grid at every step.

Their values v_1 .. v_P are the positions of the grid, standardized and projected to H dimensions
(``Positions``); v̄ is the mean of the values. The decoders differ in when they attend and with which
query (``show_attend_tell.py``, ``up_down.py``, ``adaptive.py``). A product with a concatenation is
a sum of products, and each term is computed as early as possible: that of words for whole captions,
that of v̄ and the keys of the attention once per image. The loop over time computes only the rest,
and the gradients of its weights are computed after the loop (``deferred_gradients.py``).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from captioner.models.decoders.attention import Attention
from captioner.models.decoders.attention_graphs import AttentionGraphs
from captioner.models.decoders.decoder import State, Stepper, refreshing
from captioner.models.decoders.deferred_gradients import deferred
from captioner.models.decoders.standardize import Positions
from captioner.models.decoders.word_table import WordTable
from captioner.models.features import Features
from captioner.models.matmul import Linear
from captioner.models.packing import Packing
from captioner.models.recurrence.fused import graphs_on
from captioner.models.sites import Observe, unobserved
from captioner.models.weight_layout import laid_out


class Attending(nn.Module):
    """Word embedding, positions, attention, output layer, and the loop over time.

    A subclass defines ``begin``, ``project`` and ``advance``, and may override ``values`` and
    ``answer``.

    Args:
        vocabulary_size: V.
        feature_size: D, width of a position of the encoder's grid.
        components: number of principal components of a position (``Standardize``); None: all D.
        embedding_size: E.
        hidden_size: H, of cells and values.
        attention_size: width of a key; additive scores only.
        score: additive or dot (``Attention``).
        dropout: probability of dropout for words, for the dimensions of an image's values and
            before the output layer, [0, 1).
        tie_weights: use the word embedding as W_p, after a projection if the width is not E.
        answer_size: width of the first result of ``advance`` if it is always projected to E; None:
            H.
        sentinel: whether the attention has a sentinel.
    """

    attends = True
    uses_grid = True
    defers = True
    """Whether the gradients of the weights in the loop are computed after it, in one product."""
    graphs: AttentionGraphs | None = None
    """The CUDA graphs of the loop, if there are any."""

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_size: int,
        components: int | None,
        embedding_size: int,
        hidden_size: int,
        attention_size: int,
        score: str,
        dropout: float,
        tie_weights: bool,
        answer_size: int | None = None,
        sentinel: bool = False,
    ) -> None:
        super().__init__()
        self.positions = Positions(feature_size, components, hidden_size, dropout=dropout)
        self.words = nn.Embedding(vocabulary_size, embedding_size)
        self.attention = Attention(
            query_size=hidden_size,
            value_size=hidden_size,
            size=attention_size,
            score=score,
            sentinel=sentinel,
        )
        self.dropout = nn.Dropout(dropout)
        narrows = answer_size is not None or (tie_weights and hidden_size != embedding_size)
        self.narrow: nn.Module = nn.Identity()
        if narrows:
            self.narrow = Linear(answer_size or hidden_size, embedding_size)
        self.output = Linear(embedding_size if narrows else hidden_size, vocabulary_size)
        if tie_weights:
            self.output.weight = self.words.weight
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the graphs: a copy has weights of its own."""
        return {**self.__dict__, "graphs": None}

    # Defined by subclasses --------------------------------------------------------------------

    def values(self, features: Features) -> Tensor:
        """The values to which the decoder attends, [B, P, H]."""
        return self.positions(features)

    def begin(self, mean: Tensor) -> State:
        """The state before <start>, from the mean of the values [B, H]."""
        raise NotImplementedError

    def project(self, words: Tensor) -> Tensor:
        """The part of a step that depends only on its word: [..., E] -> [..., any width]."""
        raise NotImplementedError

    def advance(
        self, projected: Tensor, state: State, observe: Observe = unobserved
    ) -> tuple[Tensor, Tensor, State]:
        """One step: projected words [R, ...], the previous state -> features, weights, next state.

        Returns:
            the input of ``answer``, [R, H] or [R, answer_size]; the attention weights, [R, P]; the
            next state.
        """
        raise NotImplementedError

    def answer(self, features: Tensor, words: Tensor, observe: Observe = unobserved) -> Tensor:
        """Results of ``advance``, and the words [..., E] of these steps -> logits [..., V]."""
        hidden = observe("output.hidden", self.narrow(self.dropout(features)))
        return observe("output.logits", self.output(hidden))

    # Common to all subclasses -----------------------------------------------------------------

    def fit(self, features: Features) -> None:
        """Compute the statistics from features of training images."""
        self.positions.fit(features)

    def start(self, features: Features, observe: Observe = unobserved) -> State:
        """The state before <start>: that of ``begin``, and the values and keys of the attention."""
        values = observe("image.values", self.values(features))  # [B, P, H]
        return {**self.begin(values.mean(1)), **self.attention.remember(values)}

    def step(
        self, tokens: Tensor, state: State, observe: Observe = unobserved
    ) -> tuple[Tensor, State]:
        """Read one token per row: tokens [R] -> logits of the next [R, V], the next state."""
        words = self.dropout(self.words(tokens))  # [R, E]
        result, _, state = self.advance(self.project(words), state, observe)
        return self.answer(result, words, observe), state

    def stepper(self) -> Stepper:
        """``start`` and ``step`` for decoding: each word is projected once."""
        return refreshing(self, self._make_stepper)

    @torch.no_grad()
    def _make_stepper(self) -> Stepper:
        table = WordTable(self.project, self.words.weight)
        copied = laid_out(self)

        @torch.no_grad()
        def step(
            tokens: Tensor, state: State, observe: Observe = unobserved
        ) -> tuple[Tensor, State]:
            result, _, state = copied.advance(table[tokens], state, observe)
            return copied.answer(result, self.words(tokens), observe), state

        return Stepper(torch.no_grad()(copied.start), step)

    def forward(self, features: Features, inputs: Tensor, packing: Packing | None = None) -> Tensor:
        """Read whole captions: inputs [B, T], <start> first -> logits [B, T, V] of the next tokens.

        Equal to ``start`` and T times ``step`` (teacher forcing). With a packing, only real tokens
        are read: logits [N, V], in its order.
        """
        return self.attend(features, inputs, packing)[0]

    def attend(
        self, features: Features, inputs: Tensor, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the attention weights of each token, [B, T, P] or [N, P]."""
        whole = packing or Packing.whole(inputs)
        words = self.dropout(self.words(whole.pack(inputs)))  # [N, E]
        results, weights = self._loop(self.project(words), self.start(features), whole)
        if packing is None:
            results, weights, words = map(whole.unflatten, (results, weights, words))  # [B, T, ...]
        return self.answer(results, words), weights

    def _loop(self, projected: Tensor, state: State, packing: Packing) -> tuple[Tensor, Tensor]:
        """All steps of packed words: projected [N, ...] -> results [N, ...], weights [N, P]."""
        state = {name: tensor[packing.order] for name, tensor in state.items()}
        if graphs_on(projected):
            graphs = self.graphs = self.graphs or AttentionGraphs()
            results = graphs.loop(self, projected, state, packing.sizes)
            if results is not None:
                return results
        matrices = [state["image.values"]]
        with deferred(packing.sizes, projected.device, matrices) if self.defers else nullcontext():
            return self.loop(projected, state, packing.sizes)

    def loop(
        self, projected: Tensor, state: State, sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """All steps; the batch shrinks as captions end.

        Args:
            projected: words, packed step by step, [N, ...].
            state: before <start>, rows sorted, longest first.
            sizes: rows of each step.

        Returns:
            results of ``advance`` [N, ...], and attention weights [N, P].
        """
        rows, results, weights = sizes[0], [], []
        for step_input in projected.split(sizes):  # [rows of this step, ...]
            if len(step_input) < rows:  # only if needed: the gradient of a slice has full size
                rows = len(step_input)
                state = {name: tensor[:rows] for name, tensor in state.items()}
            result, step_weights, state = self.advance(step_input, state)
            results.append(result)
            weights.append(step_weights)
        return torch.cat(results), torch.cat(weights)
