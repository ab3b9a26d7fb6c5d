"""What people give as an image, a file or pixels, to upright 8-bit RGB."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# Decoders for rarer formats are little tested against damaged or hostile files. JPEG has MPO in it.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
RARE_SUFFIXES = {".heic": "HEIF", ".heif": "HEIF", ".avif": "AVIF"}
HEIC_EXTRA = "pip install 'captioner[heic]'"
# A JPEG is decoded at 1/2, 1/4 or 1/8 while that leaves this many times the pixels that are needed.
REDUCING_GAP = 1.5


Picture = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Image.Image
    | np.ndarray
    | Tensor
)
"""One image: a path, a file's content, a file opened to be read in binary, a Pillow image, an array
[H, W, 3] of uint8 (RGB), or [H, W, 4], [H, W, 1] or [H, W], or a tensor [3, H, W] of uint8 or of
floats in [0, 1]."""


def is_picture(value: object) -> bool:
    """Whether a value is meant as one image rather than as several."""
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim in (2, 3)
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    return isinstance(value, kinds) or hasattr(value, "read")


def as_several(images: Any) -> Iterable[Picture]:
    """What was given as images, one by one: a single one, or any number but those of a mapping.

    Raises:
        ValueError: it is neither an image nor iterable.
    """
    if is_picture(images):
        return [images]
    number = getattr(images, "ndim", 1) == 0  # an array of one number
    if number or isinstance(images, Mapping) or not isinstance(images, Iterable):
        open_image(images)  # says what is accepted
    return cast("Iterable[Picture]", images)


def open_image(source: Picture, *, shorter: int | None = None) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    EXIF orientation is applied, 16-bit greys are scaled to 8 bits, transparency is laid on white,
    and of an animation the first frame is taken.

    Args:
        source: a JPEG (also MPO), PNG, WEBP, GIF, BMP, TIFF or AVIF file, or HEIC where pillow-heif
            is installed; or another ``Picture``, such as a Pillow image of any mode. An opened file
            is read from its beginning where it can be.
        shorter: pixels that the shorter side will be resized to. From a JPEG file much larger than
            that fewer are decoded, REDUCING_GAP times as many or more. None: all.

    Returns:
        a Pillow image of mode RGB, fully loaded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a folder, empty, damaged, too large or of another kind; or the
            source is no ``Picture``.
    """
    if isinstance(source, Image.Image):
        return _decode(source, getattr(source, "filename", "") or "the image")
    if isinstance(source, (np.ndarray, Tensor)):
        array = _of_tensor(source) if isinstance(source, Tensor) else _of_array(source)
        return _decode(Image.fromarray(array), "the image")
    name, content = _content(source)
    try:
        with _open(content) as image:
            return _decode(image, name, shorter)
    except UnidentifiedImageError:
        raise ValueError(f"{name}: {_not_read(content)}") from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large(name)) from None
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error})") from None


def content_of(source: Any) -> Any:
    """What is in an opened file, bytes; all else as it is.

    Raises:
        ValueError: the file is closed, or was opened as text.
    """
    if not hasattr(source, "read") or isinstance(source, (Image.Image, os.PathLike)):
        return source
    name = _name_of(source)
    try:
        if source.seekable():
            source.seek(0)
    except AttributeError:  # not quite a file: what it gives is taken
        pass
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{name}: {reason}; caption it while it is open") from None
    content = source.read()
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError(f"{name}: was opened as text; open it with mode 'rb'")
    return content


def _name_of(file: Any) -> str:
    """The name of an opened file in an error."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else f"the {type(file).__name__}"


def _content(source: Any) -> tuple[str | Path, Path | BytesIO]:
    """What errors call a file, and the file or its content."""
    if isinstance(source, (str, os.PathLike)):
        return (path := _checked(Path(os.fsdecode(source)))), path
    if hasattr(source, "read"):
        name, content = _name_of(source), content_of(source)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name, content = f"the {type(source).__name__}", bytes(source)
    else:
        raise ValueError(
            f"an image of type {type(source).__name__} is not accepted; give a path, bytes, a file "
            "opened with 'rb', a PIL image, an array [height, width, 3] of uint8, or a tensor [3, "
            "height, width]"
        )
    if not content:
        raise ValueError(f"{name}: empty (0 bytes)")
    return name, BytesIO(content)


def _checked(path: Path) -> Path:
    """A path that leads to a file with something in it."""
    try:
        whole = path.is_file()  # asked first: it may vanish between two questions
    except ValueError as error:  # a null byte, or half of a pair
        raise ValueError(f"{str(path)!r}: cannot be the name of a file ({error})") from None
    if not whole and not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not whole:
        raise ValueError(f"{path}: not an image file but a folder or device; name a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes); fetch or export it again")
    return path


def _open(content: Path | BytesIO) -> Image.Image:
    """Open an image of the accepted formats; of HEIC and AVIF where something here reads them."""
    try:
        return Image.open(content, formats=FORMATS)
    except UnidentifiedImageError:
        formats = _rare_formats() if _is_heif(content) else ()
        if not formats:
            raise
        return Image.open(content, formats=formats)


def _is_heif(content: Path | BytesIO) -> bool:
    """Whether a file is HEIC or AVIF, whatever its name: ISO base media, its brand at byte 8."""
    if isinstance(content, BytesIO):
        head = content.getvalue()[:12]
    else:
        with open(content, "rb") as file:
            head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf", b"avi")


@functools.cache
def _rare_formats() -> tuple[str, ...]:
    """Those of HEIC and AVIF that are read here: AVIF by Pillow itself, HEIC by pillow-heif."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(kind for kind in sorted({*RARE_SUFFIXES.values()}) if kind in Image.OPEN)


