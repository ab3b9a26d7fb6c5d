"""Beam search, batched over images and beams; in groups, and with required words.

Each step extends the K live hypotheses of every image by every token and ranks the results by log
probability. Those of the best K that end in <end> are finished; the best K that do not end stay
live (Graves, 2012; Sutskever et al., 2014). An image is done when K hypotheses have finished, or
earlier, when no live one can still rank above a finished one, which changes no result.

Groups (diverse beam search, Vijayakumar et al., AAAI 2018) are beams of K / G that choose one after
the other at each step; a group ranks a token lower by λ for every hypothesis of an earlier group
that has just chosen it. λ affects the ranking of that step only, not the log probabilities.

For required words (constrained beam search, Anderson et al., EMNLP 2017) each state of their
automaton has a beam of its own, so that a hypothesis with "red ball" competes only with others that
have it. An image is done when no live hypothesis can rank above one that has all required words.
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
"""Up to this number of candidates per step, of all images, are ranked in one round."""


def beam_search(
    read: Reader, state: State, *, end: int, options: DecodingOptions, required: Required
) -> list[list[Hypothesis]]:
    """Search for the best captions of every image.

    A beam of size 1 is greedy decoding; a beam with as many hypotheses as there are captions is an
    exhaustive search. If too few end within max_length, unfinished hypotheses follow.

    Returns:
        the hypotheses of each image, best first: those with all required words before the others;
        of groups, the best of each before the second of any.
    """
    images, groups, states = count(state), options.groups, len(required)
    beams = _Beams.first(images, groups, states, device(state))
    active = list(range(images))  # the image of each of the A rows of the beams
    results = [[_Results(options, required) for _ in range(groups)] for _ in range(images)]
    state = rows(
        state, torch.arange(images, device=device(state)).repeat_interleave(groups * states)
    )
    moves: Tensor | None = None
    for length in range(1, options.max_length + 1):
        log_probs, state = beams.read(read, state)  # [A, G, S, k, V]
        if states > 1 and moves is None:
            moves = required.moves(log_probs.shape[-1], end, log_probs.device)
        selected = _select(log_probs, beams.scores, moves, options, end)
        for row, group, automaton_state, tokens, values in beams.ended(selected, log_probs):
            results[active[row]][group].add(tokens, values, automaton_state)
        parents, beams = beams.extended(selected, log_probs)
        unfinished = _unfinished(active, beams, results)
        if not unfinished or length == options.max_length:
            break
        index: Tensor | None = None
        if len(unfinished) < len(active):
            index = torch.tensor(unfinished, device=parents.device)
            active = [active[row] for row in unfinished]
            parents, beams = parents[index], beams.of_images(index)
        state = rows(state, parents.flatten(), images=index)
    for row, image in enumerate(active):
        for group, result in enumerate(results[image]):
            result.add_unfinished(beams, row, group)
    return [_interleave([result.ranked() for result in of_image]) for of_image in results]


def _unfinished(active: list[int], beams: _Beams, results: list[list[_Results]]) -> list[int]:
    """The rows of images that are not done; stops those of their groups that are done."""
    unfinished = []
    best = beams.scores.flatten(2).amax(dim=2).tolist()  # [A, G]
    for row, image in enumerate(active):
        done = [result.done(best[row][group]) for group, result in enumerate(results[image])]
        if not all(done):
            unfinished.append(row)
            for group, is_done in enumerate(done):
                if is_done:
                    beams.scores[row, group] = -torch.inf
    return unfinished


def _interleave(groups: list[list[Hypothesis]]) -> list[Hypothesis]:
    """The best of each group, by score, then the second of each, and so on."""
    ranks = ([h for h in rank if h is not None] for rank in zip_longest(*groups))
    order = (sorted(rank, key=lambda h: (len(h.missing), -h.score)) for rank in ranks)
    return list(chain.from_iterable(order))


class _Selected(NamedTuple):
    """The candidates that one step selects, as flat indices of log_probs [A, G, S, k, V].

    Attributes:
        live: the best that do not end, [A, G, S, k'], in descending order.
        ranks: the values by which these are ranked; -inf if there are fewer.
        best: the best K / G of all, [A, G, S, C].
        ended: which of these end, [A, G, S, C].
    """

    live: Tensor
    ranks: Tensor
    best: Tensor
    ended: Tensor


def _select(
    log_probs: Tensor, scores: Tensor, moves: Tensor | None, options: DecodingOptions, end: int
) -> _Selected:
    """The best candidates of every state, group after group.

    Args:
        log_probs: of the next token, [A, G, S, k, V].
        scores: of the hypotheses, [A, G, S, k].
        moves: the next state for each token, [S, V]; None if there is one state.
    """
    width, size = options.beam_size // options.groups, log_probs.shape[-1]
    counts = torch.zeros_like(log_probs[:, 0, 0, 0]) if options.groups > 1 else None  # [A, V]
    of_groups = []
    for group in range(options.groups):
        ranking = log_probs[:, group]  # [A, S, k, V]
        if counts is not None:
            ranking = ranking - options.diversity * counts[:, None, None]
        best, index = _best(ranking, scores[:, group], moves, 2 * width)  # [A, S, C], descending
        ends = index % size == end
        ranks, position = best.masked_fill(ends, -torch.inf).topk(
            min(width, best.shape[-1]), dim=-1
        )
        ended = (ends & (best > -torch.inf))[..., :width]
        selected = _Selected(index.gather(-1, position), ranks, index[..., :width], ended)
        of_groups.append(selected)
        if counts is not None:
            _add_counts(counts, selected.live % size, ranks > -torch.inf)
            _add_counts(counts, selected.best % size, ended)
    live, ranks, best, ended = (_stack(part) for part in zip(*of_groups))
    first = torch.arange(0, log_probs.numel(), log_probs[0, 0].numel(), device=live.device)
    first = first.view(*log_probs.shape[:2], 1, 1)
    return _Selected(live + first, ranks, best + first, ended)


@dataclass
class _Beams:
    """The live hypotheses: A images, G groups, S states, k <= K / G hypotheses each.

    Attributes:
        tokens: the tokens so far, [A, G, S, k, t].
        log_probs: of each of them, [A, G, S, k, t].
        scores: their sums, [A, G, S, k]; -inf if there are fewer than k hypotheses.
    """

    tokens: Tensor
    log_probs: Tensor
    scores: Tensor

    @classmethod
    def first(cls, images: int, groups: int, states: int, device: torch.device) -> _Beams:
        """One empty hypothesis per group, in the first state."""
        scores = torch.full((images, groups, states, 1), -torch.inf, device=device)
        scores[:, :, 0] = 0.0
        tokens = torch.empty(*scores.shape, 0, dtype=torch.long, device=device)
        return cls(tokens, torch.empty_like(tokens, dtype=torch.float32), scores)

    def read(self, read: Reader, state: State) -> tuple[Tensor, State]:
        """Log probabilities of the next token, [A, G, S, k, V], and the next state."""
        tokens, scores = self.tokens.flatten(0, 3), self.scores.flatten()
        log_probs, state = read(tokens, state, scores=scores, width=self.scores[0].numel())
        return log_probs.view(*self.scores.shape, -1), state

    def extended(self, selected: _Selected, log_probs: Tensor) -> tuple[Tensor, _Beams]:
        """The rows that the selected ones continue, [A, G * S * k'], and the new hypotheses.

        Args:
            log_probs: of the next token, [A, G, S, k, V].
        """
        shape = selected.live.shape
        parents, tokens, values = self._continued(selected.live.flatten(), log_probs)
        scores = selected.ranks
        if shape[1] > 1:  # the ranks of groups have penalties
            scores = (self.scores.flatten()[parents] + values[:, -1]).view(shape)
            scores = scores.masked_fill(selected.ranks == -torch.inf, -torch.inf)
        beams = _Beams(tokens.view(*shape, -1), values.view(*shape, -1), scores)
        return parents.view(len(scores), -1), beams

    def ended(
        self, selected: _Selected, log_probs: Tensor
    ) -> list[tuple[int, int, int, list[int], list[float]]]:
        """The selected ones that end: row, group, state, tokens without <end>, log_probs."""
        positions = selected.ended.nonzero().tolist()
        if not positions:
            return []
        _, tokens, values = self._continued(selected.best[selected.ended], log_probs)
        ended = zip(positions, tokens[:, :-1].tolist(), values.tolist())
        return [(row, group, state, *rest) for (row, group, state, _), *rest in ended]

    def _continued(self, index: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates by flat indices [n]: parents [n], tokens and their log_probs [n, t + 1]."""
        size = log_probs.shape[-1]
        parents, last = index // size, index % size
        values = log_probs.flatten().index_select(0, index)
        tokens = self.tokens.flatten(0, 3).index_select(0, parents)
        before = self.log_probs.flatten(0, 3).index_select(0, parents)
        tokens = torch.cat([tokens, last[:, None]], dim=1)
        return parents, tokens, torch.cat([before, values[:, None]], dim=1)

    def of_images(self, index: Tensor) -> _Beams:
        """The hypotheses of some of the images."""
        return _Beams(self.tokens[index], self.log_probs[index], self.scores[index])


def _best(
    log_probs: Tensor, scores: Tensor, moves: Tensor | None, wanted: int
) -> tuple[Tensor, Tensor]:
    """The best candidates that lead to each state: their scores and flat indices, [A, S, C].

    Args:
        log_probs, scores: of one group, [A, S, k, V] and [A, S, k].
        moves: the next state for each token, [S, V]; None if there is one state.
        wanted: C, at most.
    """
    states, width, size = log_probs.shape[1:]
    rows, offset = log_probs.flatten(1, 2), scores.flatten(1)  # [A, S * k, V], [A, S * k]
    if moves is None:
        of_states = [_top(rows, offset, wanted)]
    else:
        targets = moves[:, None].expand(states, width, size).flatten(0, 1)  # [S * k, V]
        of_states = [
            _top(rows.masked_fill(targets != target, -torch.inf), offset, wanted)
            for target in range(states)
        ]
    best, index = zip(*of_states)
    return _stack(best), _stack(index)


def _top(values: Tensor, offset: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """The largest of values [A, R, V] + offset [A, R] and their flat indices, [A, C], descending.

    In two rounds: the V tokens are divided into bins; the `wanted` largest values can only be in
    the `wanted` bins with the largest maxima. Each value is read once, by a maximum, which is
    fastest if the number of bins is a multiple of 128. For few values one round is faster.
    """
    rows, size = values.shape[1:]
    wanted = min(wanted, rows * size)
    if values.numel() <= FEW:
        return (values + offset[..., None]).flatten(1).topk(wanted, dim=1)
    bins = min(size, 128 * math.ceil(math.sqrt(size * wanted / rows) / 128))
    depth = size // bins
    tops = values[..., : depth * bins].unflatten(-1, (depth, bins)).amax(-2)  # [A, R, bins]
    rest = size - depth * bins
    if rest:
        tops[..., :rest] = torch.maximum(tops[..., :rest], values[..., depth * bins :])
    _, index = (tops + offset[..., None]).flatten(1).topk(min(wanted, rows * bins), dim=1)
    row, first = index // bins, index % bins  # [A, C]
    tokens = first[..., None] + torch.arange(
        0, size, bins, device=values.device
    )  # [A, C, depth + 1]
    index = row[..., None] * size + tokens.clamp(max=size - 1)
    candidates = values.flatten(1).gather(1, index.flatten(1)).view_as(index)
    candidates = candidates + offset.gather(1, row)[..., None]
    candidates = candidates.masked_fill_(tokens >= size, -torch.inf)
    best, position = candidates.flatten(1).topk(wanted, dim=1)
    return best, index.flatten(1).gather(1, position)


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Of groups or states, [A, ...] each -> [A, G, ...]."""
    return parts[0].unsqueeze(1) if len(parts) == 1 else torch.stack(list(parts), dim=1)


def _add_counts(counts: Tensor, tokens: Tensor, selected: Tensor) -> None:
    """Add 1 to the counts [A, V] of tokens where they are selected."""
    counts.scatter_add_(1, tokens.flatten(1), selected.flatten(1).to(counts.dtype))


@dataclass
class _Results:
    """The captions that one group has found for one image."""

    options: DecodingOptions
    required: Required
    complete: list[Hypothesis] = field(default_factory=list)
    partial: list[Hypothesis] = field(default_factory=list)  # without all required words
    unfinished: list[Hypothesis] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        return -(-self.options.captions // self.options.groups)

    def add(
        self, tokens: list[int], log_probs: list[float], state: int, *, finished: bool = True
    ) -> None:
        """Add a caption that ended in a state of the automaton."""
        missing = self.required.missing[state]
        score = sum(log_probs) / self.options.length_divisor(len(log_probs))
        hypothesis = Hypothesis(tuple(tokens), tuple(log_probs), score, finished, missing)
        ended = self.partial if missing else self.complete
        (ended if finished else self.unfinished).append(hypothesis)

    def done(self, best_live: float) -> bool:
        """Whether no further step is needed.

        Log probabilities only decrease, and the divisor is largest at max_length, so best_live
        divided by that bounds every score that the live hypotheses can still reach.
        """
        if best_live == -torch.inf:
            return True
        full = len(self.complete) >= self.options.beam_size // self.options.groups
        if full and self.options.early_stopping and len(self.required) == 1:
            return True
        if len(self.complete) < self.wanted:
            return False
        scores = sorted((hypothesis.score for hypothesis in self.complete), reverse=True)
        bound = best_live / self.options.length_divisor(self.options.max_length)
        return scores[self.wanted - 1] >= bound

    def add_unfinished(self, beams: _Beams, row: int, group: int) -> None:
        """Add the live hypotheses of a row of the beams if too few have ended."""
        if len(self.complete) >= self.wanted:
            return
        tokens, log_probs = beams.tokens[row, group], beams.log_probs[row, group]
        for state, beam in (beams.scores[row, group] > -torch.inf).nonzero().tolist():
            texts = tokens[state, beam].tolist(), log_probs[state, beam].tolist()
            self.add(*texts, state, finished=False)

    def ranked(self) -> list[Hypothesis]:
        """Best first: by the number of missing phrases, finished before unfinished, by score."""
        hypotheses = [*self.complete, *self.partial, *self.unfinished]
        return sorted(hypotheses, key=lambda h: (len(h.missing), not h.finished, -h.score))
