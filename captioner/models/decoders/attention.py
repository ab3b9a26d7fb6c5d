"""Attention: a weighted mean of values, with weights from a query.

The query is compared with each of P values; the scores become weights by a softmax:

    α_i      = exp(e_i) / Σ_j exp(e_j)          Σ_i α_i = 1
    context  = Σ_i α_i v_i

    additive   e_i = w^T tanh(W_v v_i + b + W_q q)      Bahdanau et al., ICLR 2015; keys W_v v_i + b
    dot        e_i = v_i^T W_q q / sqrt(value_size)     Luong et al., EMNLP 2015, "general"

A sentinel s is one more value, to attend to instead of the image (Lu et al., CVPR 2017): it has a
score of the same form, and its weight is the last of P + 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from captioner.config import unknown
from captioner.models.matmul import Linear
from captioner.models.sites import Observe, unobserved

SCORES = ("additive", "dot")


class Attention(nn.Module):
    """A query and values -> the weighted mean of the values, and the weights.

    Args:
        query_size: width of a query.
        value_size: width of a value.
        size: width of a key; additive scores only.
        score: a name in ``SCORES``.
        sentinel: whether ``forward`` gets a sentinel.

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
        """The tensors of the images that all steps read; keys are computed here, once per image.

        Args:
            values: [B, P, value_size].

        Returns:
            the values and, for additive scores, the keys [B, P, size].
        """
        image = {"image.values": values}
        return {**image, "image.keys": self.key(values)} if self.additive else image

    def forward(
        self,
        query: Tensor,
        image: Mapping[str, Tensor],
        sentinel: Tensor | None = None,
        observe: Observe = unobserved,
    ) -> tuple[Tensor, Tensor]:
        """Attend once.

        Args:
            query: [R, query_size]; K = R / B consecutive rows per image.
            image: the result of ``remember`` for B images.
            sentinel: [R, value_size].
            observe: is called with sentinel, weights and context (``sites.py``).

        Returns:
            the context [R, value_size], and the weights [R, P], or [R, P + 1] with a sentinel.
        """
        query = self.query(query)  # [R, size], or [R, value_size] for dot scores
        values = image["image.values"]  # [B, P, value_size]
        queries = query.unflatten(0, (len(values), -1))  # [B, K, size], or [B, K, value_size]
        if self.additive:
            sums = image["image.keys"].unsqueeze(1) + queries.unsqueeze(2)  # [B, K, P, size]
            scores = self._energy(sums)  # [B, K, P]
        else:
            scores = queries @ values.transpose(1, 2) * values.shape[2] ** -0.5  # [B, K, P]
        scores = scores.flatten(0, 1)  # [R, P]
        if sentinel is not None:
            sentinel = observe("attention.sentinel", sentinel)
            scores = torch.cat([scores, self._sentinel_score(sentinel, query)], dim=1)  # [R, P + 1]
        exact = torch.promote_types(scores.dtype, torch.float32)
        weights = observe("attention.weights", torch.softmax(scores, dim=1, dtype=exact))
        of_positions = weights[:, : values.shape[1]].to(values.dtype)  # [R, P]
        of_images = of_positions.unflatten(0, queries.shape[:2])  # [B, K, P]
        context = (of_images @ values).flatten(0, 1)  # [R, value_size]
        if sentinel is not None:
            context = context + weights[:, -1:] * sentinel
        return observe("attention.context", context), weights

    def _sentinel_score(self, sentinel: Tensor, query: Tensor) -> Tensor:
        """The score of a sentinel [R, value_size], given the projected query -> [R, 1]."""
        if self.additive:
            return self._energy((self.sentinel_key(sentinel) + query).unsqueeze(1))  # [R, 1]
        return (sentinel * query).sum(1, keepdim=True) * sentinel.shape[1] ** -0.5  # [R, 1]

    def _energy(self, sums: Tensor) -> Tensor:
        """w^T tanh(sums), and sums is overwritten: [..., size] -> [...]."""
        return self.score(sums.tanh_()).squeeze(-1)  # [...]
