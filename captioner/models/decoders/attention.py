"""Attention: a weighted mean of values, with weights from a query.

The query is compared with each of P values; the scores become weights by a softmax:

    α_i      = exp(e_i) / Σ_j exp(e_j)          Σ_i α_i = 1
    context  = Σ_i α_i v_i

    additive   e_i = w^T tanh(W_v v_i + b + W_q q)      Bahdanau et al., ICLR 2015; keys W_v v_i + b
    dot        e_i = v_i^T W_q q / sqrt(W)              Luong et al., EMNLP 2015, "general"

A sentinel s is one more value, to attend to instead of the image (Lu et al., CVPR 2017): it has a
score of the same form, and its weight is the last of P + 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from captioner.config import unknown
from captioner.models.matmul import Linear

SCORES = ("additive", "dot")


class Attention(nn.Module):
    """A query and values -> the weighted mean of the values, and the weights.

    Args:
        query_size: Q.
        value_size: W.
        size: A, width of a key; additive scores only.
        score: a name in ``SCORES``.
        sentinel: whether there will be one.

    Raises:
        ValueError: an unknown score.
    """

    def __init__(
        self, *, query_size: int, value_size: int, size: int, score: str, sentinel: bool = False
    ) -> None:
        super().__init__()
        if score not in SCORES:
            raise unknown("decoder.score", score, SCORES)
        self.additive = score == "additive"
        self.query = Linear(query_size, size if self.additive else value_size, bias=False)
        if self.additive:
            self.key = Linear(value_size, size)
            self.score = Linear(size, 1, bias=False)
            if sentinel:
                self.sentinel_key = Linear(value_size, size)

    def remember(self, values: Tensor) -> dict[str, Tensor]:
        """What all steps read of images: values [B, P, W] and, for additive scores, keys [B, P, A].

        The keys are projected here, once per image.
        """
        image = {"image.values": values}
        return {**image, "image.keys": self.key(values)} if self.additive else image

    def forward(
        self, query: Tensor, image: Mapping[str, Tensor], sentinel: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend once.

        Args:
            query: [R, Q]; K = R / B consecutive rows per image.
            image: the result of ``remember``, of B images.
            sentinel: [R, W].

        Returns:
            the context [R, W], and the weights [R, P], or [R, P + 1] with a sentinel.
        """
        query, values = self.query(query), image["image.values"]
        queries = query.unflatten(0, (len(values), -1))  # [B, K, A], or [B, K, W]
        if self.additive:
            scores = self._energy(image["image.keys"].unsqueeze(1) + queries.unsqueeze(2))
        else:
            scores = queries @ values.transpose(1, 2) * values.shape[2] ** -0.5
        scores = scores.flatten(0, 1)  # [R, P]
        if sentinel is not None:
            scores = torch.cat([scores, self._score_of(sentinel, query)], dim=1)  # [R, P + 1]
        exact = torch.promote_types(scores.dtype, torch.float32)
        weights = torch.softmax(scores, dim=1, dtype=exact)
        of_positions = weights[:, : values.shape[1]].to(values.dtype)
        context = (of_positions.unflatten(0, queries.shape[:2]) @ values).flatten(0, 1)  # [R, W]
        if sentinel is not None:
            context = context + weights[:, -1:] * sentinel
        return context, weights

    def _score_of(self, sentinel: Tensor, query: Tensor) -> Tensor:
        """The score of a sentinel [R, W], given the projected query -> [R, 1]."""
        if self.additive:
            return self._energy((self.sentinel_key(sentinel) + query).unsqueeze(1))
        return (sentinel * query).sum(1, keepdim=True) * sentinel.shape[1] ** -0.5

    def _energy(self, sums: Tensor) -> Tensor:
        return self.score(sums.tanh_()).squeeze(-1)
