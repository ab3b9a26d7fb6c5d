"""From probabilities to captions: strategies over ``start``/``step`` callables and plain values.

A strategy uses only a state (a dict of tensors, rows first) and a function that reads one token per
hypothesis. It depends on no model and no tokenizer, and works on a batch of images; what belongs to
images (``search.IMAGE``) has one row per image, however many hypotheses there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from captioner.decoding.beam import beam_search
from captioner.decoding.consensus import by_consensus
from captioner.decoding.constraints import Constraints, Phrases, Required
from captioner.decoding.options import DecodingOptions
from captioner.decoding.sampling import greedy, sample
from captioner.decoding.search import Hypothesis, Reader, State, Step, count

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
        step: tokens [R] and a state of R hypotheses -> logits [R, V] and the next state.
        state: the state before the first token, one row per image.
        start: the token that is read first.
        end: the token that ends a caption.
        options: see DecodingOptions.
        phrases: the words and phrases of the options, as token ids.
        banned: tokens that are never generated; the other probabilities are not renormalized.
        keys: a number ≥ 0 per image, which seeds its samples; None: its index in the batch.
        rarity: of each token, for ``options.consensus``; empty: all equal.

    Returns:
        the hypotheses of each image, best first; samples without ``options.consensus`` in the order
        in which they were drawn. One or more; ``options.captions`` if the search found so many.

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
        hypotheses = sample(read, state, end=end, options=options, keys=keys)
    elif options.beam_size == 1 and not phrases.required:
        hypotheses = greedy(read, state, end=end, max_length=options.max_length)
    else:
        search = replace(options, captions=options.beam_size) if options.consensus else options
        hypotheses = beam_search(read, state, end=end, options=search, required=required)
    if options.consensus:
        temperature = None if options.samples else options.consensus
        hypotheses = [by_consensus(of_image, rarity, temperature) for of_image in hypotheses]
    return [[_checked(h, constraints, required) for h in of_image] for of_image in hypotheses]


def _checked(hypothesis: Hypothesis, constraints: Constraints, required: Required) -> Hypothesis:
    """The hypothesis, with the constraints that it violates."""
    return hypothesis._replace(
        missing=required.absent(hypothesis.tokens),
        broken=constraints.broken(hypothesis.tokens, finished=hypothesis.finished),
    )
