"""Self-critical training: gradient against the definition, baselines, training, stopping."""

import itertools
import json

import numpy
import pytest
import torch
from support.warm_starts import inherited
from torch import nn

from captioner.checkpoints import checkpoint
from captioner.data.batches import Batch
from captioner.data.records import Record
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis
from captioner.models.captioning import CaptioningModel
from captioner.models.decoders.show_tell import ShowTell
from captioner.models.features import Features
from captioner.runs import LAST
from captioner.tokenizers import build_tokenizer
from captioner.training.losses import policy_gradient
from captioner.training.objectives.objective import Degenerate
from captioner.training.objectives.self_critical import SelfCritical, leave_one_out
from captioner.training.train import train

CAPTIONS = {
    "a.png": ("a red dog runs", "the dog is red"),
    "b.png": ("two boys play", "boys play in the water"),
    "c.png": ("a man climbs a rock",),
}
RECORDS = [Record(name, name, texts, "train") for name, texts in CAPTIONS.items()]
TOKENIZER = build_tokenizer(
    [text for texts in CAPTIONS.values() for text in texts], name="word", min_count=1
)
VOCABULARY = TOKENIZER.vocabulary
OPEN = {"least_distinct": 0.0, "most_repeats": 100.0, "most_endless": 100.0}


def build(*, dropout: float = 0.0, **options) -> tuple[SelfCritical, CaptioningModel, Batch]:
    objective = SelfCritical(TOKENIZER, DecodingOptions(max_length=7), **options)
    objective.prepare(RECORDS)
    decoder = ShowTell(
        vocabulary_size=len(VOCABULARY),
        feature_size=5,
        embedding_size=6,
        hidden_size=8,
        dropout=dropout,
    )
    tokens = [VOCABULARY.start, 5, 6, 7], [5, 6, 7, VOCABULARY.end]
    inputs, targets = (torch.tensor([ids] * 3) for ids in tokens)
    batch = Batch(Features(torch.randn(3, 5)), torch.arange(3), inputs, targets, RECORDS)
    return objective, CaptioningModel(nn.Identity(), decoder), batch


def hypothesis(*words: str, end: bool = True) -> Hypothesis:
    tokens = tuple(VOCABULARY.id(word) for word in words)
    return Hypothesis(tokens, (0.0,) * (len(tokens) + end), 0.0, end)


def log_prob(
    decoder: ShowTell, features: Features, image: int, sample: Hypothesis, temperature: float = 1
) -> torch.Tensor:
    """Computed by start and step, over the tokens that decoding can generate."""
    state, token = decoder.start(features.rows(slice(image, image + 1))), VOCABULARY.start
    total = torch.zeros(())
    for word in [*sample.tokens, *([VOCABULARY.end] if sample.finished else [])]:
        logits, state = decoder.step(torch.tensor([token]), state)
        logits = logits / temperature
        allowed = [v for v in range(len(VOCABULARY)) if v not in (0, 1, 3)]
        total = total + logits[0, word] - logits[0, allowed].logsumexp(0)
        token = word
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_the_gradient_equals_the_definition_for_fixed_samples(temperature: float) -> None:
    objective, model, batch = build(samples=2, temperature=temperature)
    samples = [
        hypothesis("a", "red", "dog"),
        hypothesis("the", "dog", end=False),
        hypothesis("two", "boys", "play", "a"),
        hypothesis(),
        hypothesis("a", "man", "climbs", "a", "rock", "a", "rock", end=False),
        hypothesis("a", "rock"),
    ]
    advantages = torch.tensor([0.5, -0.5, 1.25, -1.25, 0.1, -0.1], dtype=torch.float64)
    loss = objective._loss(model.decoder, batch.source, samples, advantages.numpy())
    parameters = list(model.decoder.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    terms = [
        advantages[i] * log_prob(model.decoder, batch.source, i // 2, sample, temperature)
        for i, sample in enumerate(samples)
    ]
    expected = -torch.stack(terms).float().mean()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy"])
def test_the_expected_gradient_is_the_gradient_of_the_expected_reward(baseline: str) -> None:
    """A policy of one step: all pairs of samples are enumerated, each by its probability."""
    logits = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 3.0, 0.0, 0.5], dtype=torch.float64)
    p = torch.softmax(logits, 0)
    (expected,) = torch.autograd.grad(-(p * rewards).sum(), logits)
    total = torch.zeros_like(logits)
    for pair in itertools.product(range(4), repeat=2):
        words = torch.tensor(pair)
        r = rewards[words]
        if baseline == "greedy":
            advantages = r - rewards[logits.argmax()]
        else:
            advantages = r - torch.from_numpy(leave_one_out(r[None].numpy()))[0]
        loss = policy_gradient(logits.expand(2, 4).clone(), words, advantages, captions=2)
        (gradient,) = torch.autograd.grad(loss, logits)
        total += p[words].prod().detach() * gradient
    torch.testing.assert_close(total, expected)


