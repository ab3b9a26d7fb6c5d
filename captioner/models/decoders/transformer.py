"""The Transformer as decoder (Vaswani et al., "Attention Is All You Need", NeurIPS 2017).

Words attend to the words before them and to the image. Each of L layers adds three terms to x, the
sum of a word and its position; normalization is before each term (Xiong et al., ICML 2020):

    x_0     = sqrt(H) W_e word + position
    x       = x + self(norm x)                  over words up to this one
    x       = x + cross(norm x, m)              over m_1 .. m_P, the grid, standardized, projected
    x       = x + W_2 relu(W_1 norm x)
    p_t     = softmax(W_p norm x + b_p)

    self, cross:    W_o [softmax(q_i K_i^T / sqrt(H / heads)) V_i for each head i] + b_o

Whole captions are read at once, with a causal mask. Step by step, the state has the keys and values
of earlier words in each layer, but only m of the image: since q^T (W_k m) = (W_k^T q)^T m and
Σ α (W_v m) = W_v (Σ α m), keys and values of the image are never computed, and an image takes P x H
numbers for any L and any beam size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from captioner.config import unknown
from captioner.models.decoders.decoder import State, Stepper, refreshing
from captioner.models.decoders.standardize import Positions
from captioner.models.features import Features
from captioner.models.matmul import Linear
from captioner.models.packing import Packing
from captioner.models.sites import Observe, unobserved
from captioner.models.weight_layout import laid_out

POSITIONS = ("learned", "sinusoidal")


class Layer(nn.Module):
    """Self attention, cross attention to the image, and a feed-forward network for each word.

    Args:
        hidden_size: H.
        heads: number of attention heads, each of width H / heads.
        feedforward_size: width between W_1 and W_2.
        dropout: probability of dropout for each of the three terms, [0, 1).
    """

    def __init__(
        self, *, hidden_size: int, heads: int, feedforward_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.self_norm, self.cross_norm, self.norm = (nn.LayerNorm(hidden_size) for _ in range(3))
        self.of_word = Linear(hidden_size, 3 * hidden_size)  # query, key, value
        self.self_output = Linear(hidden_size, hidden_size)
        self.query = Linear(hidden_size, hidden_size)
        self.key = Linear(hidden_size, hidden_size, bias=False)  # a bias would have no effect
        self.value = Linear(hidden_size, hidden_size)
        self.cross_output = Linear(hidden_size, hidden_size)
        self.wide = Linear(hidden_size, feedforward_size)
        self.narrow = Linear(feedforward_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for linear in (self.of_word, self.self_output, self.query, self.value, self.cross_output):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the layer to whole captions.

        Args:
            x: [B, T, H].
            memory: m, [B, P, H].

        Returns:
            x after the layer, and the weights of the cross attention, [B, heads, T, P].
        """
        parts = self.of_word(self.self_norm(x)).chunk(3, dim=-1)  # [B, T, H] each
        query, key, value = map(self._split, parts)  # [B, heads, T, H / heads]
        context, _ = attention(query, key, value, causal=True)
        x = x + self.dropout(self.self_output(self._join(context)))
        key, value = self._split(self.key(memory)), self._split(self.value(memory))
        query = self._split(self.query(self.cross_norm(x)))
        context, weights = attention(query, key, value)
        x = x + self.dropout(self.cross_output(self._join(context)))
        return self._feedforward(x), weights

    def step(
        self, x: Tensor, memory: Tensor, past: Tensor, observe: Observe = unobserved
    ) -> tuple[Tensor, Tensor]:
        """Apply the layer to one word per row.

        Args:
            x: [R, H].
            memory: m, [B, P, H]; each image has K = R / B consecutive rows.
            past: keys and values of the t words before, [R, t, 2 * H].
            observe: is called with the weights of both attentions and with x (``sites.py``).

        Returns:
            x after the layer, and the past with this word, [R, t + 1, 2 * H].
        """
        query, key_and_value = self.of_word(self.self_norm(x)).tensor_split([x.shape[1]], dim=1)
        past = torch.cat([past, key_and_value.unsqueeze(1)], dim=1)  # [R, t + 1, 2 * H]
        key, value = map(self._split, past.chunk(2, dim=2))  # [R, heads, t + 1, H / heads]

        def observe_weights(weights: Tensor) -> Tensor:  # [R, heads, 1, t + 1]
            return observe("self_attention.weights", weights.squeeze(2)).unsqueeze(2)

        context, _ = attention(self._split(query.unsqueeze(1)), key, value, observe=observe_weights)
        x = x + self.dropout(self.self_output(self._join(context).squeeze(1)))
        of_image = self._cross_attention(self.cross_norm(x), memory, observe)
        x = x + self.dropout(self.cross_output(of_image))
        return observe("layer.hidden", self._feedforward(x)), past

    def _cross_attention(self, x: Tensor, memory: Tensor, observe: Observe) -> Tensor:
        """Cross attention of one word per row, without keys and values of the image: [R, H]."""
        of_keys, of_values = (
            linear.weight.unflatten(0, (self.heads, -1)) for linear in (self.key, self.value)
        )  # [heads, H / heads, H]
        query = (
            self.query(x).unflatten(1, (self.heads, -1)).transpose(0, 1)
        )  # [heads, R, H / heads]
        queries = (query @ of_keys).transpose(0, 1)  # [R, heads, H]
        queries = queries.reshape(len(memory), -1, memory.shape[2])  # [B, K * heads, H]
        weights = _softmax(queries @ memory.transpose(1, 2) * query.shape[2] ** -0.5)
        of_heads = weights.view(len(x), self.heads, -1)  # [R, heads, P]
        weights = observe("attention.weights", of_heads).view_as(weights)
        context = weights.to(memory.dtype) @ memory  # [B, K * heads, H]
        context = context.view(len(x), self.heads, -1).transpose(0, 1)  # [heads, R, H]
        values = (context @ of_values.transpose(1, 2)).transpose(0, 1)  # [R, heads, H / heads]
        return values.flatten(1) + self.value.bias  # [R, H]

    def _feedforward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.narrow(torch.relu(self.wide(self.norm(x)))))

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, H] -> [B, heads, T, H / heads]"""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        """[B, heads, T, H / heads] -> [B, T, H]"""
        return x.transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """L layers of self and cross attention (Vaswani et al., 2017), with pre-normalization.

    Args:
        vocabulary_size: V.
        feature_size: D, width of the encoder's features.
        grid: attend to the positions of the grid; False: the pooled feature is the only position.
        components: number of principal components of a position (``Standardize``); None: all D.
        hidden_size: H, width of words, positions and layers.
        heads: number of heads of each attention; must divide H, which is even.
        layers: L.
        feedforward_size: width between W_1 and W_2.
        positions: how the positions of words are encoded, a name in ``POSITIONS``.
        max_words: number of learned positions: maximum length of a caption, <start> included.
        dropout: probability of dropout for words, for the dimensions of an image's values and for
            the terms that layers add, [0, 1).
        tie_weights: use the word embedding as W_p.

    Raises:
        ValueError: a value out of range.
    """

    attends = True

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_size: int,
        grid: bool = True,
        components: int | None = None,
        hidden_size: int = 512,
        heads: int = 8,
        layers: int = 3,
        feedforward_size: int = 2048,
        positions: str = "learned",
        max_words: int = 64,
        dropout: float = 0.1,
        tie_weights: bool = True,
    ) -> None:
        super().__init__()
        _check_options(hidden_size, heads, layers, positions)
        self.uses_grid = grid
        self.image = Positions(feature_size, components, hidden_size, grid=grid, dropout=dropout)
        self.words = nn.Embedding(vocabulary_size, hidden_size)
        self.places = nn.Embedding(max_words, hidden_size) if positions == "learned" else None
        sizes = {"hidden_size": hidden_size, "heads": heads, "feedforward_size": feedforward_size}
        self.layers = nn.ModuleList(Layer(**sizes, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.output = Linear(hidden_size, vocabulary_size)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.words.weight, std=hidden_size**-0.5)
        if self.places is not None:
            nn.init.normal_(self.places.weight, std=0.1)
        nn.init.zeros_(self.output.bias)
        if tie_weights:
            self.output.weight = self.words.weight

    def fit(self, features: Features) -> None:
        """Compute the statistics from features of training images."""
        self.image.fit(features)

    def read(self, tokens: Tensor, first: int) -> Tensor:
        """Words and their positions: tokens [B, T], the first at position `first` -> [B, T, H].

        Raises:
            ValueError: a caption longer than the learned positions.
        """
        words = math.sqrt(self.words.embedding_dim) * self.words(tokens)  # [B, T, H]
        last = first + tokens.shape[1]
        if self.places is None:
            numbers = torch.arange(first, last, device=words.device)  # [T]
            places = sinusoids(numbers, words.shape[2])  # [T, H]
            return self.dropout(words + places.to(words.dtype))
        if last > self.places.num_embeddings:
            raise ValueError(
                f"caption of {last} words: the model has only "
                f"decoder.max_words={self.places.num_embeddings} learned positions; truncate "
                "captions (loader.max_words, decoding.max_length), or train with a larger "
                "decoder.max_words or decoder.positions=sinusoidal"
            )
        return self.dropout(words + self.places.weight[first:last])  # [B, T, H]

    def start(self, features: Features, observe: Observe = unobserved) -> State:
        """The state before <start>: ``image.memory`` [B, P, H], and an empty past per layer."""
        memory = observe("image.values", self.image(features))  # [B, P, H]
        past = memory.new_empty(len(memory), 0, 2 * memory.shape[2])  # [B, 0, 2 * H]
        return {"image.memory": memory, **dict.fromkeys(self._pasts(), past)}

    def step(
        self, tokens: Tensor, state: State, observe: Observe = unobserved
    ) -> tuple[Tensor, State]:
        """Read one token per row: tokens [R] -> logits of the next [R, V], the next state."""
        x = self.read(tokens.unsqueeze(1), state["past.0"].shape[1]).squeeze(1)  # [R, H]
        after = {**state}
        for number, (name, layer) in enumerate(zip(self._pasts(), self._layers())):
            of_layer = partial(observe, layer=number)
            x, after[name] = layer.step(x, state["image.memory"], state[name], of_layer)
        hidden = observe("output.hidden", self.norm(x))
        return observe("output.logits", self.output(hidden)), after

    def stepper(self) -> Stepper:
        """``start`` and ``step`` for decoding."""
        return refreshing(self, self._make_stepper)

    @torch.no_grad()
    def _make_stepper(self) -> Stepper:
        copied = laid_out(self)
        copied.words = self.words  # the layout of tied weights is for products, not for rows
        return Stepper(torch.no_grad()(copied.start), torch.no_grad()(copied.step))

    def forward(self, features: Features, inputs: Tensor, packing: Packing | None = None) -> Tensor:
        """Read whole captions: inputs [B, T], <start> first -> logits [B, T, V] of the next tokens.

        Equal to ``start`` and T times ``step`` (teacher forcing). With a packing, the result has
        the logits of real tokens only, [N, V], in its order; padding follows them, without effect.
        """
        return self.attend(features, inputs, packing)[0]

    def attend(
        self, features: Features, inputs: Tensor, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the cross attention weights of the last layer, [B, T, P] or [N, P].

        The weights are means over the heads.
        """
        memory = self.image(features)  # [B, P, H]
        x = self.read(inputs, 0)  # [B, T, H]
        for layer in self._layers():
            x, weights = layer(x, memory)
        weights = weights.mean(1)  # [B, T, P]
        if packing is not None:
            x, weights = packing.pack(x), packing.pack(weights)  # [N, H], [N, P]
        return self.output(self.norm(x)), weights

    def _pasts(self) -> list[str]:
        return [f"past.{layer}" for layer in range(len(self.layers))]

    def _layers(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]


