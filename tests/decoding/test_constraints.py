"""Filters and required words compared with exhaustive enumeration on small tables."""

import itertools

import pytest
import torch
from support.tables import END, START, everything, random_table, start_state, table_step

from captioner.decoding.constraints import MOST_STATES, Phrases, Required
from captioner.decoding.decode import decode
from captioner.decoding.options import DecodingOptions

V, T = 6, 5
WIDE = (V - 1) ** (T - 1)  # as many hypotheses as there are prefixes of captions


def decoded(table, phrases=Phrases(), banned=(), **options):  # noqa: B008
    return decode(
        table_step(table),
        start_state(len(table)),
        start=START,
        end=END,
        options=DecodingOptions(max_length=T, **options),
        phrases=phrases,
        banned=banned,
    )


def holds(body, phrase) -> bool:
    return any(body[at : at + len(phrase)] == tuple(phrase) for at in range(len(body)))


def grams(body, n) -> list:
    return [body[at : at + n] for at in range(len(body) - n + 1)]


FILTERS = {
    "min_length": ({"min_length": 3}, Phrases(), lambda b: len(b) >= 3),
    "no word twice": ({"no_repeat_ngram": 1}, Phrases(), lambda b: len(set(b)) == len(b)),
    "no pair twice": (
        {"no_repeat_ngram": 2},
        Phrases(),
        lambda b: len(set(grams(b, 2))) == len(grams(b, 2)),
    ),
    "no word after itself": (
        {"no_repeat_word": True},
        Phrases(),
        lambda b: all(x != y for x, y in grams(b, 2)),
    ),
    "banned word": ({}, Phrases(banned=((3,),)), lambda b: 3 not in b),
    "banned phrase": (
        {},
        Phrases(banned=((3, 4), (5, 5, 4))),
        lambda b: not holds(b, (3, 4)) and not holds(b, (5, 5, 4)),
    ),
    "prefix": ({}, Phrases(prefix=(4, 3)), lambda b: b[:2] == (4, 3)),
    "all together": (
        {"min_length": 2, "no_repeat_ngram": 2, "no_repeat_word": True},
        Phrases(banned=((5,),), prefix=(3,)),
        lambda b: len(b) >= 2 and b[:1] == (3,) and 5 not in b
        and all(x != y for x, y in grams(b, 2)) and len(set(grams(b, 2))) == len(grams(b, 2)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILTERS)
def test_a_full_beam_finds_the_best_allowed_caption(name) -> None:
    options, phrases, allowed = FILTERS[name]
    table = random_table(4, T, V, sharp=1.0)
    hypotheses = decoded(table, phrases, beam_size=WIDE, **options)
    for image in range(4):
        expected = everything(table, image, DecodingOptions(max_length=T), (), allowed)
        best = hypotheses[image][0]
        assert best.tokens == expected[0][1]
        assert best.score == pytest.approx(expected[0][0], abs=1e-5)
        assert best.broken == ()


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(
    "how", [{}, {"beam_size": 3}, {"temperature": 1.5}, {"beam_size": 4, "groups": 2}]
)
def test_every_strategy_respects_the_filters(name, how) -> None:
    options, phrases, allowed = FILTERS[name]
    table = random_table(30, T, V, sharp=1.0)
    for best, *_ in decoded(table, phrases, **options, **how):
        assert best.broken == ()
        if best.finished or name != "min_length":
            assert allowed(best.tokens)


PHRASES = [
    ((3,),),
    ((3,), (5,)),
    ((3, 4),),
    ((3, 3),),
    ((3, 4), (4, 5)),  # they may share a word
    ((3, 4, 3), (4,)),  # one contains the other
    ((4, 3), (3, 4)),
]


@pytest.mark.parametrize("required", PHRASES)
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_full_beam_finds_the_best_caption_with_all_required_words(required, penalty) -> None:
    table = random_table(3, T, V, sharp=1.0)
    hypotheses = decoded(table, Phrases(required=required), beam_size=WIDE, length_penalty=penalty)
    options = DecodingOptions(max_length=T, length_penalty=penalty)

    def allowed(body) -> bool:
        return all(holds(body, phrase) for phrase in required)

    for image in range(3):
        expected = everything(table, image, options, (), allowed)
        best = hypotheses[image][0]
        assert best.missing == ()
        assert best.tokens == expected[0][1]
        assert best.score == pytest.approx(expected[0][0], abs=1e-5)


@pytest.mark.parametrize("required", PHRASES)
@pytest.mark.parametrize("how", [{"beam_size": 1}, {"beam_size": 2}, {"beam_size": 4, "groups": 2}])
def test_required_words_always_appear_if_they_fit(required, how) -> None:
    table = random_table(20, T, V, sharp=3.0)
    for phrase in required:
        table[..., phrase[0]] -= 20  # never generated without the requirement
    for best, *_ in decoded(table, Phrases(required=required), **how):
        assert all(holds(best.tokens, phrase) for phrase in required)
        assert best.missing == ()


def test_a_caption_lists_its_missing_required_words() -> None:
    table = random_table(5, T, V)
    required = ((3, 4), (5, 5), (3, 3, 3))  # at least six words, but five tokens
    for hypotheses in decoded(table, Phrases(required=required), beam_size=2):
        for hypothesis in hypotheses:
            absent = tuple(
                i for i, phrase in enumerate(required) if not holds(hypothesis.tokens, phrase)
            )
            assert hypothesis.missing == absent
        assert len(hypotheses[0].missing) == 1  # only two of the three fit


def test_required_words_work_with_a_prefix_and_filters() -> None:
    def allowed(body) -> bool:
        once = all(x != y for x, y in grams(body, 2))
        return once and body[:1] == (5,) and 3 in body and holds(body, (5, 4))

    table = random_table(3, T, V, sharp=1.0)
    phrases = Phrases(prefix=(5,), required=((3,), (5, 4)))
    hypotheses = decoded(table, phrases, beam_size=WIDE, no_repeat_word=True)
    for image in range(3):
        expected = everything(table, image, DecodingOptions(max_length=T), (), allowed)
        assert hypotheses[image][0].tokens == expected[0][1]


def test_the_automaton_agrees_with_reading_the_whole_caption() -> None:
    for required in PHRASES:
        automaton = Required(required)
        moves = automaton.moves(V, END, torch.device("cpu"))
        for body in itertools.product([w for w in range(V) if w != END], repeat=4):
            at = 0
            for word in body:
                at = int(moves[at, word])
            absent = tuple(i for i, phrase in enumerate(required) if not holds(body, phrase))
            assert automaton.missing[at] == absent == automaton.absent(body)


def test_too_many_required_words_are_refused() -> None:
    assert len(Required([(word,) for word in range(7)])) == MOST_STATES
    with pytest.raises(ValueError, match="require fewer or shorter"):
        Required([(word,) for word in range(8)])


@pytest.mark.parametrize("how", [{}, {"beam_size": 2}, {"temperature": 1.0}])
def test_filters_that_exclude_every_token_are_lifted_and_named(how) -> None:
    table = random_table(4, T, V)
    everything_banned = Phrases(banned=tuple((word,) for word in range(V) if word != END))
    for best, *_ in decoded(table, everything_banned, min_length=2, **how):
        assert (best.tokens, best.finished, best.broken) == ((), True, ("min_length",))
    for best, *_ in decoded(table, no_repeat_ngram=1, min_length=4, banned=(0, 1, 5), **how):
        assert sorted(best.tokens) == [3, 4]  # then both are used up, and the caption ends
        assert (best.finished, best.broken) == (True, ("min_length",))
    table[..., END] = -torch.inf  # a model that cannot end
    for best, *_ in decoded(table, everything_banned, **how):
        assert len(best.tokens) == T
        assert best.broken == ("banned_words",)


def test_a_hypothesis_without_allowed_tokens_is_dropped_if_others_remain() -> None:
    """Filters are lifted only if no hypothesis of the image can be continued."""
    table = torch.full((1, 3, 6, 6), -1e9)
    table[0, 0, START, 3], table[0, 0, START, 4] = 0.0, -1.0
    table[0, 1, 3, 3] = 0.0  # after 3 only 3 is possible, which is excluded
    table[0, 1, 4, 5] = 0.0
    table[0, 2, :, END] = 0.0
    table[0, 1, 3, [0, 1, 2, 4, 5]] = -torch.inf
    (hypotheses,) = decoded(table, beam_size=2, no_repeat_word=True)[:1]
    assert hypotheses[0].tokens == (4, 5)
    assert hypotheses[0].broken == ()
