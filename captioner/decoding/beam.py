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
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.decoding.constraints import Required
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis, Reader, State, count, device, rows

FEW = 2**14
"""Candidates of a step, of all images, that are ranked in one round."""


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
    beams = _Beams.first(images, groups, states, device(state))
    active = list(range(images))  # the image at each of the A places
    found = [[_Found(options, required) for _ in range(groups)] for _ in range(images)]
    state = rows(
        state, torch.arange(images, device=device(state)).repeat_interleave(groups * states)
    )
    moves: Tensor | None = None
    for length in range(1, options.max_length + 1):
        width = beams.scores[0].numel()
        log_probs, state = read(
            beams.tokens.flatten(0, 3), state, scores=beams.scores.flatten(), width=width
        )
        log_probs = log_probs.view(*beams.scores.shape, -1)  # [A, G, S, k, V]
        if states > 1 and moves is None:
            moves = required.moves(log_probs.shape[-1], end, log_probs.device)
        chosen = _choose(log_probs, beams.scores, moves, options, end)
        for place, group, at, tokens, values in beams.ended(chosen, log_probs):
            found[active[place]][group].add(tokens, values, at)
        parents, beams = beams.extended(chosen, log_probs)
        keep = _going(active, beams, found)
        if not keep or length == options.max_length:
            break
        index: Tensor | None = None
        if len(keep) < len(active):
            index = torch.tensor(keep, device=parents.device)
            active = [active[place] for place in keep]
            parents, beams = parents[index], beams.of_places(index)
        state = rows(state, parents.flatten(), images=index)
    for place, image in enumerate(active):
        for group in range(groups):
            found[image][group].take_unfinished(beams, place, group)
    return [_in_turn([one.ranked() for one in of_image]) for of_image in found]


def _going(active: list[int], beams: _Beams, found: list[list[_Found]]) -> list[int]:
    """The places of images that are not done; the groups of an image that are done stop."""
    keep = []
    best = beams.scores.flatten(2).amax(dim=2).tolist()  # [A, G]
    for place, image in enumerate(active):
        done = [one.done(best[place][group]) for group, one in enumerate(found[image])]
        if not all(done):
            keep.append(place)
            for group, stops in enumerate(done):
                if stops:
                    beams.scores[place, group] = -torch.inf
    return keep


def _in_turn(groups: list[list[Hypothesis]]) -> list[Hypothesis]:
    """The best of each group, by score, then the second of each, and so on."""
    ranks = ([one for one in rank if one is not None] for rank in zip_longest(*groups))
    order = (sorted(rank, key=lambda one: (len(one.missing), -one.score)) for rank in ranks)
    return list(chain.from_iterable(order))


class _Chosen(NamedTuple):
    """What one step takes; candidates are flat places in log_probs [A, G, S, k, V].

    Attributes:
        live: the best that do not end, [A, G, S, k'], falling.
        ranks: what these were ranked by; -inf where there are fewer.
        best: the best K / G of all, [A, G, S, C].
        ended: which of these end, [A, G, S, C].
    """

    live: Tensor
    ranks: Tensor
    best: Tensor
    ended: Tensor


def _choose(
    log_probs: Tensor, scores: Tensor, moves: Tensor | None, options: DecodingOptions, end: int
) -> _Chosen:
    """The best candidates of every state, group after group.

    Args:
        log_probs: of the next word, [A, G, S, k, V].
        scores: of the hypotheses, [A, G, S, k].
        moves: the state that each word leads to, [S, V]; None where there is one state.
    """
    width, size = options.beam_size // options.groups, log_probs.shape[-1]
    said = torch.zeros_like(log_probs[:, 0, 0, 0]) if options.groups > 1 else None  # [A, V]
    of_groups = []
    for group in range(options.groups):
        ranking = log_probs[:, group]  # [A, S, k, V]
        if said is not None:
            ranking = ranking - options.diversity * said[:, None, None]
        best, places = _best(ranking, scores[:, group], moves, 2 * width)  # [A, S, C], falling
        ends = places % size == end
        ranks, kept = best.masked_fill(ends, -torch.inf).topk(min(width, best.shape[-1]), dim=-1)
        ended = (ends & (best > -torch.inf))[..., :width]
        one = _Chosen(places.gather(-1, kept), ranks, places[..., :width], ended)
        of_groups.append(one)
        if said is not None:
            _count(said, one.live % size, ranks > -torch.inf)
            _count(said, one.best % size, ended)
    live, ranks, best, ended = (_side_by_side(part) for part in zip(*of_groups))
    first = torch.arange(0, log_probs.numel(), log_probs[0, 0].numel(), device=live.device)
    first = first.view(*log_probs.shape[:2], 1, 1)
    return _Chosen(live + first, ranks, best + first, ended)


