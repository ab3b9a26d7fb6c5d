"""Two recurrences: one computes the query of the attention, the other the words.

UpDown is the captioning model of Anderson et al., "Bottom-Up and Top-Down Attention for Image
Captioning and Visual Question Answering", CVPR 2018. With the values v_1 .. v_P, their mean v̄ and
word embeddings y_t:

    h¹_t    = cell¹([h²_{t-1}; v̄; y_t], h¹_{t-1})
    z_t     = Σ_i α_ti v_i                      α_t from the query h¹_t
    h²_t    = cell²([z_t; h¹_t], h²_{t-1})
    p_t     = softmax(W_p h²_t + b_p)

Here the values are the positions of the grid, as in the paper's baseline, not detected objects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.config import pick
from captioner.models.decoders.attention_decoder import Attending
from captioner.models.decoders.decoder import State
from captioner.models.decoders.standardize import with_image
from captioner.models.matmul import Linear
from captioner.models.recurrence.cells import Cell
from captioner.models.recurrence.table import CELLS
from captioner.models.recurrence.unroll import Recurrence, step_as_written
from captioner.models.sites import Observe, unobserved, within


class UpDown(Attending):
    """One cell computes the query of the attention, another the words (Anderson et al., 2018).

    Args:
        vocabulary_size, feature_size, components, embedding_size, hidden_size, attention_size,
            score, dropout, tie_weights: see ``Attending``.
        cell: a name in ``CELLS``, for both recurrences.
        layers: L of the recurrence that generates words.
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
        )
        kind = pick(CELLS, cell, "decoder.cell", Cell)
        self.looking = kind(input_size=embedding_size, hidden_size=hidden_size)
        gates = self.looking.of_input.out_features
        self.of_language = Linear(hidden_size, gates, bias=False)
        self.of_mean = Linear(hidden_size, gates, bias=False)
        self.language = Recurrence(
            cell=cell,
            input_size=2 * hidden_size,
            hidden_size=hidden_size,
            layers=layers,
            dropout=dropout,
        )

    def begin(self, mean: Tensor) -> State:
        rows = len(mean)
        zeros = self.looking.zeros(rows)  # [B, H] each
        looking = {f"looking_{name}": tensor for name, tensor in zeros.items()}
        return {**looking, **self.language.zeros(rows), "image.part": self.of_mean(mean)}

    def project(self, words: Tensor) -> Tensor:
        return self.looking.project(words)  # [..., gates * H]

    def advance(
        self, projected: Tensor, state: State, observe: Observe = unobserved
    ) -> tuple[Tensor, Tensor, State]:
        looking = {name: state[f"looking_{name}"] for name in self.looking.state_names}
        projected = with_image(projected, state["image.part"])  # [R, gates * H]
        projected = projected + self.of_language(state["h"][:, -1])
        first = within(observe, "attention_cell", 0)
        projected = first("input", projected)
        looking = step_as_written(self.looking, projected, looking, first)
        context, weights = self.attention(looking["h"], state, observe=observe)  # [R, H]
        inputs = torch.cat([context, looking["h"]], dim=1)  # [R, 2 * H]
        h, after = self.language.step(inputs, self.language.own(state), observe)
        after.update({f"looking_{name}": tensor for name, tensor in looking.items()})
        return h, weights, {**state, **after}
