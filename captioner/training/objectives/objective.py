"""The interface of all objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor

from captioner.data.batches import Batch
from captioner.data.records import Record
from captioner.decoding.options import DecodingOptions
from captioner.models.captioning import CaptioningModel
from captioner.tokenizers import Tokenizer


class Degenerate(ValueError):
    """The captions have become senseless, whatever they score."""


class Outcome(NamedTuple):
    """What an objective makes of a batch: the loss, and what else is logged, by name."""

    loss: Tensor
    logs: dict[str, float]


class Objective(ABC):
    """Makes a loss of a batch.

    Args:
        tokenizer: of the captions.
        decoding: how dev captions are decoded.
    """

    by_image: ClassVar[bool] = False
    """Whether a batch is of images, each once an epoch, rather than of captions."""

    def __init__(self, tokenizer: Tokenizer, decoding: DecodingOptions) -> None:
        self.tokenizer, self.decoding = tokenizer, decoding

    def accept(self, model: CaptioningModel) -> None:
        """Look at the model that is to be trained.

        Raises:
            ValueError: an option does not fit it.
        """
        return None

    def prepare(self, records: Sequence[Record]) -> None:
        """Hear of the training images, once, before the first batch."""
        return None

    @abstractmethod
    def outcome(self, model: CaptioningModel, batch: Batch, done: float) -> Outcome:
        """The loss of a batch; `done` is the share of the training that is over, [0, 1]."""

    def check(self, scores: Mapping[str, float], captions: Sequence[str]) -> None:
        """Look at the dev captions and their scores.

        Raises:
            Degenerate: the training had better stop.
        """
        return None
