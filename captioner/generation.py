"""From models, features and options to hypotheses: the only way from a model to captions."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.decoding.constraints import Phrases
from captioner.decoding.decode import decode
from captioner.decoding.ensemble import together
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis
from captioner.models.captioning import CaptioningModel
from captioner.models.decoders.decoder import Decoder, Stepper
from captioner.models.features import Features
from captioner.models.precision import BF16, resolve, warn_if_emulated
from captioner.tokenizers import Tokenizer


@torch.inference_mode()
def generate(
    models: Sequence[CaptioningModel],
    sources: Sequence[Tensor | Features],
    tokenizer: Tokenizer,
    options: DecodingOptions,
    *,
    keys: Sequence[int] | None = None,
    steppers: Sequence[Stepper] | None = None,
) -> list[list[Hypothesis]]:
    """Generate captions: the hypotheses of each image, best first.

    <pad>, <start> and <unk> are never generated. The models must be in evaluation mode.

    Args:
        models: one, or several with the same vocabulary, as an ensemble.
        sources: for each model the images [B, 3, S, S] or their Features.
        tokenizer: of all models.
        options: how captions are chosen.
        keys: of each image, to seed its samples (``decode``).
        steppers: of each model, from ``make_steppers``; None: the decoders themselves.

    Raises:
        ValueError: a required word or prefix that is not in the vocabulary.
    """
    words = tokenizer.vocabulary
    with precision_of(models, options):
        features = [model.encode(source) for model, source in zip(models, sources)]
        decoders: Sequence[Decoder | Stepper] = steppers or [model.decoder for model in models]
        starts = [decoder.start(source) for decoder, source in zip(decoders, features)]
        steps = [decoder.step for decoder in decoders]
        step, state = together(steps, starts, average=options.ensemble)
        return decode(
            step,
            state,
            start=words.start,
            end=words.end,
            options=options,
            phrases=phrases(options, tokenizer),
            banned=words.never_generated,
            keys=keys,
            rarity=words.rarity if options.consensus else (),
        )


@torch.inference_mode()
def make_steppers(models: Sequence[CaptioningModel], options: DecodingOptions) -> list[Stepper]:
    """The decoders' steppers, for many calls of ``generate`` with the same precision."""
    with precision_of(models, options):
        return [model.decoder.stepper() for model in models]


def precision_of(models: Sequence[CaptioningModel], options: DecodingOptions) -> torch.autocast:
    """The autocast context of decoding, which is the same within a training in bf16."""
    device = next(models[0].decoder.parameters()).device.type
    warn_if_emulated("decoding.precision", options.precision, device)
    bf16 = resolve(options.precision, device) == BF16
    return torch.autocast(device, torch.bfloat16, enabled=bf16)


def phrases(options: DecodingOptions, tokenizer: Tokenizer) -> Phrases:
    """The words of the options as token ids; unknown banned words are skipped.

    Raises:
        ValueError: a required word or prefix that is not in the vocabulary, or that is banned.
    """
    vocabulary = tokenizer.vocabulary
    banned = [tuple(tokenizer.encode(text)) for text in options.banned_words]
    banned = [phrase for phrase in banned if phrase and vocabulary.unknown not in phrase]
    required = [
        known_tokens("decoding.required_words", text, tokenizer) for text in options.required_words
    ]
    prefix = (
        known_tokens("decoding.prefix", options.prefix, tokenizer) if options.prefix.strip() else ()
    )
    texts = [("required_words", *pair) for pair in zip(options.required_words, required)]
    for option, text, phrase in (*texts, ("prefix", options.prefix, prefix)):
        if any(phrase[first : first + len(b)] == b for b in banned for first in range(len(phrase))):
            raise ValueError(f"decoding.{option}={text!r} is banned by banned_words as well")
    if len(prefix) >= options.max_length:
        raise ValueError(
            f"decoding.prefix={options.prefix!r} has {len(prefix)} words; set max_length to "
            f"{len(prefix) + 1} or more"
        )
    return Phrases(tuple(banned), tuple(required), prefix)


def known_tokens(option: str, text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The token ids of a text, all of whose words the vocabulary must have.

    Args:
        option: that has the text, for the error.

    Raises:
        ValueError: a word that is not in the vocabulary, or no word.
    """
    words = tokenizer.split(text)
    if not words:
        raise ValueError(f"{option}={text!r} has no word; give one or more")
    for word in words:
        if tokenizer.vocabulary.id(word) == tokenizer.vocabulary.unknown:
            known = tokenizer.vocabulary.ordinary
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
            raise ValueError(
                f"{option}={text!r}: the model cannot generate {word!r}, which is not "
                f"among its {len(known)} words" + (f" (did you mean {near[0]}?)" if near else "")
            )
    return tuple(tokenizer.encode(text))
