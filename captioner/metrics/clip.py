"""CLIPScore: how well a caption fits its image, by the similarity of their CLIP embeddings.

    CLIPScore    = 2.5 max(cos(image, caption), 0)
    RefCLIPScore = harmonic mean of CLIPScore and max_j max(cos(caption, reference_j), 0)

Both times 100 here. CLIPScore needs no references. Captions are embedded as they were written,
after "A photo depicts". It needs open_clip and a local file of weights that CAPTIONER_CLIP names: a
state dict of open_clip's ViT-B-32-quickgelu with OpenAI's weights. Nothing is downloaded.

Hessel et al., "CLIPScore: a Reference-free Evaluation Metric for Image Captioning", EMNLP 2021.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from captioner.metrics.corpus import Corpus, Metric, Result, Rows, Unavailable, mean_as
from captioner.metrics.ngrams import Integers

WEIGHTS = "CAPTIONER_CLIP"
ARCHITECTURE = "ViT-B-32-quickgelu"
PROMPT = "A photo depicts "

_BATCH = 64


@dataclass(frozen=True)
class Clip:
    """Two encoders with one space of embeddings.

    Attributes:
        embed_images: paths of images to embeddings [n, D].
        embed_texts: texts to embeddings [n, D].
    """

    embed_images: Callable[[Sequence[str]], Rows]
    embed_texts: Callable[[Sequence[str]], Rows]


def measure(corpus: Corpus) -> Result:
    """CLIPScore and RefCLIPScore of a corpus.

    Raises:
        Unavailable: the captions are not English, the paths of the images are not known, or
            open_clip or its weights are missing.
    """
    if not corpus.english:
        raise Unavailable("CLIP was trained on English; the captions are not English")
    if corpus.pictures is None:
        raise Unavailable("needs the pictures: give pictures=, or use captioner evaluate")
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
    images = _unit(_batched(model.embed_images, corpus.pictures))  # [n, D]
    captions = _unit(_batched(model.embed_texts, [PROMPT + text for text in corpus.texts]))
    texts = [PROMPT + text for references in corpus.reference_texts for text in references]
    references = _unit(_batched(model.embed_texts, texts))  # [n * refs, D]
    counts = [len(texts) for texts in corpus.reference_texts]
    owners = numpy.repeat(numpy.arange(len(captions)), counts)  # [n * refs]
    nearest = _nearest(captions, references, owners)  # [n]
    scores = 2.5 * numpy.maximum(0.0, (images * captions).sum(axis=1))  # [n]
    both = scores + nearest
    harmonic = 2 * scores * nearest / numpy.where(both > 0, both, 1.0)
    return 100 * scores[:, None], 100 * harmonic[:, None]


def _nearest(captions: Rows, references: Rows, owners: Integers) -> Rows:
    """The largest cosine of each caption with its references, at least 0 [n]."""
    largest = numpy.zeros(len(captions))
    numpy.maximum.at(largest, owners, (captions[owners] * references).sum(axis=1))
    return largest


def _unit(vectors: Rows) -> Rows:
    return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)


def _batched(embed: Callable[[Sequence[str]], Rows], items: Sequence[str]) -> Rows:
    starts = range(0, len(items), _BATCH)
    return numpy.concatenate([embed(items[start : start + _BATCH]) for start in starts])


def load() -> Clip:
    """The CLIP of open_clip with the weights that CAPTIONER_CLIP names.

    Raises:
        Unavailable: open_clip or the weights are missing, or the file is of another model.
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

    with _no_warnings():  # of random weights, which are replaced
        model, _, transform = open_clip.create_model_and_transforms(ARCHITECTURE, pretrained=None)
    try:
        model.load_state_dict(_state(path))
    except Exception:  # torch raises many kinds for a file that is no state dict
        raise Unavailable(f"{path} is not a state dict of {ARCHITECTURE}") from None
    tokenizer = open_clip.get_tokenizer(ARCHITECTURE)
    model.eval()

    @torch.no_grad()
    def embed_images(paths: Sequence[str]) -> Rows:
        images = [transform(Image.open(path).convert("RGB")) for path in paths]
        return model.encode_image(torch.stack(images)).double().numpy()

    @torch.no_grad()
    def embed_texts(texts: Sequence[str]) -> Rows:
        return model.encode_text(tokenizer(list(texts))).double().numpy()

    return Clip(embed_images, embed_texts)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Log only errors; restores the caller's setting afterwards, also after an exception."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def _state(path: Path) -> Any:
    """Read weights without executing code from the file."""
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
