"""The data that several sections of a report use: words, errors, scores of images."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from captioner.decoding.options import DecodingOptions
from captioner.evaluation.results import Result
from captioner.metrics.tokenize import composed
from captioner.report.errors import Errors, find_errors
from captioner.report.novelty import TrainingCaptions
from captioner.report.sources import CaptionRow, Surroundings

_Picture = TypeVar("_Picture")

RANKINGS = {"cider_d": "CIDEr-D", "rouge_l": "ROUGE-L"}
"""Rows -> name of the metric. Captions are ranked by the first one that an evaluation has."""


LANGUAGES = {
    **{"CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "THAI": "th"},
    **{"DEVANAGARI": "hi", "BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te", "ARABIC": "ar"},
    **{"HEBREW": "he", "GREEK": "el", "CYRILLIC": "ru"},
}
"""Script, as in the Unicode names of letters -> its most common language."""


def detect_language(text: str) -> str | None:
    """The tag of the language of most letters of a text; None for Latin letters, or no letters."""
    start = text[:100_000]
    letters = Counter(char for char in start if unicodedata.category(char).startswith("L"))
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[unicodedata.name(letter, "?").split()[0].split("-")[0]] += count
    if scripts["HIRAGANA"]:  # only Japanese has it, and it has Chinese characters too
        return "ja"
    return LANGUAGES.get(scripts.most_common(1)[0][0]) if scripts else None


def following_spaces(text: str, words: Sequence[str]) -> list[str]:
    """What follows each token of a text that was split by characters: a space or nothing."""
    text, place, gaps = composed(text).lower(), 0, []
    for word in words:
        place = max(place, text.find(word, place)) + len(word)
        gaps.append(" " if text[place : place + 1].isspace() else "")
    return gaps


@dataclass(frozen=True)
class View:
    """An evaluation and the data that several sections of its report use.

    Attributes:
        result: the scores.
        rows: the captions with their references, one per image.
        around: configuration, pictures and training captions, as far as they exist.
        images: the number of captions that each part shows.
    """

    result: Result
    rows: Sequence[CaptionRow]
    around: Surroundings
    images: int

    @property
    def by_character(self) -> bool:
        """Whether words are characters."""
        return self.result.signature.by_character

    @cached_property
    def language(self) -> str:
        """The tag (BCP 47) of the captions' language, by their letters."""
        texts = (text for row in self.rows for text in (row.caption, *row.references))
        return detect_language(" ".join(texts)) or ("und" if self.by_character else "en")

    @property
    def chinese(self) -> bool:
        """Whether captions are judged as Chinese."""
        return self.by_character and self.language in ("zh", "und")

    @cached_property
    def captions(self) -> list[list[str]]:
        """The words of each caption, split as for the scores."""
        return self.result.signature.tokenize([row.caption for row in self.rows])

    @cached_property
    def references(self) -> list[list[list[str]]]:
        """The words of each image's references."""
        return [self.result.signature.tokenize(row.references) for row in self.rows]

    def picture(self, index: int, read: Callable[[str | None], _Picture]) -> _Picture:
        """The picture of an image; each is read once."""
        image = self.rows[index].image
        if image not in self._pictures:
            self._pictures[image] = read(self.around.pictures.get(image))
        return self._pictures[image]

    @cached_property
    def _pictures(self) -> dict[str, Any]:
        return {}

    @cached_property
    def training(self) -> TrainingCaptions | None:
        """The training captions; None if they are missing."""
        texts = self.around.training
        return TrainingCaptions(self.result.signature.tokenize(texts)) if texts else None

    @property
    def space(self) -> str:
        """The separator of words if the original text is not kept."""
        return "" if self.by_character else " "

    def gaps(self, text: str, words: Sequence[str]) -> list[str]:
        """What follows each word of a text: a space, or for characters what the text has."""
        return following_spaces(text, words) if self.by_character else [" "] * len(words)

    @property
    def ranking(self) -> str | None:
        """The metric that captions are ranked by; None if images have no scores."""
        return next(iter(self.image_scores), None)

    @cached_property
    def image_scores(self) -> dict[str, list[float]]:
        """Metric -> its score of each image, 0 to 100, for CIDEr-D 0 to 1000."""
        rows = self.result.statistics.rows
        known = {name: rows[family][:, 0] for family, name in RANKINGS.items() if family in rows}
        return {name: scores.tolist() for name, scores in known.items()}

    @cached_property
    def order(self) -> list[int]:
        """The images from the best to the worst caption; empty if images have no scores."""
        if self.ranking is None:
            return []
        scores = self.image_scores[self.ranking]
        return sorted(range(len(scores)), key=lambda index: -scores[index])

    @cached_property
    def errors(self) -> dict[str, Errors]:
        """The errors by kind."""
        return find_errors(
            self.captions,
            self.references,
            language="chinese" if self.chinese else "english",
            limit=self._limit(),
            vocabulary=self._vocabulary(),
        )

    def _limit(self) -> int:
        """The largest number of words in a caption."""
        return self.result.signature.options.get("max_length", DecodingOptions.max_length)

    def _vocabulary(self) -> frozenset[str] | None:
        least = (self.around.config.get("tokenizer") or {}).get("min_count")
        if self.training is None or not isinstance(least, int):
            return None
        return frozenset(word for word, n in self.training.counts.items() if n >= least)
