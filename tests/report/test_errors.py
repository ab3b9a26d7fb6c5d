"""Kinds of errors, tested with cases written by hand."""

import pytest

from captioner.metrics.tokenize import characters, ptb_words
from captioner.report.errors import BUCKETS, Case, find_errors
from captioner.report.lexicon import mentions, totals


def judge(bucket: str, caption: str, *references: str, **known: object) -> str | None:
    """The result of a bucket for an English caption."""
    case = Case(ptb_words(caption), [ptb_words(text) for text in references], **known)
    return BUCKETS[bucket].judge(case)


def judge_chinese(bucket: str, caption: str, *references: str) -> str | None:
    words = [characters(text) for text in references]
    return BUCKETS[bucket].judge(Case(characters(caption), words, language="chinese"))


# bucket, caption, references
WRONG = [
    ("wrong_object", "a cat sleeps", ["a dog sleeps", "the puppy lies down"]),
    ("wrong_object", "a man rides a skateboard", ["a man on a bike", "a cyclist on the road"]),
    ("wrong_object", "a dog runs on the beach", ["a dog runs in the snow", "a dog in deep snow"]),
    ("wrong_object", "a boy jumps", ["a girl jumps", "a young girl leaps"]),
    ("unsupported_object", "a dog with a frisbee", ["a dog runs", "a brown dog on the grass"]),
    ("unsupported_object", "a man on a bench", ["a man stands", "a man looks at a bird"]),
    ("wrong_count", "a dog runs", ["two dogs run", "two brown dogs play"]),
    ("wrong_count", "two dogs run", ["a dog runs", "a brown dog plays", "a dog"]),
    ("wrong_count", "three men sit", ["two men sit", "a man and another man sit"]),
    ("wrong_count", "a group of people", ["two people talk", "two people stand"]),
    ("wrong_count", "a black dog and a white dog", ["a dog", "a lone dog"]),
    ("wrong_count", "two red circles", ["three red circles", "there are three red circles"]),
    ("wrong_color", "a black dog runs", ["a brown dog runs", "a tan dog"]),
    ("wrong_color", "a man in a red shirt", ["a man in a blue shirt", "a guy with a blue top"]),
    ("wrong_color", "a red circle above a star", ["a blue circle", "the blue circle"]),
    ("repetition", "a man in a red shirt and a red shirt", ["a man"]),
    ("repetition", "a dog dog runs", ["a dog"]),
    ("truncated", "a man is standing on a", ["a man"]),
    ("truncated", "two dogs run in the", ["two dogs"]),
    ("too_short", "a dog", ["a brown dog runs on grass", "a dog runs over a green field"]),
    ("too_long", "a dog runs and runs over a very large green field", ["a dog runs", "a dog"]),
]
RIGHT = [
    ("wrong_object", "a dog sleeps", ["a puppy sleeps", "an animal lies down"]),
    ("wrong_object", "a person jumps", ["a girl jumps", "a young girl leaps"]),
    ("wrong_object", "a boy jumps", ["a child jumps", "a girl and a boy"]),
    ("wrong_object", "a hot dog", ["a cat eats", "a cat"]),
    ("wrong_object", "a dog and a cat", ["a dog and a cat", "a dog"]),
    ("unsupported_object", "a man rides a bike", ["a cyclist", "a biker on the road"]),
    ("unsupported_object", "a player kicks the ball", ["men play soccer", "a soccer match"]),
    ("wrong_count", "two dogs run", ["a brown dog and a black dog run", "dogs"]),
    ("wrong_count", "a group of people", ["five people stand", "several people"]),
    ("wrong_count", "a dog runs", ["two dogs run", "a dog runs after another dog"]),
    ("wrong_count", "two men talk", ["two people talk", "a man and a woman", "a man"]),
    ("wrong_count", "two soccer players", ["two players", "two football players"]),
    ("wrong_color", "a black and white dog", ["a white dog", "a white dog runs"]),
    ("wrong_color", "a brown dog", ["a golden dog", "a tan dog runs"]),
    (
        "wrong_color",
        "a man in a red shirt",
        ["a man in red", "a man in a blue shirt", "a boy in a grey shirt"],
    ),
    ("repetition", "a man and a woman and a child", ["a family"]),
    ("repetition", "a woman in a hat and a woman in a coat", ["two women"]),
    ("truncated", "a man is standing on a hill", ["a man"]),
    ("too_short", "a dog runs", ["a dog", "a brown dog runs on the grass in a big field"]),
    ("too_long", "a dog runs over grass", ["a dog runs", "a brown dog runs"]),
]
SILENT = [
    ("wrong_object", "something blurry", ["a dog", "a dog runs"]),
    ("wrong_count", "a dog runs", ["two dogs run", "an animal"]),
    ("wrong_count", "a man jumps while another watches", ["two men", "two men jump"]),
    ("wrong_count", "some water", ["the water", "a water"]),
    ("wrong_color", "a dog runs", ["a brown dog", "a brown dog runs"]),
    ("wrong_color", "a black dog", ["a brown dog", "a dog"]),
    ("unknown_word", "a dog", ["a dalmatian", "the dalmatian"]),
]


