"""Rewards against the public metrics on the same words with <end>, and the effect of <end>."""

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


def test_rewards_equal_the_metrics_with_end_as_a_word() -> None:
    numbered = References(ENDED)
    expected = {
        "cider": Cider(numbered).rows(WORDS, IMAGES)[:, 0] / 100,
        "rouge_l": rouge_rows(numbered, WORDS, IMAGES)[:, 0] / 100,
    }
    for name, scores in expected.items():
        rewards = Rewards(SPLIT, {name: 1.0})(WORDS, IMAGES)
        numpy.testing.assert_allclose(rewards, scores, rtol=1e-12)
        assert rewards[2] > rewards[0] > 0  # a reference word for word beats a paraphrase


@pytest.mark.parametrize("place", range(len(SAMPLES)))
def test_sentence_bleu_equals_nltk_with_smoothing_method2(place: int) -> None:
    bleu = Rewards(SPLIT, {"bleu4": 1.0})(WORDS, IMAGES)[place]
    method = SmoothingFunction().method2
    expected = sentence_bleu(ENDED[IMAGES[place]], WORDS[place], smoothing_function=method)
    assert bleu == pytest.approx(expected, abs=1e-12)


def test_rewards_are_a_weighted_sum() -> None:
    parts = [Rewards(SPLIT, {name: 1.0})(WORDS, IMAGES) for name in ("cider", "bleu4")]
    both = Rewards(SPLIT, {"cider": 0.7, "bleu4": 2, "rouge_l": 0.0})(WORDS, IMAGES)
    numpy.testing.assert_allclose(both, 0.7 * parts[0] + 2 * parts[1], rtol=1e-12)


@pytest.mark.parametrize("name", ["cider", "bleu4", "rouge_l"])
def test_a_caption_without_end_has_a_lower_reward(name: str) -> None:
    """Both if only <end> is missing, and if the last words are missing too."""
    for text in [text for texts in SPLIT for text in texts]:
        rewards = Rewards([[text], *SPLIT], {name: 1.0})
        candidates = [[*text, "<end>"], text, text[:-1], text[:-2]]
        whole, *cut = rewards(candidates, numpy.zeros(4, dtype=int))
        assert all(whole > reward for reward in cut)


def test_end_increases_the_difference_to_a_fragment() -> None:
    """Without <end>, a fragment is fully rewarded for its words that are in all references."""
    texts = ["a man riding a wave on a surfboard", "a man riding a wave on a board", "a big wave"]
    images = [[text.split() for text in texts], *SPLIT]
    fragment, whole = "a man riding a wave on a".split(), texts[1].split()
    both = numpy.zeros(2, dtype=int)
    omitted = Cider(References(images)).rows([fragment, whole], both)[:, 0] / 100
    counted = Rewards(images, {"cider": 1.0})([fragment, [*whole, "<end>"]], both)
    assert counted[0] < 0.95 * omitted[0]
    assert counted[1] - counted[0] > 1.2 * (omitted[1] - omitted[0])


@pytest.mark.parametrize(
    ("weights", "message"),
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
def test_invalid_weights_are_refused(weights, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rewards(SPLIT, weights)
