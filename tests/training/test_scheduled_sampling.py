"""Scheduled sampling: at share 0 it is teacher forcing, at 1 the model reads itself."""

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
def test_without_own_words_it_is_teacher_forcing_with_its_gradients(cell: str) -> None:
    """In float64: they add up in different orders, which float32 rounds as the machine does."""
    decoder, features, inputs, packing = build(cell)
    decoder, features = decoder.double(), Features(features.pooled.double())
    found = forward_sampled(decoder, features, inputs, packing, fraction=0.0)
    expected = decoder(features, inputs, packing)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    parameters = list(decoder.parameters())
    ours = torch.autograd.grad((found * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


def test_with_own_words_alone_the_captions_are_not_read(monkeypatch) -> None:
    """The logits are those of the words drawn, whatever the captions say after <start>."""
    decoder, features, inputs, packing = build()
    drawn = []

    def watch(logits):
        drawn.append(sample_tokens(logits))
        return drawn[-1]

    monkeypatch.setattr(cross_entropy, "sample_tokens", watch)
    found = forward_sampled(decoder, features, inputs, packing, fraction=1.0)
    read = torch.full_like(inputs, 4)
    read[:, 0] = 1
    for place, tokens in enumerate(drawn, start=1):
        read[packing.order[: len(tokens)], place] = tokens
    torch.testing.assert_close(found, decoder(features, read, packing))


def test_words_are_drawn_by_their_probability_and_never_special_ones() -> None:
    logits = torch.randn(9) * 2
    counts = torch.bincount(sample_tokens(logits.expand(20_000, 9)), minlength=9) / 20_000
    expected = torch.cat([torch.zeros(4), torch.softmax(logits[4:], 0)])
    torch.testing.assert_close(counts, expected, atol=0.015, rtol=0)


def test_the_share_rises_along_a_line(monkeypatch) -> None:
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


def test_a_training_resumes_to_the_bit(tiny, tmp_path, cut_short) -> None:
    config = compose([*tiny, "objective.scheduled_sampling=0.5", "callbacks.save_every=3"])
    train(config, tmp_path / "whole")
    last = cut_short(config, tmp_path / "cut", 10)
    train(config, tmp_path / "cut", resume=last)
    one, other = (
        checkpoint.read(checkpoint.find(tmp_path / name, name=LAST)).weights
        for name in ("whole", "cut")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
