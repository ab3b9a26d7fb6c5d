"""CLIPScore: whether a caption fits its picture, in the eyes of CLIP; references may be left out.

    CLIPScore    = 2.5 max(cos(image, caption), 0)
    RefCLIPScore = harmonic mean of CLIPScore and max_j max(cos(caption, reference_j), 0)

Both times 100 here. Captions are read as they stand, after "A photo depicts". It needs open_clip
and weights that are here already: CAPTIONER_CLIP names the file, a state dict of open_clip's
ViT-B-32-quickgelu with OpenAI's weights. Nothing is downloaded.

Hessel et al., "CLIPScore: a Reference-free Evaluation Metric for Image Captioning", EMNLP 2021.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from captioner.metrics.corpus import Corpus, Metric, Result, Rows, Unavailable, mean_as
from captioner.metrics.ngrams import Integers

WEIGHTS = "CAPTIONER_CLIP"
ARCHITECTURE = "ViT-B-32-quickgelu"
PROMPT = "A photo depicts "

_AT_ONCE = 64


@dataclass(frozen=True)
class Clip:
    """A model that sees and reads.

    Attributes:
        see: paths of images to vectors [n, D].
        read: texts to vectors [n, D].
    """

    see: Callable[[Sequence[str]], Rows]
    read: Callable[[Sequence[str]], Rows]


def measure(corpus: Corpus) -> Result:
    """CLIPScore and RefCLIPScore of a corpus.

    Raises:
        Unavailable: the captions are not English, the pictures are not known, or open_clip or its
            weights are not there.
    """
    if corpus.tokenize == "character":
        raise Unavailable("CLIP reads English; the captions are not")
    if corpus.pictures is None:
        raise Unavailable("needs the pictures: pictures=, or captioner evaluate, which has them")
    rows, with_references = clip_rows(load(), corpus)
    return Result(
        {"CLIPScore": rows.mean(), "RefCLIPScore": with_references.mean()},
        "CLIPScore",
        {"model": ARCHITECTURE},
        {"clip": rows, "ref_clip": with_references},
    )


def clip_rows(model: Clip, corpus: Corpus) -> tuple[Rows, Rows]:
    """CLIPScore and RefCLIPScore of each image, both [n, 1], 0 to 250 and 0 to 143."""
    assert corpus.pictures is not None
    seen = _unit(_batched(model.see, corpus.pictures))  # [n, D]
    read = _unit(_batched(model.read, [PROMPT + text for text in corpus.texts]))  # [n, D]
    others = [PROMPT + text for texts in corpus.reference_texts for text in texts]
    owners = numpy.repeat(numpy.arange(len(read)), [len(texts) for texts in corpus.reference_texts])
    close = _nearest(read, _unit(_batched(model.read, others)), owners)  # [n]
    scores = 2.5 * numpy.maximum(0.0, (seen * read).sum(axis=1))  # [n]
    both = scores + close
    harmonic = 2 * scores * close / numpy.where(both > 0, both, 1.0)
    return 100 * scores[:, None], 100 * harmonic[:, None]


def _nearest(read: Rows, others: Rows, owners: Integers) -> Rows:
    """The largest cosine of each caption with its references, at least 0 [n]."""
    found = numpy.zeros(len(read))
    numpy.maximum.at(found, owners, (read[owners] * others).sum(axis=1))
    return found


def _unit(vectors: Rows) -> Rows:
    return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)


def _batched(embed: Callable[[Sequence[str]], Rows], items: Sequence[str]) -> Rows:
    starts: Iterator[int] = iter(range(0, len(items), _AT_ONCE))
    return numpy.concatenate([embed(items[start : start + _AT_ONCE]) for start in starts])


def load() -> Clip:
    """The CLIP of open_clip with the weights that CAPTIONER_CLIP names.

    Raises:
        Unavailable: open_clip or the weights are not there, or the file does not fit.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise Unavailable("needs open_clip: pip install 'captioner[clip]', and CAPTIONER_CLIP")
    path = Path(os.path.expanduser(os.environ.get(WEIGHTS) or "nowhere"))
    if not path.is_file():
        raise Unavailable(
            f"needs the weights of {ARCHITECTURE}: set {WEIGHTS} to the file of its state dict"
        )
    import open_clip
    import torch
    from PIL import Image

    logging.disable(logging.WARNING)  # of random weights, which are replaced
    model, _, transform = open_clip.create_model_and_transforms(ARCHITECTURE, pretrained=None)
    logging.disable(logging.NOTSET)
    try:
        model.load_state_dict(_state(path))
    except Exception:  # whatever a file that is not a state dict makes of torch
        raise Unavailable(f"{path} is not a state dict of {ARCHITECTURE}") from None
    tokenizer = open_clip.get_tokenizer(ARCHITECTURE)
    model.eval()

    @torch.no_grad()
    def see(paths: Sequence[str]) -> Rows:
        images = [transform(Image.open(path).convert("RGB")) for path in paths]
        return model.encode_image(torch.stack(images)).double().numpy()

    @torch.no_grad()
    def read(texts: Sequence[str]) -> Rows:
        return model.encode_text(tokenizer(list(texts))).double().numpy()

    return Clip(see, read)


def _state(path: Path) -> Any:
    """Read weights; nothing in the file can run code."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


METRIC = Metric(
    measure,
    ("CLIPScore", "RefCLIPScore"),
    {"clip": mean_as("CLIPScore"), "ref_clip": mean_as("RefCLIPScore")},
)
