"""Training: exact resuming, stopping at errors, and the content of a run folder."""

import json
import logging
import math
import os
import random
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from captioner.checkpoints import checkpoint
from captioner.config import compose, make
from captioner.data.batches import Batch, Share
from captioner.data.datamodule import CaptionDataModule
from captioner.data.features import CachedFeatures
from captioner.data.loaders import Pictures, image_loader
from captioner.data.read import read_records
from captioner.data.samplers import Bucketed
from captioner.models.captioning import CaptioningModel, build_model
from captioner.models.decoders.show_tell import ShowTell
from captioner.models.features import Features
from captioner.models.packing import IGNORED
from captioner.runs import LAST
from captioner.training import losses
from captioner.training.callbacks import ImageMatters, WeightAverage
from captioner.training.module import LitCaptioner, NonFiniteLoss, build_module
from captioner.training.objectives import cross_entropy
from captioner.training.train import train
from captioner.training.validation import dev_losses


def weights_and_optimizer(folder: Path) -> list[torch.Tensor]:
    content = checkpoint.read(checkpoint.find(folder, name=LAST)).lightning
    moments = content["optimizer_states"][0]["state"]
    tensors = [t for m in moments.values() for t in m.values() if isinstance(t, torch.Tensor)]
    return [*content["state_dict"].values(), *tensors]


# 24 images with five captions in batches of 20: an epoch has 6 steps.
@pytest.mark.reliability("interrupted")
@pytest.mark.parametrize(
    ("workers", "crash", "saved"), [(0, 4, 3), (0, 9, 9), (0, 8, 6), (1, 5, 3)]
)
def test_an_interrupted_run_resumes_exactly(
    tiny, tmp_path, cut_short, workers: int, crash: int, saved: int
) -> None:
    config = compose([*tiny, f"loader.workers={workers}", "callbacks.save_every=3"])
    train(config, tmp_path / "whole")
    last = cut_short(config, tmp_path / "cut", crash)
    assert checkpoint.read(last).lightning["global_step"] == saved
    train(config, tmp_path / "cut", resume=last)

    expected = weights_and_optimizer(tmp_path / "whole")
    resumed = weights_and_optimizer(tmp_path / "cut")
    assert len(expected) == len(resumed) > 20
    assert all(torch.equal(a, b) for a, b in zip(expected, resumed))
    best, other = checkpoint.read(tmp_path / "whole"), checkpoint.read(tmp_path / "cut")
    assert best.scores == other.scores
    logs = (tmp_path / "cut" / "logs" / "csv").glob("*/metrics.csv")
    assert len(list(logs)) == 2  # the log of the first part is kept
    spent, resumed_costs = (
        json.loads((tmp_path / name / "costs.json").read_text()) for name in ("whole", "cut")
    )
    alike = ("epochs", "learned_parameters", "all_parameters", "threads", "torch")
    assert [spent[name] for name in alike] == [resumed_costs[name] for name in alike]
    assert spent["minutes"] >= 0 < spent["peak_memory_gib"] < 64


@pytest.mark.reliability("interrupted")
def test_resuming_is_exact_with_augmented_live_images(tiny, tmp_path, cut_short) -> None:
    live = ("loader.cache=false", "loader.augment=true", "encoder.trainable=true")
    config = compose(
        [*tiny, *live, "callbacks.save_every=2", "loader.workers=2", "callbacks.ema=0.9"]
    )
    train(config, tmp_path / "whole")
    last = cut_short(config, tmp_path / "cut", 3)
    train(config, tmp_path / "cut", resume=last)
    pairs = zip(weights_and_optimizer(tmp_path / "whole"), weights_and_optimizer(tmp_path / "cut"))
    assert all(torch.equal(a, b) for a, b in pairs)
    whole, cut = (checkpoint.read(tmp_path / name).weights for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)  # the average of the weights


