"""Soft attention: attend to the image, then read the word.

ShowAttendTell is the model of Xu et al., "Show, Attend and Tell", ICML 2015. With the values
v_1 .. v_P of the grid, their mean v̄ and word embeddings y_t:

    h_{-1}, c_{-1} = tanh(W v̄ + b)
    z_t     = Σ_i α_ti v_i                      α_t from the query h_{t-1}
    β_t     = σ(w_β h_{t-1} + b_β)              a gate on the context, one number
    h_t     = cell([y_t; β_t z_t], h_{t-1})
    p_t     = softmax(W_p (y_t + W_o [h_t; β_t z_t] + b_o) + b_p)       "deep output"

Without deep output p_t = softmax(W_p h_t + b_p). The paper's doubly stochastic penalty is
``losses.doubly_stochastic``; its weight is objective.attention_penalty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.models.decoders.attention_decoder import Attending
from captioner.models.decoders.decoder import State
from captioner.models.matmul import Linear
from captioner.models.recurrence.unroll import Recurrence
from captioner.models.sites import Observe, unobserved


class ShowAttendTell(Attending):
    """Attends with the query h_{t-1}, then reads word and context (Xu et al., 2015).

    Args:
        vocabulary_size, feature_size, components, embedding_size, hidden_size, attention_size,
            score, dropout, tie_weights: see ``Attending``.
        cell: a name in ``CELLS``.
        layers: L; the first layer reads the word, the h of the last is the query and the output.
        deep_output: the logits depend on the word and the context directly, in addition to h_t.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_size: int,
        components: int | None = None,
        cell: str = "lstm",
        embedding_size: int = 512,
        hidden_size: int = 512,
        layers: int = 1,
        attention_size: int = 256,
        score: str = "additive",
        deep_output: bool = True,
        dropout: float = 0.5,
        tie_weights: bool = False,
    ) -> None:
        super().__init__(
            vocabulary_size=vocabulary_size,
            feature_size=feature_size,
            components=components,
            embedding_size=embedding_size,
            hidden_size=hidden_size,
            attention_size=attention_size,
            score=score,
            dropout=dropout,
            tie_weights=tie_weights,
            answer_size=2 * hidden_size if deep_output else None,
        )
        self.recurrence = Recurrence(
            cell=cell,
            input_size=embedding_size,
            hidden_size=hidden_size,
            layers=layers,
            dropout=dropout,
        )
        self.of_context = Linear(
            hidden_size, self.recurrence.first.of_input.out_features, bias=False
        )
        self.gate = Linear(hidden_size, 1)
        self.first = Linear(hidden_size, self.recurrence.state_size)
        self.deep = deep_output

    def begin(self, mean: Tensor) -> State:
        return self.recurrence.filled(torch.tanh(self.first(mean)))  # [B, L, H] each

    def project(self, words: Tensor) -> Tensor:
        return self.recurrence.project(words)  # [..., gates * H]

    def advance(
        self, projected: Tensor, state: State, observe: Observe = unobserved
    ) -> tuple[Tensor, Tensor, State]:
        before = state["h"][:, -1]  # [R, H]
        context, weights = self.attention(before, state, observe=observe)
        gate = observe("attention.gate", torch.sigmoid(self.gate(before)))  # [R, 1]
        context = gate * context  # [R, H]
        own = self.recurrence.own(state)
        h, after = self.recurrence.advance(projected + self.of_context(context), own, observe)
        features = torch.cat([h, context], dim=1) if self.deep else h  # [R, 2 * H], or [R, H]
        return features, weights, {**state, **after}

    def answer(self, features: Tensor, words: Tensor, observe: Observe = unobserved) -> Tensor:
        if not self.deep:
            return super().answer(features, words, observe)
        hidden = observe("output.hidden", self.dropout(words + self.narrow(features)))
        return observe("output.logits", self.output(hidden))  # [..., V]