def test_the_policy_gradient_in_place_equals_the_plain_one() -> None:
    logits = torch.randn(700, 900, requires_grad=True)
    with torch.no_grad():
        logits[:, 3] = -torch.inf
    words, advantages = torch.randint(4, 900, (700,)), torch.randn(700)
    plain = policy_gradient(logits, words, advantages, captions=60)
    (expected,) = torch.autograd.grad(plain, logits)
    for scale in (1.0, 0.25):
        kept = logits.detach().clone().requires_grad_()
        loss = policy_gradient(kept * 1, words, advantages, captions=60, in_place=True)
        torch.testing.assert_close(loss, plain)
        (gradient,) = torch.autograd.grad(scale * loss, kept)
        torch.testing.assert_close(gradient, scale * expected)


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    rewards = numpy.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    numpy.testing.assert_allclose(leave_one_out(rewards), [[4, 3.5, 1.5], [1.5, 1.5, 0]])


def test_the_greedy_baseline_is_the_reward_of_the_greedy_caption() -> None:
    objective, model, batch = build(baseline="greedy", samples=1)
    model.eval()
    greedy = objective._sampler(model.decoder, batch.source)(0)
    expected = objective._reward(greedy, numpy.arange(3)).mean()
    logs = objective.outcome(model, batch, 0.0).logs
    assert logs["train_baseline"] == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_samples_follow_the_differentiated_distribution(temperature: float) -> None:
    """Sampled tokens follow the probabilities of ``forward``, without dropout or special tokens."""
    objective, model, batch = build(dropout=0.5, samples=2000, temperature=temperature)
    model.train()
    with torch.no_grad():
        model.decoder.output.weight.mul_(8)
    objective.outcome(model, batch, 0.0)
    assert not model.decoder.training
    drawn = objective._sampler(model.decoder, batch.source)(2000)
    firsts = [(sample.tokens or (VOCABULARY.end,))[0] for sample in drawn[:2000]]
    counts = torch.bincount(torch.tensor(firsts), minlength=len(VOCABULARY)) / 2000
    logits = model.decoder(batch.source, batch.inputs)[0, 0]
    logits[[0, 1, 3]] = -torch.inf
    torch.testing.assert_close(counts, torch.softmax(logits / temperature, 0), atol=0.04, rtol=0)


def test_dropout_stays_on_if_it_is_set() -> None:
    objective, model, batch = build(dropout=0.5)
    kept = SelfCritical(TOKENIZER, objective.decoding, dropout=True)
    kept.prepare(RECORDS)
    kept.outcome(model, batch, 0.0)
    assert model.decoder.training


def test_cross_entropy_is_added_with_its_weight() -> None:
    torch.manual_seed(3)
    alone, model, batch = build()
    both = SelfCritical(TOKENIZER, alone.decoding, cross_entropy_weight=0.5)
    both.prepare(RECORDS)
    torch.manual_seed(5)
    first = alone.outcome(model, batch, 0.0).loss
    torch.manual_seed(5)
    second = both.outcome(model, batch, 0.0).loss
    log_probs = torch.log_softmax(model.decoder(batch.source, batch.inputs), -1)
    words = -log_probs.gather(2, batch.targets[:, :, None]).mean()
    torch.testing.assert_close(second - first, 0.5 * words)


@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy"])
def test_training_reaches_the_maximum_reward(baseline: str) -> None:
    """Each image has a caption of one word; the best sample is this word and <end>, with reward 5.

    There are no trigrams, so CIDEr-D is the mean of 10, 10, 0 and 0.
    """
    objective, model, batch = build(baseline=baseline, samples=8)
    words = zip(RECORDS, ("dog", "boys", "rock"))
    objective.prepare([Record(r.image, r.image_id, (word,), "train") for r, word in words])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewards = []
    for _ in range(260):
        outcome = objective.outcome(model, batch, 0.0)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        rewards.append(outcome.logs["train_reward"])
    assert sum(rewards[:10]) / 10 < 1
    assert sum(rewards[-10:]) / 10 > 4.5


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"dev_distinct": 1.0}, "1 % of the dev captions are distinct .objective.least_distinct=2"),
        ({"dev_repeats": 45.0}, "45 % of their bigrams repeat an earlier one"),
        ({"dev_endless": 31.0}, "31 % of the dev captions have no <end>"),
        ({}, None),
    ],
)
def test_captions_that_degenerate_stop_the_training(scores, message: str | None) -> None:
    objective = SelfCritical(TOKENIZER, DecodingOptions())
    scores = {"dev_distinct": 60.0, "dev_repeats": 3.0, "dev_endless": 1.0, **scores}
    if message is None:
        objective.check(scores, ["a dog"])
        return
    with pytest.raises(Degenerate, match=message) as error:
        objective.check(scores, ["a dog a dog"])
    assert "'a dog a dog'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "objective.samples=1 .* needs 2 or more"),
        ({"samples": 0, "baseline": "greedy"}, "needs 1 or more"),
        ({"baseline": "gredy"}, "objective.baseline='gredy'.*did you mean greedy"),
        ({"cross_entropy_weight": -1.0}, "objective.cross_entropy_weight=-1"),
        ({"temperature": 0.0}, "objective.temperature=0"),
        ({"most_endless": 101.0}, "objective.most_endless=101"),
    ],
)
def test_options_out_of_range_are_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfCritical(TOKENIZER, DecodingOptions(), **options)