@pytest.mark.parametrize("bucket, caption, references", WRONG)
def test_an_error_is_found(bucket: str, caption: str, references: list[str]) -> None:
    assert judge(bucket, caption, *references)


@pytest.mark.parametrize("bucket, caption, references", RIGHT)
def test_correct_captions_have_no_error(bucket: str, caption: str, references: list[str]) -> None:
    assert judge(bucket, caption, *references) == ""


@pytest.mark.parametrize("bucket, caption, references", SILENT)
def test_captions_that_cannot_be_judged_are_not_counted(
    bucket: str, caption: str, references: list[str]
) -> None:
    assert judge(bucket, caption, *references) is None


def test_a_note_describes_the_error() -> None:
    note = judge("wrong_color", "a black dog runs", "a brown dog", "the brown dog runs", "a dog")
    assert note == "says “a black dog”, references say “a brown dog”, “the brown dog”"


def test_a_caption_of_maximum_length_is_truncated() -> None:
    words = "a man in a red hat"
    assert judge("truncated", words, "a man", limit=7) == ""
    assert "6 words" in judge("truncated", words, "a man", limit=6)


def test_a_single_reference_is_enough_if_there_is_only_one() -> None:
    assert judge("wrong_object", "a cat", "a dog")
    assert judge("wrong_object", "a cat", "a dog", "a man") == ""
    assert judge("unsupported_object", "a cat", "a dog", "a man")


def test_words_outside_the_vocabulary() -> None:
    vocabulary = frozenset("a dog the runs".split())
    references = ("a dalmatian runs", "the dalmatian", "a spotted dog", "a dog")
    assert judge("unknown_word", "a dog", *references, vocabulary=vocabulary) == "“dalmatian”"
    assert judge("unknown_word", "a dog", *references[1:], vocabulary=vocabulary) == ""


def test_the_same_caption_for_many_images_is_generic() -> None:
    captions = [["a", "man"]] * 3 + [["dog", str(n)] for n in range(97)]
    errors = find_errors(captions, [[["a", "dog"]]] * 100)["generic"]
    assert errors.judged == 100
    assert list(errors.notes) == [0, 1, 2]
    assert not find_errors(captions[1:], [[["a", "dog"]]] * 99)["generic"].notes
    many = captions + [["cat", str(n)] for n in range(201)]  # 3 of 301 are less than 1 %
    assert not find_errors(many, [[["a", "dog"]]] * 301)["generic"].notes


def test_chinese_by_characters() -> None:
    assert judge_chinese("wrong_color", "穿红衣服的男人", "穿蓝衣服的男人", "蓝色上衣的人") == (
        "says 红, references 蓝"
    )
    assert judge_chinese("wrong_color", "红色的球", "白天有人", "一个红球", "红色") == ""
    assert judge_chinese("wrong_color", "红色的球", "白天有人", "一个红球") is None
    assert judge_chinese("wrong_count", "三只狗在跑", "两只狗", "两条狗在草地上")
    assert judge_chinese("wrong_count", "两个人", "两名男子", "三个人") == ""
    assert judge_chinese("wrong_object", "一只猫", "一只狗", "狗") is None
    assert judge_chinese("repetition", "一个人人人在跑", "人")
    assert judge_chinese("repetition", "妈妈和孩子", "人") == ""


def test_every_bucket_has_a_definition() -> None:
    for bucket in BUCKETS.values():
        assert len(bucket.definition) > 40
        assert bucket.doubts or not bucket.heuristic


# Reading --------------------------------------------------------------------------------------


def test_a_mention_has_number_and_colors() -> None:
    first, second = mentions(ptb_words("two large black and white dogs chase a man's red ball"))[
        ::2
    ]
    assert (first.text, first.number) == ("two large black and white dogs", (2, 2))
    assert first.hues == {"black", "white"}
    assert second.colors == ("red",)


def test_things_named_separately_are_added() -> None:
    def counted(text: str) -> dict[str, tuple[int, int]]:
        return totals(mentions(ptb_words(text)))

    assert counted("a man, a boy and another man") == {"man": (2, 2), "boy": (1, 1)}
    assert counted("a boy and a child") == {"boy": (1, 1), "child": (2, 2)}
    assert counted("a dog bites the dog") == {"dog": (1, 1)}
    assert counted("a couple of dogs") == {"dog": (2, 2)}
    assert counted("dogs") == {"dog": (2, 99)}
    assert counted("a man in shorts by the water") == {"man": (1, 1)}
