"""Constraints on captions: filters of the next token, and an automaton for required words.

A filter excludes tokens before a strategy chooses, so it works with all strategies. Probabilities
of the remaining tokens are those of the model, not renormalized. If filters would exclude every
token that could continue the captions of an image, the caption ends there and names the options
that it violates.

Required words need more than filters: the states of the automaton ``Required`` are the sets of
phrases that a caption has so far. Each state has a beam of its own (Anderson et al., "Guided Open
Vocabulary Image Captioning with Constrained Beam Search", EMNLP 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.decoding.options import DecodingOptions

Phrase = tuple[int, ...]
_Filter = Callable[[Tensor, int], Tensor]  # history [R, t], V -> excluded tokens [R, V]
MOST_STATES = 128
"""States of the automaton; each has a beam, so time and memory grow with their number."""


class Phrases(NamedTuple):
    """The words and phrases of DecodingOptions as token ids.

    Attributes:
        banned: phrases that never occur.
        required: phrases that must occur.
        prefix: how each caption begins.
    """

    banned: tuple[Phrase, ...] = ()
    required: tuple[Phrase, ...] = ()
    prefix: Phrase = ()


@dataclass(frozen=True)
class Constraints:
    """Which tokens may come next.

    Args:
        options: min_length, no_repeat_ngram and no_repeat_word are used.
        phrases: the banned ones and the prefix are used.
        end: the token that ends a caption.
        special: tokens that are never generated.
    """

    options: DecodingOptions
    phrases: Phrases
    end: int
    special: tuple[int, ...] = ()

    def filter(
        self, log_probs: Tensor, history: Tensor, *, scores: Tensor | None = None, width: int = 1
    ) -> Tensor:
        """Set the log probabilities of excluded tokens to -inf, in place.

        Args:
            log_probs: of the next token, [R, V].
            history: the tokens so far, [R, t].
            scores: of the hypotheses, [R]; rows at -inf are ignored. None: none are.
            width: rows per image; filters are lifted for all of an image together.
        """
        if self.special:
            log_probs.index_fill_(1, self._special.to(log_probs.device), -torch.inf)
        step = history.shape[1]
        if step < len(self.phrases.prefix):
            token = self.phrases.prefix[step]
            log_prob = log_probs[:, token].clone()
            log_probs.fill_(-torch.inf)
            log_probs[:, token] = log_prob
        elif self._filters:
            excluded = self._excluded(history, log_probs.shape[1])  # [R, V]
            stuck = (excluded | (log_probs == -torch.inf)).all(dim=1)  # [R]
            if scores is not None:
                stuck = stuck | (scores == -torch.inf)
            lifted = stuck.view(-1, width).all(dim=1).repeat_interleave(width)  # [R]
            excluded = torch.where(lifted[:, None], self._all_but_end(log_probs), excluded)
            log_probs.masked_fill_(excluded, -torch.inf)
        return log_probs

    def _all_but_end(self, log_probs: Tensor) -> Tensor:
        """What to exclude if filters are lifted: all but <end>; nothing if <end> is impossible."""
        forbidden = (log_probs[:, self.end] > -torch.inf)[:, None].expand_as(log_probs).clone()
        forbidden[:, self.end] = False
        return forbidden

    def broken(self, tokens: Sequence[int], *, finished: bool) -> tuple[str, ...]:
        """The names of the options that a caption violates."""
        if not self._filters:
            return ()
        history = torch.tensor([tokens], dtype=torch.long)
        emitted = [*tokens, self.end] if finished else list(tokens)
        size = 1 + max((*emitted, self.end))
        steps = range(len(self.phrases.prefix), len(emitted))
        return tuple(
            name
            for name, filter in self._filters.items()
            if any(filter(history[:, :step], size)[0, emitted[step]] for step in steps)
        )

    @cached_property
    def _special(self) -> Tensor:
        return torch.tensor(self.special)

    @cached_property
    def _filters(self) -> dict[str, _Filter]:
        filters: dict[str, tuple[object, _Filter]] = {
            "min_length": (self.options.min_length, self._too_short),
            "no_repeat_ngram": (self.options.no_repeat_ngram, self._repeated_ngram),
            "no_repeat_word": (self.options.no_repeat_word, self._repeated_word),
            "banned_words": (self.phrases.banned, self._banned),
        }
        return {name: filter for name, (is_set, filter) in filters.items() if is_set}

    def _excluded(self, history: Tensor, size: int) -> Tensor:
        masks = [filter(history, size) for filter in self._filters.values()]
        return torch.stack(masks).any(dim=0)

    def _too_short(self, history: Tensor, size: int) -> Tensor:
        excluded = _none(history, size)
        excluded[:, self.end] = history.shape[1] < self.options.min_length
        return excluded

    def _repeated_word(self, history: Tensor, size: int) -> Tensor:
        return _none(history, size).scatter_(1, history[:, -1:], True)

    def _repeated_ngram(self, history: Tensor, size: int) -> Tensor:
        excluded = _none(history, size)
        n = self.options.no_repeat_ngram
        if history.shape[1] < n:
            return excluded
        windows = history.unfold(1, n, 1)  # [R, t - n + 1, n]
        last = history[:, history.shape[1] - n + 1 :]  # [R, n - 1]
        repeated = (windows[:, :, :-1] == last[:, None]).all(dim=2)  # [R, t - n + 1]
        row, start = repeated.nonzero(as_tuple=True)
        excluded[row, windows[row, start, -1]] = True
        return excluded

    def _banned(self, history: Tensor, size: int) -> Tensor:
        excluded = _none(history, size)
        for *before, last in self.phrases.banned:
            if last < size and history.shape[1] >= len(before):
                tail = history[:, history.shape[1] - len(before) :]
                excluded[:, last] |= (tail == tail.new_tensor(before)).all(dim=1)
        return excluded


def _none(history: Tensor, size: int) -> Tensor:
    return torch.zeros(len(history), size, dtype=torch.bool, device=history.device)


class Required:
    """The automaton of required phrases; state 0 is the initial one.

    A state is the set of phrases that are still missing, and the longest suffix of the caption that
    is a prefix of one of them. If nothing is required, there is one state.

    Args:
        phrases: each of one or more token ids.

    Attributes:
        missing: for each state, the indices of the phrases that are still missing.

    Raises:
        ValueError: the phrases need too many states.
    """

    def __init__(self, phrases: Sequence[Phrase] = ()) -> None:
        self.phrases = tuple(phrases)
        all_missing = tuple(range(len(self.phrases)))
        places: dict[tuple[Phrase, Phrase], int] = {(all_missing, ()): 0}
        self._moves: list[dict[int, int]] = []  # by state: token -> state; other tokens: _otherwise
        self._otherwise: list[int] = []
        words = sorted({word for phrase in self.phrases for word in phrase})
        for state in _growing(places):
            after = {word: self._after(*state, word) for word in words}
            otherwise = (state[0], ())
            for target in (otherwise, *after.values()):
                places.setdefault(target, len(places))
            if len(places) > MOST_STATES:
                raise ValueError(
                    f"decoding.required_words: {len(self.phrases)} phrases need more than "
                    f"{MOST_STATES} beams per image; require fewer or shorter ones"
                )
            self._moves.append({word: places[target] for word, target in after.items()})
            self._otherwise.append(places[otherwise])
        self.missing = [missing for missing, _ in places]

    def __len__(self) -> int:
        return len(self.missing)

    def moves(self, size: int, end: int, device: torch.device) -> Tensor:
        """The next state for each token, [states, V]; <end> does not change the state."""
        table = torch.tensor(self._otherwise, device=device)[:, None].repeat(1, size)  # [S, V]
        for state, moves in enumerate(self._moves):
            for word, target in moves.items():
                table[state, word] = target
        table[:, end] = torch.arange(len(self), device=device)
        return table

    def absent(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The indices of the phrases that a caption does not have."""
        return tuple(
            place for place, phrase in enumerate(self.phrases) if not _has_phrase(tokens, phrase)
        )

    def _after(self, missing: Phrase, tail: Phrase, word: int) -> tuple[Phrase, Phrase]:
        text = (*tail, word)
        left = tuple(p for p in missing if text[-len(self.phrases[p]) :] != self.phrases[p])
        for length in range(len(text), 0, -1):
            end = text[-length:]
            if any(len(self.phrases[p]) > length and self.phrases[p][:length] == end for p in left):
                return left, end
        return left, ()


def _growing(places: dict[tuple[Phrase, Phrase], int]) -> Iterator[tuple[Phrase, Phrase]]:
    """The keys in order, including those that are added during the iteration."""
    done = 0
    while done < len(places):
        for key in list(places)[done:]:
            done += 1
            yield key


def _has_phrase(tokens: Sequence[int], phrase: Phrase) -> bool:
    tokens = tuple(tokens)
    size = len(phrase)
    return any(tokens[first : first + size] == phrase for first in range(len(tokens)))
