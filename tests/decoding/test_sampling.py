"""Sampling compared with closed forms and with the probabilities of captions."""

import math
from collections import Counter

import numpy
import pytest
import torch
from support.tables import END, START, everything, random_table, start_state, table_step

from captioner.decoding.decode import decode
from captioner.decoding.options import DecodingOptions
from captioner.decoding.sampling import draw


def decoded(table: torch.Tensor, options: DecodingOptions, keys=None, images=None) -> list:
    state = start_state(len(table) if images is None else images)
    return decode(table_step(table), state, start=START, end=END, options=options, keys=keys)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 3, 1.0), (1.0, 0, 0.8), (0.7, 5, 0.6), (1.0, 1, 1.0)],
)
def test_samples_have_the_right_frequencies(temperature, top_k, top_p) -> None:
    log_probs = torch.log_softmax(2 * torch.randn(7, dtype=torch.float64), dim=0)
    p = numpy.exp(log_probs.numpy() / temperature)
    p /= p.sum()
    order = numpy.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    allowed, probability = set(), 0.0
    for word in order:  # the smallest set of words with this probability
        if probability >= top_p:
            break
        allowed.add(word)
        probability += p[word]
    p = numpy.array([value if word in allowed else 0.0 for word, value in enumerate(p)])
    p /= p.sum()
    even = (torch.arange(20_000) + 0.5) / 20_000  # uniform random numbers
    words = draw(log_probs.expand(20_000, 7), even, temperature, top_k=top_k, top_p=top_p)
    frequencies = numpy.bincount(words.numpy(), minlength=7) / 20_000
    numpy.testing.assert_allclose(frequencies, p, atol=2e-4)


def test_excluded_tokens_are_never_sampled() -> None:
    log_probs = torch.tensor([[-torch.inf, 0.0, -torch.inf], [-0.1, -torch.inf, -torch.inf]])
    for chance in (0.0, 0.5, 1.0 - 1e-16):
        words = draw(log_probs, torch.full((2,), chance, dtype=torch.float64), 1.0)
        assert words.tolist() == [1, 0]


def test_captions_are_sampled_by_their_probability() -> None:
    """Frequencies in 4,000 samples equal the probabilities, within 4.5 standard deviations."""
    table = random_table(1, 3, 5, sharp=1.0)
    samples = 4000
    options = DecodingOptions(temperature=1.0, captions=samples, max_length=3)
    (hypotheses,) = decoded(table, options)
    counts = Counter(hypothesis.tokens for hypothesis in hypotheses if hypothesis.finished)
    for score, body in everything(table, 0, options):
        p = math.exp(score)
        deviation = math.sqrt(p * (1 - p) * samples)
        assert abs(counts[body] - p * samples) < 4.5 * deviation + 1


def test_samples_of_an_image_do_not_depend_on_the_batch() -> None:
    table = random_table(6, 8, 9)
    options = DecodingOptions(temperature=1.3, captions=3, max_length=8, seed=5)
    keys = [11, 7, 0, 2**55, 3, 4]
    together = decoded(table, options, keys=keys)
    for image in range(6):
        assert decoded(table, options, keys=[keys[image]], images=[image]) == [together[image]]
    backwards = decoded(table, options, keys=keys[::-1], images=list(range(6))[::-1])
    assert backwards == together[::-1]
    # Fewer samples are the first of more samples.
    fewer = decoded(table, DecodingOptions(temperature=1.3, max_length=8, seed=5), keys=keys)
    assert [hypotheses[0] for hypotheses in fewer] == [hypotheses[0] for hypotheses in together]


def test_seed_and_key_change_the_samples() -> None:
    table = random_table(1, 8, 9, sharp=0.1).expand(5, 8, 9, 9)
    options = DecodingOptions(temperature=1.0, max_length=8)
    by_key = decoded(table, options)
    assert len({hypotheses[0].tokens for hypotheses in by_key}) == 5
    other_seed = decoded(table, DecodingOptions(temperature=1.0, max_length=8, seed=1))
    assert by_key != other_seed
    assert by_key == decoded(table, options)


def test_a_low_temperature_is_greedy() -> None:
    table = random_table(20, 6, 7)
    cold = decoded(table, DecodingOptions(temperature=1e-4, max_length=6))
    greedy = decode(
        table_step(table),
        start_state(20),
        start=START,
        end=END,
        options=DecodingOptions(max_length=6),
    )
    assert [hypotheses[0].tokens for hypotheses in cold] == [
        hypotheses[0].tokens for hypotheses in greedy
    ]


def test_log_probs_do_not_depend_on_the_temperature() -> None:
    table = random_table(4, 5, 6)
    samples = decoded(table, DecodingOptions(temperature=2.0, top_k=4, max_length=5))
    for image, (sample,) in enumerate(samples):
        tokens = [*sample.tokens, END] if sample.finished else list(sample.tokens)
        last = [START, *tokens[:-1]]
        expected = [
            float(torch.log_softmax(table[image, t, last[t]], -1)[tokens[t]])
            for t in range(len(tokens))
        ]
        assert sample.log_probs == pytest.approx(expected, abs=1e-5)
        assert sample.score == pytest.approx(sum(expected), abs=1e-5)
