"""From probabilities to captions: strategies over ``start``/``step`` callables and plain values.

A strategy sees only a state (a dict of tensors, rows first) and a function that reads one token a
row. It knows no model and no tokenizer, and always works on a batch of images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from captioner.decoding.beam import beam_search
from captioner.decoding.sampling import greedy
from captioner.decoding.search import Hypothesis, State, Step

__all__ = ["DecodingOptions", "Hypothesis", "State", "Step", "decode"]


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How captions are chosen.

    Args:
        beam_size: K, hypotheses kept for each image; 1 is greedy decoding.
        length_penalty: α ≥ 0; a hypothesis of n tokens scores log p / n^α: 0 compares log
            probabilities, 1 their average by token.
        max_length: the most tokens of a caption, <end> included.

    Raises:
        ValueError: a value out of range.
    """

    beam_size: int = 1
    length_penalty: float = 0.0
    max_length: int = 30

    def __post_init__(self) -> None:
        for name, lowest, kind in (("beam_size", 1, int), ("max_length", 1, int)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or value < lowest:
                raise ValueError(
                    f"decoding.{name}={value!r} is not accepted; choose a whole number ≥ {lowest}"
                )
        penalty = self.length_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, (int, float)) or not penalty >= 0:
            raise ValueError(
                f"decoding.length_penalty={penalty!r} is not accepted; choose a number from 0 "
                "(0 none, 1 average by token)"
            )

    @property
    def label(self) -> str:
        """A short name for files and signatures: greedy, beam3, beam3-lp0.7."""
        if self.beam_size == 1:
            return "greedy"
        penalty = f"-lp{self.length_penalty:g}" if self.length_penalty else ""
        return f"beam{self.beam_size}{penalty}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def decode(
    step: Step,
    state: State,
    *,
    start: int,
    end: int,
    options: DecodingOptions,
    banned: tuple[int, ...] = (),
) -> list[list[Hypothesis]]:
    """Decode a batch of images.

    Args:
        step: tokens [R] and a state of R rows -> logits [R, V] and the state after.
        state: the state before the first token, one row an image.
        start: the token read first.
        end: the token that finishes a caption.
        options: see DecodingOptions.
        banned: tokens never emitted; the probabilities of the others are not rescaled.

    Returns:
        for each image its hypotheses, best first; at least one.
    """
    if options.beam_size == 1:
        return greedy(
            step, state, start=start, end=end, max_length=options.max_length, banned=banned
        )
    return beam_search(
        step,
        state,
        start=start,
        end=end,
        beam_size=options.beam_size,
        length_penalty=options.length_penalty,
        max_length=options.max_length,
        banned=banned,
    )
