"""Captions to ids and back.

A tokenizer cuts a caption into words, or characters, and a vocabulary numbers them. The first four
ids have a meaning of their own: <pad> fills rows of unequal length, <start> and <end> frame a
caption, <unk> stands for every word the vocabulary lacks. No text reaches the first three: a
caption that reads "<end>" is encoded as <unk>, so data cannot end a sentence.

Words are cut as the field's scorers cut them, so a model is trained on the words by which it is
judged.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from captioner.config import pick
from captioner.metrics.tokenize import characters, ptb_words

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unk>"
_SPECIALS = (PAD, START, END, UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The V words that a model can say, in the order of their ids.

    Args:
        words: the four special words, then all others, each once and without spaces.

    Raises:
        ValueError: a word is missing, no text, blank, or there twice.
    """

    words: tuple[str, ...]
    pad: ClassVar[int] = 0
    start: ClassVar[int] = 1
    end: ClassVar[int] = 2
    unknown: ClassVar[int] = 3
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.words[:4] != _SPECIALS:
            raise ValueError(
                f"a vocabulary starts with {list(self.words[:4])!r}; it must start with "
                f"{', '.join(_SPECIALS)}: build it with Vocabulary.build"
            )
        for index, word in enumerate(self.words):
            if not isinstance(word, str) or word.split() != [word]:
                raise ValueError(
                    f"word {index} of the vocabulary is {word!r}; a word is a text without spaces"
                )
        ids = {word: index for index, word in enumerate(self.words)}
        if len(ids) < len(self.words):
            word, count = Counter(self.words).most_common(1)[0]
            raise ValueError(f"the vocabulary holds {word!r} {count} times; each word stands once")
        # Texts do not reach the special words.
        object.__setattr__(self, "_ids", {w: i for w, i in ids.items() if w not in _SPECIALS})

    def __len__(self) -> int:
        return len(self.words)

    def id(self, word: str) -> int:
        """Return the id of a word; that of <unk> for words it lacks, and for the special words."""
        return self._ids.get(word, self.unknown)

    def word(self, id: int) -> str:
        """Return the word of an id, 0 to V - 1.

        Raises:
            ValueError: there is no such id.
        """
        if not 0 <= id < len(self.words):
            raise ValueError(f"id {id} is not in the vocabulary; ids go from 0 to {len(self) - 1}")
        return self.words[id]

    @property
    def rarity(self) -> list[float]:
        """How much each word says by being said: log(1 + its rank), 0 for the special words.

        Words are listed by their frequency, which falls as 1 / rank (Zipf, 1949): log rank stands
        for -log p without any counts.
        """
        return [math.log(max(1, place - len(_SPECIALS) + 2)) for place in range(len(self.words))]

    @classmethod
    def build(cls, sentences: Iterable[Sequence[str]], *, min_count: int = 1) -> Vocabulary:
        """Collect the words of sentences, the most frequent first, equals by alphabet.

        Args:
            sentences: the words of each caption.
            min_count: how often a word must occur to be kept, 1 or more.

        Returns:
            the vocabulary.

        Raises:
            ValueError: `min_count` is not a positive whole number, or no word is left.
        """
        if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 1:
            raise ValueError(f"min_count={min_count!r} is not possible; give a whole number from 1")
        counts = Counter(word for words in sentences for word in words)
        for word in _SPECIALS:
            counts.pop(word, None)
        kept = sorted((w for w in counts if counts[w] >= min_count), key=lambda w: (-counts[w], w))
        if not kept:
            most = max(counts.values(), default=0)
            raise ValueError(
                f"no word occurs min_count={min_count} times (the most frequent: {most}); "
                "lower min_count or give more captions"
            )
        return cls(words=(*_SPECIALS, *kept))


