"""Probes on planted states, whose answers are known, and labels on captions."""

import math

import numpy as np
import pytest
import torch

import captioner
from captioner.inspection.labels import (
    first_color,
    inside_phrase,
    number,
    steps_so_far,
    steps_to_end,
)
from captioner.inspection.probes import fit, probe, untrained
from captioner.inspection.states import StateTable

WORDS = [f"w{n}" for n in range(12)]


def table(seed: int, captions: int = 120, length: int = 6) -> StateTable:
    """Random words; units 0 to 11 say which word was read, unit 12 whether it is the second half.

    Units 13 to 15 are noise.
    """
    rng = np.random.default_rng(seed)
    reads, rows = [], []
    for _ in range(captions):
        words = rng.choice(WORDS, length)
        reads.append(("X_0", "<start>", *words))
        for step, word in enumerate(reads[-1]):
            one = np.zeros(16, np.float32)
            one[WORDS.index(word) if word in WORDS else 15] = 1.0
            one[12] = step >= (length + 2) / 2
            one[13:] += rng.normal(size=3)
            rows.append(one)
    values = np.stack(rows)[:, None]
    images = tuple(f"{seed}-{n // 2}" for n in range(captions))
    return StateTable(images, tuple(reads), {"cell.hidden": values})


def half(reads: tuple[str, ...]) -> list[str | None]:
    return [None, None, *(str(s >= len(reads) / 2) for s in range(2, len(reads)))]


def parity(reads: tuple[str, ...]) -> list[str | None]:
    """A label that the word alone decides."""
    return [None, None, *(str(int(word[1:]) % 2) for word in reads[2:])]


def test_what_is_in_the_context_is_selective_and_what_is_in_the_word_is_not() -> None:
    train, test = table(0), table(1)
    of_context, of_word = probe(train, test, half), probe(train, test, parity)
    assert of_context.accuracy.value == of_word.accuracy.value == 1.0
    assert of_word.control.value == pytest.approx(1.0)
    assert abs(of_word.selectivity.value) < 0.01
    assert of_context.control.value > 0.95  # the words are in the state: memorized
    assert of_context.steps == 720 and of_context.labels == 2
    assert of_context.majority == pytest.approx(4 / 6)


def test_a_control_task_cannot_be_learned_where_the_word_is_not_in_the_state() -> None:
    train, test = (
        StateTable(t.images, t.reads, {"cell.hidden": t.sites["cell.hidden"][..., 12:]})
        for t in (table(0), table(1))
    )
    found = probe(train, test, half)
    assert found.accuracy.value == 1.0 and found.control.value < 0.85
    expected = found.accuracy.value - found.control.value
    assert found.selectivity.value == pytest.approx(expected)
    assert found.selectivity.low < expected < found.selectivity.high


def test_an_interval_over_images_is_that_of_the_normal_approximation() -> None:
    """Independent steps, one a caption, one caption an image: half width 1.96 sqrt(p q / n)."""
    rng = np.random.default_rng(0)

    def coins(captions: int) -> StateTable:
        reads = tuple(("X_0", "<start>", word) for word in rng.choice(["a", "b"], captions))
        right = rng.random(captions) < 0.8
        signs = [1.0 if (r[2] == "a") == ok else -1.0 for r, ok in zip(reads, right)]
        values = np.repeat(np.array(signs, np.float32), 3)[:, None, None]
        return StateTable(tuple(map(str, range(captions))), reads, {"cell.hidden": values})

    found = probe(
        coins(400), coins(500), lambda reads: [None, None, reads[2]], resamples=4000
    ).accuracy
    p = found.value
    assert (found.high - found.low) / 2 == pytest.approx(
        1.96 * math.sqrt(p * (1 - p) / 500), rel=0.1
    )


def test_the_probe_is_the_minimum_of_its_loss() -> None:
    """At the minimum X^T (p - y) / n + strength W = 0, and the mean of p - y is 0."""
    states, labels = torch.randn(90, 7, dtype=torch.float64), torch.randint(4, (90,))
    weight, bias = fit(states, labels, 4, 0.05)
    error = torch.softmax(states @ weight + bias, dim=1) - torch.eye(4, dtype=torch.float64)[labels]
    assert (states.T @ error / 90 + 0.05 * weight).abs().max() < 1e-4
    assert error.mean(0).abs().max() < 1e-4


def test_a_task_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="the task has 1 labels in 720 training steps"):
        probe(table(0), table(1), lambda reads: [None, None, *["x"] * (len(reads) - 2)])


CAPTION = "X_0 <start> a red fish is left of a blue boat on a plain background"


@pytest.mark.parametrize(
    ("task", "caption", "labels"),
    [
        (steps_so_far, "X_0 <start> a red fish", "- 0 1 2 3"),
        (steps_to_end, "X_0 <start> a red fish", "- 3 2 1 0"),
        (
            inside_phrase,
            CAPTION,
            "- no no first first no no no no second second no no no no",
        ),
        (number, "X_0 <start> a picture of three red hearts", "- - - - - - 3 3"),
        (number, "X_0 <start> a small red fish on a plain background", "- - - - 1 1 1 1 1 1"),
        (first_color, CAPTION, "- - - - red red red red red red red red red red red"),
    ],
)
def test_labels_of_captions(task, caption, labels) -> None:
    found = task(caption.split())
    assert ["-" if label is None else label for label in found] == labels.split()


def test_an_untrained_decoder_has_other_weights_and_the_same_statistics(run) -> None:
    model = captioner.load(run)
    old, new = model.model.decoder, untrained(model).model.decoder
    assert torch.equal(old.standardise.mean, new.standardise.mean)
    assert torch.equal(old.standardise.scale, new.standardise.scale)
    assert not torch.allclose(
        old.recurrence.first.of_hidden.weight, new.recurrence.first.of_hidden.weight
    )
    again = untrained(model).model.decoder
    assert torch.equal(new.output.weight, again.output.weight)
