"""Reading images, the evaluation transform compared with timm and torchvision, augmentation."""

import json
import os
import platform
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.transforms import Augmentation, Transform, open_image, stack_pixels

HALF = (0.5, 0.5, 0.5)


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, channels), dtype=np.uint8)


def coordinates(width: int, height: int) -> Image.Image:
    """An image with the column as red and the row as green."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0], -1).astype(np.uint8))


# open_image


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_keep_their_pixels(suffix: str, tmp_path: Path) -> None:
    pixels = noise(7, 5)
    path = tmp_path / f"image.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(pixels).save(path, **options)
    image = open_image(path)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)
    assert np.array_equal(np.asarray(open_image(str(path))), pixels)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / {"CMYK": "image.tiff", "YCbCr": "image.jpg"}.get(mode, "image.png")
    Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode).save(path)
    image = open_image(path)
    assert image.mode == "RGB"
    assert np.asarray(image).min() >= 254


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :8] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise": left becomes top
    path = tmp_path / "turned.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    image = np.asarray(open_image(path)).astype(int)
    assert image.shape == (24, 16, 3)
    assert image[:7].min() > 200
    assert image[9:].max() < 50
    again = open_image(Image.open(path))
    assert np.array_equal(np.asarray(again), image)


@pytest.mark.reliability("damaged files")
def test_broken_exif_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.new("RGB", (9, 6), "green").save(path, exif=b"Exif\0\0nonsense, not a TIFF header")
    assert open_image(path).size == (9, 6)


def test_16_bit_greys_keep_their_brightness(tmp_path: Path) -> None:
    greys = np.array([[0, 257, 128 * 257, 40000, 65535]], np.uint16)
    path = tmp_path / "deep.png"
    Image.fromarray(greys).save(path)
    expected = [round(value / 257) for value in greys[0].tolist()]
    assert np.asarray(open_image(path))[0, :, 1].tolist() == expected
    wide = Image.fromarray(greys.astype(np.int32))
    assert np.asarray(open_image(wide))[0, :, 2].tolist() == expected


def test_transparency_is_blended_with_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 51, 255]  # black at 0, 20 and 100 %
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert np.asarray(open_image(tmp_path / "rgba.png"))[0, :, 0].tolist() == [255, 204, 0]
    Image.new("LA", (1, 1), (9, 0)).save(tmp_path / "la.png")
    assert open_image(tmp_path / "la.png").getpixel((0, 0)) == (255, 255, 255)


def test_palette_transparency_is_blended_with_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=0)
    opened = open_image(tmp_path / "palette.png")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_the_first_frame_of_an_animation_is_used(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "moving.gif").getpixel((3, 2)) == (255, 0, 0)


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that cannot be read as images, by a part of the error message."""
    complete = folder / "whole.jpg"
    Image.fromarray(noise(64, 48)).save(complete)
    content = complete.read_bytes()
    files = {
        "not a JPEG": (folder / "text.jpg", b"these are words\n"),
        "empty": (folder / "empty.png", b""),
        "truncated": (folder / "half.jpg", content[: len(content) // 2]),
    }
    for path, data in files.values():
        path.write_bytes(data)
    Image.open(folder / "half.jpg").verify()  # finds no error
    Image.new("RGB", (4, 3)).save(folder / "image.ppm")
    Image.new("F", (4, 3)).save(folder / "float.tiff")
    (folder / "folder.jpg").mkdir()
    return {key: path for key, (path, _) in files.items()} | {
        "JPEG, PNG, WEBP, GIF, BMP.* TIFF": folder / "image.ppm",
        "floating point": folder / "float.tiff",
        "folder or device": folder / "folder.jpg",
    }


def test_a_bad_file_is_named_in_one_line(tmp_path: Path) -> None:
    for word, path in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=word) as caught:
            open_image(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="absent.jpg: no such file"):
        open_image(tmp_path / "absent.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [100, 600, 1199])  # of 1200 pixels; Pillow only warns from 600
def test_decompression_bombs_are_refused(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (40, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=f"large.png: more than {limit:,} pixels"):
        open_image(path)


# Transform


@pytest.mark.parametrize(
    ("size", "crop", "interpolation", "width", "height"),
    [
        (224, 0.875, "bicubic", 500, 375),  # a usual photo
        (224, 0.875, "bicubic", 256, 341),  # its shorter side already fits
        (240, 0.882, "bicubic", 301, 517),
        (37, 0.95, "bilinear", 61, 44),
        (96, 1.0, "bilinear", 50, 53),  # enlarged
        (30, 0.9, "bicubic", 300, 29),
    ],
)
def test_transform_equals_timms(
    size: int, crop: float, interpolation: str, width: int, height: int
) -> None:
    from timm.data import create_transform

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    image = Image.fromarray(noise(width, height))
    theirs = create_transform(
        (3, size, size), crop_pct=crop, interpolation=interpolation, mean=mean, std=std
    )
    ours = Transform(size=size, crop=crop, interpolation=interpolation, mean=mean, std=std)
    tensor = ours(image)
    assert tensor.shape == (3, size, size)
    assert tensor.dtype == torch.float32
    levels = (tensor - theirs(image)).abs() * torch.tensor(std)[:, None, None] * 255
    assert levels.max() < 2.01  # of 255: torch rounds the weights of its sums more than Pillow
    assert (levels > 0.01).float().mean() < 0.02


def test_pictures_of_224_pixels_equal_timms_to_the_bit() -> None:
    """If weights are multiples of a small power of two, none is rounded."""
    from timm.data import create_transform

    options = {"interpolation": "bicubic", "mean": HALF, "std": HALF}
    theirs = create_transform((3, 224, 224), crop_pct=0.875, **options)
    image = coordinates(224, 224)
    assert torch.equal(Transform(size=224, crop=0.875, **options)(image), theirs(image))


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/self/task").exists(),
    reason="threads are counted in /proc, and torch's kernel for bytes is of x86",
)
def test_reading_starts_no_threads_and_asks_for_none(tmp_path: Path) -> None:
    """The pixels do not depend on torch's threads, and reading an image starts none."""
    picture = tmp_path / "a.png"
    Image.fromarray(noise(640, 480)).save(picture)
    code = f"""
import os, threading, torch
from captioner.transforms import Transform, open_image
transform = Transform(size=224, crop=0.875, interpolation="bicubic", mean=[0] * 3, std=[1] * 3)
read = lambda: transform.pixels(open_image({str(picture)!r}))
torch.set_num_threads(1)
expected, before = read(), len(os.listdir("/proc/self/task"))
torch.set_num_threads(3)
found = []
thread = threading.Thread(target=lambda: found.append((read(), len(os.listdir("/proc/self/task")))))
thread.start(); thread.join()
print(torch.equal(found[0][0], expected), found[0][1] - before)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.split() == [b"True", b"1"], done.stderr


def test_transform_equals_torchvisions() -> None:
    from torchvision.transforms._presets import ImageClassification

    theirs = ImageClassification(crop_size=224, resize_size=232)
    ours = Transform(
        size=224,
        crop=224 / 232,  # 224 / (224 / 232) is a little below 232
        interpolation="bilinear",
        mean=tuple(theirs.mean),
        std=tuple(theirs.std),
    )
    image = Image.fromarray(noise(320, 280))
    levels = (ours(image) - theirs(image)).abs() * torch.tensor(theirs.std)[:, None, None] * 255
    assert levels.max() < 2.01
    assert (levels > 0.01).float().mean() < 0.02


def test_a_strip_is_transformed_like_its_middle() -> None:
    transform = Transform(size=24, crop=0.75, interpolation="bilinear", mean=HALF, std=HALF)
    strip = Image.fromarray(noise(2, 4000))
    middle = strip.crop((0, 1984, 2, 2016))  # 16 times as high as wide
    assert torch.equal(transform(strip), transform(middle))


def test_transform_takes_any_mode() -> None:
    transform = Transform(size=8, crop=1.0, interpolation="bilinear", mean=HALF, std=HALF)
    assert torch.equal(transform(Image.new("RGBA", (9, 11), (0, 0, 0, 0))), torch.ones(3, 8, 8))


def test_transform_round_trips_through_json() -> None:
    transform = Transform(size=31, crop=0.9, interpolation="bicubic", mean=HALF, std=(0.1, 0.2, 1))
    again = Transform.from_dict(json.loads(json.dumps(transform.as_dict())))
    assert again == transform
    assert hash(again) == hash(transform)
    with pytest.raises(ValueError, match="crop"):
        Transform.from_dict({"size": 3})


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 0), ("crop", 1.1), ("crop", 0.0), ("interpolation", "area"), ("std", (1, 0, 1))],
)
def test_transform_names_the_bad_value(field: str, value: object) -> None:
    good: dict[str, Any] = {
        "size": 8,
        "crop": 0.5,
        "interpolation": "bilinear",
        "mean": HALF,
        "std": HALF,
    }
    with pytest.raises(ValueError, match=f"{field}="):
        Transform(**{**good, field: value})


# Bytes until the model


@pytest.mark.parametrize("size", [(90, 70), (61, 203), (40, 40)])
def test_normalise_batch_equals_normalise_to_the_bit(size: tuple[int, int]) -> None:
    transform = Transform(
        size=31, crop=0.8, interpolation="bicubic", mean=(0.48, 0.45, 0.4), std=(0.2, 0.3, 0.1)
    )
    images = [Image.fromarray(noise(*size)), coordinates(*size)]
    pixels = stack_pixels([transform.pixels(image) for image in images])
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    expected = torch.stack([transform(image) for image in images])
    assert torch.equal(transform.normalise_batch(pixels), expected)


# Reduced decoding of large JPEGs


def photograph(path: Path, width: int, height: int, **options: Any) -> Path:
    """A smooth picture with edges, similar to a photograph, with different corners."""
    rows, columns = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    red = 127 + 120 * np.sin(9 * columns + 14 * rows * columns)
    green = np.where((columns - 0.3) ** 2 + (rows - 0.6) ** 2 < 0.04, 230, 60 + 150 * rows)
    pixels = np.stack([red, green, 255 * columns], -1).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=92, **options)
    return path


SQUARE = Transform(size=56, crop=0.875, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((600, 191), (600, 191)),  # half of it would be below 1.5 x 64
        ((600, 192), (300, 96)),
        ((513, 1101), (128, 275)),
        ((3000, 2000), (375, 250)),
    ],
)
def test_large_jpegs_are_decoded_at_reduced_size(
    size: tuple[int, int], expected: tuple[int, int], tmp_path: Path
) -> None:
    path = photograph(tmp_path / "a.jpg", *size)
    reduced, full = open_image(path, shorter=SQUARE.shorter), open_image(path)
    assert (SQUARE.shorter, full.size) == (64, size)
    assert reduced.size == expected
    apart = (SQUARE.pixels(reduced).int() - SQUARE.pixels(full).int()).abs().float()
    assert apart.max() <= (0 if expected == size else 48)  # at an edge, where sides are rounded
    assert apart.mean() < 1


def test_reduced_decoding_keeps_the_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = photograph(tmp_path / "turned.jpg", 904, 600, exif=exif)
    reduced, full = open_image(path, shorter=64), open_image(path)
    assert (reduced.size, full.size) == ((150, 226), (600, 904))
    apart = (SQUARE.pixels(reduced).int() - SQUARE.pixels(full).int()).abs().float()
    assert apart.mean() < 1


def test_only_jpeg_files_are_reduced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(400, 300)).save(path)
    assert open_image(path, shorter=20).size == (400, 300)
    with Image.open(photograph(tmp_path / "a.jpg", 400, 300)) as lazy:
        assert open_image(lazy, shorter=20).size == (400, 300)


# Augmentation

PLAIN = Transform(
    size=40, crop=1.0, interpolation="bilinear", mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255)
)


def test_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    image = Image.fromarray(noise(90, 70))
    triples = [(s, e, i) for s in (3, 4) for e in (0, 1) for i in (0, 1, 11)]
    first = {t: Augmentation(seed=t[0])(image, PLAIN, t[1], t[2]) for t in triples}
    random.seed(1)
    torch.manual_seed(1)
    for seed, epoch, index in reversed(triples):
        again = Augmentation(seed=seed)(image, PLAIN, epoch, index)
        assert torch.equal(again, first[seed, epoch, index])
    for a in triples:
        assert not any(torch.equal(first[a], first[b]) for b in triples if b != a)


def test_augmentation_is_the_same_in_any_process_and_version() -> None:
    pixels = Augmentation(seed=7)(coordinates(120, 100), PLAIN, 2, 5)  # [3, 40, 40]
    corners = [pixels[c, y, x].item() for c, y, x in ((0, 0, 0), (0, 0, -1), (1, 0, 0), (1, -1, 0))]
    assert corners == pytest.approx([98, 20, 3, 98], abs=1)


def test_crops_follow_scale_ratio_and_flip() -> None:
    augmentation = Augmentation(seed=1, scale=(0.3, 0.7), ratio=(0.5, 1.5), flip=0.25)
    shares, ratios, mirrored, lefts = [], [], 0, []
    for index in range(400):
        pixels = augmentation(coordinates(200, 160), PLAIN, 0, index)
        columns, rows = pixels[0, 20], pixels[1, :, 20]  # both are linear, with 39 steps
        across = (columns[30] - columns[10]).item() * 40 / 20
        down = (rows[30] - rows[10]).item() * 40 / 20
        mirrored += across < 0
        shares.append(abs(across) * down / (200 * 160))
        ratios.append(abs(across) / down)
        lefts.append(min(columns[0].item(), columns[-1].item()) / (200 - abs(across)))
    assert 0.28 < min(shares) < 0.33
    assert 0.65 < max(shares) < 0.73
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert 0.48 < min(ratios) < 0.6
    assert 1.4 < max(ratios) < 1.55
    assert mirrored / 400 == pytest.approx(0.25, abs=0.07)
    assert np.mean(lefts) == pytest.approx(0.5, abs=0.06)


def test_a_strip_without_a_fitting_crop_gives_its_middle() -> None:
    image = coordinates(3, 250)
    pixels = Augmentation(seed=0, scale=(0.9, 1.0), flip=0.0)(image, PLAIN, 0, 0)
    assert pixels.shape == (3, 40, 40)
    assert pixels[1].mean().item() == pytest.approx(124.5, abs=1)


@pytest.mark.parametrize(
    "options", [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"ratio": (0, 1)}, {"flip": 1.5}]
)
def test_augmentation_names_the_bad_value(options: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        Augmentation(seed=0, **options)
