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
    """The captions have become meaningless, even if their score is high."""


class Outcome(NamedTuple):
    """The loss of a batch, and other values to log, by name."""

    loss: Tensor
    logs: dict[str, float]


class Objective(ABC):
    """Computes the loss of a batch.

    Args:
        tokenizer: of the captions.
        decoding: how dev captions are decoded.
    """

    by_image: ClassVar[bool] = False
    """Whether a batch consists of images, each once per epoch, instead of captions."""

    needs_start: ClassVar[str | None] = None
    """A warning if the training starts from random weights; None if that is intended."""

    length_options: ClassVar[tuple[str, ...]] = ()
    """Options that depend on the length of the training, unless they are 0."""

    measure: ClassVar[tuple[str, str]] = ("train loss", "train_loss")
    """The value that is reported after each epoch: its name in the report and in the logs."""

    def __init__(self, tokenizer: Tokenizer, decoding: DecodingOptions) -> None:
        self.tokenizer, self.decoding = tokenizer, decoding

    def accept(self, model: CaptioningModel) -> None:
        """Check that the options fit the model that will be trained.

        Raises:
            ValueError: an option does not fit.
        """
        return None

    def prepare(self, records: Sequence[Record]) -> None:
        """Receive the training images, once, before the first batch."""
        return None

    @abstractmethod
    def outcome(self, model: CaptioningModel, batch: Batch, done: float) -> Outcome:
        """The loss of a batch.

        Args:
            model: encoder and decoder.
            batch: images and captions.
            done: fraction of the training's steps that are done, [0, 1].
        """

    def check(self, scores: Mapping[str, float], captions: Sequence[str]) -> None:
        """Check the dev captions of a validation.

        Args:
            scores: the scores of the validation, by name.
            captions: a caption for each dev image.

        Raises:
            Degenerate: the captions have become meaningless, so the training stops.
        """
        return None
