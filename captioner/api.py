"""The Python interface: ``Captioner.load`` loads a checkpoint, ``caption`` captions images.

A Captioner gives the same captions regardless of earlier calls. It may be used by several threads,
copied and pickled, and leaves torch's settings in the caller's thread as they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from torch import Tensor, nn

from captioner.checkpoints import bundle, checkpoint
from captioner.config import Config, make
from captioner.data.features import fingerprint
from captioner.data.pipeline import encoding_pipeline
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis
from captioner.generation import generate, known_tokens, make_steppers
from captioner.images import Picture, as_several, is_picture, open_image, read_content
from captioner.metrics.novelty import CaptionHashes
from captioner.models.captioning import CaptioningModel
from captioner.models.decoders.decoder import Stepper
from captioner.models.features import Features, on_device
from captioner.models.precision import resolve, stored
from captioner.models.snapshot import Snapshot
from captioner.process import ForkedLock, release_memory
from captioner.tokenizers import Tokenizer
from captioner.tracing.editing import number_swaps
from captioner.tracing.edits import AnyEdit, require_edits
from captioner.tracing.trace import Trace
from captioner.tracing.tracing import Traced, trace_generation, trace_reading
from captioner.transforms import stack_pixels

_STEPPERS_LOCK = ForkedLock()


@dataclass(frozen=True)
class Caption:
    """The caption of an image.

    Attributes:
        text: the caption.
        words: its tokens, as strings.
        log_probs: log probability of each token, and of <end> if it was reached.
        score: the value by which a beam ranked it: the sum of log_probs divided by a power of their
            number; the sum if it is greedy or sampled; with consensus, the mean similarity to the
            other captions.
        finished: whether <end> was reached within max_length.
        missing: the required_words that it does not contain.
        broken: options that could not be satisfied because they left no possible token.
        alternatives: the other captions, if ``captions`` is more than 1.
    """

    text: str
    words: tuple[str, ...]
    log_probs: tuple[float, ...]
    score: float
    finished: bool = True
    missing: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    alternatives: tuple[Caption, ...] = ()

    @property
    def log_prob(self) -> float:
        """Log probability of the whole caption."""
        return sum(self.log_probs)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        values = asdict(replace(self, alternatives=()))
        values = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
        return {**values, "alternatives": [caption.as_dict() for caption in self.alternatives]}

    @property
    def note(self) -> str:
        """Which options could not be satisfied; empty if all were."""
        parts = [f"without {', '.join(map(repr, self.missing))}"] if self.missing else []
        parts += [f"could not keep {', '.join(self.broken)}"] if self.broken else []
        return "; ".join(parts)


class Captioner:
    """A trained model, or an ensemble of several, that captions images.

    Args:
        models: encoder and decoder of each.
        tokenizer: of all models.
        options: the default decoding options.
        config: with which the first model was trained.
        paths: of the checkpoints.
        training: hashes of the captions that any model was trained on; None if unknown.

    Attributes:
        encoders: of the models, identical ones once, so that their features are computed once.
    """

    def __init__(
        self,
        models: Sequence[CaptioningModel],
        tokenizer: Tokenizer,
        options: DecodingOptions,
        config: Config,
        paths: Sequence[Path],
        training: CaptionHashes | None = None,
    ) -> None:
        self.training = training
        self.models, self.tokenizer, self.options = [m.eval() for m in models], tokenizer, options
        self.config, self.paths = config, list(paths)
        names = [fingerprint(m.encoder) if len(models) > 1 else "" for m in models]
        distinct = list(dict.fromkeys(names))
        self.encoders = [self.models[names.index(name)].encoder for name in distinct]
        self._encoder_of = [distinct.index(name) for name in names]
        self._steppers: dict[str, tuple[Snapshot, list[Stepper]]] = {}  # by precision

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the steppers: in a copy they would keep the weights of this object."""
        return {**self.__dict__, "_steppers": {}}

    @classmethod
    def load(
        cls, path: str | Path | Sequence[str | Path] | None = None, *, device: str = "auto"
    ) -> Captioner:
        """Load a run folder, a checkpoint, a bundled model, or several; see ``captioner.load``."""
        path = bundle.default() if path is None else path
        paths = [path] if isinstance(path, (str, Path)) else list(path)
        if not paths:
            raise ValueError("no checkpoint to load; give a run folder or a checkpoint file")
        checkpoints = [checkpoint.read(path) for path in paths]
        first = checkpoints[0]
        for other in checkpoints[1:]:
            if other.tokenizer.as_dict() != first.tokenizer.as_dict():
                raise ValueError(
                    f"{other.path} has another vocabulary than {first.path}; models of an ensemble "
                    "must be trained with the same tokenizer and training captions"
                )
        place = choose_device(device)
        options = make(DecodingOptions, "decoding", first.config["decoding"])
        precision = stored(options.precision, "decoding.precision", place.type)
        options = replace(options, precision=precision)
        models = [loaded.model().to(place) for loaded in checkpoints]
        return cls(
            models,
            first.tokenizer,
            options,
            first.config,
            [loaded.path for loaded in checkpoints],
            CaptionHashes.union(loaded.training for loaded in checkpoints),
        )

    @property
    def model(self) -> CaptioningModel:
        """The model, or the first one of an ensemble."""
        return self.models[0]

    @property
    def uses_grid(self) -> list[bool]:
        """For each of ``encoders``, whether a decoder uses its grid."""
        pairs = zip(self._encoder_of, self.models)
        grids = {encoder for encoder, model in pairs if model.decoder.uses_grid}
        return [encoder in grids for encoder in range(len(self.encoders))]

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    @overload
    def caption(self, images: Picture, **options: Any) -> Caption: ...

    @overload
    def caption(self, images: Iterable[Picture], **options: Any) -> list[Caption]: ...

    def caption(
        self, images: Picture | Iterable[Picture], *, batch_size: int = 32, **options: Any
    ) -> Caption | list[Caption]:
        """Caption one image or several.

        Args:
            images: one image, or any iterable of images. An image is a path; the content of a file
                as bytes, or a file opened with "rb"; a PIL image; an array [height, width, 3] of
                uint8 (RGB; also [height, width, 4] and [height, width]); a tensor
                [3, height, width] of uint8, or of floats in [0, 1].
            batch_size: images that are captioned together, at least 1.
            options: any of DecodingOptions: beam_size=5, temperature=1.0, top_p=0.9, captions=3,
                required_words=["dog"], prefix="two children", and so on.

        Returns:
            a Caption, or a list of them in the order of the images. Sampling depends on the seed
            and the file name (for an image that is not a file, its index).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: an image cannot be read or is of an unknown type, or an option is not known
                or out of its range.
        """
        if is_picture(images):
            return self.caption([cast(Picture, images)], batch_size=batch_size, **options)[0]
        captions = []
        for result in self.caption_each(images, batch_size=batch_size, **options):
            if isinstance(result, Exception):
                raise result
            captions.append(result)
        return captions

    def caption_each(
        self, images: Picture | Iterable[Picture], *, batch_size: int = 32, **options: Any
    ) -> Iterator[Caption | ValueError | OSError]:
        """Caption any number of images, one after the other.

        While a batch is captioned, the next ones are encoded and images after them are read
        (``captioner.data.pipeline``).

        Args:
            images, batch_size, options: as for ``caption``.

        Yields:
            the caption of each image in their order, or the error that says why it cannot be read.

        Raises:
            ValueError: an option is not known or out of its range, batch_size is below 1, or
                `images` is neither an image nor an iterable.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is not accepted; choose 1 or more")
        several_images = as_several(images)
        self.decoding(**options)  # errors are raised before the work starts
        self.make_ready()
        numbered = enumerate(map(_content_or_error, several_images))
        with encoding_pipeline(self.device) as pipeline:
            encode = [partial(self._encode_part, *part) for part in self._parts]
            batches = pipeline.encode(numbered, self._read, encode, batch_size=batch_size)
            for batch in batches:
                captions: Iterator[Caption] = iter(())
                if batch.features:
                    features = self._of_encoders(batch.features)
                    captions = iter(
                        pipeline.call(self.caption_features, features, keys=batch.keys, **options)
                    )
                for result in batch.results:
                    yield result if isinstance(result, (ValueError, OSError)) else next(captions)

    def make_ready(self) -> None:
        """Switch the models to evaluation mode, and let the encoders see changed weights."""
        self._evaluating()
        for encoder in self.encoders:
            encoder.make_ready()

    def _evaluating(self) -> None:
        """Switch the models to evaluation mode: they may have been trained in the meantime."""
        for model in self.models:
            if any(part.training for part in model.modules()):
                model.eval()

    def _read(self, numbered: tuple[int, Picture | Exception]) -> tuple[int, list[Tensor]]:
        """The key and the pixels of an image; raises an error if it cannot be read."""
        index, image = numbered
        if isinstance(image, Exception):
            raise image
        return image_key(image, index), self.prepare(image)

    def prepare(self, image: Picture) -> list[Tensor]:
        """Transform an image for each of the encoders: uint8 [3, S, S]."""
        shorter = max(encoder.transform.shorter for encoder in self.encoders)
        opened = open_image(image, shorter=shorter)
        return [encoder.transform.pixels(opened) for encoder in self.encoders]

    def encode(self, images: Sequence[Sequence[Tensor]]) -> list[Features]:
        """Compute the features of B prepared images with each of the encoders."""
        return self._of_encoders([self._encode_part(*part, images) for part in self._parts])

    @cached_property
    def _parts(self) -> list[tuple[int, int]]:
        """The networks, by the index of their encoder and their index in it.

        The largest comes first, so that several cores finish an image at about the same time.
        """
        sizes = {
            (index, part): sum(weight.numel() for weight in network.parameters())
            for index, encoder in enumerate(self.encoders)
            for part, network in enumerate(encoder.parts(encoder.backbone))
        }
        return sorted(sizes, key=lambda part: -sizes[part])

    @torch.no_grad()
    def _encode_part(self, index: int, part: int, images: Sequence[Sequence[Tensor]]) -> Features:
        """Compute the features of B prepared images with one network of an encoder."""
        pixels = on_device(stack_pixels([image[index] for image in images]), self.device)
        return self.encoders[index](pixels, part)

    def _of_encoders(self, features: Sequence[Features]) -> list[Features]:
        """The features of each encoder, from those of its networks, in the order of ``_parts``."""
        of: list[list[Features]] = [[] for _ in self.encoders]
        for (index, _), part in sorted(zip(self._parts, features), key=itemgetter(0)):
            of[index].append(part)
        return [Features.concatenated(parts) for parts in of]

    def caption_features(
        self, features: Sequence[Features], *, keys: Sequence[int] | None = None, **options: Any
    ) -> list[Caption]:
        """Caption B images by their features.

        Args:
            features: from each of the encoders, B rows.
            keys: of the images, for sampling; see ``image_key``.
            options: any of DecodingOptions.
        """
        decoding = self.decoding(**options)
        sources = [features[encoder].to(self.device) for encoder in self._encoder_of]
        self._evaluating()
        hypotheses = generate(
            self.models,
            sources,
            self.tokenizer,
            decoding,
            keys=keys,
            steppers=self._ready_steppers(decoding),
        )
        return [self._caption(ranked[: decoding.captions], decoding) for ranked in hypotheses]

    def trace(
        self,
        image: Picture,
        *,
        caption: str | None = None,
        edits: Sequence[AnyEdit] = (),
        hypotheses: bool = False,
        **options: Any,
    ) -> Trace:
        """Caption one image, and return everything that was computed for each word.

        The caption and its log probabilities are those of ``caption`` with the same options, to
        the bit.

        Args:
            image: as for ``caption``.
            caption: read this caption instead of generating one.
            edits: changes of values on the way (``captioner.tracing.edits``).
            hypotheses: also trace the other captions of the search.
            options: any of DecodingOptions.

        Raises:
            FileNotFoundError, ValueError: as ``caption``; or an edit of a site, layer or unit that
                the model does not have, or a caption with a word that it does not know.
        """
        require_edits(edits)
        if caption is not None and not isinstance(caption, str):
            raise ValueError(f"caption={caption!r} is not a text")
        decoding = self.decoding(**options)
        self.make_ready()
        images, swaps = number_swaps(edits)
        others = [
            [other] * len(self.models) if isinstance(other, Features) else self._sources(other)
            for other in images
        ]
        traced = Traced(
            self.models,
            self._ready_steppers(decoding),
            self.tokenizer,
            decoding,
            edits,
            swaps,
            list(zip(*others)),
        )
        content = read_content(image)
        if caption is None:
            key = image_key(image, 0)
            return trace_generation(traced, self._sources(content), key=key, hypotheses=hypotheses)
        tokens = [*known_tokens("caption", caption, self.tokenizer), self.tokenizer.vocabulary.end]
        return trace_reading(traced, self._sources(content), tokens)

    def sites(self) -> dict[str, tuple[int, ...]]:
        """The sites of the model (``captioner.models.sites``), and their shapes without steps."""
        side = self.model.encoder.transform.size
        traced = self.trace(np.zeros((side, side, 3), np.uint8), beam_size=1, max_length=1)
        return {
            site: array.shape if "image." in site else array.shape[1:]
            for site, array in traced.sites.items()
        }

    def _sources(self, image: Picture) -> list[Features]:
        """The features of one image, for each of the models."""
        features = self.encode([self.prepare(image)])
        return [features[encoder].to(self.device) for encoder in self._encoder_of]

    def _ready_steppers(self, decoding: DecodingOptions) -> list[Stepper]:
        """The ``stepper`` of each decoder, made again if a weight has changed.

        Making them takes as long as one caption. They are used for a single image as well, so that
        captions and scores do not depend, to the last digit, on earlier calls.
        """
        decoders = [cast(nn.Module, model.decoder) for model in self.models]
        with _STEPPERS_LOCK:
            weights, steppers = self._steppers.get(decoding.precision, (None, []))
            if weights is None or not weights.same(decoders):
                release_memory()  # of the threads that encode
                weights = Snapshot(decoders).keep()
                steppers = make_steppers(self.models, decoding)
                self._steppers[decoding.precision] = weights, steppers
        return steppers

    def decoding(self, **options: Any) -> DecodingOptions:
        """The default decoding options, some of them changed, with a precision of the device."""
        decoding = self.options.changed(**options)
        return replace(decoding, precision=resolve(decoding.precision, self.device.type))

    def _caption(self, ranked: Sequence[Hypothesis], decoding: DecodingOptions) -> Caption:
        """The caption of an image from its hypotheses, the best first."""
        best, *others = ranked
        words = tuple(self.tokenizer.vocabulary.word(token) for token in best.tokens)
        return Caption(
            text=self.tokenizer.join(words),
            words=words,
            log_probs=best.log_probs,
            score=best.score,
            finished=best.finished,
            missing=tuple(decoding.required_words[place] for place in best.missing),
            broken=best.broken,
            alternatives=tuple(self._caption([hypothesis], decoding) for hypothesis in others),
        )


def image_key(image: Picture, index: int) -> int:
    """The random seed of an image: a hash of its file name, or its index if it is not a file."""
    if not isinstance(image, (str, os.PathLike)):
        return index
    name = Path(os.fsdecode(image)).name
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=7)
    return int.from_bytes(digest.digest(), "big")


def _content_or_error(image: Picture) -> Picture | Exception:
    """Return an image unchanged, or the content of an open file, or the error of reading it.

    A generator of images may close or use a file after it has yielded it.
    """
    try:
        return cast(Picture, read_content(image))
    except (ValueError, OSError) as error:
        return error


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is CUDA or MPS if available, else the CPU.

    Raises:
        ValueError: the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        name = "mps" if name == "cpu" and torch.backends.mps.is_available() else name
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):
        known = ("cpu", "cuda", "mps")
        problem = "not available here" if name.partition(":")[0] in known else "not known"
        raise ValueError(
            f"device={name!r} is {problem}; choose auto, or one of {', '.join(known)} that this "
            "machine has"
        ) from None
