"""Staged fine-tuning: which parameters are trained from which step, and exact resuming."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import captioner
from captioner.checkpoints import checkpoint
from captioner.config import compose
from captioner.data import loaders
from captioner.models.captioning import build_model
from captioner.models.encoders.encoder import AT_ONCE, Encoder
from captioner.models.encoders.libraries import build_encoder
from captioner.models.encoders.stages import stages
from captioner.runs import LAST
from captioner.training.module import LitCaptioner, build_module
from captioner.training.train import train


def small(library: str, network: str, **options: Any) -> Encoder:
    return build_encoder(library=library, network=network, pretrained=False, **options)


def named(network: nn.Module, parameters: Any) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, p in network.named_parameters() if id(p) in wanted}


# Stages


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet", "test_vit"])
def test_stages_equal_those_of_timm(network: str) -> None:
    import timm
    from timm.models._manipulate import group_parameters

    whole = timm.create_model(network, num_classes=0)
    theirs = group_parameters(whole, whole.group_matcher(coarse=True))
    expected = [set(names) for _, names in sorted(theirs.items())]
    ours = [named(whole, stage) for stage in stages(whole)]
    if network == "test_efficientnet":  # timm counts the last convolution as part of the last block
        ours[-2:] = [ours[-2] | ours[-1]]
    assert ours == expected


@pytest.mark.parametrize(
    ("library", "network", "count", "last"),
    [
        ("bundled", "efficientnet_lite0", 9, "conv_head.weight"),
        ("torchvision", "resnet18", 5, "layer4.0.conv1.weight"),
        ("torchvision", "mobilenet_v3_small", 13, "features.12.0.weight"),
    ],
)
def test_the_stages_of_known_networks(library: str, network: str, count: int, last: str) -> None:
    encoder = small(library, network, image_size=32)
    parts = stages(encoder.backbone)
    assert len(parts) == count
    assert sum(len(part) for part in parts) == len(list(encoder.backbone.parameters()))
    assert last in named(encoder.backbone, encoder.last_stages(1))


def test_stages_after_the_features_are_not_counted() -> None:
    encoder = small("bundled", "efficientnet_lite0", image_size=64, stage=3)
    names = named(encoder.backbone, encoder.last_stages(2))
    assert {name[:8] for name in names} == {"blocks.3", "blocks.4"}
    assert len(encoder.last_stages()) < len(list(encoder.backbone.parameters()))
    with pytest.raises(ValueError, match="unfreeze_stages=7 .*has 6: choose 1 to 6, or null"):
        encoder.last_stages(7)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


# An unfrozen encoder


def test_only_the_unfrozen_stages_are_trained_and_statistics_stay() -> None:
    encoder = small("timm", "test_resnet", image_size=32)
    encoder.unfreeze(encoder.last_stages(2))
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    learned = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.01, fused=True)
    images = torch.randn(3, 3, 32, 32) + 2
    with torch.no_grad():
        first = encoder(images).pooled
    encoder(images).pooled.square().sum().backward()
    optimizer.step()
    changed = {n for n, value in encoder.state_dict().items() if not torch.equal(value, before[n])}
    assert all("layer3" in name or "layer4" in name for name in changed)
    assert any("bn2.weight" in name for name in changed)  # scale and shift are trained
    assert not any("running" in name or "num_batches" in name for name in changed)
    with torch.no_grad():  # a loaded checkpoint computes with a copy with folded norms
        assert encoder._running()[0] is not encoder.backbone
        expected = encoder.extract(encoder.backbone, images).pooled
        torch.testing.assert_close(encoder(images).pooled, expected, rtol=1e-3, atol=1e-4)
        assert (encoder(images).pooled - first).norm() / first.norm() > 0.01


def test_gradient_checkpointing_gives_the_same_gradients_for_less_memory() -> None:
    images = torch.randn(2 * AT_ONCE + 3, 3, 32, 32)
    gradients, kept = [], []
    for again in (False, True):
        torch.manual_seed(4)
        encoder = small("timm", "test_resnet", image_size=32, gradient_checkpointing=again)
        encoder.unfreeze(encoder.last_stages())
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = encoder(images)
        (features.pooled.square().sum() + features.grid.sin().sum()).backward()
        gradients.append([parameter.grad for parameter in encoder.backbone.parameters()])
        kept.append(sum(sizes))
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(recomputed, plain, rtol=1e-3, atol=1e-3)
    assert kept[1] < kept[0] / 10
    with pytest.raises(ValueError, match="encoder.gradient_checkpointing=true"):
        small("timm", "test_resnet", trainable=True, gradient_checkpointing=True)


# A run


def tuned(tiny: tuple[str, ...], *overrides: str) -> dict[str, Any]:
    options = ("training.unfreeze_at=1", "training.unfreeze_stages=2", "optimizer.encoder_lr=0.01")
    more = ("trainer.max_epochs=3", "loader.augment=true", "callbacks.ema=0.5")
    return compose([*tiny, *options, *more, "callbacks.patience=0", *overrides])


def last(folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.read(checkpoint.find(folder, name=LAST))


def moments(folder: Path) -> list[torch.Tensor]:
    state = last(folder).lightning["optimizer_states"][0]["state"]
    return [t for m in state.values() for t in m.values() if isinstance(t, torch.Tensor)]


# 24 images with five captions in batches of 20: an epoch has 6 steps; the second reads images.
@pytest.mark.parametrize(
    ("workers", "views", "crash", "saved"),
    [(0, 3, 4, 3), (0, 1, 6, 6), (0, 3, 8, 6), (1, 1, 11, 9)],
)
def test_a_run_resumes_exactly_before_and_after_unfreezing(
    tiny, tmp_path, cut_short, workers: int, views: int, crash: int, saved: int
) -> None:
    config = tuned(
        tiny, f"loader.workers={workers}", f"loader.views={views}", "callbacks.save_every=3"
    )
    train(config, tmp_path / "whole")
    path = cut_short(config, tmp_path / "cut", crash)
    assert last(tmp_path / "cut").lightning["global_step"] == saved
    train(config, tmp_path / "cut", resume=path)
    whole, cut = last(tmp_path / "whole"), last(tmp_path / "cut")
    assert all(torch.equal(whole.weights[name], cut.weights[name]) for name in whole.weights)
    pairs = list(zip(moments(tmp_path / "whole"), moments(tmp_path / "cut"), strict=True))
    assert all(torch.equal(one, other) for one, other in pairs)
    averages = [one.lightning["callbacks"]["WeightAverage"]["average"] for one in (whole, cut)]
    assert averages[0].keys() == averages[1].keys()
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])
    assert checkpoint.read(tmp_path / "whole").scores == checkpoint.read(tmp_path / "cut").scores


def test_cached_features_are_read_before_unfreezing_and_images_after_it(
    tiny, tmp_path, monkeypatch, capsys
) -> None:
    read: list[int] = []
    weights: list[dict[str, torch.Tensor]] = []
    step, opened = LitCaptioner.training_step, loaders.open_image

    def stepping(self, batch, batch_index):
        assert isinstance(batch.source, torch.Tensor) == (self.current_epoch > 0)
        if batch_index == 0:
            weights.append({n: t.clone() for n, t in self.model.encoder.state_dict().items()})
        return step(self, batch, batch_index)

    def opening(image, **options):
        read.append(len(weights))
        return opened(image, **options)

    monkeypatch.setattr(LitCaptioner, "training_step", stepping)
    monkeypatch.setattr(loaders, "open_image", opening)
    run = train(tuned(tiny), tmp_path / "run", report=print)
    assert min(read) == 1  # the first live batch is read after the whole first epoch
    assert len(read) == 2 * (24 * 5 + 8)  # each caption's image, and dev, in two epochs
    first, second, third = weights
    assert all(torch.equal(first[name], second[name]) for name in first)
    changed = {name for name in first if not torch.equal(second[name], third[name])}
    assert changed
    assert all("layer3" in name or "layer4" in name for name in changed)
    assert "million parameters of the encoder are trained" in capsys.readouterr().out

    # The checkpoint contains the validated encoder: the average of its weights.
    best, end = checkpoint.read(run.best), last(run.folder)
    name = "encoder.backbone.layer4.0.conv2.weight"
    average = end.lightning["callbacks"]["WeightAverage"]["average"]
    assert f"model.{name}" in average
    assert not torch.equal(end.weights[name], first[name.removeprefix("encoder.")])
    loaded = captioner.load(run.folder).model.encoder
    assert torch.equal(loaded.get_parameter(name.removeprefix("encoder.")), best.weights[name])


def module(*overrides: str, total: int = 100) -> LitCaptioner:
    config = compose(
        ["encoder=test_resnet", "encoder.pretrained=false", "encoder.image_size=32", *overrides]
    )
    model = build_model(config["encoder"], config["decoder"], vocabulary_size=9)
    return build_module(config, model, None, total, None)


def test_the_unfrozen_parameters_have_their_own_warm_up() -> None:
    late = module(
        "training.unfreeze_at=0.4", "trainer.max_epochs=10", "schedule.warmup=0.1", total=100
    )
    assert late.optimization.unfreezing.epoch == 4
    configured = late.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append({group["initial_lr"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    encoder = [rate[late.optimization.encoder_lr] / late.optimization.encoder_lr for rate in rates]
    decoder = [rate[late.optimization.lr] / late.optimization.lr for rate in rates]
    assert encoder[:40] == [0.0] * 40
    assert encoder[40:46] == pytest.approx([(n + 1) / 7 for n in range(6)])  # a tenth of 60 steps
    assert encoder[46] == pytest.approx(1)
    assert encoder[73] == pytest.approx(0.5 * (1 + math.cos(math.pi * 27 / 54)))
    frozen = module("schedule.warmup=0.1")
    assert decoder == pytest.approx(
        [frozen.optimization.schedule.rate(step) for step in range(100)]
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.unfreeze_at=15"], "unfreeze_at=15 .*trainer.max_epochs=15"),
        (["training.unfreeze_at=1.5"], "unfreeze_at=1.5 .*a fraction of them in"),
        (["training.unfreeze_at=-1"], "unfreeze_at=-1 is not accepted"),
        (["training.unfreeze_at=2", "encoder.trainable=true"], "is for a frozen encoder"),
        (["training.unfreeze_at=2", "training.unfreeze_stages=0"], "unfreeze_stages=0 .*1 to 5"),
    ],
)
def test_invalid_unfreezing_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        module("trainer.max_epochs=15", *overrides)
    assert "\n" not in str(error.value)
