"""What a user says about decoding: plain values, held against each other once."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from captioner.config import unknown, unknown_key

LENGTH_RULES = ("power", "gnmt")
ENSEMBLES = ("probability", "log_probability")
PRECISIONS = ("fp32", "bf16", "auto")


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How captions are chosen.

    With a temperature above 0 words are drawn; otherwise the best caption is searched for, with a
    beam of 1 greedily. A caption of n tokens (<end> is one) and log probability log p is ranked by

        log p / n^α                 length_rule "power": α = 0 none, α = 1 the average by token
        log p / ((5 + n) / 6)^α     length_rule "gnmt" (Wu et al., arXiv:1609.08144, eq. 14)

    Args:
        beam_size: K, hypotheses kept for each image; 1 is greedy decoding.
        length_penalty: α ≥ 0.
        length_rule: "power" or "gnmt".
        early_stopping: stop once K captions of an image have ended; otherwise, and with required
            words, only when no live hypothesis can become one of the captions asked for.
        captions: how many are returned of each image: the n best, or n samples; a search finds
            no more than K.
        consensus: above 0, captions are ranked by how much the K found, or all samples, agree with
            each: minimum Bayes risk (``consensus.py``). Those found vote with p^(1/consensus).
        temperature: 0 searches; τ > 0 draws words from p^(1/τ), rescaled.
        top_k: draws from the k most probable words only; 0 from all (Fan et al., ACL 2018).
        top_p: draws from the fewest words that hold this share of the probability, (0, 1]
            (Holtzman et al., ICLR 2020).
        seed: of the draws. They depend on it and on the image, not on the batch it is in.
        groups: G, of K / G hypotheses each, that are kept apart (diverse beam search, Vijayakumar
            et al., AAAI 2018); 1 is plain beam search.
        diversity: λ ≥ 0, what a word costs for each earlier group that says it at the same place.
        min_length: the fewest words.
        max_length: the most tokens, <end> included.
        no_repeat_ngram: n, no n words occur twice in this order; 0 lets them.
        no_repeat_word: no word directly follows itself.
        banned_words: words and phrases that are never said.
        required_words: words and phrases that must be said, in any order (constrained beam
            search, Anderson et al., EMNLP 2017).
        prefix: how each caption begins.
        ensemble: where several models decode together, what is averaged: "probability" or
            "log_probability".
        precision: of the decoder's products, "fp32", "bf16", or "auto", which is bf16 where the
            device multiplies it itself; bf16 is faster there, and moves some captions.

    Raises:
        ValueError: a value out of range, or values that exclude each other.
    """

    beam_size: int = 1
    length_penalty: float = 0.0
    length_rule: str = "power"
    early_stopping: bool = True
    captions: int = 1
    consensus: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    groups: int = 1
    diversity: float = 0.5
    min_length: int = 0
    max_length: int = 30
    no_repeat_ngram: int = 0
    no_repeat_word: bool = False
    banned_words: Sequence[str] = ()
    required_words: Sequence[str] = ()
    prefix: str = ""
    ensemble: str = "probability"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise _refused(name, value, f"a whole number ≥ {least}")
        for name in ("length_penalty", "consensus", "temperature", "diversity"):
            if not _is_number(value := getattr(self, name)) or not 0 <= value < math.inf:
                hint = ": 0 none, 1 average by token" if name == "length_penalty" else ""
                raise _refused(name, value, f"a number from 0{hint}")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise _refused("top_p", self.top_p, "a number above 0, at most 1")
        for name in ("early_stopping", "no_repeat_word"):
            if not isinstance(getattr(self, name), bool):
                raise _refused(name, getattr(self, name), "true or false")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown(f"decoding.{name}", getattr(self, name), choices)
        self._check_words()
        self._check_together()

    def _check_words(self) -> None:
        for name in ("banned_words", "required_words"):
            value = getattr(self, name)
            texts = None if isinstance(value, str) else list(value or ())
            if texts is None or not all(isinstance(one, str) and one.strip() for one in texts):
                raise _refused(name, value, "a list of words or phrases, such as [dog,'red ball']")
            object.__setattr__(self, name, tuple(texts))
        if not isinstance(self.prefix, str):
            raise _refused("prefix", self.prefix, "a text")

    def _check_together(self) -> None:
        if self.samples and (self.beam_size > 1 or self.groups > 1 or self.required_words):
            raise ValueError(
                f"decoding.temperature={self.temperature:g} draws words one by one; it goes with "
                "beam_size=1, groups=1 and no required_words. Set temperature=0 to search"
            )
        if not self.samples and (self.top_k or self.top_p < 1):
            name = "top_k" if self.top_k else "top_p"
            raise ValueError(
                f"decoding.{name}={getattr(self, name):g} only matters where words are drawn; set "
                "temperature=1 too"
            )
        if not self.samples and self.captions > self.beam_size:
            raise ValueError(
                f"decoding.captions={self.captions} of an image need beam_size={self.captions} or "
                "more, or a temperature to draw them"
            )
        if self.consensus and max(self.beam_size, self.captions) < 2:
            raise ValueError(
                f"decoding.consensus={self.consensus:g} chooses among several captions; set "
                "beam_size=20, or a temperature and captions=20"
            )
        if self.beam_size % self.groups:
            raise ValueError(
                f"decoding.groups={self.groups} does not divide beam_size={self.beam_size}; each "
                "group has as many hypotheses"
            )
        if self.min_length >= self.max_length:
            raise ValueError(
                f"decoding.min_length={self.min_length} words and <end> do not fit into "
                f"max_length={self.max_length} tokens"
            )

    @property
    def samples(self) -> bool:
        """Whether words are drawn rather than searched for."""
        return self.temperature > 0

    @property
    def label(self) -> str:
        """A short name for files and signatures, of all that moves captions: beam3-lp0.7."""
        if self.samples:
            parts = [f"sample-t{self.temperature:g}"]
            parts += [f"k{self.top_k}"] if self.top_k else []
            parts += [f"p{self.top_p:g}"] if self.top_p < 1 else []
            parts += [f"seed{self.seed}"]
        else:
            parts = ["greedy" if self.beam_size == 1 else f"beam{self.beam_size}"]
            if self.length_penalty and self.beam_size > 1:
                rule = "lp" if self.length_rule == "power" else "gnmt"
                parts += [f"{rule}{self.length_penalty:g}"]
            if not self.early_stopping and self.beam_size > 1:
                parts += ["patient"]
            if self.groups > 1:
                parts += [f"groups{self.groups}", f"div{self.diversity:g}"]
        if self.consensus:
            parts += ["consensus" if self.samples else f"consensus{self.consensus:g}"]
        if self.captions > 1:
            parts += [f"n{self.captions}"]
        if self.ensemble != type(self).ensemble:
            parts += ["logmean"]
        if self.precision != type(self).precision:
            parts += [self.precision]
        return "-".join(parts + self._constraint_labels())

    def _constraint_labels(self) -> list[str]:
        parts = [f"min{self.min_length}"] if self.min_length else []
        parts += [f"max{self.max_length}"] if self.max_length != type(self).max_length else []
        parts += [f"ngram{self.no_repeat_ngram}"] if self.no_repeat_ngram else []
        parts += ["norepeat"] if self.no_repeat_word else []
        for name, texts in (("ban", self.banned_words), ("with", self.required_words)):
            parts += [f"{name}.{'+'.join(sorted(map(_plain, texts)))}"] if texts else []
        return parts + ([f"prefix.{_plain(self.prefix)}"] if self.prefix else [])

    def length_divisor(self, tokens: int) -> float:
        """What log p of a caption of so many tokens is divided by; it only grows."""
        if self.length_rule == "gnmt":
            return ((5 + tokens) / 6) ** self.length_penalty
        return tokens**self.length_penalty

    def changed(self, **options: Any) -> DecodingOptions:
        """The options with some of them changed.

        To ask for samples turns a beam off, to ask for a beam turns samples off, and either turns
        consensus off, unless both are given: what is asked for is what is ranked by.

        Raises:
            ValueError: an option that does not exist, or that does not fit.
        """
        for name in options:
            if name not in NAMES:
                raise unknown_key("", name, NAMES)
        implied: dict[str, Any] = {}
        if options.get("temperature") and "beam_size" not in options:
            implied = {"beam_size": 1, "groups": 1}
        elif "beam_size" in options and "temperature" not in options:
            implied = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
        if options.get("temperature") or "beam_size" in options:
            implied["consensus"] = 0.0
        return replace(self, **{**implied, **options})

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


_WHOLE = {"beam_size": 1, "captions": 1, "groups": 1, "max_length": 1, "top_k": 0, "seed": 0}
_WHOLE |= {"min_length": 0, "no_repeat_ngram": 0}

_CHOICES = {"length_rule": LENGTH_RULES, "ensemble": ENSEMBLES, "precision": PRECISIONS}

NAMES = tuple(field.name for field in fields(DecodingOptions))


def _refused(name: str, value: object, accepted: str) -> ValueError:
    return ValueError(f"decoding.{name}={value!r} is not accepted; choose {accepted}")


def _plain(text: str) -> str:
    """A text as it may stand in a file name."""
    return re.sub(r"\W+", "_", text.strip())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
