"""The decoding options, each with its help text and range."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from captioner.config import unknown, unknown_key
from captioner.limits import DECODED

LENGTH_RULES = ("power", "gnmt")
ENSEMBLES = ("probability", "log_probability")
PRECISIONS = ("fp32", "bf16", "auto")


def _option(
    default: Any,
    placeholder: str,
    help: str,
    *,
    least: float = 0,
    most: float = math.inf,
    above: float = -math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field with its description: see ``Option``."""
    described = {"placeholder": placeholder, "help": help, "choices": choices}
    return field(
        default=default, metadata={**described, "least": least, "most": most, "above": above}
    )


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How captions are generated.

    With a temperature above 0 tokens are sampled. Otherwise a search looks for the best caption; a
    beam of size 1 is greedy decoding. A caption of n tokens, <end> included, with log probability
    log p is ranked by

        log p / n^α                 length_rule "power": α = 0 none, α = 1 the average per token
        log p / ((5 + n) / 6)^α     length_rule "gnmt" (Wu et al., arXiv:1609.08144, eq. 14)

    Args:
        beam_size, ...: the fields below, with their help texts.

    Raises:
        ValueError: a value is out of range, or values exclude each other.
    """

    beam_size: int = _option(1, "K", "hypotheses kept per image; 1 is greedy", least=1, most=1000)
    length_penalty: float = _option(0.0, "A", "rank by log p / n^A: 0 none, 1 average per token")
    length_rule: str = _option(
        "power", "RULE", "power, or gnmt: log p / ((5 + n) / 6)^A", choices=LENGTH_RULES
    )
    # If false, or with required words, a search stops when no unfinished hypothesis can win.
    early_stopping: bool = _option(True, "", "stop once K captions have ended")
    captions: int = _option(
        1, "N", "captions per image: the N best, or N samples", least=1, most=DECODED
    )
    # Minimum Bayes risk (consensus.py); the weight of a beam's hypothesis is p^(1/consensus).
    consensus: float = _option(
        0.0, "T", "above 0, choose the caption that agrees most with the others"
    )
    # Samples from p^(1/temperature), renormalized.
    temperature: float = _option(0.0, "T", "above 0, sample instead of searching")
    # Fan et al., ACL 2018.
    top_k: int = _option(0, "N", "sample from the N most probable tokens; 0 from all")
    # Holtzman et al., ICLR 2020.
    top_p: float = _option(
        1.0, "P", "sample from the smallest set of tokens with at least this probability",
        above=0, most=1,
    )  # fmt: skip
    # Samples depend on the seed and the image, not on the batch.
    seed: int = _option(0, "S", "random seed of the samples")
    # Vijayakumar et al., AAAI 2018.
    groups: int = _option(1, "G", "diverse beam search in G groups of K / G", least=1)
    diversity: float = _option(
        0.5, "D", "penalty of a token per earlier group that chose it at the same step"
    )
    min_length: int = _option(0, "N", "minimum number of words")
    max_length: int = _option(
        30, "N", "maximum number of tokens, <end> included", least=1, most=DECODED
    )
    no_repeat_ngram: int = _option(0, "N", "no sequence of N words occurs twice; 0: any may")
    no_repeat_word: bool = _option(False, "", "the same word never occurs twice in a row")
    banned_words: Sequence[str] = _option(
        (), "LIST", "words and phrases that never occur, separated by commas"
    )
    # Constrained beam search: Anderson et al., EMNLP 2017.
    required_words: Sequence[str] = _option(
        (), "LIST", "words and phrases that must occur, in any order, separated by commas"
    )
    prefix: str = _option("", "TEXT", "how each caption begins")
    ensemble: str = _option(
        "probability", "RULE", "with several models, average probability or log_probability",
        choices=ENSEMBLES,
    )  # fmt: skip
    # bf16 changes some captions.
    precision: str = _option(
        "fp32", "FORMAT", "of matrix products: fp32, bf16, or auto, the faster one",
        choices=PRECISIONS,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.checked(getattr(self, name)))
        self._check_sampling()
        self._check_searching()

    def _check_sampling(self) -> None:
        if self.samples and (self.beam_size > 1 or self.groups > 1 or self.required_words):
            raise ValueError(
                f"decoding.temperature={self.temperature:g} samples token by token; it needs "
                "beam_size=1, groups=1 and no required_words; set temperature=0 to search"
            )
        if not self.samples and (self.top_k or self.top_p < 1):
            name = "top_k" if self.top_k else "top_p"
            raise ValueError(
                f"decoding.{name}={getattr(self, name):g} affects only samples; set "
                "temperature=1 too"
            )
        if not self.samples and self.captions > self.beam_size:
            raise ValueError(
                f"decoding.captions={self.captions} per image need beam_size={self.captions} or "
                "more, or a temperature to sample them"
            )

    def _check_searching(self) -> None:
        if self.consensus and max(self.beam_size, self.captions) < 2:
            raise ValueError(
                f"decoding.consensus={self.consensus:g} chooses among several captions; set "
                "beam_size=20, or a temperature and captions=20"
            )
        if self.beam_size % self.groups:
            raise ValueError(
                f"decoding.groups={self.groups} does not divide beam_size={self.beam_size}; all "
                "groups have the same number of hypotheses"
            )
        if self.min_length >= self.max_length:
            raise ValueError(
                f"decoding.min_length={self.min_length} words and <end> do not fit into "
                f"max_length={self.max_length} tokens"
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled; otherwise a search looks for the best caption."""
        return self.temperature > 0

    @property
    def label(self) -> str:
        """A short name of the options that change captions, such as beam3-lp0.7."""
        parts = self._sampling_labels() if self.samples else self._search_labels()
        if self.consensus:
            parts += ["consensus" if self.samples else f"consensus{self.consensus:g}"]
        if self.captions > 1:
            parts += [f"n{self.captions}"]
        if self.ensemble != OPTIONS["ensemble"].default:
            parts += ["logmean"]
        if self.precision != OPTIONS["precision"].default:
            parts += [self.precision]
        return "-".join(parts + self._constraint_labels())

    def _sampling_labels(self) -> list[str]:
        parts = [f"sample-t{self.temperature:g}"]
        parts += [f"k{self.top_k}"] if self.top_k else []
        parts += [f"p{self.top_p:g}"] if self.top_p < 1 else []
        return [*parts, f"seed{self.seed}"]

    def _search_labels(self) -> list[str]:
        if self.beam_size == 1:
            parts = ["greedy"]
        else:
            parts = [f"beam{self.beam_size}"]
            rule = "lp" if self.length_rule == "power" else "gnmt"
            parts += [f"{rule}{self.length_penalty:g}"] if self.length_penalty else []
            parts += [] if self.early_stopping else ["patient"]
        if self.groups > 1:
            parts += [f"groups{self.groups}", f"div{self.diversity:g}"]
        return parts

    def _constraint_labels(self) -> list[str]:
        parts = [f"min{self.min_length}"] if self.min_length else []
        longest = OPTIONS["max_length"].default
        parts += [f"max{self.max_length}"] if self.max_length != longest else []
        parts += [f"ngram{self.no_repeat_ngram}"] if self.no_repeat_ngram else []
        parts += ["norepeat"] if self.no_repeat_word else []
        for name, texts in (("ban", self.banned_words), ("with", self.required_words)):
            parts += [f"{name}.{'+'.join(sorted(map(_plain, texts)))}"] if texts else []
        return parts + ([f"prefix.{_plain(self.prefix)}"] if self.prefix else [])

    def length_divisor(self, tokens: int) -> float:
        """The divisor of log p of a caption with `tokens` tokens, non-decreasing."""
        if self.length_rule == "gnmt":
            return ((5 + tokens) / 6) ** self.length_penalty
        return tokens**self.length_penalty

    def changed(self, **options: Any) -> DecodingOptions:
        """A copy with some options changed.

        A temperature sets beam_size and groups to 1, a beam_size turns sampling off, and either of
        them turns consensus off, unless these options are given too.

        Raises:
            ValueError: an option does not exist, is out of range, or excludes another one.
        """
        for name in options:
            if name not in OPTIONS:
                raise unknown_key("", name, OPTIONS)
        implied: dict[str, Any] = {}
        if options.get("temperature") and "beam_size" not in options:
            implied = {"beam_size": 1, "groups": 1}
        elif "beam_size" in options and "temperature" not in options:
            implied = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
        if options.get("temperature") or "beam_size" in options:
            implied["consensus"] = 0.0
        return replace(self, **{**implied, **options})

    def as_dict(self) -> dict[str, Any]:
        """The options as plain data."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Option:
    """One decoding option, as used by the command line and by checks.

    Attributes:
        name: the name of its field in ``DecodingOptions``.
        kind: int, float, bool, str, or Sequence[str] for a list of strings.
        default: its default value.
        placeholder: stands for its value in the help text.
        help: what it does.
        least, most: the smallest and the largest accepted number.
        above: numbers must be larger than this.
        choices: the accepted strings; empty: any.
    """

    name: str
    kind: Any
    default: Any
    placeholder: str
    help: str
    least: float
    most: float
    above: float
    choices: tuple[str, ...]

    @classmethod
    def from_field(cls, field: Field[Any], kind: Any) -> Option:
        return cls(name=field.name, kind=kind, default=field.default, **field.metadata)

    def checked(self, value: Any) -> Any:
        """The value, a list as a tuple.

        Raises:
            ValueError: it is of another type, or out of range.
        """
        if self.kind in (int, float):
            if not self._in_range(value):
                raise self._refused(value, self._range)
        elif self.kind is bool:
            if not isinstance(value, bool):
                raise self._refused(value, "true or false")
        elif self.kind is str:
            if self.choices and value not in self.choices:
                raise unknown(f"decoding.{self.name}", value, self.choices)
            if not isinstance(value, str):
                raise self._refused(value, "a text")
        else:
            texts = None if isinstance(value, str) else tuple(value or ())
            if texts is None or not all(isinstance(text, str) and text.strip() for text in texts):
                raise self._refused(value, "a list of words or phrases, such as [dog,'red ball']")
            return texts
        return value

    def _in_range(self, value: object) -> bool:
        kinds = (int,) if self.kind is int else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        return self.above < value < math.inf and self.least <= value <= self.most

    @property
    def _range(self) -> str:
        if self.kind is int:
            most = f" and ≤ {self.most:,.0f}" if self.most < math.inf else ""
            return f"a whole number ≥ {self.least:g}{most}"
        low = f"above {self.above:g}" if self.above >= self.least else f"from {self.least:g}"
        return f"a number {low}" + (f", at most {self.most:g}" if self.most < math.inf else "")

    def _refused(self, value: object, accepted: str) -> ValueError:
        return ValueError(f"decoding.{self.name}={value!r} is not accepted; choose {accepted}")


_KINDS = typing.get_type_hints(DecodingOptions)

OPTIONS = {
    option.name: Option.from_field(option, _KINDS[option.name])
    for option in fields(DecodingOptions)
}
"""Name of a decoding option -> its description."""


def _plain(text: str) -> str:
    """A text with only characters that are safe in a file name."""
    return re.sub(r"\W+", "_", text.strip())
