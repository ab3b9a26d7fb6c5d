"""The feature cache: equal to computed features, also after a kill, damage or a second process."""

import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from support.small_encoder import Small, draw
from torch import Tensor, nn

from captioner.data import feature_store, views
from captioner.data.features import CachedFeatures, cache_features, fingerprint
from captioner.models.decoders.standardize import Standardize, whitening_of
from captioner.models.decoders.up_down import UpDown
from captioner.transforms import Transform, open_image

SIDE, SIZE, POSITIONS = 12, 6, 4  # S, D, P


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    (tmp_path / "images").mkdir()
    return draw(tmp_path / "images", 11)


def fill(folder: Path, images: list[str], **options: Any) -> tuple[CachedFeatures, int]:
    """Return the cache, and the number of images that had to be encoded."""
    encoder = Small(network="small")
    cached = cache_features(encoder, images, folder, progress=False, **options)
    encoded = sum(encoder.encoded) - bool(options.get("grid"))  # one for the count of positions
    return cached, encoded


def check(cached: CachedFeatures, images: list[str]) -> None:
    encoder = Small(network="small")
    live = encoder(torch.stack([encoder.transform(open_image(image)) for image in images]))
    features = cached.get(images)
    assert features.pooled.dtype == torch.float32
    torch.testing.assert_close(features.pooled, live.pooled, rtol=2**-10, atol=1e-6)
    if cached.positions:
        assert features.grid is not None
        torch.testing.assert_close(features.grid, live.grid, rtol=2**-10, atol=1e-6)
    else:
        assert features.grid is None


def folder_of(folder: Path) -> Path:
    (parent,) = (path.parent for path in folder.glob("*/index"))
    return parent


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_cached_features_equal_computed_ones_for_any_batch_size(
    grid: bool, batch_size: int, images: list[str], tmp_path: Path
) -> None:
    cached, encoded = fill(tmp_path, images, grid=grid, batch_size=batch_size)
    assert encoded == len(cached) == 11
    assert cached.feature_size == SIZE
    check(cached, images)
    check(cached, [images[i] for i in (7, 0, 7, 10, 2)])
    assert images[3] in cached
    assert "other.png" not in cached
    assert cached.get([]).pooled.shape == (0, SIZE)
    with pytest.raises(ValueError, match=r"other.png: not among the cached images"):
        cached.get([images[0], "other.png"])


def test_only_missing_images_are_encoded(images: list[str], tmp_path: Path) -> None:
    assert fill(tmp_path, images[:4] * 2)[1] == 4
    assert fill(tmp_path, images[2:9])[1] == 5
    cached, encoded = fill(tmp_path, images[::-1])
    assert encoded == 2
    check(cached, images)
    cached, encoded = fill(tmp_path, images)
    assert encoded == 0
    check(cached, images)
    assert fill(tmp_path, [])[1] == 0