@pytest.mark.reliability("interrupted")
def test_a_resumed_run_reads_the_same_features(tiny, tmp_path, monkeypatch) -> None:
    """They come from the pretrained encoder, although a resumed model is built without weights."""
    seen, original = [], CaptionDataModule.setup

    def watch(self, stage):
        original(self, stage)
        seen.append(self.training_features(4).pooled)

    monkeypatch.setattr(CaptionDataModule, "setup", watch)
    pretrained = ("encoder=efficientnet_lite0", "encoder.pretrained=true", "encoder.image_size=64")
    config = compose([*tiny, *pretrained, "encoder.network=efficientnet_lite0"])
    config["trainer"]["max_epochs"] = 1
    train(config, tmp_path / "run")
    first = seen[0]
    seen.clear()
    config["trainer"]["max_epochs"] = 2
    last = checkpoint.find(tmp_path / "run", name=LAST)
    train(config, tmp_path / "run", resume=last)
    assert seen and all(torch.equal(features, first) for features in seen)


def test_training_reads_principal_components_of_cached_grids(tiny, tmp_path, monkeypatch) -> None:
    seen, original = [], CachedFeatures.get

    def watch(self, *given):
        seen.append(original(self, *given))
        return seen[-1]

    monkeypatch.setattr(CachedFeatures, "get", watch)
    config = compose([*tiny, "decoder=up_down", "decoder.components=8"])
    train(config, tmp_path / "run")
    widths = [features.grid.shape[2] for features in seen]
    assert widths[-1] == 8 < widths[0]  # the whole grids are read to compute the statistics


def test_the_average_of_the_weights_is_the_weighted_sum_of_all_steps() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    average, trainer = WeightAverage(0.5), SimpleNamespace(global_step=0)
    values = [3.0, -1.0, 4.0, 1.5, 9.0]
    module.weight.data.fill_(values[0])
    average.on_train_start(trainer, module)
    for step, value in enumerate(values[1:], start=1):
        module.weight.data.fill_(value)
        trainer.global_step = step
        average.on_train_batch_end(trainer, module)
        average.on_train_batch_end(trainer, module)  # a batch that only accumulates gradients
    decays = [min(0.5, (1 + n) / (10 + n)) for n in range(1, 5)]
    weights = [math.prod(decays)]
    weights += [(1 - decays[n]) * math.prod(decays[n + 1 :]) for n in range(4)]
    expected = sum(weight * value for weight, value in zip(weights, values))
    average.on_validation_start(trainer, module)
    assert module.weight.item() == pytest.approx(expected, abs=1e-6)
    average.on_train_epoch_end(trainer, module)
    assert module.weight.item() == 9.0


def test_the_best_checkpoint_contains_the_average_that_was_validated(tiny, tmp_path) -> None:
    config = compose([*tiny, "callbacks.ema=0.9", "callbacks.keep=1", "trainer.max_epochs=1"])
    run = train(config, tmp_path / "run")
    best, last = (
        checkpoint.read(checkpoint.find(run.folder, name=n)) for n in ("best.ckpt", "last.ckpt")
    )
    name = "decoder.output.weight"
    average = last.lightning["callbacks"]["WeightAverage"]["average"]
    assert torch.equal(best.weights[name], average[f"model.{name}"])
    assert not torch.equal(best.weights[name], last.weights[name])
    kept = checkpoint.read(run.folder / "checkpoints" / "epoch-01.ckpt")
    assert torch.equal(kept.weights[name], best.weights[name])
    assert kept.scores == best.scores


