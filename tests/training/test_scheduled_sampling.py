"""Scheduled sampling: fraction 0 is teacher forcing, with fraction 1 all inputs are sampled."""

import pytest
import torch

from captioner.checkpoints import checkpoint
from captioner.config import compose
from captioner.models.decoders.show_tell import ShowTell
from captioner.models.features import Features
from captioner.models.packing import Packing
from captioner.models.recurrence.table import CELLS
from captioner.runs import LAST
from captioner.training.objectives import cross_entropy
from captioner.training.objectives.cross_entropy import CrossEntropy, forward_sampled, sample_tokens
from captioner.training.train import train

LENGTHS = torch.tensor([3, 6, 1, 4])


def build(cell: str = "lstm") -> tuple[ShowTell, Features, torch.Tensor, Packing]:
    decoder = ShowTell(
        vocabulary_size=11, feature_size=5, cell=cell, embedding_size=7, hidden_size=8, dropout=0.0
    )
    inputs = torch.randint(4, 11, (4, 6))
    inputs[:, 0] = 1
    return decoder, Features(torch.randn(4, 5)), inputs, Packing.of(LENGTHS)


@pytest.mark.parametrize("cell", CELLS)
def test_fraction_0_is_teacher_forcing_with_the_same_gradients(cell: str) -> None:
    """In float64, because sums in different orders differ in float32."""
    decoder, features, inputs, packing = build(cell)
    decoder, features = decoder.double(), Features(features.pooled.double())
    logits = forward_sampled(decoder, features, inputs, packing, fraction=0.0)
    expected = decoder(features, inputs, packing)
    torch.testing.assert_close(logits, expected)
    weights = torch.randn_like(logits)
    parameters = list(decoder.parameters())
    ours = torch.autograd.grad((logits * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


def test_with_fraction_1_all_inputs_are_sampled(monkeypatch) -> None:
    """The logits are those for the sampled tokens; the captions after <start> have no effect."""
    decoder, features, inputs, packing = build()
    sampled = []

    def record(logits):
        sampled.append(sample_tokens(logits))
        return sampled[-1]

    monkeypatch.setattr(cross_entropy, "sample_tokens", record)
    logits = forward_sampled(decoder, features, inputs, packing, fraction=1.0)
    sampled_inputs = torch.full_like(inputs, 4)
    sampled_inputs[:, 0] = 1
    for place, tokens in enumerate(sampled, start=1):
        sampled_inputs[packing.order[: len(tokens)], place] = tokens
    torch.testing.assert_close(logits, decoder(features, sampled_inputs, packing))


def test_tokens_are_sampled_by_their_probability_without_special_tokens() -> None:
    logits = torch.randn(9) * 2
    counts = torch.bincount(sample_tokens(logits.expand(20_000, 9)), minlength=9) / 20_000
    expected = torch.cat([torch.zeros(4), torch.softmax(logits[4:], 0)])
    torch.testing.assert_close(counts, expected, atol=0.015, rtol=0)


def test_the_fraction_rises_linearly(monkeypatch) -> None:
    fractions = []

    def record(decoder, features, inputs, packing, fraction):
        fractions.append(fraction)
        return decoder(features, inputs, packing)

    class Model(torch.nn.Module):
        decoder, features, inputs, _ = build()

        def encode(self, source):
            return source

        def forward(self, source, inputs, packing):
            fractions.append("all at once")
            return self.decoder(source, inputs, packing)

    from captioner.data.batches import Batch

    monkeypatch.setattr(cross_entropy, "forward_sampled", record)
    model = Model()
    batch = Batch(model.features, torch.arange(4), model.inputs, model.inputs, [])
    objective = CrossEntropy(None, None, scheduled_sampling=0.4)
    for done in (0.0, 0.25, 1.0):
        objective.outcome(model, batch, done)
    assert fractions == ["all at once", 0.1, 0.4]


def test_a_training_resumes_exactly(tiny, tmp_path, cut_short) -> None:
    config = compose([*tiny, "objective.scheduled_sampling=0.5", "callbacks.save_every=3"])
    train(config, tmp_path / "whole")
    last = cut_short(config, tmp_path / "cut", 10)
    train(config, tmp_path / "cut", resume=last)
    one, other = (
        checkpoint.read(checkpoint.find(tmp_path / name, name=LAST)).weights
        for name in ("whole", "cut")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
