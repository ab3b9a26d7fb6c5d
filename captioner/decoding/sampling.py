"""One word at a time, never looking back: the most probable one, or one that is drawn.

Draws follow a caption's own random numbers, one for each word, made from the seed, the image's key
and the number of the sample: an image draws the same words alone and in any batch.
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
    """The most probable next word, until <end>; an image that has ended is computed no further.

    Returns:
        one hypothesis an image.
    """
    numbers = numpy.zeros((count(state), max_length))
    found = _word_by_word(read, state, lambda log_probs, _: log_probs.max(1).indices, numbers, end)
    return [[one] for one in found]


def sample(
    read: Reader, state: State, *, end: int, options: DecodingOptions, keys: Sequence[int]
) -> list[list[Hypothesis]]:
    """Draw ``options.captions`` captions of each image, in the order in which they are drawn.

    Args:
        keys: a number ≥ 0 for each image, for its draws.
    """
    each = options.captions
    index = torch.arange(count(state), device=device(state)).repeat_interleave(each)
    numbers = numpy.stack(
        [
            numpy.random.default_rng([options.seed, key, one]).random(options.max_length)
            for key in keys
            for one in range(each)
        ]
    )  # [B * N, T]

    def choose(log_probs: Tensor, chance: Tensor) -> Tensor:
        return draw(
            log_probs, chance, options.temperature, top_k=options.top_k, top_p=options.top_p
        )

    found = _word_by_word(read, rows(state, index), choose, numbers, end, each=each)
    return [found[first : first + each] for first in range(0, len(found), each)]


def draw(
    log_probs: Tensor, chance: Tensor, temperature: float, *, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Draw a word a row by inverting the distribution function.

    Args:
        log_probs: [R, V], -inf where a word may not be drawn.
        chance: uniform on [0, 1), [R].
        temperature: τ > 0; words are drawn from p^(1/τ), rescaled.
        top_k: from the k most probable only; 0 from all.
        top_p: from the fewest words that hold this share, after temperature and top_k.

    Returns:
        tokens, [R].
    """
    scaled, words = log_probs / temperature, None
    if top_k or top_p < 1:  # the most probable words, falling
        scaled, words = scaled.topk(min(top_k or scaled.shape[1], scaled.shape[1]), dim=1)
    probs = torch.softmax(scaled, dim=1)  # [R, k], or [R, V]
    if top_p < 1:
        share = probs.cumsum(dim=1)
        probs[:, 1:] = probs[:, 1:].masked_fill(share[:, :-1] >= top_p, 0.0)
    total = probs.cumsum(dim=1, dtype=torch.float64)  # rising
    place = torch.searchsorted(total, chance[:, None] * total[:, -1:], right=True)  # [R, 1]
    last = probs.shape[1] - 1 - (probs > 0).flip(1).int().argmax(dim=1, keepdim=True)
    place = place.minimum(last)  # rounding must not reach a word without probability
    return (place if words is None else words.gather(1, place)).squeeze(1)


def _word_by_word(
    read: Reader,
    state: State,
    choose: Choose,
    numbers: numpy.ndarray,
    end: int,
    *,
    each: int = 1,
) -> list[Hypothesis]:
    """One caption a row; `numbers` [R, T] are handed to `choose`, T is the most tokens.

    An image's `each` captions share what the state has of it until one of them ends.
    """
    captions, most = numbers.shape
    chances = torch.from_numpy(numbers).to(device(state))
    words: list[list[int]] = [[] for _ in range(captions)]
    log_probs: list[list[float]] = [[] for _ in range(captions)]
    live = torch.arange(captions, device=device(state))  # the caption that each row belongs to
    history = live.new_empty(captions, 0)  # [R, t]
    for place in range(most):
        next_log_probs, state = read(history, state)
        tokens = choose(next_log_probs, chances[live, place])  # [R]
        values = next_log_probs.gather(1, tokens[:, None]).squeeze(1)
        for caption, token, value in zip(live.tolist(), tokens.tolist(), values.tolist()):
            words[caption].append(token)
            log_probs[caption].append(value)
        history = torch.cat([history, tokens[:, None]], dim=1)
        going = (tokens != end).nonzero().squeeze(1)
        if len(going) == 0:
            break
        if len(going) < len(tokens):
            live, history = live[going], history[going]
            state = rows(state, going, images=going // each)
            each = 1  # images have different numbers of rows left: each row has an image of its own
    return [_finish(*one, end) for one in zip(words, log_probs)]


def _finish(tokens: list[int], log_probs: list[float], end: int) -> Hypothesis:
    finished = tokens[-1] == end
    words = tuple(tokens[:-1] if finished else tokens)
    return Hypothesis(words, tuple(log_probs), sum(log_probs), finished)
