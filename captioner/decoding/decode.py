"""From probabilities to captions: strategies over ``start``/``step`` callables and plain values.

A strategy sees only a state (a dict of tensors, rows first) and a function that reads one token a
hypothesis. It knows no model and no tokenizer, and always works on a batch of images; what belongs
to these (``search.IMAGE``) stays one row each, however many hypotheses there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from captioner.decoding.beam import beam_search
from captioner.decoding.consensus import by_consensus
from captioner.decoding.constraints import Constraints, Phrases, Required
from captioner.decoding.ensemble import together
from captioner.decoding.options import DecodingOptions
from captioner.decoding.sampling import greedy, sample
from captioner.decoding.search import Hypothesis, Reader, State, Step, count

__all__ = ["DecodingOptions", "Hypothesis", "Phrases", "State", "Step", "decode", "together"]

_NONE = Phrases()


def decode(
    step: Step,
    state: State,
    *,
    start: int,
    end: int,
    options: DecodingOptions,
    phrases: Phrases = _NONE,
    banned: tuple[int, ...] = (),
    keys: Sequence[int] | None = None,
    rarity: Sequence[float] = (),
) -> list[list[Hypothesis]]:
    """Decode a batch of images.

    Args:
        step: tokens [R] and a state of R hypotheses -> logits [R, V] and the state after.
        state: the state before the first token, one row an image.
        start: the token read first.
        end: the token that finishes a caption.
        options: see DecodingOptions.
        phrases: the words of the options, as tokens.
        banned: tokens never emitted; the probabilities of the others are not rescaled.
        keys: of each image, a number ≥ 0 from which its draws are made; None takes its place in
            the batch.
        rarity: of each token, with ``options.consensus``; empty: all alike.

    Returns:
        for each image its hypotheses, best first, or samples, without ``options.consensus`` in the
        order of drawing; at least one, and ``options.captions`` where the search found as many.

    Raises:
        ValueError: required words that need too many beams.
    """
    images = count(state)
    if images == 0:
        return []
    constraints = Constraints(options, phrases, end, banned)
    required = Required(phrases.required)
    read = Reader(step, start, constraints)
    if options.samples:
        keys = range(images) if keys is None else keys
        found = sample(read, state, end=end, options=options, keys=keys)
    elif options.beam_size == 1 and not phrases.required:
        found = greedy(read, state, end=end, max_length=options.max_length)
    else:
        search = replace(options, captions=options.beam_size) if options.consensus else options
        found = beam_search(read, state, end=end, options=search, required=required)
    if options.consensus:
        votes = None if options.samples else options.consensus
        found = [by_consensus(of_image, rarity, votes) for of_image in found]
    return [[_told(one, constraints, required) for one in of_image] for of_image in found]


def _told(one: Hypothesis, constraints: Constraints, required: Required) -> Hypothesis:
    """The hypothesis with what it could not keep."""
    return one._replace(
        missing=required.absent(one.tokens),
        broken=constraints.broken(one.tokens, finished=one.finished),
    )