class Tokenizer(ABC):
    """Turn captions into ids and ids into captions.

    Args:
        vocabulary: the words that have ids.
    """

    name: ClassVar[str]
    scored_by: ClassVar[str] = "ptb"
    """How scores cut captions of this kind: a key of `captioner.metrics.TOKENIZE`."""

    def __init__(self, *, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    @staticmethod
    @abstractmethod
    def split(text: str) -> list[str]:
        """Cut a caption into words."""

    @staticmethod
    @abstractmethod
    def join(words: Sequence[str]) -> str:
        """Write words as a caption, so that `split` finds the same words in it."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a caption's words, without <start> and <end>."""
        return [self.vocabulary.id(word) for word in self.split(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Write ids as a caption, up to the first <end>; <pad> and <start> are passed over."""
        words = []
        for id in ids:
            if id == self.vocabulary.end:
                break
            if id not in (self.vocabulary.pad, self.vocabulary.start):
                words.append(self.vocabulary.word(id))
        return self.join(words)

    def coverage(self, captions: Iterable[str]) -> float:
        """Return the share of the captions' words that the vocabulary holds, 0 to 1."""
        ids = [id for caption in captions for id in self.encode(caption)]
        return 1 - ids.count(self.vocabulary.unknown) / len(ids) if ids else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a checkpoint: the name and the list of words."""
        return {"name": self.name, "words": list(self.vocabulary.words)}


# Where words were one piece: before the first kind and after the second nothing is put, nor
# between the pairs.
_ENDINGS = {"n't", "'s", "'m", "'d", "'re", "'ve", "'ll", "-rrb-", "-rsb-", "-rcb-", "%"}
_BEGINNINGS = {"'t", "y'", "y\u2019", "-lrb-", "-lsb-", "-lcb-", "$", "#"}
_PAIRS = {("can", "not"), ("gon", "na"), ("got", "ta"), ("wan", "na"), ("lem", "me"), ("gim", "me")}
_BRACKETS = {"-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}


class WordTokenizer(Tokenizer):
    """Words as coco-caption's PTBTokenizer cuts them: lower case, without punctuation."""

    name = "word"

    @staticmethod
    def split(text: str) -> list[str]:
        """Cut an English caption into words; see `captioner.metrics.tokenize.ptb_words`."""
        return ptb_words(text)

    @staticmethod
    def join(words: Sequence[str]) -> str:
        """Write words as running text: the man 's hat becomes the man's hat.

        Args:
            words: words as `split` gives them.

        Returns:
            a text in which `split` finds these words. Where running text would be cut otherwise,
            words stay apart, or are written as they may have stood (AT&T).
        """
        pieces: list[str] = []
        held: list[str] = []  # the words in the last piece
        for word, following in zip(words, [*words[1:], ""]):
            piece = _written(word, following)
            if held and (word in _ENDINGS or held[-1] in _BEGINNINGS or (held[-1], word) in _PAIRS):
                together = pieces[-1] + piece
                if ptb_words(together) == [*held, word]:
                    pieces[-1] = together
                    held.append(word)
                    continue
            pieces.append(piece)
            held = [word]
        return " ".join(pieces)


def _written(word: str, following: str) -> str:
    """Write a word so that it is found again: lower case does not show that AT&T was one word."""
    if word.isalpha():
        return word
    plain = _BRACKETS.get(word) or word.replace("-lrb-", "(").replace("-rrb-", ")")
    curly = plain.replace("``", "\u201c").replace("''", "\u201d").replace("'", "\u2019")
    for text in (plain, plain.capitalize(), plain.upper(), f"{plain},", curly):
        if ptb_words(f"{text} {following}")[:1] == [word]:
            return text
    return plain


# Words of India's scripts are separated by spaces, and their characters are tokens: this one, which
# no caption holds, says where a space stands.
SPACE = "\u2581"
_INDIC = re.compile("[\u0900-\u0dff\ua8e0-\ua8ff\U00011000-\U00011fff]")


class CharacterTokenizer(Tokenizer):
    """Chinese by characters, Thai and Hindi by grapheme clusters.

    A run of letters that need no cluster is one token, as Latin ones and digits.
    """

    name = "character"
    scored_by = "character"

    @staticmethod
    def split(text: str) -> list[str]:
        """Cut a caption; see `captioner.metrics.tokenize.characters`."""
        if not _INDIC.search(text):
            return characters(text)
        words: list[str] = []
        for piece in text.split():
            found = characters(piece)
            if words and found and (_INDIC.match(words[-1]) or _INDIC.match(found[0])):
                words.append(SPACE)
            words += found
        return words

    @staticmethod
    def join(words: Sequence[str]) -> str:
        """Write characters without spaces; a space parts only what would run together."""
        text, previous = "", ""
        for word in words:
            if previous and SPACE not in (previous, word):
                text += " " * (characters(previous + word) != [previous, word])
            text += " " if word == SPACE else word
            previous = word
        return " ".join(text.split())


TOKENIZERS: dict[str, type[Tokenizer]] = {"word": WordTokenizer, "character": CharacterTokenizer}


def build_tokenizer(captions: Iterable[str], *, name: str, min_count: int) -> Tokenizer:
    """Build a tokenizer whose vocabulary are the words of captions.

    Args:
        captions: the training captions.
        name: a key of TOKENIZERS.
        min_count: how often a word must occur to be kept, 1 or more; others become <unk>.

    Returns:
        the tokenizer.

    Raises:
        ValueError: the name is not known, a caption is no text, or no word is left.
    """
    kind = pick(TOKENIZERS, name, "tokenizer.name")
    if isinstance(captions, str):
        raise ValueError("captions is one text; give a list of texts")
    captions = list(captions)
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"caption {index} is {caption!r}; captions are texts")
    vocabulary = Vocabulary.build(map(kind.split, captions), min_count=min_count)
    return kind(vocabulary=vocabulary)


def restore_tokenizer(data: Mapping[str, Any]) -> Tokenizer:
    """Rebuild a tokenizer from what `as_dict` gave; nothing in the data is executed.

    Args:
        data: "name", a key of TOKENIZERS, and "words", the vocabulary in the order of its ids.

    Returns:
        the tokenizer.

    Raises:
        ValueError: an entry is missing, unknown, or of the wrong kind.
    """
    if not isinstance(data, Mapping) or set(data) != {"name", "words"}:
        seen = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"a stored tokenizer has the entries name and words, not {seen}")
    name, words = data["name"], data["words"]
    if not isinstance(name, str) or not isinstance(words, (list, tuple)):
        raise ValueError(
            "a stored tokenizer has a text as name and a list as words, "
            f"not {type(name).__name__} and {type(words).__name__}"
        )
    kind = pick(TOKENIZERS, name, "tokenizer.name")
    return kind(vocabulary=Vocabulary(words=tuple(words)))
