"""Captions in Python: ``Captioner.load`` a checkpoint, ``caption`` images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, overload

import torch
from PIL import Image
from torch import Tensor

from captioner import checkpoint
from captioner.config import Config, make, unknown_key
from captioner.data.transforms import open_image
from captioner.decoding import DecodingOptions, Hypothesis
from captioner.models import CaptioningModel, Features
from captioner.tokenizers import Tokenizer

Picture = str | Path | Image.Image | Tensor
"""A path, a PIL image, or a tensor [3, height, width]: uint8, or float in [0, 1]."""


@dataclass(frozen=True)
class Caption:
    """What the model says of an image.

    Attributes:
        text: the caption.
        words: its tokens.
        log_probs: log p of each word, then of <end> where it was reached.
        score: what it was ranked by: the sum of log_probs over (their number)^length_penalty.
    """

    text: str
    words: tuple[str, ...]
    log_probs: tuple[float, ...]
    score: float

    @property
    def log_prob(self) -> float:
        """log p of the whole caption."""
        return sum(self.log_probs)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "words": list(self.words), "log_probs": list(self.log_probs)}


class Captioner:
    """A trained model with all it needs to caption images.

    Args:
        model: encoder and decoder.
        tokenizer: the model's.
        options: how captions are decoded unless told otherwise.
        config: the configuration it was trained with.
        path: the checkpoint it came from.
    """

    def __init__(
        self,
        model: CaptioningModel,
        tokenizer: Tokenizer,
        options: DecodingOptions,
        config: Config,
        path: Path,
    ) -> None:
        self.model, self.tokenizer, self.options = model.eval(), tokenizer, options
        self.config, self.path = config, path

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Captioner:
        """Load a run folder or a checkpoint; see ``captioner.load``."""
        found = checkpoint.read(path)
        options = make(DecodingOptions, "decoding", found.config["decoding"])
        model = found.model().to(choose_device(device))
        return cls(model, found.tokenizer, options, found.config, found.path)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @overload
    def caption(self, images: Picture, **options: Any) -> Caption: ...

    @overload
    def caption(self, images: Sequence[Picture], **options: Any) -> list[Caption]: ...

    def caption(
        self, images: Picture | Sequence[Picture], *, batch_size: int = 32, **options: Any
    ) -> Caption | list[Caption]:
        """Caption one image or several.

        Args:
            images: a path, PIL image or tensor [3, height, width] (uint8, or float in [0, 1]), or a
                sequence of them.
            batch_size: images that are captioned at a time.
            options: any of DecodingOptions: beam_size, length_penalty, max_length.

        Returns:
            a Caption, or a list of them in the order of the images.

        Raises:
            FileNotFoundError: a path leads nowhere.
            ValueError: an image that cannot be read, or an option that does not exist.
        """
        if isinstance(images, (str, Path, Image.Image)) or _is_image(images):
            return self.caption([cast(Picture, images)], batch_size=batch_size, **options)[0]
        ready = (self.prepare(image) for image in cast(Sequence[Picture], images))
        captions: list[Caption] = []
        for batch in _batches(ready, batch_size):
            captions += self.caption_features(self.encode(torch.stack(batch)), **options)
        return captions

    def prepare(self, image: Picture) -> Tensor:
        """One image as the encoder wants it, [3, S, S]."""
        if isinstance(image, Tensor):
            image = _to_pil(image)
        return self.model.encoder.transform(open_image(image))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Features:
        """Features of prepared images [B, 3, S, S]."""
        return self.model.encode(images.to(self.device))

    def caption_features(self, features: Features, **options: Any) -> list[Caption]:
        """The best caption for each row of features."""
        found = self.model.generate(
            features.to(self.device), self.tokenizer.vocabulary, self.decoding(**options)
        )
        return [self._caption(hypotheses[0]) for hypotheses in found]

    def decoding(self, **options: Any) -> DecodingOptions:
        """The model's decoding options with some of them changed."""
        for name in options:
            if name not in DecodingOptions.__dataclass_fields__:
                raise unknown_key("", name, DecodingOptions.__dataclass_fields__)
        return replace(self.options, **options)

    def _caption(self, best: Hypothesis) -> Caption:
        words = tuple(self.tokenizer.vocabulary.word(token) for token in best.tokens)
        return Caption(self.tokenizer.join(words), words, best.log_probs, best.score)


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA or MPS where there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        name = "mps" if name == "cpu" and torch.backends.mps.is_available() else name
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"device={name!r} is not there; choose auto, cpu, cuda or mps") from None


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3


def _to_pil(image: Tensor) -> Image.Image:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"an image tensor of shape {list(image.shape)} is not accepted; give [3, height, width]"
        )
    if image.is_floating_point():
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError("an image tensor of floats must lie in [0, 1]; do not normalise it")
        image = (image * 255).round()
    return Image.fromarray(image.to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def _batches(tensors: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    batch: list[Tensor] = []
    for tensor in tensors:
        batch.append(tensor)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