def unreadable_suffixes() -> set[str]:
    """Those of IMAGE_SUFFIXES that nothing installed here can read."""
    formats = _rare_formats()
    return {suffix for suffix, kind in RARE_SUFFIXES.items() if kind not in formats}


def _not_read(content: Path | BytesIO) -> str:
    """Why a file is not read, and what to do."""
    if _is_heif(content):
        way_out = f"{HEIC_EXTRA} reads it" if unreadable_suffixes() else "export it again"
        return f"a HEIC or AVIF image that cannot be read; {way_out}"
    rare = {"HEIF": "HEIC", "AVIF": "AVIF"}
    kinds = [*FORMATS, *(rare[kind] for kind in _rare_formats())]
    return f"not a {', '.join(kinds[:-1])} or {kinds[-1]} image; convert it to one of these"


def _of_array(array: np.ndarray) -> np.ndarray:
    """An array that Pillow takes: uint8 [H, W], [H, W, 2 to 4], or uint16 [H, W].

    Raises:
        ValueError: another shape or type.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]  # [H, W]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (2, 3, 4))
    if not fits or 0 in array.shape:
        raise ValueError(
            f"an image array of shape {list(array.shape)} is not accepted; give [height, width, 3]"
            ", [height, width, 4] or [height, width]"
        )
    if array.dtype != np.uint8 and not (array.dtype == np.uint16 and array.ndim == 2):
        raise ValueError(
            f"an image array of {array.dtype} is not accepted, for its range is not known; give "
            "uint8 from 0 to 255"
        )
    return np.ascontiguousarray(array)


def _of_tensor(image: Tensor) -> np.ndarray:
    """The bytes [H, W, 3] of a tensor [3, H, W], uint8 or floats in [0, 1].

    Raises:
        ValueError: another shape, type or range.
    """
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise ValueError(
            f"an image tensor of shape {list(image.shape)} is not accepted; give [3, height, width]"
        )
    image = image.detach()
    if image.is_floating_point():
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError("an image tensor of floats must lie in [0, 1]; do not normalise it")
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise ValueError(
            f"an image tensor of {str(image.dtype).removeprefix('torch.')} is not accepted; give "
            "uint8, or floats in [0, 1]"
        )
    return image.permute(1, 2, 0).contiguous().cpu().numpy()


def _decode(image: Image.Image, name: str | Path, shorter: int | None = None) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns up to twice this
    if limit is not None and image.width * image.height > limit:
        raise ValueError(_too_large(name))
    if image.mode == "F":
        raise ValueError(f"{name}: floating point pixels have no agreed range; save it with 8 bits")
    try:
        if shorter is not None:
            image = _reduced(image, math.ceil(REDUCING_GAP * shorter))
        image.load()  # a truncated file passes verify() and fails only here
        return _to_rgb(_upright(image))
    except Exception as error:  # decoders raise half a dozen types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{name}: damaged or not supported ({reason}); fetch or export it again"
        ) from None


def _reduced(image: Image.Image, least: int) -> Image.Image:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8, its shorter side no less than `least`."""
    width, height = image.size
    image.draft(None, (least, least))  # does nothing to other formats
    scale = round(width / image.width)
    if scale == 1:
        return image
    # Half pixels at the right and below are rounded up; the picture shall keep its proportions.
    return image.crop((0, 0, round(width / scale), round(height / scale)))


def _too_large(name: str | Path) -> str:
    return (
        f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; "
        "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image  # else it would be copied
    except Exception:  # broken EXIF beside sound pixels: take them as they lie
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16-bit greys at 255: nearly all white
        grey = np.asarray(image).clip(0, 65535).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
