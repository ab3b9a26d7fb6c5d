"""Adaptive attention: read the word, then attend to the image or to the decoder's own memory.

Adaptive is the model of Lu et al., "Knowing When to Look", CVPR 2017: a sentinel, computed from the
cell's memory, is one more value to attend to. Words like "of" need no image.

    v_i     = ReLU(W a_i + b)                   v̂ = ReLU(W_b v̄ + b_b)
    h_t     = cell([y_t; v̂], h_{t-1})
    s_t     = σ(W_x [y_t; v̂] + b_x + W_h h_{t-1}) * tanh(c_t)
    ĉ_t     = Σ_i α_ti v_i + β_t s_t            α_t and β_t, which sum to 1, from the query h_t
    p_t     = softmax(W_p (ĉ_t + h_t) + b_p)

a_i are the standardized positions of the grid, y_t word embeddings. In a cell without c, h_t
replaces tanh(c_t).
"""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.models.decoders.attention_decoder import Attending
from captioner.models.decoders.decoder import State
from captioner.models.decoders.standardize import with_image
from captioner.models.features import Features
from captioner.models.matmul import Linear
from captioner.models.recurrence.unroll import Recurrence
from captioner.models.sites import Observe, unobserved


class Adaptive(Attending):
    """Attends with the query h_t, after reading the word (Lu et al., 2017).

    With a sentinel, the weights of ``attend`` are [..., P + 1]; the last is β_t, the sentinel's.

    Args:
        vocabulary_size, feature_size, components, embedding_size, hidden_size, attention_size,
            score, dropout, tie_weights: see ``Attending``.
        cell: a name in ``CELLS``.
        layers: L; the h of the last layer is the query and the input of the output layer.
        sentinel: attend to the sentinel as well; False is the paper's "spatial attention".
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
        sentinel: bool = True,
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
            sentinel=sentinel,
        )
        self.recurrence = Recurrence(
            cell=cell,
            input_size=embedding_size,
            hidden_size=hidden_size,
            layers=layers,
            dropout=dropout,
        )
        self.image = Linear(hidden_size, embedding_size)
        self.gates = self.recurrence.first.of_input.out_features
        self.sentinel = sentinel
        width = self.gates + (hidden_size if sentinel else 0)
        self.of_image = Linear(embedding_size, width, bias=False)
        if sentinel:
            self.of_word = Linear(embedding_size, hidden_size)
            self.of_hidden = Linear(hidden_size, hidden_size, bias=False)

    def values(self, features: Features) -> Tensor:
        return torch.relu(super().values(features))  # [B, P, H]

    def begin(self, mean: Tensor) -> State:
        image = self.dropout(torch.relu(self.image(mean)))  # [B, E]
        return {**self.recurrence.zeros(len(mean)), "image.part": self.of_image(image)}

    def project(self, words: Tensor) -> Tensor:
        of_cell = self.recurrence.project(words)  # [..., gates * H]
        if not self.sentinel:
            return of_cell
        return torch.cat([of_cell, self.of_word(words)], dim=-1)  # [..., gates * H + H]

    def advance(
        self, projected: Tensor, state: State, observe: Observe = unobserved
    ) -> tuple[Tensor, Tensor, State]:
        projected = with_image(projected, state["image.part"])  # [R, gates * H (+ H)]
        of_cell = projected[:, : self.gates]  # [R, gates * H]
        own = self.recurrence.own(state)
        h, after = self.recurrence.advance(of_cell, own, observe)  # [R, H]
        sentinel = None
        if self.sentinel:
            of_sentinel = projected[:, self.gates :]  # [R, H]
            gate = torch.sigmoid(of_sentinel + self.of_hidden(state["h"][:, -1]))
            sentinel = gate * (torch.tanh(after["c"][:, -1]) if "c" in after else h)
        context, weights = self.attention(h, state, sentinel, observe)
        return context + h, weights, {**state, **after}
