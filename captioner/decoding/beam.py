"""Beam search, batched over images and beams; in groups, and with required words.

Each step extends K live hypotheses of every image by every word and ranks the results by log
probability. Of the best K, those that end in <end> are finished; the best K that do not end live
on (Graves, 2012; Sutskever et al., 2014). An image is done when K hypotheses have finished, or
earlier, when no live one can still beat a finished one, which changes no result.

Groups (diverse beam search, Vijayakumar et al., AAAI 2018) are beams of K / G that choose one after
the other at each step; a group ranks a word lower by λ for every hypothesis of an earlier group
that has just taken it. Only the ranking of the step sees λ: log probabilities stay the model's.

Required words (constrained beam search, Anderson et al., EMNLP 2017) give each state of their
automaton a beam of its own, so that a hypothesis that has said "red ball" competes only with
others that have. An image is done when no live hypothesis can beat one that has said them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import chain, zip_longest

import torch
from torch import Tensor

from captioner.decoding.constraints import Required
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis, Reader, State, count, device, rows


def beam_search(
    read: Reader, state: State, *, end: int, options: DecodingOptions, required: Required
) -> list[list[Hypothesis]]:
    """Search for the best captions of every image.

    A beam of 1 is greedy decoding; a beam as wide as there are captions is an exhaustive search.
    Where too few end within max_length, unfinished hypotheses follow.

    Returns:
        for each image its hypotheses, best first: those that hold all required words before the
        others; of groups, the best of each before the second of any.
    """
    images, groups, states = count(state), options.groups, len(required)
    beams = [_Beams.first(images, states, device(state)) for _ in range(groups)]
    active = torch.arange(images, device=device(state))  # the image at each of the A places
    found = [[_Found(options, required) for _ in range(groups)] for _ in range(images)]
    state = rows(state, active.repeat_interleave(groups * states))
    moves: Tensor | None = None
    for length in range(1, options.max_length + 1):
        log_probs, state = _read(read, beams, state)  # [A, G, S, k, V]
        if moves is None:
            moves = required.moves(log_probs.shape[-1], end, log_probs.device)
        parents, said = [], torch.zeros_like(log_probs[:, 0, 0, 0])  # [A, V]
        for group in range(groups):
            step = beams[group].extend(log_probs[:, group], moves, options, end, said)
            beams[group] = step.beams
            parents.append(step.parents)
            for place, at, tokens, values in step.ended:
                found[int(active[place])][group].add(tokens, values, at)
        keep = _going(active, beams, found)
        if not keep or length == options.max_length:
            break
        index = torch.tensor(keep, device=active.device)
        continued = _rows(parents, log_probs.shape)[index].flatten()
        state = rows(state, continued, images=index if len(keep) < len(active) else None)
        active, beams = active[index], [one.of_places(index) for one in beams]
    for place, image in enumerate(active.tolist()):
        for group in range(groups):
            found[image][group].take_unfinished(beams[group], place)
    return [_in_turn([one.ranked() for one in of_image]) for of_image in found]


def _read(read: Reader, beams: list[_Beams], state: State) -> tuple[Tensor, State]:
    history = torch.stack([one.tokens for one in beams], dim=1)  # [A, G, S, k, t]
    alive = torch.stack([one.scores for one in beams], dim=1) > -torch.inf  # [A, G, S, k]
    width = alive[0].numel()
    log_probs, state = read(history.flatten(0, 3), state, alive=alive.flatten(), width=width)
    return log_probs.view(*alive.shape, -1), state


def _rows(parents: list[Tensor], shape: torch.Size) -> Tensor:
    """The row of the state that each hypothesis continues: G times [A, S, k'] -> [A, G * S * k']"""
    places, groups, states, width = shape[:4]
    first = torch.arange(places * groups, device=parents[0].device).view(places, groups, 1, 1)
    return (first * states * width + torch.stack(parents, dim=1)).flatten(1)


def _going(active: Tensor, beams: list[_Beams], found: list[list[_Found]]) -> list[int]:
    """The places of images that are not done; the groups of an image that are done stop."""
    keep = []
    best = [one.scores.flatten(1).amax(dim=1).tolist() for one in beams]
    for place, image in enumerate(active.tolist()):
        done = [one.done(best[group][place]) for group, one in enumerate(found[image])]
        if not all(done):
            keep.append(place)
            for group, stops in enumerate(done):
                if stops:
                    beams[group].scores[place] = -torch.inf
    return keep


def _in_turn(groups: list[list[Hypothesis]]) -> list[Hypothesis]:
    """The best of each group, by score, then the second of each, and so on."""
    ranks = ([one for one in rank if one is not None] for rank in zip_longest(*groups))
    order = (sorted(rank, key=lambda one: (len(one.missing), -one.score)) for rank in ranks)
    return list(chain.from_iterable(order))


@dataclass
class _Step:
    """What one step of one group gives.

    Attributes:
        parents: which of the S * k rows of its image each new hypothesis continues, [A, S, k'].
        beams: the new hypotheses.
        ended: those that finished: place in A, state, tokens without <end>, log_probs.
    """

    parents: Tensor
    beams: _Beams
    ended: list[tuple[int, int, list[int], list[float]]]


@dataclass
class _Beams:
    """The live hypotheses of one group: A images, S states, k <= K / G hypotheses of each.

    Attributes:
        tokens: the words so far, [A, S, k, t].
        log_probs: of each word so far, [A, S, k, t].
        scores: their sums, [A, S, k]; -inf where there are fewer than k hypotheses.
    """

    tokens: Tensor
    log_probs: Tensor
    scores: Tensor

    @classmethod
    def first(cls, images: int, states: int, device: torch.device) -> _Beams:
        """One empty hypothesis an image, in the first state."""
        scores = torch.full((images, states, 1), -torch.inf, device=device)
        scores[:, 0] = 0.0
        tokens = torch.empty(images, states, 1, 0, dtype=torch.long, device=device)
        return cls(tokens, torch.empty_like(tokens, dtype=torch.float32), scores)

    def extend(
        self, log_probs: Tensor, moves: Tensor, options: DecodingOptions, end: int, said: Tensor
    ) -> _Step:
        """Add a word to every hypothesis and keep the best of every state.

        Args:
            log_probs: of the next word, [A, S, k, V].
            moves: the state that each word leads to, [S, V].
            said: how often earlier groups have taken each word at this step, [A, V]; this group's
                words are added.
        """
        width, size = options.beam_size // options.groups, log_probs.shape[-1]
        ranking = log_probs
        if options.groups > 1:
            ranking = log_probs - options.diversity * said[:, None, None]
        best, choice = _best(ranking, self.scores, moves, 2 * width)  # [A, S, C], falling
        words = choice % size
        ends = words == end
        finished = (ends & (best > -torch.inf))[..., :width]
        live = best.masked_fill(ends, -torch.inf)
        ranks, kept = live.topk(min(width, live.shape[-1]), dim=-1)  # [A, S, k'], falling
        place = torch.arange(len(best), device=best.device)
        parents, beams = self._continue(place[:, None, None], choice.gather(-1, kept), log_probs)
        beams.scores.masked_fill_(ranks == -torch.inf, -torch.inf)
        ended = self._ended(finished, choice, log_probs)
        if options.groups > 1:
            _count(said, beams.tokens[..., -1], beams.scores > -torch.inf)
            _count(said, words[..., :width], finished)
        return _Step(parents, beams, ended)

    def _continue(self, place: Tensor, choice: Tensor, log_probs: Tensor) -> tuple[Tensor, _Beams]:
        """Some hypotheses with one more word, and the rows they continue.

        Args:
            place: the image of each, broadcast with
            choice: its flat place in [S * k * V], any shape.
            log_probs: of the next word, [A, S, k, V].
        """
        size = log_probs.shape[-1]
        parents, words = choice // size, choice % size
        value = log_probs.flatten(1)[place, choice]
        tokens = torch.cat([self.tokens.flatten(1, 2)[place, parents], words[..., None]], dim=-1)
        values = torch.cat([self.log_probs.flatten(1, 2)[place, parents], value[..., None]], dim=-1)
        return parents, _Beams(tokens, values, self.scores.flatten(1)[place, parents] + value)

    def _ended(
        self, finished: Tensor, choice: Tensor, log_probs: Tensor
    ) -> list[tuple[int, int, list[int], list[float]]]:
        place, at, rank = finished.nonzero(as_tuple=True)
        if not len(place):
            return []
        _, beams = self._continue(place, choice[place, at, rank], log_probs)
        tokens, log_probs = beams.tokens[:, :-1], beams.log_probs
        return list(zip(place.tolist(), at.tolist(), tokens.tolist(), log_probs.tolist()))

    def of_places(self, index: Tensor) -> _Beams:
        """Only the images at these places."""
        return _Beams(self.tokens[index], self.log_probs[index], self.scores[index])


def _best(log_probs: Tensor, scores: Tensor, moves: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """The best candidates that lead to each state: their scores and flat places, [A, S, C]."""
    states, width, size = log_probs.shape[1:]
    rows, offset = log_probs.flatten(1, 2), scores.flatten(1)  # [A, S * k, V], [A, S * k]
    if states == 1:
        found = [_top(rows, offset, wanted)]
    else:
        leads = moves[:, None].expand(states, width, size).flatten(0, 1)  # [S * k, V]
        found = [
            _top(rows.masked_fill(leads != target, -torch.inf), offset, wanted)
            for target in range(states)
        ]
    return torch.stack([one[0] for one in found], 1), torch.stack([one[1] for one in found], 1)


def _top(values: Tensor, offset: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """The largest of values [A, R, V] + offset [A, R] and their flat places, [A, C], falling.

    In two rounds: the V words are dealt into piles; no more than `wanted` piles, those with the
    largest tops, can hold the `wanted` largest words. A word is looked at once, by a maximum.
    """
    rows, size = values.shape[1:]
    wanted = min(wanted, rows * size)
    piles = min(size, math.ceil(math.sqrt(size * wanted / rows)))
    each = size // piles
    tops = values[..., : each * piles].unflatten(-1, (each, piles)).amax(-2)  # [A, R, piles]
    left = size - each * piles
    if left:
        tops[..., :left] = torch.maximum(tops[..., :left], values[..., each * piles :])
    _, pile = (tops + offset[..., None]).flatten(1).topk(min(wanted, rows * piles), dim=1)
    row, first = pile // piles, pile % piles  # [A, C]
    words = first[..., None] + torch.arange(0, size, piles, device=pile.device)  # [A, C, each + 1]
    places = row[..., None] * size + words.clamp(max=size - 1)
    found = values.flatten(1).gather(1, places.flatten(1)).view_as(places)
    found = (found + offset.gather(1, row)[..., None]).masked_fill_(words >= size, -torch.inf)
    best, at = found.flatten(1).topk(wanted, dim=1)
    return best, places.flatten(1).gather(1, at)


def _count(said: Tensor, words: Tensor, counts: Tensor) -> None:
    said.scatter_add_(1, words.flatten(1), counts.flatten(1).to(said.dtype))


@dataclass
class _Found:
    """The captions that one group has found of one image."""

    options: DecodingOptions
    required: Required
    complete: list[Hypothesis] = field(default_factory=list)
    partial: list[Hypothesis] = field(default_factory=list)  # without all required words
    unfinished: list[Hypothesis] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        return -(-self.options.captions // self.options.groups)

    def add(
        self, tokens: list[int], log_probs: list[float], at: int, *, finished: bool = True
    ) -> None:
        """Take a caption that ended in a state of the automaton."""
        missing = self.required.missing[at]
        score = sum(log_probs) / self.options.length_divisor(len(log_probs))
        one = Hypothesis(tuple(tokens), tuple(log_probs), score, finished, missing)
        kept = self.partial if missing else self.complete
        (kept if finished else self.unfinished).append(one)

    def done(self, best_live: float) -> bool:
        """Whether no further step is needed.

        Log probabilities only fall, and the divisor is largest at max_length, so best_live divided
        by that bounds every score that the live hypotheses can still reach.
        """
        if best_live == -torch.inf:
            return True
        full = len(self.complete) >= self.options.beam_size // self.options.groups
        if full and self.options.early_stopping and len(self.required) == 1:
            return True
        if len(self.complete) < self.wanted:
            return False
        scores = sorted((one.score for one in self.complete), reverse=True)
        bound = best_live / self.options.length_divisor(self.options.max_length)
        return scores[self.wanted - 1] >= bound

    def take_unfinished(self, beams: _Beams, place: int) -> None:
        """Take the live hypotheses as they stand, where too few have ended."""
        if len(self.complete) >= self.wanted:
            return
        for at, beam in (beams.scores[place] > -torch.inf).nonzero().tolist():
            tokens = beams.tokens[place, at, beam].tolist()
            self.add(tokens, beams.log_probs[place, at, beam].tolist(), at, finished=False)

    def ranked(self) -> list[Hypothesis]:
        """Best first: by how many required words are missing, finished ones first, by score."""
        everything = [*self.complete, *self.partial, *self.unfinished]
        return sorted(everything, key=lambda h: (len(h.missing), not h.finished, -h.score))
