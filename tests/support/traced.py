"""Small models of random weights, and traces of what they caption."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from captioner.decoding.options import DecodingOptions
from captioner.generation import make_steppers
from captioner.models.captioning import CaptioningModel
from captioner.models.features import Features
from captioner.tokenizers import Vocabulary, restore_tokenizer
from captioner.tracing.editing import number_swaps
from captioner.tracing.edits import AnyEdit
from captioner.tracing.trace import Trace
from captioner.tracing.tracing import Traced, trace_generation
from support.decoders import V, build, features

WORDS = tuple(Vocabulary.special) + tuple("abcdefg")


def tokenizer() -> Any:
    assert len(WORDS) == V
    return restore_tokenizer({"name": "word", "words": list(WORDS)})


def options(**changes: Any) -> DecodingOptions:
    return DecodingOptions(**{"max_length": 6, **changes})


def model(variant: str, **changes: Any) -> CaptioningModel:
    decoder = build(variant, **changes).float()
    with torch.no_grad():
        for parameter in decoder.parameters():  # far from uniform, so that captions end
            parameter.mul_(3.0)
    return CaptioningModel(nn.Identity(), decoder).eval()  # type: ignore[arg-type]


def image(seed: int = 0) -> Features:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pooled, grid = features(1)
    assert grid is not None
    return Features(pooled.float(), grid.float())


def traced(
    models: Sequence[CaptioningModel],
    decoding: DecodingOptions,
    edits: Sequence[AnyEdit] = (),
) -> Traced:
    images, swaps = number_swaps(edits)
    others = [images for _ in models]
    return Traced(
        models, make_steppers(models, decoding), tokenizer(), decoding, edits, swaps, others
    )  # type: ignore[arg-type]


def trace(
    one: CaptioningModel, decoding: DecodingOptions, edits: Sequence[AnyEdit] = (), **more: Any
) -> Trace:
    return trace_generation(traced([one], decoding, edits), [image()], key=3, **more)