# Whole runs -----------------------------------------------------------------------------------


def config_of(run, *overrides: str) -> dict:
    given = [
        "objective=scst",
        f"resume_weights={run}",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
        "trainer.max_epochs=2",
        "logger.tensorboard=false",
        "loader.batch_size=7",
        "optimizer.lr=0.003",
        *(f"training.{name}={value}" for name, value in OPEN.items()),
        *overrides,
    ]
    return inherited(given)


def last(folder) -> checkpoint.Checkpoint:
    return checkpoint.read(checkpoint.find(folder, name=LAST))


@pytest.mark.parametrize("kind", ["leave_one_out", "greedy"])
def test_a_run_starts_from_cross_entropy_and_resumes_exactly(
    run, tmp_path, cut_short, kind: str
) -> None:
    # 24 images in batches of 7: an epoch has 4 steps.
    config = config_of(
        run,
        f"objective.baseline={kind}",
        "callbacks.save_every=3",
        "callbacks.ema=0.9",
        "callbacks.monitor=dev_cider",
        "schedule=plateau",
        "schedule.patience=1",
        "objective.cross_entropy_weight=0.1",
    )
    whole = train(config, tmp_path / "whole")
    cut_short(config, tmp_path / "cut", 6)
    assert last(tmp_path / "cut").lightning["global_step"] == 6
    config["resume_weights"] = "/no/longer/there"
    train(config, tmp_path / "cut", resume=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    one, other = last(tmp_path / "whole"), last(tmp_path / "cut")
    assert one.lightning["schedule"] == other.lightning["schedule"]
    assert one.scores == other.scores
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    before = checkpoint.read(run)
    assert one.tokenizer.as_dict() == before.tokenizer.as_dict()
    changed = [n for n in one.weights if not torch.equal(one.weights[n], before.weights[n])]
    assert changed and all(name.startswith("decoder.") for name in changed)
    assert "decoder.standardise.mean" not in changed
    assert whole.monitor == "dev_cider" and whole.score == whole.scores["dev_cider"]
    log = tmp_path / "whole" / "logs" / "csv" / "version_0" / "metrics.csv"
    assert {"train_reward", "train_baseline", "train_advantage", "sample_endless"} < set(
        log.read_text().splitlines()[0].split(",")
    )


def test_a_run_that_degenerates_keeps_its_best_checkpoint(run, tmp_path, monkeypatch) -> None:
    config = config_of(run, "objective.most_endless=30")
    config["trainer"]["max_epochs"] = 3
    original = SelfCritical.check
    validations = []

    def worse(self, scores, captions):
        validations.append(scores)
        original(self, {**scores, "dev_endless": 50.0 if len(validations) == 2 else 0.0}, captions)

    monkeypatch.setattr(SelfCritical, "check", worse)
    with pytest.raises(Degenerate, match="50 % of the dev captions have no <end>"):
        train(config, tmp_path / "run")
    best = checkpoint.read(tmp_path / "run")
    assert best.path.name == "best.ckpt"
    assert best.scores == validations[0] != validations[1]
    rows = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert {json.loads(row)["epoch"] for row in rows} == {1}


def test_every_image_is_seen_once_an_epoch(run, tmp_path, monkeypatch) -> None:
    config = config_of(run)
    original, seen = SelfCritical.outcome, []

    def watch(self, model, batch, done):
        seen.append([record.image_id for record in batch.records])
        return original(self, model, batch, done)

    monkeypatch.setattr(SelfCritical, "outcome", watch)
    train(config, tmp_path / "run")
    first, second = (list(itertools.chain(*seen[n : n + 4])) for n in (0, 4))
    assert len(seen) == 8
    assert sorted(first) == sorted(second) == sorted(set(first)) and len(first) == 24
    assert first != second


def test_a_run_cannot_resume_with_another_objective(run, tiny, tmp_path) -> None:
    with pytest.raises(ValueError, match="continues with the objective.*resume_weights="):
        train(config_of(run), tmp_path / "run", resume=checkpoint.find(run, name="last.ckpt"))
