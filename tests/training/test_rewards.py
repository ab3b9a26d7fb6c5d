"""Rewards: the public metrics on the same words with <end>, and what <end> is there for."""

import numpy
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from captioner.metrics.cider import Cider
from captioner.metrics.ngrams import References
from captioner.metrics.rouge import rouge_rows
from captioner.training.objectives.rewards import Rewards

REFERENCES = [
    ["a dog runs over the grass", "a brown dog is running on grass"],
    ["two boys play in the water", "boys in the sea", "two children play"],
    ["a man climbs a rock"],
    ["a dog jumps into the water", "the dog swims"],
]
SAMPLES = [
    ("a dog runs on the grass <end>", 0),
    ("a dog runs on the", 0),
    ("two boys play in the water <end>", 1),
    ("<end>", 2),
    ("a man climbs a rock a rock a rock <end>", 2),
    ("the", 3),
]
WORDS = [text.split() for text, _ in SAMPLES]
IMAGES = numpy.array([image for _, image in SAMPLES])
SPLIT = [[text.split() for text in texts] for texts in REFERENCES]
ENDED = [[[*text, "<end>"] for text in texts] for texts in SPLIT]


def test_rewards_are_the_metrics_of_the_words_and_the_end() -> None:
    numbered = References(ENDED)
    expected = {
        "cider": Cider(numbered).rows(WORDS, IMAGES)[:, 0] / 100,
        "rouge_l": rouge_rows(numbered, WORDS, IMAGES)[:, 0] / 100,
    }
    for name, scores in expected.items():
        found = Rewards(SPLIT, {name: 1.0})(WORDS, IMAGES)
        numpy.testing.assert_allclose(found, scores, rtol=1e-12)
        assert found[2] > found[0] > 0  # a reference word for word beats a paraphrase


@pytest.mark.parametrize("place", range(len(SAMPLES)))
def test_sentence_bleu_is_nltks_with_one_added_above_words(place: int) -> None:
    found = Rewards(SPLIT, {"bleu4": 1.0})(WORDS, IMAGES)[place]
    method = SmoothingFunction().method2
    expected = sentence_bleu(ENDED[IMAGES[place]], WORDS[place], smoothing_function=method)
    assert found == pytest.approx(expected, abs=1e-12)


def test_rewards_are_added_by_their_weights() -> None:
    parts = [Rewards(SPLIT, {name: 1.0})(WORDS, IMAGES) for name in ("cider", "bleu4")]
    both = Rewards(SPLIT, {"cider": 0.7, "bleu4": 2, "rouge_l": 0.0})(WORDS, IMAGES)
    numpy.testing.assert_allclose(both, 0.7 * parts[0] + 2 * parts[1], rtol=1e-12)


@pytest.mark.parametrize("name", ["cider", "bleu4", "rouge_l"])
def test_a_sample_without_its_end_is_paid_less(name: str) -> None:
    """Whether <end> alone is missing, or the last words with it."""
    for text in [text for texts in SPLIT for text in texts]:
        rewards = Rewards([[text], *SPLIT], {name: 1.0})
        said = [[*text, "<end>"], text, text[:-1], text[:-2]]
        whole, *cut = rewards(said, numpy.zeros(4, dtype=int))
        assert all(whole > one for one in cut)


def test_the_end_widens_the_gap_to_a_fragment() -> None:
    """Left out, the words that a fragment shares with every reference are paid in full."""
    texts = ["a man riding a wave on a surfboard", "a man riding a wave on a board", "a big wave"]
    images = [[text.split() for text in texts], *SPLIT]
    fragment, whole = "a man riding a wave on a".split(), texts[1].split()
    both = numpy.zeros(2, dtype=int)
    omitted = Cider(References(images)).rows([fragment, whole], both)[:, 0] / 100
    counted = Rewards(images, {"cider": 1.0})([fragment, [*whole, "<end>"]], both)
    assert counted[0] < 0.95 * omitted[0]
    assert counted[1] - counted[0] > 1.2 * (omitted[1] - omitted[0])


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (
            {"cidr": 1.0},
            "objective.rewards.cidr is not an option.*did you mean objective",
        ),
        ({"cider": -1.0}, "objective.rewards.cider=-1.0 is not accepted"),
        ({"cider": "much"}, "objective.rewards.cider='much'"),
        ({"cider": 0.0}, "are all 0"),
    ],
)
def test_weights_that_make_no_sense_get_one_line(weights, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Rewards(SPLIT, weights)
