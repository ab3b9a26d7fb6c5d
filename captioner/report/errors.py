"""What is wrong with captions: buckets of errors, found by comparing words with the references.

Each bucket is a function of one `Case`. Its first paragraph defines it, a second one, "Misses" or
"Likely errors", says where it goes wrong; the report prints both. It returns

    None    it cannot be judged: the caption makes no such claim, or the references say nothing
    ""      it can, and nothing is wrong
    text    it is wrong, and the text says in which way

so that a share is told of the captions that could be judged. Buckets that look words up in lists
(`captioner.report.lexicon`) are marked as heuristic. No bucket sees the picture: references are
taken to be right, and what none of five people mentions may still be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from captioner.report import lexicon
from captioner.report.lexicon import Mention, concepts, loose_colours, mentions, totals

_UNENDED = frozenset(
    "a an the of in on at by with and or to from for into onto over under near behind beside while "
    "as is are his her their its wearing holding two three".split()
)


@dataclass(frozen=True)
class Case:
    """One caption with what it is judged by.

    Attributes:
        words: of the caption, as they are scored.
        references: the words of each reference; one or more.
        language: "english" or "chinese".
        same: how many images of the set have this very caption.
        images: how many images the set has.
        limit: the most words that the decoding allows; None where it is not known.
        vocabulary: the words that the model can say; None where they are not known.
    """

    words: Sequence[str]
    references: Sequence[Sequence[str]]
    language: str = "english"
    same: int = 1
    images: int = 1
    limit: int | None = None
    vocabulary: frozenset[str] | None = None

    @cached_property
    def said(self) -> list[Mention]:
        """The things that the caption names."""
        return mentions(self.words)

    @cached_property
    def seen(self) -> list[list[Mention]]:
        """The things that each reference names."""
        return [mentions(reference) for reference in self.references]

    @property
    def enough(self) -> int:
        """How many references must bear witness: two, or the only one."""
        return min(2, len(self.references))


Judge = Callable[[Case], "str | None"]


# Things, counts and colours: heuristic ----------------------------------------------------------


def wrong_object(case: Case) -> str | None:
    """The caption names a thing that no reference names, while two or more references (or the only
    one) name another thing of the same kind instead: a cat where they say dog, a street where they
    say beach.

    Likely errors: both things are in the picture and the references name one of them; borders that
    people draw differently (girl and woman); a word of the list that is meant in another sense;
    synonyms that the list lacks. Things that are not in the list are not judged.
    """
    return _object(case, contradicted=True)


def unsupported_object(case: Case) -> str | None:
    """The caption names a thing that no reference names, by this or a kindred word, and references
    name nothing else of its kind instead (that would be a wrong object).

    Likely errors: the thing is there, and nobody thought it worth saying; most so for clothes and
    for the ground. Things that are not in the list are not judged.
    """
    return _object(case, contradicted=False)


def _object(case: Case, *, contradicted: bool) -> str | None:
    if case.language != "english" or not case.said:
        return None
    tree, notes = concepts(), []
    for said in case.said:
        if any(tree.agree(said.concepts, m.concepts) for seen in case.seen for m in seen):
            continue
        rivals = [
            [m for m in seen if tree.kinds(m.concepts) & tree.kinds(said.concepts)]
            for seen in case.seen
        ]
        if (sum(map(bool, rivals)) >= case.enough) == contradicted:
            others = _listed(m.text for found in rivals for m in found) if contradicted else ""
            notes.append(f"says “{said.text}”" + (f", references say {others}" if others else ""))
    return "; ".join(dict.fromkeys(notes))


def wrong_count(case: Case) -> str | None:
    """The caption says how many there are of a thing, two or more references (or the only one) say
    it of the same thing, and none agrees: one dog where they say two dogs. A group or a crowd is
    three or more, a plural without a number two or more, and things named one after the other (a
    black dog and a brown dog) are added up.

    Likely errors: references that count only some of them; a noun that stands for another thing of
    the same name. In Chinese only numbers from two on before a measure word are compared, of
    whatever thing.
    """
    if case.language == "chinese":
        said = lexicon.chinese_numbers("".join(case.words))
        return _chinese(case, said, lexicon.chinese_numbers)
    if _leaves_open(case):
        return None
    judged, notes = False, []
    for concept, total in totals(case.said).items():
        found = [totals(seen).get(concept) for seen in case.seen]
        if sum(one is not None for one in found) < case.enough:
            continue
        judged = True
        numbers = [
            m.number for seen in case.seen for m in seen if _kindred(m, concept) and m.number
        ]
        numbers += [one for one in found if one]
        if not any(total[0] <= high and low <= total[1] for low, high in numbers):
            own = " and ".join(f"“{m.text}”" for m in case.said if m.concepts == {concept})
            texts = (m.text for seen in case.seen for m in seen if m.concepts == {concept})
            notes.append(f"says {own}, references say {_listed(texts)}")
    return "; ".join(dict.fromkeys(notes)) if judged else None


def _leaves_open(case: Case) -> bool:
    """Whether the caption counts somebody without a noun: a man jumps while another watches."""
    named = {word for mention in case.said for word in mention.text.split()}
    return bool({"another", "other", "others", "each"} & set(case.words) - named)


def _kindred(mention: Mention, concept: str) -> bool:
    return concepts().agree(mention.concepts, {concept})


def wrong_colour(case: Case) -> str | None:
    """The caption gives a thing a colour, two or more references (or the only one) give a colour to
    the same thing, and none of theirs is among the caption's: a black dog where they say brown.

    Likely errors: the picture shows several such things, and the caption means another one; colours
    whose border is open (brown, tan, golden; words such as tan count as each colour they may mean).
    In Chinese colours are compared wherever they stand, of whatever thing.
    """
    if case.language == "chinese":
        return _chinese(case, lexicon.chinese_colours("".join(case.words)), lexicon.chinese_colours)
    judged, notes = False, []
    for said in case.said:
        seen = [
            [m for m in found if m.colours and concepts().agree(m.concepts, said.concepts)]
            for found in case.seen
        ]
        if not said.colours or sum(map(bool, seen)) < case.enough:
            continue
        judged = True
        hues = {hue for found in seen for m in found for hue in m.hues}
        hues |= {hue for reference in case.references for hue in loose_colours(reference)}
        if not said.hues & hues:
            others = _listed(m.text for found in seen for m in found)
            notes.append(f"says “{said.text}”, references say {others}")
    return "; ".join(dict.fromkeys(notes)) if judged else None


def _chinese(case: Case, said: set, read: Callable[[str], set]) -> str | None:
    seen = [found for reference in case.references if (found := read("".join(reference)))]
    if not said or len(seen) < case.enough:
        return None
    known = set().union(*seen)
    if said & known:
        return ""
    return (
        f"says {'、'.join(map(str, sorted(said)))}, references {'、'.join(map(str, sorted(known)))}"
    )


def _listed(texts: object, most: int = 4) -> str:
    found = list(dict.fromkeys(texts))  # type: ignore[call-overload]
    return ", ".join(f"“{text}”" for text in found[:most]) + (" …" if len(found) > most else "")


# Form: any language -----------------------------------------------------------------------------


def repetition(case: Case) -> str | None:
    """The caption says a word twice in a row, or the same three words twice, the last of which can
    end a sentence: a red shirt and a red shirt. In Chinese it says a character three times in a
    row, or the same four characters twice.

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
    """The caption has as many words as the decoding allows, so its end was not reached; or, in
    English, it breaks off after a word that cannot end a sentence (a, the, of, with, and ...).

    Likely errors: none where the limit is known; "a street to walk on" would be counted.
    """
    if case.limit is not None and len(case.words) >= case.limit:
        return f"{len(case.words)} words, the most that decoding.max_length allows"
    if case.language == "english" and case.words and case.words[-1] in _UNENDED:
        return f"ends in “{case.words[-1]}”"
    return ""


