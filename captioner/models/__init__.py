"""Models: the tables that components are chosen from, and the glossary of shapes.

The letters mean the same everywhere in the package, and nothing else:

    B images   N captions of an image   K beams           T tokens of a caption   V vocabulary
    D encoder features   E word embedding   H hidden   P image positions   L layers   S image side

    images [B, 3, S, S]     pooled [B, D]     grid [B, P, D]     inputs, targets [B, T]
    logits [B, T, V]        log_probs [B, V]  scores [B, K]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from captioner.config import make, pick
from captioner.models.adaptive import Adaptive
from captioner.models.captioning import CaptioningModel, generate, make_steppers
from captioner.models.encoders import ENCODERS, Encoder, Features, build_encoder
from captioner.models.recurrent import ShowTell
from captioner.models.show_attend_tell import ShowAttendTell
from captioner.models.transformer import Transformer
from captioner.models.unroll import CELLS
from captioner.models.up_down import UpDown

__all__ = [
    "CELLS",
    "DECODERS",
    "ENCODERS",
    "CaptioningModel",
    "Encoder",
    "Features",
    "build_encoder",
    "build_model",
    "generate",
    "make_steppers",
]

DECODERS: dict[str, type[Any]] = {
    "show_tell": ShowTell,
    "show_attend_tell": ShowAttendTell,
    "up_down": UpDown,
    "adaptive": Adaptive,
    "transformer": Transformer,
}


def build_model(
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    *,
    vocabulary_size: int,
    initialise: bool = True,
) -> CaptioningModel:
    """Build a captioning model from two groups of a configuration.

    Args:
        encoder: the arguments of ``build_encoder``.
        decoder: ``name``, of a decoder in ``DECODERS``, and its arguments.
        vocabulary_size: V.
        initialise: load pretrained encoder weights; False where a checkpoint fills them.

    Raises:
        ValueError: an unknown name, an option the component does not have, a value out of range.
    """
    built = make(build_encoder, "encoder", encoder, initialise=initialise)
    options = dict(decoder)
    component = pick(DECODERS, options.pop("name"), "decoder.name")
    if "cell" in options:
        pick(CELLS, options["cell"], "decoder.cell")
    _check_sizes(options)
    sizes = {"vocabulary_size": vocabulary_size, "feature_size": built.feature_size}
    return CaptioningModel(built, make(component, "decoder", options, **sizes))


_SIZES = (
    *("attention_size", "embedding_size", "feedforward_size", "hidden_size"),
    *("heads", "layers", "max_words"),
)


def _check_sizes(decoder: Mapping[str, Any]) -> None:
    """Raise for a size that no decoder can have; torch's own words for it name no option."""
    for name in _SIZES:
        value = decoder.get(name, 1)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"decoder.{name}={value} is not accepted; choose 1 or more")
    dropout = decoder.get("dropout", 0.0)
    if isinstance(dropout, int | float) and not 0 <= dropout < 1:
        raise ValueError(
            f"decoder.dropout={dropout} is not accepted; choose a number from 0 to below 1"
        )