@dataclass
class _Beams:
    """The live hypotheses: A images, G groups, S states, k <= K / G hypotheses of each.

    Attributes:
        tokens: the words so far, [A, G, S, k, t].
        log_probs: of each word so far, [A, G, S, k, t].
        scores: their sums, [A, G, S, k]; -inf where there are fewer than k hypotheses.
    """

    tokens: Tensor
    log_probs: Tensor
    scores: Tensor

    @classmethod
    def first(cls, images: int, groups: int, states: int, device: torch.device) -> _Beams:
        """One empty hypothesis a group, in the first state."""
        scores = torch.full((images, groups, states, 1), -torch.inf, device=device)
        scores[:, :, 0] = 0.0
        tokens = torch.empty(*scores.shape, 0, dtype=torch.long, device=device)
        return cls(tokens, torch.empty_like(tokens, dtype=torch.float32), scores)

    def extended(self, chosen: _Chosen, log_probs: Tensor) -> tuple[Tensor, _Beams]:
        """The live hypotheses with one more word, and the rows they continue, [A, G * S * k'].

        Args:
            log_probs: of the next word, [A, G, S, k, V].
        """
        shape = chosen.live.shape
        parents, tokens, values = self._continued(chosen.live.flatten(), log_probs)
        scores = chosen.ranks
        if shape[1] > 1:  # of groups, ranks count what earlier ones have said
            scores = (self.scores.flatten()[parents] + values[:, -1]).view(shape)
            scores = scores.masked_fill(chosen.ranks == -torch.inf, -torch.inf)
        beams = _Beams(tokens.view(*shape, -1), values.view(*shape, -1), scores)
        return parents.view(len(scores), -1), beams

    def ended(
        self, chosen: _Chosen, log_probs: Tensor
    ) -> list[tuple[int, int, int, list[int], list[float]]]:
        """Those that end: place in A, group, state, tokens without <end>, log_probs."""
        which = chosen.ended.nonzero().tolist()
        if not which:
            return []
        _, tokens, values = self._continued(chosen.best[chosen.ended], log_probs)
        said = zip(which, tokens[:, :-1].tolist(), values.tolist())
        return [(place, group, at, *rest) for (place, group, at, _), *rest in said]

    def _continued(self, places: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates at flat places in log_probs, [n]: parents [n], tokens and values [n, t + 1]"""
        size = log_probs.shape[-1]
        parents, words = places // size, places % size
        values = log_probs.flatten().index_select(0, places)
        tokens = self.tokens.flatten(0, 3).index_select(0, parents)
        before = self.log_probs.flatten(0, 3).index_select(0, parents)
        tokens = torch.cat([tokens, words[:, None]], dim=1)
        return parents, tokens, torch.cat([before, values[:, None]], dim=1)

    def of_places(self, index: Tensor) -> _Beams:
        """Only the images at these places."""
        return _Beams(self.tokens[index], self.log_probs[index], self.scores[index])


def _best(
    log_probs: Tensor, scores: Tensor, moves: Tensor | None, wanted: int
) -> tuple[Tensor, Tensor]:
    """The best candidates that lead to each state: their scores and flat places, [A, S, C].

    Args:
        log_probs, scores, moves: as of ``_choose``, of one group: [A, S, k, V], [A, S, k], [S, V].
        wanted: C, at most.
    """
    states, width, size = log_probs.shape[1:]
    rows, offset = log_probs.flatten(1, 2), scores.flatten(1)  # [A, S * k, V], [A, S * k]
    if moves is None:
        found = [_top(rows, offset, wanted)]
    else:
        leads = moves[:, None].expand(states, width, size).flatten(0, 1)  # [S * k, V]
        found = [
            _top(rows.masked_fill(leads != target, -torch.inf), offset, wanted)
            for target in range(states)
        ]
    best, places = zip(*found)
    return _side_by_side(best), _side_by_side(places)


def _top(values: Tensor, offset: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """The largest of values [A, R, V] + offset [A, R] and their flat places, [A, C], falling.

    In two rounds: the V words are dealt into piles; no more than `wanted` piles, those with the
    largest tops, can hold the `wanted` largest words. A word is looked at once, by a maximum, which
    goes quickest over multiples of 128 piles. That takes more operations, and few words fewer.
    """
    rows, size = values.shape[1:]
    wanted = min(wanted, rows * size)
    if values.numel() <= FEW:
        return (values + offset[..., None]).flatten(1).topk(wanted, dim=1)
    piles = min(size, 128 * math.ceil(math.sqrt(size * wanted / rows) / 128))
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


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Of groups or states, [A, ...] each -> [A, G, ...]."""
    return parts[0].unsqueeze(1) if len(parts) == 1 else torch.stack(list(parts), dim=1)


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

    def take_unfinished(self, beams: _Beams, place: int, group: int) -> None:
        """Take the live hypotheses as they stand, where too few have ended."""
        if len(self.complete) >= self.wanted:
            return
        tokens, log_probs = beams.tokens[place, group], beams.log_probs[place, group]
        for at, beam in (beams.scores[place, group] > -torch.inf).nonzero().tolist():
            self.add(tokens[at, beam].tolist(), log_probs[at, beam].tolist(), at, finished=False)

    def ranked(self) -> list[Hypothesis]:
        """Best first: by how many required words are missing, finished ones first, by score."""
        everything = [*self.complete, *self.partial, *self.unfinished]
        return sorted(everything, key=lambda h: (len(h.missing), not h.finished, -h.score))
