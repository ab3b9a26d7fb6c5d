"""One word at a time, never looking back: greedy decoding takes the most probable."""

from __future__ import annotations

import torch

from captioner.decoding.search import Hypothesis, State, Step, count, device, hypothesis, read, rows


def greedy(
    step: Step,
    state: State,
    *,
    start: int,
    end: int,
    max_length: int,
    banned: tuple[int, ...] = (),
) -> list[list[Hypothesis]]:
    """The most probable next word, until <end>; an image that has ended is computed no further.

    Arguments and result as in ``decoding.decode``; one hypothesis an image.
    """
    images = count(state)
    words: list[list[int]] = [[] for _ in range(images)]
    log_probs: list[list[float]] = [[] for _ in range(images)]
    live = torch.arange(images, device=device(state))  # which image each row belongs to
    tokens = torch.full_like(live, start)
    for _ in range(max_length):
        next_log_probs, state = read(step, tokens, state, banned)
        best, tokens = next_log_probs.max(dim=-1)  # [R], [R]
        for image, token, value in zip(live.tolist(), tokens.tolist(), best.tolist()):
            words[image].append(token)
            log_probs[image].append(value)
        going = (tokens != end).nonzero().squeeze(1)
        if len(going) == 0:
            break
        if len(going) < len(tokens):
            live, tokens, state = live[going], tokens[going], rows(state, going)
    return [
        [hypothesis(word, value, end=end, length_penalty=0.0)]
        for word, value in zip(words, log_probs)
    ]
