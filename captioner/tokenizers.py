"""Captions to ids and back.

A tokenizer splits a caption into tokens, which are words or characters, and a vocabulary maps them
to ids. Four ids are special: <pad> fills rows of unequal length, <start> and <end> enclose a
caption, <unk> replaces every token that is not in the vocabulary. No text is encoded as one of the
first three: a caption that reads "<end>" becomes <unk>, so data cannot end a sentence.

Captions are split as the field's metrics split them, so that a model is trained on the tokens by
which it is scored.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, ClassVar

from captioner.config import pick
from captioner.limits import WORDS
from captioner.metrics.tokenize import characters, composed, ptb_words
from captioner.plain_data import shortened

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unk>"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The V tokens that a model knows, in the order of their ids.

    Args:
        words: the special tokens, then all others, each once and without spaces.

    Attributes:
        special: the special tokens, whose ids are the first.
        special_count: their number, which is also the first id of all other tokens.
        pad, start, end, unknown: their ids.
        never_generated: the ids that decoding never emits: all special ones but <end>.

    Raises:
        ValueError: a token is missing, is not a string, is blank, or occurs twice; or there are
            more than WORDS.
    """

    words: tuple[str, ...]
    special: ClassVar[tuple[str, ...]] = (PAD, START, END, UNKNOWN)
    special_count: ClassVar[int] = 4
    pad: ClassVar[int] = 0
    start: ClassVar[int] = 1
    end: ClassVar[int] = 2
    unknown: ClassVar[int] = 3
    never_generated: ClassVar[tuple[int, ...]] = (pad, start, unknown)
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        first = self.words[: self.special_count]
        if first != self.special:
            raise ValueError(
                f"a vocabulary starts with {shortened(list(first))}; it must start with "
                f"{', '.join(self.special)}: build it with Vocabulary.build"
            )
        if len(self.words) > WORDS:
            raise ValueError(
                f"a vocabulary has {len(self.words):,} tokens; at most {WORDS:,} are accepted: "
                "raise tokenizer.min_count"
            )
        for index, word in enumerate(self.words):
            if not isinstance(word, str) or word.split() != [word]:
                raise ValueError(
                    f"token {index} of the vocabulary is {shortened(word)}; tokens are "
                    "strings without spaces"
                )
        ids = {word: index for index, word in enumerate(self.words)}
        if len(ids) < len(self.words):
            word, count = Counter(self.words).most_common(1)[0]
            raise ValueError(
                f"the vocabulary has {shortened(word)} {count} times; each token must occur once"
            )
        # No text is encoded as a special token.
        object.__setattr__(self, "_ids", {w: i for w, i in ids.items() if w not in self.special})

    def __len__(self) -> int:
        return len(self.words)

    def id(self, word: str) -> int:
        """The id of a token; that of <unk> for unknown and for special tokens."""
        return self._ids.get(word, self.unknown)

    def word(self, id: int) -> str:
        """The token of an id, 0 to V - 1.

        Raises:
            ValueError: there is no such id.
        """
        if not 0 <= id < len(self.words):
            raise ValueError(f"id {id} is not in the vocabulary; ids go from 0 to {len(self) - 1}")
        return self.words[id]

    @property
    def ordinary(self) -> tuple[str, ...]:
        """All tokens except the special ones, the most frequent first."""
        return self.words[self.special_count :]

    @cached_property
    def rarity(self) -> tuple[float, ...]:
        """The weight of each token by its rarity: log(1 + rank), 0 for the special tokens.

        Tokens are sorted by frequency, which falls as 1 / rank (Zipf, 1949): log rank approximates
        -log p without any counts.
        """
        first = self.special_count
        return tuple(math.log(max(1, id - first + 2)) for id in range(len(self.words)))

    @classmethod
    def build(cls, sentences: Iterable[Sequence[str]], *, min_count: int = 1) -> Vocabulary:
        """Collect the tokens of sentences, the most frequent first, ties in alphabetical order.

        Args:
            sentences: the tokens of each caption.
            min_count: how often a token must occur to be kept, 1 or more.

        Raises:
            ValueError: `min_count` is not a positive integer, or no token is left.
        """
        if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 1:
            raise ValueError(f"min_count={min_count!r} is not accepted; choose an integer ≥ 1")
        counts = Counter(word for words in sentences for word in words)
        for word in cls.special:
            counts.pop(word, None)
        frequent = sorted(
            (w for w in counts if counts[w] >= min_count), key=lambda w: (-counts[w], w)
        )
        if not frequent:
            most = max(counts.values(), default=0)
            raise ValueError(
                f"no word occurs min_count={min_count} times (the most frequent: {most}); "
                "lower min_count or give more captions"
            )
        return cls(words=(*cls.special, *frequent))