def test_the_same_seed_gives_the_same_run_and_another_does_not(tiny, tmp_path) -> None:
    runs = [
        train(compose([*tiny, f"seed={seed}", "trainer.max_epochs=1"]), tmp_path / name).folder
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    first, second, third = (weights_and_optimizer(folder) for folder in runs)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not all(torch.equal(a, b) for a, b in zip(first, third))


def test_the_content_of_a_run_folder(run) -> None:
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert "hidden_size: 64" in (run / "config.yaml").read_text()
    header = (
        (run / "logs" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    )
    assert {"train_loss", "dev_loss", "dev_loss_shuffled", "dev_bleu4", "dev_distinct"} <= set(
        header
    )
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert {row["epoch"] for row in rows} == set(range(1, 16))
    assert len(rows[0]["references"]) == 5
    assert not list((run / "checkpoints").glob(".*"))


def test_a_folder_that_contains_a_run_is_refused(tiny, run) -> None:
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(ValueError, match=f"run_dir={run} already has a run: resume={run}"):
        train(compose(tiny), run)
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.reliability("damaged files")
def test_a_loss_that_is_not_finite_stops_the_training_and_overwrites_nothing(
    tiny, tmp_path, monkeypatch
) -> None:
    config = compose([*tiny, "callbacks.save_every=2"])
    original = cross_entropy.cross_entropy
    calls = []

    def explode(logits, targets, **options):
        calls.append(1)
        loss = original(logits, targets, **options)
        return loss * math.nan if len(calls) == 6 else loss

    monkeypatch.setattr(cross_entropy, "cross_entropy", explode)
    with pytest.raises(NonFiniteLoss, match="the loss is nan at step 5"):
        train(config, tmp_path / "run")
    kept = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert kept.lightning["global_step"] == 4
    assert all(torch.isfinite(t).all() for t in kept.weights.values() if t.is_floating_point())


@pytest.mark.reliability("damaged files")
def test_weights_that_are_not_finite_are_never_saved(tiny, run, tmp_path) -> None:
    module = LitCaptioner.load_from_checkpoint(run)
    with torch.no_grad():
        module.model.decoder.output.bias[3] = math.inf
    content = {"state_dict": module.state_dict()}
    with pytest.raises(NonFiniteLoss, match=r"model\.decoder\.output\.bias"):
        module.on_save_checkpoint(content)


def small_module(*overrides: str, total: int = 100) -> LitCaptioner:
    config = compose(
        ["encoder=test_resnet", "encoder.pretrained=false", "encoder.image_size=32", *overrides]
    )
    model = build_model(config["encoder"], config["decoder"], vocabulary_size=9)
    return build_module(config, model, None, total, None)


def parameter_groups(*overrides: str) -> list:
    module = small_module(*overrides)
    return module.optimization.parameter_groups(module.model)


def test_the_learning_rate_follows_its_formula() -> None:
    cosine = small_module("schedule.warmup=0.1", "schedule=cosine").optimization.schedule
    assert cosine.rate(0) == pytest.approx(1 / 11)
    assert cosine.rate(9) == pytest.approx(10 / 11)
    assert cosine.rate(10) == 1
    assert cosine.rate(55) == pytest.approx(0.5)
    assert cosine.rate(100) == pytest.approx(0, abs=1e-12)
    linear = small_module("schedule.warmup=0.0", "schedule=linear").optimization.schedule
    assert [linear.rate(step) for step in (0, 25, 100)] == pytest.approx([1, 0.75, 0])
    constant = small_module("schedule.warmup=0.0", "schedule=constant").optimization.schedule
    assert constant.rate(99) == 1


def test_a_trainable_encoder_has_a_learning_rate_of_its_own() -> None:
    frozen = parameter_groups()
    assert {group["lr"] for group in frozen} == {0.001}
    both = parameter_groups("encoder.trainable=true", "optimizer.encoder_lr=0.0002")
    assert {group["lr"] for group in both} == {0.001, 0.0002}
    for group in both:
        decayed = group["weight_decay"] > 0
        assert all(p.ndim > 1 for p in group["params"]) or not decayed
    everything = sum(len(group["params"]) for group in both)
    module = small_module("encoder.trainable=true")
    assert everything == len([p for p in module.model.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    "option",
    ["optimizer.lr=-1", "schedule.warmup=1.5", "objective.label_smoothing=1", "schedule=cosin"],
)
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option.partition("=")[0]):
        small_module(option)


def test_cross_entropy_ignores_positions_after_the_end() -> None:
    logits = torch.randn(2, 4, 7)
    targets = torch.tensor([[3, 2, -100, -100], [5, 6, 4, 2]])
    loss = losses.cross_entropy(logits, targets, label_smoothing=0.0)
    log_probs = torch.log_softmax(logits, -1)
    real = [(0, 0, 3), (0, 1, 2), (1, 0, 5), (1, 1, 6), (1, 2, 4), (1, 3, 2)]
    expected = -sum(log_probs[row, t, word] for row, t, word in real) / 6
    torch.testing.assert_close(loss, expected)


def test_the_loss_without_the_end_is_that_of_the_words_alone() -> None:
    decoder = ShowTell(feature_size=5, vocabulary_size=7, embedding_size=6, hidden_size=3)
    features = Features(torch.randn(2, 5))
    inputs = torch.tensor([[1, 3, 0, 0], [1, 5, 6, 4]])
    targets = torch.tensor([[3, 2, -100, -100], [5, 6, 4, 2]])
    batch = Batch(features, torch.arange(2), inputs, targets, [])
    objective = cross_entropy.CrossEntropy(None, None, label_smoothing=0.0, end_token=False)
    model = CaptioningModel(nn.Identity(), decoder.eval())
    loss = objective.outcome(model, batch, 0.0).loss
    log_probs = torch.log_softmax(decoder(features, inputs), -1)
    words = [(0, 0, 3), (1, 0, 5), (1, 1, 6), (1, 2, 4)]
    torch.testing.assert_close(loss, -sum(log_probs[place] for place in words) / 4)
    nothing = Share((), math.inf, math.inf, math.inf)  # of a rank for which no caption is left
    assert objective.outcome(model, batch._replace(share=nothing), 0.0).loss == 0


@pytest.mark.parametrize(
    ("loss", "shuffled", "distinct", "dev", "warns"),
    [
        (2.0, 2.5, 40, "ab", False),
        (2.0, 2.001, 40, "ab", True),
        (2.0, 2.5, 1, "ab", True),
        (2.0, 2.0, 1, "aa", False),  # the images are equal: a dataset without images
        (2.0, 2.0, 1, "ac", True),  # the second one was deleted
    ],
)
def test_a_model_that_ignores_the_image_gives_a_warning(
    loss, shuffled, distinct, dev, warns, tmp_path
) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    metrics = {"dev_loss": loss, "dev_loss_shuffled": shuffled, "dev_distinct": distinct}
    trainer = SimpleNamespace(
        sanity_checking=False,
        current_epoch=3,
        datamodule=SimpleNamespace(dev=[SimpleNamespace(image=str(tmp_path / n)) for n in dev]),
        callback_metrics={name: torch.tensor(float(value)) for name, value in metrics.items()},
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ImageMatters().on_validation_end(trainer, None)
    assert [str(w.message).partition(":")[0] for w in caught] == [
        "the captions hardly depend on the images"
    ] * warns


def test_batches_contain_captions_of_similar_length_and_depend_on_seed_and_epoch() -> None:
    lengths = torch.randint(4, 30, (1003,)).tolist()
    order = Bucketed(lengths, 16, seed=3, pool=10)
    batches = order.order()
    assert sorted(place for batch in batches for place in batch) == list(range(1003))
    assert len(batches) == len(order)
    spread = [max(lengths[p] for p in b) - min(lengths[p] for p in b) for b in batches]
    assert sum(spread) / len(spread) < 5  # against about 23 at random
    assert batches == Bucketed(lengths, 16, seed=3, pool=10).order()
    order.set_epoch(1)
    assert batches != order.order()
    assert batches != Bucketed(lengths, 16, seed=4, pool=10).order()


def test_bfloat16_trains_with_the_gradient_clipped(tiny, tmp_path) -> None:
    """Also with the fused optimizer, which Lightning's own clipping refuses."""
    half = ("trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.01")
    run = train(compose([*tiny, *half, "trainer.max_epochs=1"]), tmp_path / "run")
    last = checkpoint.read(checkpoint.find(run.folder, name=LAST))
    assert all(t.dtype != torch.bfloat16 for t in last.weights.values())
    squares = [
        moments["exp_avg_sq"].sum()
        for moments in last.lightning["optimizer_states"][0]["state"].values()
    ]
    steps = last.lightning["global_step"]
    assert 0 < sum(squares) < steps * 0.001 * 0.01**2 * 1.01  # (1 - β2) |g|² per step


def test_the_fused_optimizer_is_used_unless_the_loss_is_scaled() -> None:
    for precision, fused in (("32-true", True), ("bf16-mixed", True), ("16-mixed", False)):
        module = small_module(f"trainer.precision={precision}")
        assert module.configure_optimizers()["optimizer"].defaults["fused"] is fused


# Decoders that attend -----------------------------------------------------------------------------

UP_DOWN = (
    "decoder=up_down",
    "decoder.embedding_size=16",
    "decoder.hidden_size=24",
    "decoder.attention_size=8",
    "decoder.tie_weights=true",
)


def test_a_decoder_with_attention_trains_and_loads(tiny, tmp_path) -> None:
    """With tied weights, averaged weights, the penalty, bfloat16 and cached grids."""
    more = ("callbacks.ema=0.9", "objective.attention_penalty=0.5", "trainer.precision=bf16-mixed")
    others = [line for line in tiny if not line.startswith("decoder.")]
    run = train(compose([*others, *UP_DOWN, *more]), tmp_path / "run")
    model = checkpoint.read(run.best).model()
    assert model.decoder.output.weight is model.decoder.words.weight
    module = LitCaptioner.load_from_checkpoint(run.best)
    assert module.objective.attention_penalty == 0.5
    groups = module.optimization.parameter_groups(module.model)
    owners = [p for group in groups for p in group["params"]]
    assert len(owners) == len(set(owners)) == len([*model.decoder.parameters()])


def test_the_penalty_is_added_to_the_loss(tiny) -> None:
    config = compose([*[line for line in tiny if not line.startswith("decoder.")], *UP_DOWN])
    torch.manual_seed(3)
    model = build_model(config["encoder"], config["decoder"], vocabulary_size=11).eval()
    grid = torch.randn(2, 4, model.encoder.feature_size)
    targets = torch.tensor([[4, 5, 2], [6, 2, IGNORED]])
    inputs = torch.tensor([[1, 4, 5], [1, 6, 0]])
    batch = Batch(Features(grid.mean(1), grid), torch.arange(2), inputs, targets, [])
    losses = []
    for penalty in (0.0, 2.0):
        objective = {**config["objective"], "attention_penalty": penalty}
        module = build_module({**config, "objective": objective}, model, None, 1, None)
        module.log = module.log_dict = lambda *unused, **named: None
        losses.append(module.training_step(batch, 0).item())
    _, weights = model.decoder.attend(batch.source, inputs)
    sums = [weights[0].sum(0), weights[1, :2].sum(0)]
    expected = sum((1 - total).square().mean() for total in sums) / 2
    assert losses[1] - losses[0] == pytest.approx(2 * expected.item(), rel=1e-4)


def test_the_attention_penalty_needs_attention(tiny) -> None:
    config = compose(tiny)
    model = build_model(config["encoder"], config["decoder"], vocabulary_size=11)
    with pytest.raises(ValueError, match="attends, and ShowTell does not; choose 0"):
        objective = {"attention_penalty": 1.0}
        build_module({**config, "objective": objective}, model, None, 1, None)


def test_the_dev_loss_does_not_depend_on_the_number_of_captions_at_once(run) -> None:
    """For 24 images with five captions each: all at once, 7 at once, and one at once."""
    module = LitCaptioner.load_from_checkpoint(run)
    dataset = make(read_records, "data", checkpoint.read(run).config["data"])
    pictures = Pictures(module.model.encoder)
    batch = next(iter(image_loader(dataset.split("train"), module.tokenizer, pictures)))
    with torch.no_grad():
        features = module.model.encode(batch.source)
        (whole, words), *others = (
            dev_losses(module.model.decoder, features, batch, captions) for captions in (320, 7, 1)
        )
    assert words == int((batch.targets != IGNORED).sum())
    assert whole[0] < whole[1]  # with another image it is worse
    for part_losses, count in others:
        assert part_losses == pytest.approx(whole, rel=1e-5)
        assert count == words


def settings() -> dict[str, object]:
    """What a caller of `train` may have set."""
    return {
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "warnings": list(warnings.filters),
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "levels": [
            logging.getLogger(name).level for name in ("pytorch_lightning", "lightning.fabric")
        ],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "type": torch.get_default_dtype(),
    }


@pytest.mark.reliability("shared objects")
@pytest.mark.parametrize("fails", [False, True])
def test_a_training_leaves_the_settings_of_its_caller(fails, tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="of the caller")
        before = settings()
        if fails:
            monkeypatch.setattr(LitCaptioner, "training_step", lambda *arguments: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train(compose(tiny), tmp_path / "run")
        else:
            train(compose([*tiny, "trainer.max_epochs=1"]), tmp_path / "run")
        assert settings() == before