def _check_options(hidden_size: int, heads: int, layers: int, positions: str) -> None:
    """Raise for values that are not accepted or do not fit each other."""
    if heads < 1 or hidden_size % heads or hidden_size % 2:
        raise ValueError(
            f"decoder.heads={heads} does not divide decoder.hidden_size={hidden_size}; choose "
            "an even hidden_size that is a multiple of heads"
        )
    if layers < 1:
        raise ValueError(f"decoder.layers={layers} is not accepted; choose 1 or more")
    if positions not in POSITIONS:
        raise unknown("decoder.positions", positions, POSITIONS)


def sinusoids(places: Tensor, size: int) -> Tensor:
    """Positions [T] -> sines and cosines [T, size], at rates 1 to 1 / 10,000 (section 3.5)."""
    rates = torch.exp(torch.arange(0, size, 2, device=places.device) * (-math.log(10_000) / size))
    angles = places[:, None] * rates  # [T, size / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # [T, size]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    observe: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention -> the contexts [B, heads, T, H / heads] and the weights [B, heads, T, P].

    torch.nn.functional.scaled_dot_product_attention returns no weights, and its gradient takes ten
    times as long in bfloat16 on CPUs if T and P are small (torch 2.13).

    Args:
        query: [B, heads, T, H / heads].
        key, value: [B, heads, P, H / heads].
        causal: the query at t attends only to the keys up to t.
        observe: is called with the weights; what it returns is used instead.
    """
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5  # [B, heads, T, P]
    if causal:
        later = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    weights = _softmax(scores)
    if observe is not None:
        weights = observe(weights)
    return weights.to(value.dtype) @ value, weights


def _softmax(scores: Tensor) -> Tensor:
    exact = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=exact)