def too_short(case: Case) -> str | None:
    """The caption has fewer words than every reference, and less than 0.6 of their mean length."""
    lengths = [len(reference) for reference in case.references]
    limit = min(min(lengths), 0.6 * sum(lengths) / len(lengths))
    return _length(case, lengths) if len(case.words) < limit else ""


def too_long(case: Case) -> str | None:
    """The caption has more words than every reference, and over 1.5 times their mean length."""
    lengths = [len(reference) for reference in case.references]
    limit = max(max(lengths), 1.5 * sum(lengths) / len(lengths))
    return _length(case, lengths) if len(case.words) > limit else ""


def _length(case: Case, lengths: Sequence[int]) -> str:
    span = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{lengths[0]}"
    return f"{len(case.words)} words, references {span}"


def generic(case: Case) -> str | None:
    """The very same caption is given to three or more images, and to 1 % of the set or more."""
    often = case.same >= max(3, 0.01 * case.images)
    return f"said of {case.same} images" if often else ""


def unknown_word(case: Case) -> str | None:
    """Half of the references or more (and two, or the only one) use a word that the model's
    vocabulary lacks, so it cannot say it. Not judged where the vocabulary is not known.
    """
    if case.vocabulary is None:
        return None
    uses = Counter(word for reference in case.references for word in set(reference))
    least = max(case.enough, len(case.references) / 2)
    lacking = [word for word in uses if uses[word] >= least and word not in case.vocabulary]
    return ", ".join(f"“{word}”" for word in sorted(lacking))


