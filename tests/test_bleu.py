"""BLEU against pycocoevalcap, against hand-counted examples, and its signature."""

import contextlib
import io
import math
import random

import pytest

from captioner.metrics import score
from captioner.metrics.bleu import corpus_bleu

WORDS = [
    "a",
    "man",
    "dog",
    "red",
    "ball",
    "runs",
    "jumps",
    "over",
    "the",
    "green",
    "grass",
    "two",
    "boys",
    "play",
    "in",
    "water",
]


def sentence(chance: random.Random, low: int = 4, high: int = 12) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(chance.randint(low, high)))


def corpus(seed: int, images: int = 40) -> tuple[list[str], list[list[str]]]:
    """Candidates that share runs of words with their references."""
    chance = random.Random(seed)
    references = [[sentence(chance, 6) for _ in range(chance.randint(1, 5))] for _ in range(images)]
    candidates = [
        " ".join([*chance.choice(texts).split()[: chance.randint(4, 9)], chance.choice(WORDS)])
        for texts in references
    ]
    return candidates, references


@pytest.mark.parametrize("seed", range(3))
def test_equals_coco_caption(seed: int) -> None:
    peer = pytest.importorskip("pycocoevalcap.bleu.bleu")
    candidates, references = corpus(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        expected, _ = peer.Bleu(4).compute_score(
            dict(enumerate(references)), {k: [text] for k, text in enumerate(candidates)}
        )
    values = score(candidates, references).values
    assert list(values) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]
    assert [value / 100 for value in values.values()] == pytest.approx(expected, abs=1e-6)
    assert values["BLEU-4"] > 20


def test_a_word_counts_no_more_often_than_in_a_reference() -> None:
    """The example of the paper: seven times "the" against at most two is a precision of 2/7."""
    references = [["the cat is on the mat", "there is a cat on the mat"]]
    values = score(["the the the the the the the"], references).values
    assert values["BLEU-1"] == pytest.approx(100 * 2 / 7)
    assert values["BLEU-2"] == values["BLEU-4"] == 0.0


def test_short_candidates_pay_a_brevity_penalty() -> None:
    values = score(["a man runs in the"], [["a man runs in the green grass over water"]]).values
    for value in values.values():
        assert value == pytest.approx(100 * math.exp(1 - 9 / 5))


def test_counts_are_summed_over_the_corpus() -> None:
    """One image right and one wrong: 4 of 8 words, 3 of 6 pairs."""
    values = corpus_bleu([["a", "b", "c", "d"], ["e"] * 4], [[["a", "b", "c", "d"]], [["f"] * 4]])
    assert values["BLEU-1"] == pytest.approx(50)
    assert values["BLEU-2"] == pytest.approx(50)
    assert values["BLEU-4"] == pytest.approx(50)


def test_perfect_and_disjoint() -> None:
    candidates, _ = corpus(0)
    assert score(candidates, [[text] for text in candidates]).values["BLEU-4"] == pytest.approx(100)
    values = score(["a b c d"], [["e f g h"]]).values
    assert set(values.values()) == {0.0}
    assert score([""], [["a dog"]]).values["BLEU-1"] == 0.0


def test_the_order_of_images_and_references_does_not_matter() -> None:
    candidates, references = corpus(1)
    turned = score(candidates[::-1], [texts[::-1] for texts in references[::-1]]).values
    assert turned == pytest.approx(score(candidates, references).values)


def test_punctuation_and_case_do_not_count() -> None:
    assert score(["A dog, running!"], [["a dog running ."]]).values["BLEU-2"] == pytest.approx(100)


def test_chinese_is_scored_by_character() -> None:
    values = score(["一只狗在跑。"], [["一只狗在草地上跑"]], tokenize="character").values
    assert values["BLEU-1"] == pytest.approx(100 * math.exp(1 - 8 / 5))


def test_a_signature_says_what_a_score_depends_on() -> None:
    candidates, references = ["a dog", "a man"], [["a dog", "dog"], ["a man"]]
    context = {"decoding": "beam3", "split": "dev"}
    signature = score(candidates, references, context=context).signature
    for part in ("BLEU|nltk:3.", "|tok:ptb|", "|refs:1-2|", "|n:2|", "|decoding:beam3|split:dev|"):
        assert part in signature
    assert score(candidates, references).signature != signature


@pytest.mark.parametrize(
    ("candidates", "references", "says"),
    [
        ([], [], "no captions"),
        (["a"], [["a"], ["b"]], "1 captions and references of 2 images"),
        (["a", "b"], [["a"], []], "image 1 has no references"),
        (["a"], ["a"], "image 0: give"),
        ([None], [["a"]], "image 0: give"),
    ],
)
def test_wrong_input_gets_one_line(candidates, references, says) -> None:
    with pytest.raises(ValueError, match=says):
        score(candidates, references)


def test_an_unknown_tokenisation_is_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match="choose ptb, character"):
        score(["a"], [["a"]], tokenize="pbt")