class Tokenizer(ABC):
    """Turns captions into ids and ids into captions.

    Args:
        vocabulary: the tokens that have ids.

    Attributes:
        name: its key in TOKENIZERS.
        scored_by: how metrics tokenize captions of this kind: a key of
            `captioner.metrics.tokenize.TOKENIZE`.
    """

    name: ClassVar[str]
    scored_by: ClassVar[str] = "ptb"

    def __init__(self, *, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    @staticmethod
    @abstractmethod
    def split(text: str) -> list[str]:
        """Split a caption into tokens."""

    @staticmethod
    @abstractmethod
    def join(words: Sequence[str]) -> str:
        """Write tokens as a caption, from which `split` gives the same tokens where it can."""

    def encode(self, text: str) -> list[int]:
        """The ids of a caption's tokens, without <start> and <end>."""
        return [self.vocabulary.id(word) for word in self.split(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Write ids as a caption, up to the first <end>; <pad> and <start> are skipped."""
        words = []
        for id in ids:
            if id == self.vocabulary.end:
                break
            if id not in (self.vocabulary.pad, self.vocabulary.start):
                words.append(self.vocabulary.word(id))
        return self.join(words)

    def coverage(self, captions: Iterable[str]) -> float:
        """The fraction of the captions' tokens that are in the vocabulary, [0, 1]."""
        ids = [id for caption in captions for id in self.encode(caption)]
        return 1 - ids.count(self.vocabulary.unknown) / len(ids) if ids else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint: the name and the list of tokens."""
        return {"name": self.name, "words": list(self.vocabulary.words)}


# Tokens that were one string in running text: no space is written before the first kind, after the
# second, and within the pairs.
_ENDINGS = {"n't", "'s", "'m", "'d", "'re", "'ve", "'ll", "-rrb-", "-rsb-", "-rcb-", "%"}
_BEGINNINGS = {"'t", "y'", "y\u2019", "-lrb-", "-lsb-", "-lcb-", "$", "#"}
_PAIRS = {("can", "not"), ("gon", "na"), ("got", "ta"), ("wan", "na"), ("lem", "me"), ("gim", "me")}
_BRACKETS = {"-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}


class WordTokenizer(Tokenizer):
    """Words as coco-caption's PTBTokenizer splits them: lower case, without punctuation."""

    name = "word"

    @staticmethod
    def split(text: str) -> list[str]:
        """Split an English caption into words; see `captioner.metrics.tokenize.ptb_words`."""
        return ptb_words(text)

    @staticmethod
    def join(words: Sequence[str]) -> str:
        """Write words as running text: the man 's hat becomes the man's hat.

        Args:
            words: as `split` gives them.

        Returns:
            a text from which `split` gives these words. If running text would be split in
            another way, words stay separate, or are written as they may have been (AT&T).
        """
        pieces: list[str] = []
        last: list[str] = []  # the words in the last piece
        for word, following in zip(words, [*words[1:], ""]):
            piece = _written(word, following)
            if last and (word in _ENDINGS or last[-1] in _BEGINNINGS or (last[-1], word) in _PAIRS):
                together = pieces[-1] + piece
                if ptb_words(together) == [*last, word]:
                    pieces[-1] = together
                    last.append(word)
                    continue
            pieces.append(piece)
            last = [word]
        return " ".join(pieces)


def _written(word: str, following: str) -> str:
    """Write a word so that `split` gives it again: in lower case AT&T would be split."""
    if word.isalpha():
        return word
    plain = _BRACKETS.get(word) or word.replace("-lrb-", "(").replace("-rrb-", ")")
    curly = plain.replace("``", "\u201c").replace("''", "\u201d").replace("'", "\u2019")
    for text in (plain, plain.capitalize(), plain.upper(), f"{plain},", curly):
        if ptb_words(f"{text} {following}")[:1] == [word]:
            return text
    return plain


# In India's scripts words are separated by spaces, while characters are tokens: this token, which
# occurs in no caption, marks a space.
SPACE = "\u2581"
_INDIC = re.compile("[\u0900-\u0dff\ua8e0-\ua8ff\U00011000-\U00011fff]")


class CharacterTokenizer(Tokenizer):
    """Characters in Chinese, grapheme clusters in Thai and Hindi.

    A run of Latin letters or digits is one token.
    """

    name = "character"
    scored_by = "character"

    @staticmethod
    def split(text: str) -> list[str]:
        """Split a caption; see `captioner.metrics.tokenize.characters`."""
        if not _INDIC.search(text):
            return characters(text)
        words: list[str] = []
        for piece in text.split():
            tokens = characters(piece)
            if words and tokens and (_INDIC.match(words[-1]) or _INDIC.match(tokens[0])):
                words.append(SPACE)
            words += tokens
        return words

    @staticmethod
    def join(words: Sequence[str]) -> str:
        """Write characters without spaces, except between tokens that `split` would join."""
        text, previous = "", ""
        for word in words:
            if previous and SPACE not in (previous, word):
                text += " " * (characters(previous + word) != [previous, word])
            text += " " if word == SPACE else word
            previous = word
        return " ".join(text.split())


class JiebaTokenizer(Tokenizer):
    """Chinese words as jieba cuts them: pip install 'captioner[chinese]'.

    Captions are scored by character, so their scores can be compared with those of
    CharacterTokenizer. They are written without spaces; from the whole text jieba may cut other
    words than those that a model generated.
    """

    name = "jieba"
    scored_by = "character"

    @staticmethod
    def split(text: str) -> list[str]:
        """Split a caption into words in lower case, without punctuation.

        Latin letters are cut as capitals, which jieba's dictionary has (T恤), so that a word is
        also found in lower case.

        Raises:
            ValueError: jieba is not installed.
        """
        words = ("".join(characters(word)) for word in _jieba().cut(composed(text).upper()))
        return [word for word in words if word]

    @staticmethod
    def join(words: Sequence[str]) -> str:
        """Write words without spaces, except between letters or digits that would be one word."""
        text = ""
        for word in words:
            text += " " * (bool(text) and len(characters(text[-1] + word[0])) == 1) + word
        return text


@cache
def _jieba() -> Any:
    """The tokenizer of jieba with its own dictionary, which is read from the package each time.

    jieba's cache, a marshal file in the folder for temporary files, is neither read nor written:
    any user of a machine can write there.
    """
    try:
        import jieba
    except ImportError:
        raise ValueError(
            "tokenizer=jieba needs jieba to cut captions into words: "
            "pip install 'captioner[chinese]'"
        ) from None
    words = jieba.Tokenizer()
    words.FREQ, words.total = words.gen_pfdict(words.get_dict_file())
    words.initialized = True
    return words


TOKENIZERS: dict[str, type[Tokenizer]] = {
    "word": WordTokenizer,
    "character": CharacterTokenizer,
    "jieba": JiebaTokenizer,
}


def build_tokenizer(captions: Iterable[str], *, name: str, min_count: int) -> Tokenizer:
    """Build a tokenizer whose vocabulary has the tokens of captions.

    Args:
        captions: the training captions.
        name: a key of TOKENIZERS.
        min_count: how often a token must occur to be kept, 1 or more; others become <unk>.

    Raises:
        ValueError: the name is not known, a caption is not a string, or no token is left.
    """
    kind = pick(TOKENIZERS, name, "tokenizer.name")
    if isinstance(captions, str):
        raise ValueError("captions is a string; give a list of strings")
    captions = list(captions)
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"caption {index} is {caption!r}; captions are strings")
    vocabulary = Vocabulary.build(map(kind.split, captions), min_count=min_count)
    return kind(vocabulary=vocabulary)


def restore_tokenizer(data: Mapping[str, Any]) -> Tokenizer:
    """Rebuild a tokenizer from the result of `as_dict`; nothing in the data is executed.

    Args:
        data: "name", a key of TOKENIZERS, and "words", the vocabulary in the order of its ids.

    Raises:
        ValueError: an entry is missing, unknown, or of the wrong type.
    """
    if not isinstance(data, Mapping) or set(data) != {"name", "words"}:
        entries = (
            shortened(sorted(map(str, data))) if isinstance(data, Mapping) else type(data).__name__
        )
        raise ValueError(f"a stored tokenizer has the entries name and words, not {entries}")
    name, words = data["name"], data["words"]
    if not isinstance(name, str) or not isinstance(words, (list, tuple)):
        raise ValueError(
            "a stored tokenizer has a string as name and a list as words, "
            f"not {type(name).__name__} and {type(words).__name__}"
        )
    kind = pick(TOKENIZERS, name, "tokenizer.name")
    return kind(vocabulary=Vocabulary(words=tuple(words)))
