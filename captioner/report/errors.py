"""Errors in captions by kind, found by comparing their words with the references.

Each kind is a function of one `Case`. The first paragraph of its docstring is its definition, the
second one, "Likely errors", says when it is wrong; the report shows both. It returns

    None    cannot be judged: the caption makes no such statement, or the references make none
    ""      judged to be right
    text    judged to be wrong, with the reason

so that percentages are computed over the captions that could be judged. Kinds that look up words in
lists (`captioner.report.lexicon`) are marked as heuristic. None of them uses the image: references
are assumed to be right, and a thing that no reference mentions may still be in the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from captioner.report import lexicon
from captioner.report.lexicon import Mention, concepts, loose_colors, mentions, totals

_UNENDED = frozenset(
    "a an the of in on at by with and or to from for into onto over under near behind beside while "
    "as is are his her their its wearing holding two three".split()
)


@dataclass(frozen=True)
class Case:
    """One caption and the data that it is judged by.

    Attributes:
        words: of the caption, split as for the scores.
        references: the words of each reference; one or more.
        language: "english" or "chinese".
        same: the number of images with the same caption.
        images: the number of images.
        limit: the largest number of words that the decoding allows; None if it is not known.
        vocabulary: the model's vocabulary; None if it is not known.
    """

    words: Sequence[str]
    references: Sequence[Sequence[str]]
    language: str = "english"
    same: int = 1
    images: int = 1
    limit: int | None = None
    vocabulary: frozenset[str] | None = None

    @cached_property
    def things(self) -> list[Mention]:
        """The things that the caption names."""
        return mentions(self.words)

    @cached_property
    def reference_things(self) -> list[list[Mention]]:
        """The things that each reference names."""
        return [mentions(reference) for reference in self.references]

    @property
    def enough(self) -> int:
        """The number of references needed to judge a caption: two, or the only one."""
        return min(2, len(self.references))


Judge = Callable[[Case], "str | None"]


# Things, counts and colors: heuristic -----------------------------------------------------------


def wrong_object(case: Case) -> str | None:
    """The caption names a thing that no reference names, while two or more references (or the only
    one) name another thing of the same kind instead: a cat instead of a dog, a street instead of a
    beach.

    Likely errors: both things are in the picture and the references name one of them; people use
    different words for the same thing (girl and woman); a word of the list has another meaning;
    synonyms are not in the list. Things that are not in the list are not judged.
    """
    return _object(case, contradicted=True)


def unsupported_object(case: Case) -> str | None:
    """The caption names a thing that no reference names, by this or a related word, and references
    name no other thing of the same kind (that would be a wrong object).

    Likely errors: the thing is in the picture and no reference mentions it, most often clothes and
    the ground. Things that are not in the list are not judged.
    """
    return _object(case, contradicted=False)


def _object(case: Case, *, contradicted: bool) -> str | None:
    if case.language != "english" or not case.things:
        return None
    tree, notes = concepts(), []
    for thing in case.things:
        if any(
            tree.agree(thing.concepts, m.concepts) for named in case.reference_things for m in named
        ):
            continue
        rivals = [
            [m for m in named if tree.kinds(m.concepts) & tree.kinds(thing.concepts)]
            for named in case.reference_things
        ]
        if (sum(map(bool, rivals)) >= case.enough) == contradicted:
            named_instead = (
                _listed(m.text for named in rivals for m in named) if contradicted else ""
            )
            notes.append(
                f"says “{thing.text}”"
                + (f", references say {named_instead}" if named_instead else "")
            )
    return "; ".join(dict.fromkeys(notes))


def wrong_count(case: Case) -> str | None:
    """The caption gives a number of things, two or more references (or the only one) give a number
    of the same things, and none agrees: one dog instead of two dogs. A group or a crowd is
    three or more, a plural without a number two or more, and things named separately (a black dog
    and a brown dog) are added.

    Likely errors: references count only some of the things; a noun with several meanings. In
    Chinese, only numbers from two on before a measure word are compared, whatever they count.
    """
    if case.language == "chinese":
        numbers = lexicon.chinese_numbers("".join(case.words))
        return _chinese(case, numbers, lexicon.chinese_numbers)
    if _counts_without_noun(case):
        return None
    judged, notes = False, []
    references = [m for named in case.reference_things for m in named]
    for concept, total in totals(case.things).items():
        of_references = [totals(named).get(concept) for named in case.reference_things]
        if sum(number is not None for number in of_references) < case.enough:
            continue
        judged = True
        ranges = [m.number for m in references if _is_related(m, concept) and m.number]
        ranges += [number for number in of_references if number]
        if not any(total[0] <= high and low <= total[1] for low, high in ranges):
            own = " and ".join(f"“{m.text}”" for m in case.things if m.concepts == {concept})
            texts = (m.text for m in references if m.concepts == {concept})
            notes.append(f"says {own}, references say {_listed(texts)}")
    return "; ".join(dict.fromkeys(notes)) if judged else None


def _counts_without_noun(case: Case) -> bool:
    """Whether the caption counts someone without a noun: a man jumps while another watches."""
    named = {word for mention in case.things for word in mention.text.split()}
    return bool({"another", "other", "others", "each"} & set(case.words) - named)


def _is_related(mention: Mention, concept: str) -> bool:
    return concepts().agree(mention.concepts, {concept})


def wrong_color(case: Case) -> str | None:
    """The caption gives a thing a color, two or more references (or the only one) give a color to
    the same thing, and no color is the same: a black dog instead of a brown dog.

    Likely errors: the picture shows several such things and the caption is about another one;
    similar colors (brown, tan, golden; words such as tan count as each color they may mean). In
    Chinese, colors are compared whatever thing they belong to.
    """
    if case.language == "chinese":
        return _chinese(case, lexicon.chinese_colors("".join(case.words)), lexicon.chinese_colors)
    judged, notes = False, []
    for thing in case.things:
        same = [
            [m for m in named if m.colors and concepts().agree(m.concepts, thing.concepts)]
            for named in case.reference_things
        ]
        if not thing.colors or sum(map(bool, same)) < case.enough:
            continue
        judged = True
        hues = {hue for named in same for m in named for hue in m.hues}
        hues |= {hue for reference in case.references for hue in loose_colors(reference)}
        if not thing.hues & hues:
            phrases = _listed(m.text for named in same for m in named)
            notes.append(f"says “{thing.text}”, references say {phrases}")
    return "; ".join(dict.fromkeys(notes)) if judged else None


def _chinese(case: Case, values: set, read: Callable[[str], set]) -> str | None:
    """Compare the numbers or colors of a Chinese caption with those of its references."""
    of_references = [read("".join(reference)) for reference in case.references]
    if not values or sum(map(bool, of_references)) < case.enough:
        return None
    expected = set().union(*of_references)
    if values & expected:
        return ""
    texts = ("、".join(map(str, sorted(found))) for found in (values, expected))
    return "says {}, references {}".format(*texts)


def _listed(texts: Iterable[str], most: int = 4) -> str:
    """The first of several texts, each once, in quotes."""
    quoted = [f"“{text}”" for text in dict.fromkeys(texts)]
    return ", ".join(quoted[:most]) + (" …" if len(quoted) > most else "")


# Form: any language -----------------------------------------------------------------------------


def repetition(case: Case) -> str | None:
    """The caption repeats a word at once, or has the same three words twice, the last of which can
    end a sentence: a red shirt and a red shirt. In Chinese it has a character three times in a row,
    or the same four characters twice.

    Likely errors: a repetition can be right: to the left of a house to the left of a house.
    """
    words, chinese = list(case.words), case.language == "chinese"
    times, size = (3, 4) if chinese else (2, 3)
    for place in range(len(words) - times + 1):
        if len(set(words[place : place + times])) == 1:
            return f"“{_text(words[place : place + times], case)}”"
    runs = [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]
    counts = Counter(run for run in runs if chinese or run[-1] not in _UNENDED)
    run, count = max(counts.items(), key=lambda item: item[1], default=((), 0))
    return f"“{_text(run, case)}” {count} times" if count > 1 else ""


def truncated(case: Case) -> str | None:
    """The caption has as many words as the decoding allows, so it was cut off; or, in English, it
    ends in a word that cannot end a sentence (a, the, of, with, and ...).

    Likely errors: "a street to walk on" would be counted.
    """
    if case.limit is not None and len(case.words) >= case.limit:
        return f"{len(case.words)} words, the most that decoding.max_length allows"
    if case.language == "english" and case.words and case.words[-1] in _UNENDED:
        return f"ends in “{case.words[-1]}”"
    return ""


def too_short(case: Case) -> str | None:
    """The caption is shorter than every reference, and than 0.6 times their mean length."""
    lengths = [len(reference) for reference in case.references]
    limit = min(min(lengths), 0.6 * sum(lengths) / len(lengths))
    return _length(case, lengths) if len(case.words) < limit else ""


def too_long(case: Case) -> str | None:
    """The caption is longer than every reference, and than 1.5 times their mean length."""
    lengths = [len(reference) for reference in case.references]
    limit = max(max(lengths), 1.5 * sum(lengths) / len(lengths))
    return _length(case, lengths) if len(case.words) > limit else ""


def _length(case: Case, lengths: Sequence[int]) -> str:
    span = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{lengths[0]}"
    return f"{len(case.words)} words, references {span}"


def generic(case: Case) -> str | None:
    """Three or more images, and at least 1 % of the set, have the same caption."""
    often = case.same >= max(3, 0.01 * case.images)
    return f"caption of {case.same} images" if often else ""


def unknown_word(case: Case) -> str | None:
    """At least half of the references (and two, or the only one) use a word outside the model's
    vocabulary. Not judged if the vocabulary is not known.
    """
    if case.vocabulary is None:
        return None
    uses = Counter(word for reference in case.references for word in set(reference))
    least = max(case.enough, len(case.references) / 2)
    missing = [word for word in uses if uses[word] >= least and word not in case.vocabulary]
    return ", ".join(f"“{word}”" for word in sorted(missing))


def _text(words: Sequence[str], case: Case) -> str:
    return ("" if case.language == "chinese" else " ").join(words)


# All of them ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket:
    """A kind of error.

    Attributes:
        title: as the report shows it.
        judge: see the docstring of this module.
        heuristic: whether it looks up words in lists.
    """

    title: str
    judge: Judge
    heuristic: bool = False

    @property
    def definition(self) -> str:
        """What counts as this error."""
        return self._paragraphs()[0]

    @property
    def doubts(self) -> str:
        """When it is likely to be wrong; may be empty."""
        return " ".join(self._paragraphs()[1:])

    def _paragraphs(self) -> list[str]:
        text = self.judge.__doc__ or self.title  # python -OO strips docstrings
        return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


BUCKETS: dict[str, Bucket] = {
    "wrong_object": Bucket("Wrong object", wrong_object, heuristic=True),
    "unsupported_object": Bucket("Object in no reference", unsupported_object, heuristic=True),
    "wrong_count": Bucket("Wrong count", wrong_count, heuristic=True),
    "wrong_color": Bucket("Wrong color", wrong_color, heuristic=True),
    "repetition": Bucket("Repetition", repetition),
    "truncated": Bucket("Truncated", truncated),
    "too_short": Bucket("Too short", too_short),
    "too_long": Bucket("Too long", too_long),
    "generic": Bucket("Generic caption", generic),
    "unknown_word": Bucket("Word out of vocabulary", unknown_word),
}


@dataclass(frozen=True)
class Errors:
    """The errors of one kind.

    Attributes:
        judged: the number of captions that could be judged.
        notes: index of a wrong caption -> what is wrong with it.
    """

    judged: int
    notes: dict[int, str]


def find_errors(
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    *,
    language: str = "english",
    limit: int | None = None,
    vocabulary: frozenset[str] | None = None,
) -> dict[str, Errors]:
    """Find the errors of all captions; a caption may have several or none.

    Args:
        captions: the words of each caption.
        references: for each, the words of one or more references.
        language: "english" or "chinese".
        limit: the largest number of words that the decoding allowed; None if it is not known.
        vocabulary: the model's vocabulary; None if it is not known.

    Returns:
        kind of error, a key of BUCKETS -> its errors.
    """
    same = Counter(tuple(words) for words in captions)
    cases = [
        Case(words, texts, language, same[tuple(words)], len(captions), limit, vocabulary)
        for words, texts in zip(captions, references)
    ]
    errors = {}
    for name, bucket in BUCKETS.items():
        verdicts = [bucket.judge(case) for case in cases]
        notes = {index: verdict for index, verdict in enumerate(verdicts) if verdict}
        errors[name] = Errors(sum(verdict is not None for verdict in verdicts), notes)
    return errors
