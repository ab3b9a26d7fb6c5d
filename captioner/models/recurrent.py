"""Recurrent decoders.

ShowTell is the Neural Image Caption generator (Vinyals et al., "Show and Tell", CVPR 2015): the
image is the first word the network reads.

    X_0     = W_I feature + b_I                 h_{-1} = c_{-1} = 0
    X_t     = W_e word_{t-1}                    word_0 = <start>
    h_t     = cell(X_t, h_{t-1})
    p_t     = softmax(W_p h_t + b_p)            until <end>

Nothing in it knows that the feature came from a picture: with a sentence as X_0 the same network
translates, with a zero vector it is a language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.models.cells import State
from captioner.models.encoders import Features
from captioner.models.unroll import Recurrence


class ShowTell(nn.Module):
    """X_0 = projected image feature, then <start>, then words until <end> (Vinyals et al., 2015).

    Args:
        vocabulary_size: V.
        feature_size: D, width of the encoder's pooled feature.
        cell: a name in ``CELLS``.
        embedding_size: E, width of a word and of X_0.
        hidden_size: H.
        layers: L.
        dropout: share dropped from words, X_0, h and between layers while training, [0, 1).
    """

    uses_grid = False

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_size: int,
        cell: str = "lstm",
        embedding_size: int = 512,
        hidden_size: int = 512,
        layers: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.image = nn.Linear(feature_size, embedding_size)
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

    def start(self, features: Features) -> State:
        """The state after the network has read the image as X_0, h and c being zero before."""
        x0 = self.dropout(self.image(features.pooled))  # [B, E]
        _, state = self.recurrence.step(x0, self.recurrence.zeros(len(x0)))
        return state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one word for each row: tokens [B] -> logits of the next [B, V], the state after."""
        h, state = self.recurrence.step(self.dropout(self.words(tokens)), state)
        return self.output(self.dropout(h)), state

    def forward(self, features: Features, inputs: Tensor) -> Tensor:
        """Read whole captions: inputs [B, T], <start> first -> logits [B, T, V] of the next words.

        Equal to ``start`` and T times ``step`` (teacher forcing).
        """
        x0 = self.image(features.pooled).unsqueeze(1)  # [B, 1, E]
        inputs = self.dropout(torch.cat([x0, self.words(inputs)], dim=1))  # [B, 1 + T, E]
        h, _ = self.recurrence(inputs, self.recurrence.zeros(len(inputs)))
        return self.output(self.dropout(h[:, 1:]))  # [B, T, V]: X_0 is read, not answered
