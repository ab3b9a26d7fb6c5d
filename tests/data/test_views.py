"""Views of an image: their content, which are mirrored, and how training samples them."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.small_encoder import Small, draw

from captioner.config import compose
from captioner.data.datamodule import CaptionDataModule
from captioner.data.features import cache_features
from captioner.data.read import read_records
from captioner.data.records import Record
from captioner.data.views import View, names_a_side, other_views, sample_view
from captioner.models.encoders.libraries import build_encoder
from captioner.tokenizers import build_tokenizer
from captioner.training.train import train
from captioner.transforms import Transform, open_image


@pytest.mark.parametrize(
    ("caption", "says"),
    [
        ("A dog on the left of a bench .", True),
        ("The RIGHTMOST man waves.", True),
        ("A left-handed pitcher throws.", True),
        ("He leans leftwards", True),
        ("they run counterclockwise", True),
        ("一只狗在左边奔跑", True),
        ("右侧的男人", True),
        ("A bright cleft rock, lefthanders aside.", False),
        ("A man copyrights his work.", False),
        ("一只狗在草地上奔跑", False),
        ("", False),
    ],
)
def test_captions_that_mention_a_side_are_recognized(caption: str, says: bool) -> None:
    assert names_a_side(["Two dogs play .", caption]) is says


def test_a_caption_that_mentions_a_side_prevents_mirrored_views() -> None:
    def record(image: str, *captions: str) -> Record:
        return Record(image, image, captions, "train")

    records = [record("a", "a dog"), record("b", "a dog", "on the left"), record("a", "right")]
    records.append(record("c", "two dogs"))
    views = other_views(records, 3)
    assert [(view.image, view.number, view.mirrors) for view in views] == [
        ("a", 1, False), ("a", 2, False), ("b", 1, False), ("b", 2, False),
        ("c", 1, True), ("c", 2, True),
    ]  # fmt: skip
    assert other_views(records, 1) == []


TRANSFORM = Transform(
    size=32, crop=0.8, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


@pytest.fixture
def ramp(tmp_path: Path) -> str:
    """An image whose red is the column and whose green is the row."""
    columns, rows = np.meshgrid(np.linspace(0, 255, 200), np.linspace(0, 255, 150))
    pixels = np.stack([columns, rows, np.zeros_like(rows)], -1).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "ramp.png")
    return str(tmp_path / "ramp.png")


def test_view_0_is_the_evaluation_transform_and_view_1_its_mirror_image(ramp: str) -> None:
    usual = TRANSFORM.pixels(open_image(ramp))
    assert torch.equal(View(ramp).pixels(TRANSFORM), usual)
    assert torch.equal(View(ramp, 1, mirrors=True).pixels(TRANSFORM), usual.flip(2))
    crop = View(ramp, 1, mirrors=False).pixels(TRANSFORM)
    assert not torch.equal(crop, usual)
    assert crop[0, 0, 0] < crop[0, 0, -1]


def test_further_views_are_crops_of_half_the_area_or_more(ramp: str) -> None:
    areas, ratios, seen = [], [], set()
    for number in range(2, 60):
        for mirrors in (True, False):
            view = View(ramp, number, mirrors)
            pixels = view.pixels(TRANSFORM).float()
            assert torch.equal(pixels, View(ramp, number, mirrors).pixels(TRANSFORM).float())
            across = float(pixels[0, :, -1].mean() - pixels[0, :, 0].mean()) / 255 * 32 / 31
            down = float(pixels[1, -1].mean() - pixels[1, 0].mean()) / 255 * 32 / 31
            assert (across < 0) == (mirrors and number % 2 == 1)
            areas.append(abs(across) * down)
            ratios.append(abs(across) * 200 / (down * 150))
            seen.add((round(abs(across), 2), round(down, 2)))
    assert 0.46 < min(areas) < 0.6  # 0.5 but for the half pixels at the border
    assert 0.85 < max(areas) <= 1.04
    assert 0.72 < min(ratios) < 0.9
    assert 1.1 < max(ratios) < 1.39
    assert len(seen) > 40


def test_further_views_are_cached_next_to_view_0(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    images = draw(tmp_path / "images", 5)
    encoder = Small(network="small")
    plain = cache_features(encoder, images, tmp_path, progress=False)
    assert plain.encoded == 5
    others = [View(image, number, image != images[1]) for image in images for number in (1, 2, 3)]
    cached = cache_features(encoder, images, tmp_path, others=others, progress=False)
    assert cached.encoded == 15  # view 0 was cached before
    assert cached.size == 20 * (24 + 2 * 6)
    assert cache_features(encoder, images, tmp_path, others=others, progress=False).encoded == 0
    assert torch.equal(cached.get(images).pooled, plain.get(images).pooled)
    for number in range(4):
        views = [View(image, number, image != images[1]) for image in images]
        pixels = torch.stack([view.pixels(encoder.transform) for view in views])
        live = encoder(pixels).pooled
        features = cached.get(images, [number] * 5).pooled
        torch.testing.assert_close(features, live, rtol=2**-10, atol=1e-6)
    mixed = cached.get([images[3], images[0], images[3]], [2, 0, 1]).pooled
    for row, number in ((0, 2), (2, 1)):
        assert torch.equal(mixed[row], cached.get([images[3]], [number]).pooled[0])
    mirrored = [View(image, number, True) for image in images for number in (1, 2, 3)]
    again = cache_features(encoder, images, tmp_path, others=mirrored, progress=False)
    assert again.encoded == 2  # views 1 and 3 of the image that was not mirrored


def test_views_are_sampled_uniformly_by_seed_epoch_and_index() -> None:
    counts = Counter(sample_view(1, epoch, place, 5) for epoch in range(20) for place in range(500))
    assert set(counts) == set(range(5))
    assert all(abs(count - 2000) < 5 * 40 for count in counts.values())  # five deviations
    first = [sample_view(1, 0, place, 5) for place in range(100)]
    assert first == [sample_view(1, 0, place, 5) for place in range(100)]
    for other in ((2, 0), (1, 1)):
        assert first != [sample_view(*other, place, 5) for place in range(100)]


def test_training_samples_views_and_dev_uses_view_0(scenes: Path, tmp_path: Path) -> None:
    dataset = read_records(
        format="shapes", root=str(scenes), captions=None, images=None, holdout=0.1, encoding="utf-8"
    )
    texts = [text for record in dataset.split("train") for text in record.captions]
    tokenizer = build_tokenizer(texts, name="word", min_count=1)
    encoder = build_encoder(library="timm", network="test_resnet", pretrained=False, image_size=32)
    given = {"grid": False, "seed": 1, "batch_size": 20, "cache_folder": str(tmp_path)}
    data = CaptionDataModule(dataset, tokenizer, encoder, views=3, **given)
    usual = CaptionDataModule(dataset, tokenizer, encoder, **given)
    for module in (data, usual):
        module.setup("fit")
    loaders = (module.val_dataloader() for module in (data, usual))
    dev, expected = (next(iter(loader)).source.pooled for loader in loaders)
    assert torch.equal(dev, expected)
    assert torch.equal(data.training_features().pooled, usual.training_features().pooled)
    loader = data.train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.order.set_epoch(epoch)
        epochs.append(torch.cat([batch.source.pooled for batch in loader]))
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    cached = data.train_pictures.cached
    assert cached is not None
    loader.order.set_epoch(0)
    for places, batch in zip(loader.order.order(), loader):
        numbers = [sample_view(1, 0, place, 3) for place in places]
        images = [data.pairs.pairs[place][0].image for place in places]
        assert torch.equal(batch.source.pooled, cached.get(images, numbers).pooled)


def test_views_need_a_cache(tiny, tmp_path) -> None:
    for options in (["loader.cache=false"], ["encoder.trainable=true"]):
        with pytest.raises(ValueError, match="loader.views=2 needs the cached features"):
            train(compose([*tiny, "loader.views=2", *options]), tmp_path / "run")
    with pytest.raises(ValueError, match="loader.views=0 is not accepted"):
        train(compose([*tiny, "loader.views=0"]), tmp_path / "run")


def test_a_training_prints_the_size_of_the_features(tiny, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    config = compose([*tiny, "loader.views=2", "trainer.max_epochs=1"])
    train(config, tmp_path / "run", report=print)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("features: ")]
    assert len(lines) == 1
    expected = (
        r"32 images, 2 views of those for training, [\d.]+ MB in .*/cache/\w+; 56 encoded, in "
    )
    assert re.search(expected, lines[0])


@pytest.mark.parametrize(
    "option, most",
    [("batch_size", 100_000), ("workers", 1000), ("views", 1000), ("max_words", 10_000)],
)
def test_sizes_out_of_range_are_errors_before_the_training(option, most, tiny, tmp_path) -> None:
    message = f"loader.{option}=1000000000 is not accepted; choose {most} or less"
    with pytest.raises(ValueError, match=message):
        train(compose([*tiny, f"loader.{option}=1000000000"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
