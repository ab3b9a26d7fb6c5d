"""Consensus decoding compared with pycocoevalcap, enumeration and closed forms."""

import math

import numpy
import pytest
from pycocoevalcap.cider.cider import Cider
from support.tables import END, START, everything, random_table, start_state, table_step

from captioner.decoding.consensus import by_consensus, similarities
from captioner.decoding.decode import decode
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis
from captioner.tokenizers import Vocabulary

CAPTIONS = [
    (4, 5, 6, 7, 8),
    (4, 5, 6, 9),
    (4, 4, 5, 4, 5, 6, 7, 8, 4, 5, 10),
    (11, 12),
    (4,),
    (),
]


def coco(candidate: tuple, reference: tuple) -> float:
    """CIDEr-D of a pair in a corpus with one more image, so that all n-grams are equally rare."""
    texts = {0: [reference], 1: [tuple(range(100, 108))]}
    gts = {image: [" ".join(map(str, text)) for text in of] for image, of in texts.items()}
    res = {0: [" ".join(map(str, candidate))], 1: ["unlike"]}
    return Cider().compute_score(gts, res)[1][0] / 10


def test_the_score_equals_cider_d_if_all_words_have_equal_weight() -> None:
    scores = similarities(CAPTIONS, [])
    assert scores.shape == (6, 6)
    for i, candidate in enumerate(CAPTIONS):
        for j, reference in enumerate(CAPTIONS[:5]):
            if candidate:
                assert scores[i, j] == pytest.approx(coco(candidate, reference), abs=1e-9)
    assert not scores[5].any() and not scores[:, 5].any()
    assert scores[0, 0] == pytest.approx(1)


def test_common_rare_words_count_more() -> None:
    rarity = [0.0, 1.0, 2.0, 3.0]
    scores = similarities([(1, 2), (1, 3), (2, 3)], rarity)
    assert scores[0, 1] == pytest.approx(1 / math.sqrt(5 * 10) / 4)
    assert scores[0, 2] == pytest.approx(4 / math.sqrt(5 * 13) / 4)
    assert scores[1, 2] == pytest.approx(9 / math.sqrt(10 * 13) / 4)


def test_rarity_is_the_logarithm_of_the_rank() -> None:
    words = Vocabulary.build([["a", "a", "dog"], ["a", "dog", "runs"]])
    assert words.ordinary == ("a", "dog", "runs")
    assert words.rarity == pytest.approx([0, 0, 0, 0, math.log(2), math.log(3), math.log(4)])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_consensus_of_a_full_beam_is_the_minimum_bayes_risk(temperature: float) -> None:
    table = random_table(6, 3, 6)
    options = DecodingOptions(beam_size=6**3, consensus=temperature, max_length=3)
    ranked = decode(table_step(table), start_state(6), start=START, end=END, options=options)
    moved = 0
    for image in range(6):
        possible = everything(table, image, options)  # (log p, words), best first
        votes = numpy.exp([score / temperature for score, _ in possible])
        votes /= votes.sum()
        gain = [
            sum(
                vote * coco(candidate, reference)
                for vote, (_, reference) in zip(votes, possible)
                if reference
            )
            for _, candidate in possible
            if candidate
        ]
        named = [words for _, words in possible if words]
        best = ranked[image][0]
        assert best.score == pytest.approx(max(gain), abs=1e-5)
        assert gain[named.index(best.tokens)] == pytest.approx(max(gain), abs=1e-6)
        moved += best.tokens != possible[0][1]
    assert moved


def test_samples_have_equal_weights_and_beams_their_probabilities() -> None:
    table = random_table(5, 4, 5)
    drawn = DecodingOptions(temperature=0.5, captions=9, max_length=4)
    plain = decode(table_step(table), start_state(5), start=START, end=END, options=drawn)
    agreed = decode(
        table_step(table),
        start_state(5),
        start=START,
        end=END,
        options=drawn.changed(consensus=1.0),
    )
    for before, after in zip(plain, agreed):
        assert sorted(hypothesis.tokens for hypothesis in before) == sorted(
            hypothesis.tokens for hypothesis in after
        )
        ended = [hypothesis for hypothesis in after if hypothesis.finished]
        if ended:
            risks = similarities(
                [hypothesis.tokens for hypothesis in before if hypothesis.finished], []
            ).mean(axis=1)
            assert ended[0].score == pytest.approx(risks.max())
        assert [hypothesis.score for hypothesis in ended] == sorted(
            (hypothesis.score for hypothesis in ended), reverse=True
        )


def test_required_words_and_finished_captions_rank_before_agreement() -> None:
    def hypothesis(tokens: tuple, finished: bool = True, missing: tuple = ()) -> Hypothesis:
        return Hypothesis(tokens, (-1.0,) * (len(tokens) + 1), 0.0, finished, missing)

    same = [
        hypothesis((4, 5, 6), missing=(0,)),
        hypothesis((4, 5, 6), missing=(0,)),
        hypothesis((7,)),
        hypothesis((8,), False),
    ]
    ranked = by_consensus(same, [], 1.0)
    assert [hypothesis.tokens for hypothesis in ranked] == [(7,), (8,), (4, 5, 6), (4, 5, 6)]


def test_requirements_and_label_of_consensus() -> None:
    with pytest.raises(ValueError, match="consensus=5 chooses among several captions"):
        DecodingOptions(consensus=5.0)
    with pytest.raises(ValueError, match="consensus=-1"):
        DecodingOptions(beam_size=3, consensus=-1)
    beam = DecodingOptions(beam_size=20, length_penalty=0.7, consensus=5.0)
    assert beam.label == "beam20-lp0.7-consensus5"
    assert beam.changed(beam_size=1).label == "greedy"
    assert beam.changed(temperature=1.0).label == "sample-t1-seed0"
    assert beam.changed(beam_size=3).label == "beam3-lp0.7"
    assert beam.changed(captions=5).label == "beam20-lp0.7-consensus5-n5"
    assert beam.changed(temperature=1.0, captions=10).label == "sample-t1-seed0-n10"
    drawn = beam.changed(temperature=1.0, captions=10, consensus=1.0)
    assert drawn.label == "sample-t1-seed0-consensus-n10"
