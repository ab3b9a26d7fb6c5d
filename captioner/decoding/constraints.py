"""What captions must not say, and what they must: filters of the next word, and an automaton.

A filter strikes words out before a strategy chooses, so it goes with all of them. Probabilities of
the words that are left are those of the model, not rescaled. Where filters would strike out every
word that an image could go on with, the caption ends there, and says what it could not keep.

Required words need more than filters: ``Required`` is the automaton whose states tell which of the
phrases a caption holds so far. A beam for every state (Anderson et al., "Guided Open Vocabulary
Image Captioning with Constrained Beam Search", EMNLP 2017) keeps each of them alive.
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
_Filter = Callable[[Tensor, int], Tensor]  # history [R, t], V -> what may not follow [R, V]
MOST_STATES = 128
"""Of the automaton: each keeps a beam, so work and memory grow with them."""


class Phrases(NamedTuple):
    """The words of DecodingOptions as tokens.

    Attributes:
        banned: phrases never said.
        required: phrases that must be said.
        prefix: how each caption begins.
    """

    banned: tuple[Phrase, ...] = ()
    required: tuple[Phrase, ...] = ()
    prefix: Phrase = ()


@dataclass(frozen=True)
class Constraints:
    """What may be said next.

    Args:
        options: of them, min_length, no_repeat_ngram and no_repeat_word are used.
        phrases: banned ones and the prefix are used.
        end: the token that finishes a caption.
        special: tokens never emitted.
    """

    options: DecodingOptions
    phrases: Phrases
    end: int
    special: tuple[int, ...] = ()

    def filter(
        self, log_probs: Tensor, history: Tensor, *, scores: Tensor | None = None, width: int = 1
    ) -> Tensor:
        """Strike out, in place, what may not be said: -inf.

        Args:
            log_probs: of the next word, [R, V].
            history: the words so far, [R, t].
            scores: of the words so far, [R]; rows at -inf do not count. None: all count.
            width: rows that belong to one image; filters are lifted for all of them together.
        """
        if self.special:
            log_probs.index_fill_(1, self._special.to(log_probs.device), -torch.inf)
        place = history.shape[1]
        if place < len(self.phrases.prefix):
            word = self.phrases.prefix[place]
            kept = log_probs[:, word].clone()
            log_probs.fill_(-torch.inf)
            log_probs[:, word] = kept
        elif self._filters:
            forbidden = self._forbidden(history, log_probs.shape[1])  # [R, V]
            stuck = (forbidden | (log_probs == -torch.inf)).all(dim=1)  # [R]
            if scores is not None:
                stuck = stuck | (scores == -torch.inf)
            lifted = stuck.view(-1, width).all(dim=1).repeat_interleave(width)  # [R]
            forbidden = torch.where(lifted[:, None], self._all_but_end(log_probs), forbidden)
            log_probs.masked_fill_(forbidden, -torch.inf)
        return log_probs

    def _all_but_end(self, log_probs: Tensor) -> Tensor:
        """Where filters are lifted the caption ends; where it cannot, it may go on in any way."""
        forbidden = (log_probs[:, self.end] > -torch.inf)[:, None].expand_as(log_probs).clone()
        forbidden[:, self.end] = False
        return forbidden

    def broken(self, tokens: Sequence[int], *, finished: bool) -> tuple[str, ...]:
        """The options that a caption does not keep, by their names."""
        if not self._filters:
            return ()
        history = torch.tensor([tokens], dtype=torch.long)
        said = [*tokens, self.end] if finished else list(tokens)
        size = 1 + max((*said, self.end))
        found = []
        for name, filter in self._filters.items():
            places = range(len(self.phrases.prefix), len(said))
            if any(filter(history[:, :t], size)[0, said[t]] for t in places):
                found.append(name)
        return tuple(found)

    @cached_property
    def _special(self) -> Tensor:
        return torch.tensor(self.special)

    @cached_property
    def _filters(self) -> dict[str, _Filter]:
        options, found = self.options, dict[str, _Filter]()
        if options.min_length:
            found["min_length"] = self._too_short
        if options.no_repeat_ngram:
            found["no_repeat_ngram"] = self._repeated_ngram
        if options.no_repeat_word:
            found["no_repeat_word"] = self._repeated_word
        if self.phrases.banned:
            found["banned_words"] = self._banned
        return found

    def _forbidden(self, history: Tensor, size: int) -> Tensor:
        masks = [filter(history, size) for filter in self._filters.values()]
        return torch.stack(masks).any(dim=0)

    def _too_short(self, history: Tensor, size: int) -> Tensor:
        forbidden = _none(history, size)
        forbidden[:, self.end] = history.shape[1] < self.options.min_length
        return forbidden

    def _repeated_word(self, history: Tensor, size: int) -> Tensor:
        forbidden = _none(history, size)
        return forbidden.scatter_(1, history[:, -1:], True)

    def _repeated_ngram(self, history: Tensor, size: int) -> Tensor:
        forbidden = _none(history, size)
        n = self.options.no_repeat_ngram
        if history.shape[1] < n:
            return forbidden
        windows = history.unfold(1, n, 1)  # [R, t - n + 1, n]
        last = history[:, history.shape[1] - n + 1 :]  # [R, n - 1]
        begun = (windows[:, :, :-1] == last[:, None]).all(dim=2)  # [R, t - n + 1]
        row, place = begun.nonzero(as_tuple=True)
        forbidden[row, windows[row, place, -1]] = True
        return forbidden

    def _banned(self, history: Tensor, size: int) -> Tensor:
        forbidden = _none(history, size)
        for *before, last in self.phrases.banned:
            if last < size and history.shape[1] >= len(before):
                tail = history[:, history.shape[1] - len(before) :]
                forbidden[:, last] |= (tail == tail.new_tensor(before)).all(dim=1)
        return forbidden


def _none(history: Tensor, size: int) -> Tensor:
    return torch.zeros(len(history), size, dtype=torch.bool, device=history.device)


class Required:
    """The automaton of required phrases: state 0 is before the first word.

    A state is the set of phrases that are still missing, and the longest end of the text that
    begins one of them. One state is enough where nothing is required.

    Args:
        phrases: each one or more tokens.

    Attributes:
        missing: for each state the places of the phrases that are still missing.

    Raises:
        ValueError: the phrases make too many states.
    """

    def __init__(self, phrases: Sequence[Phrase] = ()) -> None:
        self.phrases = tuple(phrases)
        everything = tuple(range(len(self.phrases)))
        places: dict[tuple[Phrase, Phrase], int] = {(everything, ()): 0}
        self._moves: list[dict[int, int]] = []  # by state: token -> state; others: _others
        self._others: list[int] = []
        words = sorted({word for phrase in self.phrases for word in phrase})
        for state in _growing(places):
            after = {word: self._after(*state, word) for word in words}
            others = (state[0], ())
            for target in (others, *after.values()):
                places.setdefault(target, len(places))
            if len(places) > MOST_STATES:
                raise ValueError(
                    f"decoding.required_words: {len(self.phrases)} phrases need more than "
                    f"{MOST_STATES} beams an image; require fewer or shorter ones"
                )
            self._moves.append({word: places[target] for word, target in after.items()})
            self._others.append(places[others])
        self.missing = [missing for missing, _ in places]

    def __len__(self) -> int:
        return len(self.missing)

    def moves(self, size: int, end: int, device: torch.device) -> Tensor:
        """The state that each word leads to, [states, V]; <end> leads nowhere else."""
        table = torch.tensor(self._others, device=device)[:, None].repeat(1, size)  # [S, V]
        for state, moves in enumerate(self._moves):
            for word, target in moves.items():
                table[state, word] = target
        table[:, end] = torch.arange(len(self), device=device)
        return table

    def absent(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The places of the phrases that a caption does not hold."""
        return tuple(
            place for place, phrase in enumerate(self.phrases) if not _holds(tokens, phrase)
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
    """The keys in order, also those that are added on the way."""
    done = 0
    while done < len(places):
        for key in list(places)[done:]:
            done += 1
            yield key


def _holds(tokens: Sequence[int], phrase: Phrase) -> bool:
    tokens = tuple(tokens)
    return any(tokens[at : at + len(phrase)] == phrase for at in range(len(tokens)))
