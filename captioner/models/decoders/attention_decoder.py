"""What recurrent decoders with attention have in common: they look at the grid for every word.

They read v_1 .. v_P, the grid standardised and projected to H dimensions (``Positions``), and v̄,
their mean; each differs in when it looks and with what (``show_attend_tell.py``, ``up_down.py``,
``adaptive.py``). A product with a concatenation is a sum of products, and each part is computed
where it is known: that of words for whole sentences, that of v̄ once an image, and the keys of the
attention as well. Only the rest stands in the loop over time, and of that the gradients of weights
wait until it is over (``deferred.py``).
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from captioner.models.decoders.attention import Attention
from captioner.models.decoders.decoder import State, Stepper, refreshing
from captioner.models.decoders.deferred_gradients import deferred
from captioner.models.decoders.standardize import Positions
from captioner.models.features import Features
from captioner.models.matmul import Linear
from captioner.models.packing import Packing
from captioner.models.weight_layout import laid_out


class Attending(nn.Module):
    """Words, positions, attention, output, and the loop over time.

    A subclass writes ``begin``, ``project``, ``advance`` and may write ``answer``.

    Args:
        vocabulary_size: V.
        feature_size: D, width of a position of the encoder's grid.
        components: K, to read positions by their principal components (``Standardize``).
        embedding_size: E.
        hidden_size: H, of cells and values.
        attention_size: A, width of a key; additive scores only.
        score: additive or dot (``Attention``).
        dropout: share dropped from words, from the dimensions of an image's values and before the
            output while training, [0, 1).
        tie_weights: the words' embeddings are the rows of W_p as well, after a projection where
            what is answered from has not E dimensions.
        found_size: width of what a step finds, where that is always projected to E; None: it is H.
        sentinel: there is one.
    """

    attends = True
    uses_grid = True
    defers = True
    """Whether the gradients of weights in the loop may be multiplied out after it, as one."""

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
        found_size: int | None = None,
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
        narrows = found_size is not None or (tie_weights and hidden_size != embedding_size)
        self.narrow: nn.Module = nn.Identity()
        if narrows:
            self.narrow = Linear(found_size or hidden_size, embedding_size)
        self.output = Linear(embedding_size if narrows else hidden_size, vocabulary_size)
        if tie_weights:
            self.output.weight = self.words.weight
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)

    # What differs -----------------------------------------------------------------------------

    def values(self, features: Features) -> Tensor:
        """What is attended to, [B, P, H]."""
        return self.positions(features)

    def begin(self, mean: Tensor) -> State:
        """The state before <start>, from the mean of the values [B, H]."""
        raise NotImplementedError

    def project(self, words: Tensor) -> Tensor:
        """All that a step computes of its word alone: [..., E] -> [..., anything]."""
        raise NotImplementedError

    def advance(self, projected: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """One step: projected words [B, ...] -> what is answered from, weights, state after."""
        raise NotImplementedError

    def answer(self, found: Tensor, words: Tensor) -> Tensor:
        """What steps found, and the words [..., E] that they read -> logits [..., V]."""
        return self.output(self.narrow(self.dropout(found)))

    # What is the same -------------------------------------------------------------------------

    def fit(self, features: Features) -> None:
        """Fit what is not learned by gradient to features of training images."""
        self.positions.fit(features)

    def start(self, features: Features) -> State:
        """The state before <start>: its tensors, and what is remembered of the image."""
        values = self.values(features)  # [B, P, H]
        return {**self.begin(values.mean(1)), **self.attention.remember(values)}

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one word for each row: tokens [B] -> logits of the next [B, V], the state after."""
        words = self.dropout(self.words(tokens))
        found, _, state = self.advance(self.project(words), state)
        return self.answer(found, words), state

    def stepper(self) -> Stepper:
        """``start`` and ``step`` for decoding: the embedding is projected once, for all V words."""
        return refreshing(self, self._make_stepper)

    @torch.no_grad()
    def _make_stepper(self) -> Stepper:
        table = self.project(self.words.weight)  # [V, ...]
        copied = laid_out(self)

        @torch.no_grad()
        def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
            found, _, state = copied.advance(table.index_select(0, tokens), state)
            return copied.answer(found, self.words(tokens)), state

        return Stepper(torch.no_grad()(copied.start), step)

    def forward(self, features: Features, inputs: Tensor, packing: Packing | None = None) -> Tensor:
        """Read whole captions: inputs [B, T], <start> first -> logits [B, T, V] of the next words.

        Equal to ``start`` and T times ``step`` (teacher forcing). With a packing, only real words
        are read and answered: logits [N, V], in its order.
        """
        return self.attend(features, inputs, packing)[0]

    def attend(
        self, features: Features, inputs: Tensor, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, and where it looked for each word: the weights [B, T, P] or [N, P]."""
        whole = packing or Packing.whole(inputs)
        words = self.dropout(self.words(whole.pack(inputs)))  # [N, E]
        found, weights = self._loop(self.project(words), self.start(features), whole)
        if packing is None:
            found, weights, words = (whole.unflatten(one) for one in (found, weights, words))
        return self.answer(found, words), weights

    def _loop(self, projected: Tensor, state: State, packing: Packing) -> tuple[Tensor, Tensor]:
        """Steps over packed words; the batch shrinks as captions end -> [N, ...] and [N, P]."""
        state = {name: tensor[packing.order] for name, tensor in state.items()}
        rows, found, weights = len(packing.order), [], []
        matrices = [state["image.values"]]
        with deferred(packing.sizes, projected.device, matrices) if self.defers else nullcontext():
            for step_input in projected.split(packing.sizes):
                if len(step_input) < rows:  # a slice costs a gradient of full size
                    rows = len(step_input)
                    state = {name: tensor[:rows] for name, tensor in state.items()}
                one, seen, state = self.advance(step_input, state)
                found.append(one)
                weights.append(seen)
        return torch.cat(found), torch.cat(weights)
