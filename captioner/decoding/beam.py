"""Beam search, batched over images and beams.

Each step extends K live hypotheses of every image by every word and ranks the results by log
probability. Of the best K, those that end in <end> are finished; the best K that do not end live
on. An image is done when K hypotheses have finished (Graves, 2012; Sutskever et al., 2014), or
earlier, when no live one can still beat the best finished one, which changes no result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.decoding.search import Hypothesis, State, Step, count, device, hypothesis, read, rows


def beam_search(
    step: Step,
    state: State,
    *,
    start: int,
    end: int,
    beam_size: int,
    length_penalty: float,
    max_length: int,
    banned: tuple[int, ...] = (),
) -> list[list[Hypothesis]]:
    """Search for the K best captions of every image.

    A beam of 1 is greedy decoding; a beam as wide as there are captions is an exhaustive search.
    Where nothing ended within max_length, the unfinished hypotheses are returned.
    Arguments and result as in ``decoding.decode``; between 1 and about 2K hypotheses an image.
    """
    finished: list[list[Hypothesis]] = [[] for _ in range(count(state))]
    beams = _Beams.first(state, start)
    for length in range(1, max_length + 1):
        log_probs, state = read(step, beams.tokens[:, :, -1].flatten(), state, banned)
        parents, beams, ended = beams.extend(log_probs, beam_size, end)
        for place, tokens, values in ended:
            image = int(beams.images[place])
            finished[image].append(
                hypothesis(tokens, values, end=end, length_penalty=length_penalty)
            )
        keep = [
            place
            for place, (image, best) in enumerate(
                zip(beams.images.tolist(), beams.scores[:, 0].tolist())
            )
            if not _done(finished[image], best, beam_size, max_length**length_penalty)
        ]
        if not keep or length == max_length:
            break
        index = torch.tensor(keep, device=device(state))
        beams, state = beams.of_images(index), rows(state, parents[index].flatten())
    for place, image in enumerate(beams.images.tolist()):
        if not finished[image]:
            finished[image] = beams.unfinished(place, end, length_penalty)
    return [sorted(found, key=lambda one: -one.score) for found in finished]


def _done(finished: list[Hypothesis], best_live: float, beam_size: int, divisor: float) -> bool:
    """Whether an image needs no further step.

    Log probabilities only fall, and a longer caption is divided by at most max_length^α, so
    best_live / max_length^α bounds every score that the live hypotheses can still reach.
    """
    if len(finished) >= beam_size or best_live == -torch.inf:
        return True
    return bool(finished) and max(one.score for one in finished) >= best_live / divisor


class _Beams:
    """The live hypotheses of the images that still run: A images, k <= K hypotheses each.

    Attributes:
        images: which image of the batch each belongs to, [A].
        tokens: <start> and the words so far, [A, k, 1 + t].
        log_probs: of each word so far, [A, k, t].
        scores: their sums, falling, [A, k]; -inf where there are fewer than k hypotheses.
    """

    def __init__(self, images: Tensor, tokens: Tensor, log_probs: Tensor, scores: Tensor) -> None:
        self.images, self.tokens, self.log_probs, self.scores = images, tokens, log_probs, scores

    @classmethod
    def first(cls, state: State, start: int) -> _Beams:
        """One empty hypothesis an image."""
        images = torch.arange(count(state), device=device(state))
        tokens = torch.full((len(images), 1, 1), start, device=images.device)
        zeros = torch.zeros(len(images), 1, device=images.device)
        return cls(images, tokens, zeros[:, :, None][:, :, :0], zeros)

    def extend(
        self, log_probs: Tensor, beam_size: int, end: int
    ) -> tuple[Tensor, _Beams, list[tuple[int, list[int], list[float]]]]:
        """Add a word to every hypothesis and keep the best.

        Args:
            log_probs: of the next word, [A * k, V].

        Returns:
            the row of the state that each new hypothesis continues [A, k'], the new hypotheses, and
            the finished ones as (place in A, tokens with <end>, log_probs).
        """
        active, width, vocabulary = *self.scores.shape, log_probs.shape[-1]
        log_probs = log_probs.view(active, width, vocabulary)
        totals = (self.scores[:, :, None] + log_probs).flatten(1)  # [A, k * V]
        best, choice = totals.topk(min(2 * beam_size, totals.shape[1]), dim=1)  # [A, C], falling
        parent, word = choice // vocabulary, choice % vocabulary  # [A, C]
        ends = word == end
        extended = self._continue(parent, word, log_probs.flatten(1).gather(1, choice), best)

        ended = []
        counts = ends & (best > -torch.inf)
        for place, rank in counts[:, :beam_size].nonzero().tolist():
            tokens = extended.tokens[place, rank, 1:].tolist()
            ended.append((place, tokens, extended.log_probs[place, rank].tolist()))

        live = best.masked_fill(ends, -torch.inf)
        scores, kept = live.topk(min(beam_size, live.shape[1]), dim=1)  # [A, k'], falling
        first_row = torch.arange(active, device=kept.device)[:, None] * width
        rows_of_state = first_row + parent.gather(1, kept)
        return rows_of_state, extended._ranked(kept, scores), ended

    def _continue(self, parent: Tensor, word: Tensor, value: Tensor, total: Tensor) -> _Beams:
        place = torch.arange(len(parent), device=parent.device)[:, None]
        tokens = torch.cat([self.tokens[place, parent], word[:, :, None]], dim=2)
        log_probs = torch.cat([self.log_probs[place, parent], value[:, :, None]], dim=2)
        return _Beams(self.images, tokens, log_probs, total)

    def _ranked(self, kept: Tensor, scores: Tensor) -> _Beams:
        place = torch.arange(len(kept), device=kept.device)[:, None]
        return _Beams(self.images, self.tokens[place, kept], self.log_probs[place, kept], scores)

    def of_images(self, index: Tensor) -> _Beams:
        """Only the images at these places."""
        return _Beams(
            self.images[index], self.tokens[index], self.log_probs[index], self.scores[index]
        )

    def unfinished(self, place: int, end: int, length_penalty: float) -> list[Hypothesis]:
        """The hypotheses of one image as they stand."""
        alive = (self.scores[place] > -torch.inf).nonzero().flatten().tolist()
        return [
            hypothesis(
                self.tokens[place, beam, 1:].tolist(),
                self.log_probs[place, beam].tolist(),
                end=end,
                length_penalty=length_penalty,
            )
            for beam in alive
        ]
