"""Signatures: what a score depends on in addition to the captions, so what it may be compared with.

Scores of the same name often measure different things: the tokenization, letter case, the number of
references and the decoding all move BLEU by points. Two scores can be compared only if their
signatures agree in everything except the model (the idea is sacreBLEU's: Post, WMT 2018).

A signature is stored in scores.json as fields. Its text is for display,

    BLEU|nltk:3.10.0|tok:ptb|case:lower|refs:5|n:1000|decoding:beam3|data:flickr8k|split:dev|...

and only `from_old_text` parses it, for files that were written before there were fields.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from captioner.metrics.tokenize import TOKENIZE, composed

_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "tok": "tokenization",
        "units": "units",
        "case": "case",
        "refs": "references_per_image",
        "n": "count",
        "decoding": "decoding",
        "data": "data",
        "split": "split",
        "images": "images",
        "references": "references",
        "captioner": "version",
    }
)
"""Name in the text -> field, in the order of the text; `others` come before `references`."""
_TYPES: Mapping[str, type] = MappingProxyType(
    {"count": int, "parts": dict, "options": dict, "others": dict}
)
"""The types of the stored fields that are not texts."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a score depends on in addition to the captions; a field that is not known is None.

    Attributes:
        metric: the name of the metric; None in the part that all scores of an evaluation have in
            common.
        parts: other things that the metric depends on, such as the version of nltk.
        tokenization: how captions were split, a key of TOKENIZE.
        units: "clusters" if captions were split into grapheme clusters, in scripts that have them.
        case: "lower".
        references_per_image: such as "5", or "3-5" if images have different numbers.
        count: images that were scored.
        decoding: the label of the decoding options, such as "beam3-lp0.7".
        options: the decoding options themselves; they are stored, and the label represents them in
            the text.
        data: the dataset.
        split: "train", "dev" or "test".
        images: a hash of the image ids, see `image_hash`.
        others: other entries, which the caller of `score` gave.
        references: a hash of the references, see `reference_hash`.
        version: of this package.
    """

    metric: str | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    tokenization: str | None = None
    units: str | None = None
    case: str | None = None
    references_per_image: str | None = None
    count: int | None = None
    decoding: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    split: str | None = None
    images: str | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    references: str | None = None
    version: str | None = None

    def entries(self) -> dict[str, str]:
        """Name in the text -> value, of everything that is known, in the order of the text."""
        entries = {"metric": self.metric, **self.parts}
        for name, attribute in _FIELDS.items():
            entries |= self.others if name == "references" else {}
            entries[name] = getattr(self, attribute)
        return {name: str(value) for name, value in entries.items() if value is not None}

    def __str__(self) -> str:
        """The text: entries separated by "|", the metric without its name."""
        entries = self.entries()
        metric = [entries.pop("metric")] if self.metric is not None else []
        return "|".join([*metric, *(f"{k}:{v}".replace("|", "_") for k, v in entries.items())])

    def differences(self, other: Signature) -> dict[str, tuple[str, str]]:
        """The entries in which two signatures differ.

        Scores can be compared if none of these entries matters.

        Returns:
            name in the text -> both values, "" if a signature does not have the entry.
        """
        ours, theirs = self.entries(), other.entries()
        pairs = {name: (ours.get(name, ""), theirs.get(name, "")) for name in {**ours, **theirs}}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @property
    def by_character(self) -> bool:
        """Whether captions were split into characters instead of words."""
        return self.tokenization == "character"

    def tokenize(self, texts: Sequence[str]) -> list[list[str]]:
        """Split texts as for these scores; for ptb-jar with ptb, which gives the same words."""
        return TOKENIZE["character" if self.by_character else "ptb"](texts)

    def as_fields(self) -> dict[str, Any]:
        """Plain data: the fields that are known."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in values.items()
            if value is not None and value != {}
        }

    @classmethod
    def from_fields(cls, content: Mapping[str, Any]) -> Signature:
        """The signature that ``as_fields`` gave; fields of later versions are ignored.

        Raises:
            TypeError: a field has another type.
        """
        names = {field.name for field in fields(cls)}
        values = {name: value for name, value in content.items() if name in names}
        for name, value in values.items():
            if not isinstance(value, _TYPES.get(name, str)):
                raise TypeError(f"{name} is of the type {type(value).__name__}")
        return cls(**values)


def differences(a: Signature, b: Signature) -> dict[str, tuple[str, str]]:
    """The entries in which two signatures differ, see `Signature.differences`."""
    return a.differences(b)


def image_hash(images: Iterable[str]) -> str:
    """A hash of image ids, independent of their order: 8 hexadecimal digits."""
    return hashlib.sha256("\n".join(sorted(images)).encode("utf-8", "replace")).hexdigest()[:8]


def reference_hash(images: Iterable[str], references: Iterable[Sequence[str]]) -> str:
    """A hash of the references of images: 8 hexadecimal digits.

    Neither the order of the images nor that of an image's references matters, because no score
    depends on them; nor do repeated blanks and forms of Unicode, which readers of data compose.

    Args:
        images: their ids.
        references: of each image.
    """
    rows = (
        (image, sorted(composed(" ".join(text.split())) for text in texts))
        for image, texts in zip(images, references)
    )
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()[:8]


# In scores.json -------------------------------------------------------------------------------

FORMAT = 1
"""Of scores.json; a file without a number has this one, and may lack the fields."""


def to_json(common: Signature, signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """The signatures of an evaluation as scores.json has them: as text and as fields.

    Args:
        common: the fields that all scores have in common.
        signatures: score -> its signature, which adds a metric and its parts to `common`.
    """
    own = {
        name: {"metric": signature.metric, "parts": dict(signature.parts)}
        for name, signature in signatures.items()
    }
    return {
        "format": FORMAT,
        "version": common.version,
        "signatures": {name: str(signature) for name, signature in signatures.items()},
        "signature": str(common),
        "fields": {"common": common.as_fields(), "metrics": own},
    }


def from_json(content: Mapping[str, Any]) -> tuple[Signature, dict[str, Signature]]:
    """The signatures in the content of a scores.json: the common one, and that of each score.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: the content is damaged.
    """
    if "fields" not in content:
        signatures = {name: from_old_text(text) for name, text in content["signatures"].items()}
        return from_old_text(content["signature"]), signatures
    common = Signature.from_fields(content["fields"]["common"])
    return common, {
        str(name): replace(common, metric=str(own["metric"]), parts=dict(own["parts"]))
        for name, own in content["fields"]["metrics"].items()
    }


def from_old_text(text: str) -> Signature:
    """The signature of a scores.json from before there were fields, which has only texts.

    The label of the decoding contains max_length if it is not the default; other decoding options
    are not restored.

    Raises:
        ValueError, AttributeError: it is not the text of a signature.
    """
    values: dict[str, Any] = {}
    parts: dict[str, str] = {}
    others: dict[str, str] = {}
    for entry in text.split("|"):
        name, colon, value = entry.partition(":")
        if not colon:
            values["metric"] = name
        elif name in _FIELDS:
            values[_FIELDS[name]] = int(value) if name == "n" else value
        else:
            (others if "tokenization" in values else parts)[name] = value
    longest = re.search(r"(?:^|-)max(\d+)(?:-|$)", values.get("decoding", ""))
    options = {"max_length": int(longest[1])} if longest else {}
    return Signature(**values, parts=parts, others=others, options=options)