def test_a_changed_image_is_encoded_again(images: list[str], tmp_path: Path) -> None:
    fill(tmp_path, images)
    times = os.stat(images[5])
    os.replace(images[6], images[5])
    os.utime(images[5], ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    cached, encoded = fill(tmp_path, images[:6])
    assert encoded == 1
    check(cached, images[:6])


def test_grids_are_not_read_from_a_cache_without_grids(images: list[str], tmp_path: Path) -> None:
    fill(tmp_path, images)
    cached, encoded = fill(tmp_path, images, grid=True)
    assert encoded == 11
    check(cached, images)


def test_pooled_features_are_read_from_a_cache_with_grids(
    images: list[str], tmp_path: Path
) -> None:
    fill(tmp_path, images[:8], grid=True)
    cached, encoded = fill(tmp_path, images[:8])
    assert encoded == 0
    check(cached, images[:8])
    assert cached.get(images[:1]).grid is None
    cached, encoded = fill(tmp_path, images)  # not all are there: a cache of its own
    assert encoded == 11
    check(cached, images)


@pytest.mark.reliability("interrupted")
@pytest.mark.parametrize("name", ["index", "pooled.f16", "grid.f16", "sums-pooled", "sums-grid"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.47, 0.63, 0.999])
def test_the_cache_is_repaired_after_a_kill_at_any_byte(
    name: str, kept: float, images: list[str], tmp_path: Path
) -> None:
    fill(tmp_path, images, grid=True)
    file = folder_of(tmp_path) / name
    os.truncate(file, int(file.stat().st_size * kept))
    cached, encoded = fill(tmp_path, images, grid=True)
    assert encoded == (0 if name.startswith("sums") else 11 - int(11 * kept))
    check(cached, images)
    assert fill(tmp_path, images, grid=True)[1] == 0


@pytest.mark.reliability("interrupted")
def test_an_interrupt_keeps_the_encoded_batches(images: list[str], tmp_path: Path) -> None:
    encoder = Small(network="small")
    encoder.register_forward_pre_hook(interrupt_at(views.View(images[6]).pixels(encoder.transform)))
    with pytest.raises(KeyboardInterrupt):
        cache_features(encoder, images, tmp_path, batch_size=3, progress=False)
    cached, encoded = fill(tmp_path, images)
    assert encoded == 11 - 6
    check(cached, images)


def interrupt_at(pixels: Tensor) -> Callable[..., None]:
    """Interrupt the batch that begins with an image; batches are encoded in no fixed order."""

    def hook(_: nn.Module, batch: tuple[Tensor]) -> None:
        if batch[0][0].equal(pixels):
            raise KeyboardInterrupt

    return hook


def swap(data: bytes) -> bytes:
    return data[24:48] + data[:24] + data[48:]


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize(
    "name",
    ["index", "pooled.f16", "grid.f16", "grid-*.f16", "sums-pooled", "sums-grid", "sums-grid-*"],
)
@pytest.mark.parametrize(("seed", "flips"), [(0, 40), pytest.param(1, 160, marks=pytest.mark.slow)])
def test_a_flipped_bit_never_gives_other_features(
    name: str,
    seed: int,
    flips: int,
    images: list[str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    def read() -> list[Tensor]:
        cached, _ = fill(tmp_path / "cache", images, grid=True)
        grids = [part.get(images).grid for part in (cached, cached.components(whitening))]
        return [cached.get(images).pooled, *grids]

    record_property("cases", flips)
    whitening = Standardize(SIZE, 2)
    cached, _ = fill(tmp_path / "cache", images, grid=True)
    whitening.fit(cached.get(images).grid.flatten(0, 1))
    expected, folder, random = read(), folder_of(tmp_path / "cache"), Random(seed)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (file,) = folder.glob(name)
    faults = []
    for _ in range(flips):
        data = bytearray(before[file])
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        file.write_bytes(data)
        try:
            if not all(map(torch.equal, read(), expected)):
                faults.append("other features")
        except ValueError as error:
            if "damaged (row" not in str(error) or "\n" in str(error):
                faults.append(str(error))
        for path in folder.iterdir():
            path.write_bytes(before[path]) if path in before else path.unlink()
    assert faults == []


def test_a_cache_of_an_earlier_version_gets_checksums_when_it_grows(
    images: list[str], tmp_path: Path
) -> None:
    fill(tmp_path, images[:8], grid=True)
    files = sorted(folder_of(tmp_path).glob("sums-*"))
    first = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    cached, encoded = fill(tmp_path, images[:8], grid=True)
    assert encoded == 0 and not any(file.exists() for file in files)
    check(cached, images[:8])
    check(fill(tmp_path, images, grid=True)[0], images)
    assert [file.read_bytes()[: 4 * 8] for file in files] == first
    assert {file.stat().st_size for file in files} == {4 * 11}


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "noise": lambda data: os.urandom(len(data)),
    "zeros": lambda data: bytes(len(data)),
    "one bit": lambda data: data[:100] + bytes([data[100] ^ 4]) + data[101:],
    "a lost entry": lambda data: data[:48] + data[72:],
    "two swapped": swap,
    "longer": lambda data: data + os.urandom(53),
}


def test_components_equal_whitened_grids_and_are_computed_once(
    images: list[str], tmp_path: Path
) -> None:
    others = draw(tmp_path, 5, first=20)
    fill(tmp_path, [others[0], images[7], others[1], images[2], *others[2:]], grid=True)
    cached, _ = fill(tmp_path, images, grid=True)  # in rows between and after those of others
    whole = cached.get(images)
    assert whole.grid is not None
    whitening = Standardize(SIZE, 2)
    whitening.fit(whole.grid.flatten(0, 1))
    left = folder_of(tmp_path) / ".0123.tmp"
    left.write_bytes(b"by a killed process")
    reduced = cached.components(whitening, progress=False)
    components = reduced.get(images)
    torch.testing.assert_close(components.grid, whitening(whole.grid), rtol=2**-10, atol=1e-3)
    assert components.grid is not None and components.grid.shape == (11, POSITIONS, 2)
    assert torch.equal(components.pooled, whole.pooled)
    assert reduced.size < cached.size
    assert torch.equal(pickle.loads(pickle.dumps(reduced)).get(images).grid, components.grid)
    (file,) = folder_of(tmp_path).glob("grid-*")
    assert file.stat().st_size == 2 * 11 * POSITIONS * 2  # bytes; nothing of the others
    assert not left.exists()

    def again(cached: CachedFeatures) -> list[Path]:
        cached.components(whitening, progress=False)
        return sorted(folder_of(tmp_path).glob("grid-*"))

    before = file.stat().st_mtime_ns
    assert again(cached) == [file] and file.stat().st_mtime_ns == before
    more = [*images, *draw(tmp_path / "images", 3, first=11)]
    cached, encoded = fill(tmp_path, more, grid=True)
    assert encoded == 3 and len(again(cached)) == 2
    with pytest.raises(ValueError, match="has no grids"):
        fill(tmp_path / "other", images)[0].components(whitening)


def test_a_decoder_gives_equal_logits_for_components_and_grid(
    images: list[str], tmp_path: Path
) -> None:
    cached, _ = fill(tmp_path, images, grid=True)
    decoder = UpDown(
        vocabulary_size=9, feature_size=SIZE, components=3, embedding_size=4, hidden_size=4
    )
    decoder.fit(cached.get(images))
    whitening = whitening_of(decoder)
    assert whitening is decoder.positions.standardise
    inputs = torch.tensor([[1, 5, 6], [1, 4, 2]])
    reduced = cached.components(whitening, progress=False)
    decoder.eval()
    actual, expected = (decoder(c.get(images[:2]), inputs) for c in (reduced, cached))
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("components", [None, 4])
def test_grids_are_reduced_only_to_half_their_width_or_less(components: int | None) -> None:
    decoder = UpDown(
        vocabulary_size=9, feature_size=SIZE, components=components, embedding_size=4, hidden_size=4
    )
    assert whitening_of(decoder) is None


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_index_never_gives_wrong_features(
    damage: str, images: list[str], tmp_path: Path
) -> None:
    fill(tmp_path, images)
    file = folder_of(tmp_path) / "index"
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    cached, _ = fill(tmp_path, images)
    check(cached, images)
    cached, encoded = fill(tmp_path, images)
    assert encoded == 0
    check(cached, images)


@pytest.mark.reliability("damaged files")
def test_broken_images_are_listed_after_the_others_are_cached(
    images: list[str], tmp_path: Path
) -> None:
    Path(images[1]).write_bytes(b"no image")
    Path(images[8]).write_bytes(Path(images[8]).read_bytes()[:300])
    with pytest.raises(ValueError, match="3 images cannot be read") as caught:
        fill(tmp_path, [*images, "absent.png"], batch_size=4)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert all(sum(name in line for line in lines) == 1 for name in (images[1], images[8]))
    assert sum("absent.png: no such file" in line for line in lines) == 1
    readable = [image for image in images if image not in (images[1], images[8])]
    cached, encoded = fill(tmp_path, readable)
    assert encoded == 0
    check(cached, readable)


def test_the_fingerprint_depends_on_network_weights_and_transform() -> None:
    first = fingerprint(Small(network="small"))
    assert fingerprint(Small(network="small").to(memory_format=torch.channels_last)) == first  # type: ignore
    assert fingerprint(Small(network="other")) != first
    changed = Small(network="small")
    with torch.no_grad():
        changed.get_parameter("backbone.bias")[3] += 1e-6
    assert fingerprint(changed) != first
    moved = Small(network="small")
    moved.transform = Transform(**{**moved.transform.as_dict(), "crop": 0.8})
    assert fingerprint(moved) != first


def test_images_are_read_a_few_batches_ahead(
    images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    ahead: list[int] = []

    def reading(path: str, **options: Any) -> Image.Image:
        read.append(path)
        return open_image(path, **options)

    monkeypatch.setattr(views, "open_image", reading)
    monkeypatch.setattr("captioner.data.pipeline.CORES", 1)
    encoder = Small(network="small")
    encoder.register_forward_pre_hook(lambda *_: ahead.append(len(read)))
    cache_features(encoder, images, tmp_path, batch_size=2, progress=False)
    # Two batches before each of the two that wait or are encoded, one of which is taken meanwhile.
    assert all(count <= 5 * 2 + 2 * number for number, count in enumerate(ahead))


@pytest.mark.reliability("shared objects")
def test_the_pickle_contains_no_features(images: list[str], tmp_path: Path) -> None:
    cached, _ = fill(tmp_path, images, grid=True)
    check(cached, images)
    sent = pickle.dumps(cached)
    assert len(sent) < 2000
    check(pickle.loads(sent), images)


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize("scale", [1e-7, 1e6, float("nan")])
def test_features_that_do_not_fit_into_float16_are_refused(
    scale: float, images: list[str], tmp_path: Path
) -> None:
    encoder = Small(network="small")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(scale)
    with pytest.raises(ValueError, match="do not fit into the cache's float16"):
        cache_features(encoder, images, tmp_path, progress=False)


@pytest.mark.reliability("disks")
def test_too_little_disk_space_is_an_error_before_encoding(
    images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: usage(11 * (24 + 12) - 1))
    with pytest.raises(ValueError, match="11 images need"):
        fill(tmp_path, images)
    assert fill(tmp_path, images[:10])[1] == 10


def test_a_trainable_encoder_is_cached_in_eval_mode(images: list[str], tmp_path: Path) -> None:
    encoder = Small(network="small", pretrained=False, trainable=True)
    encoder.backbone = nn.Sequential(encoder.backbone, nn.BatchNorm2d(SIZE))
    encoder.train()
    cached = cache_features(encoder, images, tmp_path, grid=True, progress=False)
    assert encoder.training
    assert encoder.backbone[1].num_batches_tracked == 0
    encoder.eval()
    live = encoder(torch.stack([encoder.transform(open_image(image)) for image in images]))
    torch.testing.assert_close(cached.get(images).pooled, live.pooled, rtol=2**-10, atol=1e-6)


@pytest.mark.reliability("processes")
def test_two_threads_encode_each_image_once(images: list[str], tmp_path: Path) -> None:
    counts: list[int] = []
    both = threading.Barrier(2)

    def work() -> None:
        both.wait()
        cached, encoded = fill(tmp_path, images, batch_size=1)
        check(cached, images)
        counts.append(encoded)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 11


@pytest.mark.reliability("processes")
def test_a_second_process_finishes_the_work_of_a_killed_one(
    images: list[str], tmp_path: Path
) -> None:
    """One process is killed while it writes; a second, which waits for it, finishes the work."""
    script = textwrap.dedent(
        """
        import sys, time
        import captioner
        sys.path.insert(0, sys.argv[1])
        from support.small_encoder import Small
        from captioner.data.features import cache_features
        encoder = Small(network="small")
        encoder.register_forward_pre_hook(lambda *_: time.sleep(float(sys.argv[3])))
        cache_features(encoder, sys.argv[4:], sys.argv[2], batch_size=2, progress=False)
        print(sum(encoder.encoded))
        """
    )

    def start(pause: float) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                script,
                str(Path(__file__).parents[1]),
                str(tmp_path),
                str(pause),
            ]
            + images,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    slow = start(pause=3600)  # it is killed before it wakes
    try:
        while not list(tmp_path.glob("*/lock")) and slow.poll() is None:
            time.sleep(0.05)
        quick = start(pause=0)
        assert quick.stderr is not None
        assert any("waiting for another process" in line for line in quick.stderr)
    finally:
        slow.kill()
        slow.communicate()
    assert quick.communicate()[0].strip() == "11"
    check(fill(tmp_path, images)[0], images)
