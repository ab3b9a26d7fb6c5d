"""What the sections of a report share: the words of captions and references, and what follows."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from captioner.decoding.options import DecodingOptions
from captioner.evaluation.results import Result
from captioner.metrics.tokenize import characters, composed, ptb_words
from captioner.report.errors import Errors, find_errors
from captioner.report.novelty import TrainingCaptions
from captioner.report.sources import Said, Surroundings

_Picture = TypeVar("_Picture")

RANKINGS = {"cider_d": "CIDEr-D", "rouge_l": "ROUGE-L"}
"""Rows of the statistics by which captions are ranked, the first that is there, and their names."""


LANGUAGES = {
    **{"CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "THAI": "th"},
    **{"DEVANAGARI": "hi", "BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te", "ARABIC": "ar"},
    **{"HEBREW": "he", "GREEK": "el", "CYRILLIC": "ru"},
}
"""Script, as Unicode names its letters -> the language that is most often written in it."""


def language_of(text: str) -> str | None:
    """The tag of the language whose letters a text mostly has; None for Latin ones, or none."""
    letters = Counter(one for one in text[:100_000] if unicodedata.category(one).startswith("L"))
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[unicodedata.name(letter, "?").split()[0].split("-")[0]] += count
    if scripts["HIRAGANA"]:  # no other language has it, and Japanese has Chinese letters too
        return "ja"
    return LANGUAGES.get(scripts.most_common(1)[0][0]) if scripts else None


def gaps_of(text: str, words: Sequence[str]) -> list[str]:
    """For each of the characters of a text, as scores cut them, a space or nothing after it."""
    text, place, gaps = composed(text).lower(), 0, []
    for word in words:
        place = max(place, text.find(word, place)) + len(word)
        gaps.append(" " if text[place : place + 1].isspace() else "")
    return gaps


@dataclass(frozen=True)
class View:
    """An evaluation with what the sections of its report share.

    Attributes:
        result: the scores.
        said: the captions, one an image.
        around: configuration, pictures and training captions, as far as they are there.
        images: how many captions each part shows.
    """

    result: Result
    said: Sequence[Said]
    around: Surroundings
    images: int

    @property
    def by_character(self) -> bool:
        """Whether words are characters."""
        return self.result.signature.tokenization == "character"

    @cached_property
    def language(self) -> str:
        """The tag (BCP 47) of the language that the captions are in, by their letters."""
        texts = (text for one in self.said for text in (one.caption, *one.references))
        return language_of(" ".join(texts)) or ("und" if self.by_character else "en")

    @property
    def chinese(self) -> bool:
        """Whether captions are judged as Chinese ones."""
        return self.by_character and self.language in ("zh", "und")

    def cut(self, text: str) -> list[str]:
        """The words of a caption, as they were scored."""
        return characters(text) if self.by_character else ptb_words(text)

    @cached_property
    def captions(self) -> list[list[str]]:
        """The words of each caption."""
        return [self.cut(one.caption) for one in self.said]

    @cached_property
    def references(self) -> list[list[list[str]]]:
        """The words of each image's references."""
        return [[self.cut(text) for text in one.references] for one in self.said]

    def picture(self, index: int, read: Callable[[str | None], _Picture]) -> _Picture:
        """The picture of an image, which is read once."""
        image = self.said[index].image
        if image not in self._pictures:
            self._pictures[image] = read(self.around.pictures.get(image))
        return self._pictures[image]

    @cached_property
    def _pictures(self) -> dict[str, Any]:
        return {}

    @cached_property
    def training(self) -> TrainingCaptions | None:
        """The training captions, where they are there."""
        texts = self.around.training
        return TrainingCaptions(map(self.cut, texts)) if texts else None

    @property
    def space(self) -> str:
        """What is between words of a text that is not kept."""
        return "" if self.by_character else " "

    def gaps(self, text: str, words: Sequence[str]) -> list[str]:
        """What follows each word of a text: of one cut by characters, a space where it has one."""
        return gaps_of(text, words) if self.by_character else [" "] * len(words)

    @property
    def ranking(self) -> str | None:
        """The name of the metric that ranks captions; None where no image has a score."""
        return next(iter(self.image_scores), None)

    @cached_property
    def image_scores(self) -> dict[str, list[float]]:
        """Metric -> its score of each image, 0 to 100, for CIDEr-D 0 to 1000."""
        rows = self.result.statistics.rows
        kept = {name: rows[family][:, 0] for family, name in RANKINGS.items() if family in rows}
        return {name: found.tolist() for name, found in kept.items()}

    @cached_property
    def order(self) -> list[int]:
        """The images from the best to the worst caption; empty where no image has a score."""
        if self.ranking is None:
            return []
        scores = self.image_scores[self.ranking]
        return sorted(range(len(scores)), key=lambda index: -scores[index])

    @cached_property
    def errors(self) -> dict[str, Errors]:
        """The buckets of errors."""
        return find_errors(
            self.captions,
            self.references,
            language="chinese" if self.chinese else "english",
            limit=self._limit(),
            vocabulary=self._vocabulary(),
        )

    def _limit(self) -> int:
        """The most words of a caption."""
        return self.result.signature.options.get("max_length", DecodingOptions.max_length)

    def _vocabulary(self) -> frozenset[str] | None:
        least = (self.around.config.get("tokenizer") or {}).get("min_count")
        if self.training is None or not isinstance(least, int):
            return None
        return frozenset(word for word, n in self.training.counts.items() if n >= least)
