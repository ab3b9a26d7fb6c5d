"""The part of a step that depends only on its word, computed once for each word.

A decoder's first layer multiplies the embedding of a word by a large matrix. While many captions
are decoded, the result of a word is needed again and again, so it is kept. It is computed when it
is first needed, together with those of its neighbours in the vocabulary: the beams of a photograph
read some 50 of thousands of words, most of them frequent ones, which are neighbours. A block
consists of the same words whichever of them is read first, so results do not depend, to the last
digit, on earlier captions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 32
"""Words that are projected together."""


class WordTable:
    """The projected words, [V, ...], without gradient, in the autocast mode of its creation.

    Several threads may use it: they write the same values.

    Args:
        project: embeddings [N, E] -> [N, ...]; each row depends only on its own word.
        words: the embeddings of the vocabulary, [V, E].
    """

    def __init__(self, project: Callable[[Tensor], Tensor], words: Tensor) -> None:
        self._project, self._words = project, words.detach()
        device = words.device.type
        self._autocast = (
            device,
            torch.get_autocast_dtype(device),
            torch.is_autocast_enabled(device),
        )
        self._missing: set[int] = set()  # first words of blocks
        if device != "cpu":  # to look at the tokens, the processor would wait for the device
            self._table = self._compute(self._words)
            return
        first = self._compute(self._words[:BLOCK])
        with torch.inference_mode(False):
            # Memory is taken from the system only where values are written.
            self._table = first.new_empty(len(words), *first.shape[1:])  # [V, ...]
        self._table[:BLOCK] = first
        self._missing.update(range(BLOCK, len(words), BLOCK))

    def __getitem__(self, tokens: Tensor) -> Tensor:
        """The rows of tokens: [R] -> [R, ...], a new tensor."""
        if self._missing:
            read = {token - token % BLOCK for token in tokens.tolist()}
            for first in read & self._missing:
                block = slice(first, first + BLOCK)
                self._table[block] = self._compute(self._words[block])
                self._missing.discard(first)
        return self._table.index_select(0, tokens)

    @torch.no_grad()
    def _compute(self, words: Tensor) -> Tensor:
        device, dtype, enabled = self._autocast
        with torch.autocast(device, dtype, enabled=enabled):
            return self._project(words)