def _text(words: Sequence[str], case: Case) -> str:
    return ("" if case.language == "chinese" else " ").join(words)


# All of them ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket:
    """A kind of error.

    Attributes:
        title: for people.
        judge: see the top of this file.
        heuristic: whether it looks words up in lists.
    """

    title: str
    judge: Judge
    heuristic: bool = False

    @property
    def definition(self) -> str:
        """What is counted."""
        return self._paragraphs()[0]

    @property
    def doubts(self) -> str:
        """Where it is likely to go wrong; may be empty."""
        return " ".join(self._paragraphs()[1:])

    def _paragraphs(self) -> list[str]:
        text = self.judge.__doc__ or self.title  # python -OO strips docstrings
        return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


BUCKETS: dict[str, Bucket] = {
    "wrong_object": Bucket("Wrong object", wrong_object, heuristic=True),
    "unsupported_object": Bucket("Object in no reference", unsupported_object, heuristic=True),
    "wrong_count": Bucket("Wrong count", wrong_count, heuristic=True),
    "wrong_colour": Bucket("Wrong colour", wrong_colour, heuristic=True),
    "repetition": Bucket("Repetition", repetition),
    "truncated": Bucket("Truncated", truncated),
    "too_short": Bucket("Too short", too_short),
    "too_long": Bucket("Too long", too_long),
    "generic": Bucket("Generic caption", generic),
    "unknown_word": Bucket("Word out of vocabulary", unknown_word),
}


@dataclass(frozen=True)
class Errors:
    """The errors of one bucket.

    Attributes:
        judged: how many captions could be judged.
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
    """Sort the captions of a set into the buckets; a caption may stand in several or in none.

    Args:
        captions: the words of each caption.
        references: for each, the words of one or more references.
        language: "english" or "chinese".
        limit: the most words that the decoding allowed; None where it is not known.
        vocabulary: the words that the model can say; None where they are not known.

    Returns:
        name of the bucket, as in BUCKETS -> its errors.
    """
    same = Counter(tuple(words) for words in captions)
    cases = [
        Case(words, texts, language, same[tuple(words)], len(captions), limit, vocabulary)
        for words, texts in zip(captions, references)
    ]
    found = {}
    for name, bucket in BUCKETS.items():
        verdicts = [bucket.judge(case) for case in cases]
        notes = {index: verdict for index, verdict in enumerate(verdicts) if verdict}
        found[name] = Errors(sum(verdict is not None for verdict in verdicts), notes)
    return found
