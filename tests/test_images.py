"""Kinds of input images."""

import io
import sys
import tracemalloc
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from captioner import images, limits
from captioner.images import open_image, unreadable_suffixes

PIXELS = numpy.random.default_rng(0).integers(0, 256, (7, 9, 3), numpy.uint8)
"""A picture of 9 x 7."""


def png(pixels: numpy.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Endless(io.RawIOBase):
    """A device or connection that never ends."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return len(buffer)


@pytest.mark.reliability("limits")
def test_a_file_without_an_end_is_not_read_into_memory(monkeypatch) -> None:
    monkeypatch.setattr(limits, "IMAGE_BYTES", 3 * 2**20)
    tracemalloc.start()
    for file in (Endless(), io.BufferedReader(Endless())):
        with pytest.raises(ValueError, match="has more than 3 MiB, which no image has") as error:
            open_image(file)
        assert "\n" not in str(error.value)
    assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
    tracemalloc.stop()


def test_the_limit_is_above_every_image_that_pillow_accepts() -> None:
    assert 8 * Image.MAX_IMAGE_PIXELS < limits.IMAGE_BYTES


class Unseekable(io.BytesIO):
    """A file as a download gives it."""

    def seekable(self) -> bool:
        return False


def kinds(folder: Path) -> dict[str, object]:
    path = folder / "photo.png"
    path.write_bytes(png(PIXELS))
    written = io.BytesIO()
    written.write(png(PIXELS))  # and not rewound, as after Image.save
    return {
        "path": path,
        "string": str(path),
        "bytes": png(PIXELS),
        "bytearray": bytearray(png(PIXELS)),
        "memoryview": memoryview(png(PIXELS)),
        "BytesIO": written,
        "file": path.open("rb"),
        "stream": Unseekable(png(PIXELS)),
        "PIL": Image.fromarray(PIXELS),
        "array": PIXELS,
        "strided array": PIXELS[:, ::-1][:, ::-1],
        "tensor": torch.from_numpy(PIXELS).permute(2, 0, 1),
        "floats": torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255,
    }


def test_every_kind_of_input_gives_the_same_pixels(tmp_path) -> None:
    for kind, image in kinds(tmp_path).items():
        assert numpy.array_equal(numpy.asarray(open_image(image)), PIXELS), kind


def test_an_open_file_may_be_used_twice(tmp_path) -> None:
    file = io.BytesIO(png(PIXELS))
    assert open_image(file).tobytes() == open_image(file).tobytes()


@pytest.mark.parametrize(
    ("pixels", "color"),
    [
        (numpy.full((7, 9), 30, numpy.uint8), (30, 30, 30)),
        (numpy.full((7, 9, 1), 30, numpy.uint8), (30, 30, 30)),
        (numpy.full((7, 9), 257 * 30, numpy.uint16), (30, 30, 30)),
        (numpy.full((7, 9, 4), (9, 8, 7, 0), numpy.uint8), (255, 255, 255)),
        (numpy.full((7, 9, 4), (9, 8, 7, 255), numpy.uint8), (9, 8, 7)),
    ],
)
def test_arrays_are_converted_like_files(pixels, color) -> None:
    image = open_image(pixels)
    assert (image.mode, image.size) == ("RGB", (9, 7))
    assert image.getpixel((4, 3)) == color


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (PIXELS / 255, r"array of float64 .* give uint8"),
        (PIXELS.astype(int), r"array of int64"),
        (PIXELS.transpose(2, 0, 1), r"shape \[3, 7, 9\].* give \[height, width, 3\]"),
        (PIXELS[:, :, :2], r"shape \[7, 9, 2\] is not accepted; give \[height, width, 3\]"),
        (PIXELS[None], r"shape \[1, 7, 9, 3\]"),
        (PIXELS[:0], r"shape \[0, 9, 3\]"),
        (torch.ones(3, 7, 9, dtype=torch.int64), r"tensor of int64 .* give uint8, or floats"),
        (torch.ones(3, 0, 9), r"shape \[3, 0, 9\]"),
        (b"", r"the bytes: empty"),
        (b"no image", r"the bytes: not a JPEG, PNG, .*TIFF"),
        (io.BytesIO(), r"the BytesIO: empty"),
        (io.StringIO("text"), r"opened in text mode; open it with mode 'rb'"),
        (None, r"type NoneType is not accepted; give a path, bytes"),
        (7, r"type int is not accepted"),
    ],
)
def test_inputs_that_are_not_images_are_refused(given, says) -> None:
    with pytest.raises(ValueError, match=says):
        open_image(given)


@pytest.mark.parametrize(
    ("formats", "says"),
    [((), "BMP or TIFF image"), (("AVIF",), "TIFF or AVIF"), (("AVIF", "HEIF"), "AVIF or HEIC")],
)
def test_the_error_lists_the_formats_that_can_be_read(formats, says, monkeypatch) -> None:
    monkeypatch.setattr(images, "_rare_formats", lambda: formats)
    with pytest.raises(ValueError, match=says):
        open_image(b"no image")


def test_a_closed_file_is_refused(tmp_path) -> None:
    file = io.BytesIO(png(PIXELS))
    file.close()
    with pytest.raises(ValueError, match="closed file; caption it while it is open"):
        open_image(file)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".mpo", ".heic", ".unknown", ""])
def test_a_jpeg_is_read_with_any_suffix(suffix, tmp_path) -> None:
    path = tmp_path / f"photo{suffix}"
    Image.new("RGB", (9, 7), "red").save(path, "JPEG")
    assert open_image(path).getpixel((0, 0)) == (254, 0, 0)


def test_the_first_picture_of_a_stereo_pair_is_used(tmp_path) -> None:
    right = Image.new("RGB", (9, 7), "blue")
    Image.new("RGB", (9, 7), "red").save(
        tmp_path / "pair.mpo", "MPO", save_all=True, append_images=[right]
    )
    assert Image.open(tmp_path / "pair.mpo").n_frames == 2
    assert open_image(tmp_path / "pair.mpo", shorter=5).getpixel((0, 0)) == (254, 0, 0)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_heic_and_avif_are_read_if_possible(kind, tmp_path) -> None:
    heif = pytest.importorskip("pillow_heif") if kind == "HEIF" else None
    if heif:
        heif.register_heif_opener()
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"nothing here writes {kind}")
    path = tmp_path / "photo.jpg"  # its name does not matter
    Image.new("RGB", (40, 30), "red").save(path, kind)
    red, green, blue = open_image(path).getpixel((5, 5))
    assert red > 250
    assert max(green, blue) < 5
    assert not {s for s, k in images.RARE_SUFFIXES.items() if k == kind} & unreadable_suffixes()


@pytest.fixture
def no_heif(monkeypatch) -> None:
    """As if pillow-heif were not installed."""
    from PIL import Image

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k != "HEIF"})
    images._rare_formats.cache_clear()
    yield
    images._rare_formats.cache_clear()


def test_without_pillow_heif_the_error_says_how_to_install_it(no_heif, tmp_path) -> None:
    path = tmp_path / "IMG_0003.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(ValueError, match=r"to read it: pip install 'captioner\[heic\]'"):
        open_image(path)
    assert {".heic", ".heif"} <= unreadable_suffixes()


@pytest.mark.reliability("damaged files")
def test_out_of_memory_is_not_reported_as_damage(tmp_path, monkeypatch) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(PIXELS))

    def fail(*unused: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(ValueError, match=r"large\.png: out of memory while decoding 9 x 7 pixels"):
        open_image(path)
