"""Greedy decoding and sampling: one token at a time, the most probable one or a sample.

Each caption has its own random numbers, one per token. They depend only on the seed, the key of the
image and the index of the sample, so an image has the same samples in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy
import torch
from torch import Tensor

from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis, Reader, State, count, device, rows

Choose = Callable[[Tensor, Tensor], Tensor]  # log_probs [R, V], numbers [R] -> tokens [R]


def greedy(read: Reader, state: State, *, end: int, max_length: int) -> list[list[Hypothesis]]:
    """The most probable next token, until <end>; finished images are not computed any further.

    Returns:
        one hypothesis per image.
    """

    def choose(log_probs: Tensor, _: Tensor) -> Tensor:
        return log_probs.max(1).indices

    numbers = numpy.zeros((count(state), max_length))
    return [[hypothesis] for hypothesis in _generate(read, state, choose, numbers, end)]


def sample(
    read: Reader, state: State, *, end: int, options: DecodingOptions, keys: Sequence[int]
) -> list[list[Hypothesis]]:
    """Sample ``options.captions`` captions of each image.

    Args:
        keys: a number ≥ 0 per image, which seeds its samples.

    Returns:
        the samples of each image.
    """
    per_image = options.captions
    index = torch.arange(count(state), device=device(state)).repeat_interleave(per_image)
    numbers = numpy.stack(
        [
            numpy.random.default_rng([options.seed, key, number]).random(options.max_length)
            for key in keys
            for number in range(per_image)
        ]
    )  # [B * N, T]

    def choose(log_probs: Tensor, uniform: Tensor) -> Tensor:
        return draw(
            log_probs, uniform, options.temperature, top_k=options.top_k, top_p=options.top_p
        )

    samples = _generate(read, rows(state, index), choose, numbers, end, per_image=per_image)
    return [samples[first : first + per_image] for first in range(0, len(samples), per_image)]


def draw(
    log_probs: Tensor, uniform: Tensor, temperature: float, *, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Sample one token per row by inverting the cumulative distribution.

    Args:
        log_probs: [R, V], -inf for excluded tokens.
        uniform: random numbers, uniform on [0, 1), [R].
        temperature: τ > 0; samples are from p^(1/τ), renormalized.
        top_k: from the k most probable tokens only; 0: from all.
        top_p: from the smallest set of tokens with at least this probability, after temperature and
            top_k.

    Returns:
        tokens, [R].
    """
    scaled, tokens = log_probs / temperature, None
    if top_k or top_p < 1:  # the most probable tokens, in descending order
        scaled, tokens = scaled.topk(min(top_k or scaled.shape[1], scaled.shape[1]), dim=1)
    probs = torch.softmax(scaled, dim=1)  # [R, k], or [R, V]
    if top_p < 1:
        cumulative = probs.cumsum(dim=1)
        probs[:, 1:] = probs[:, 1:].masked_fill(cumulative[:, :-1] >= top_p, 0.0)
    total = probs.cumsum(dim=1, dtype=torch.float64)  # ascending
    index = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)  # [R, 1]
    last = probs.shape[1] - 1 - (probs > 0).flip(1).int().argmax(dim=1, keepdim=True)
    index = index.minimum(last)  # rounding must not select a token with probability 0
    return (index if tokens is None else tokens.gather(1, index)).squeeze(1)


def _generate(
    read: Reader,
    state: State,
    choose: Choose,
    numbers: numpy.ndarray,
    end: int,
    *,
    per_image: int = 1,
) -> list[Hypothesis]:
    """One caption per row.

    Args:
        numbers: random numbers for `choose`, [R, T]; captions have at most T tokens.
        per_image: captions of an image, which use the same row of it until one of them ends.
    """
    captions, longest = numbers.shape
    uniform = torch.from_numpy(numbers).to(device(state))
    generated: list[list[int]] = [[] for _ in range(captions)]
    log_probs: list[list[float]] = [[] for _ in range(captions)]
    live = list(range(captions))  # the caption of each row
    history = torch.empty(captions, 0, dtype=torch.long, device=device(state))  # [R, t]
    for step in range(longest):
        next_log_probs, state = read(history, state)
        tokens = choose(next_log_probs, uniform[:, step])[:, None]  # [R, 1]
        drawn = torch.cat([tokens.double(), next_log_probs.gather(1, tokens).double()], dim=1)
        ids, values = zip(*drawn.tolist())  # the only copy from the device
        for caption, token, value in zip(live, ids, values):
            generated[caption].append(int(token))
            log_probs[caption].append(value)
        history = torch.cat([history, tokens], dim=1)
        unfinished = [row for row, token in enumerate(ids) if token != end]
        if not unfinished:
            break
        if len(unfinished) < len(live):
            live = [live[row] for row in unfinished]
            kept = torch.tensor(unfinished, device=history.device)
            uniform, history = uniform[kept], history[kept]
            state = rows(state, kept, images=kept // per_image)
            per_image = 1  # images now have different numbers of rows: each row gets its own image
    return [_hypothesis(*caption, end) for caption in zip(generated, log_probs)]


def _hypothesis(tokens: list[int], log_probs: list[float], end: int) -> Hypothesis:
    finished = tokens[-1] == end
    words = tuple(tokens[:-1] if finished else tokens)
    return Hypothesis(words, tuple(log_probs), sum(log_probs), finished)
