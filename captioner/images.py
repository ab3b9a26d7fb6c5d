"""Reads images, from files or pixels, as upright 8-bit RGB."""

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

from captioner import limits

# Decoders of rarer formats are less tested against damaged or hostile files. JPEG includes MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
RARE_SUFFIXES = {".heic": "HEIF", ".heif": "HEIF", ".avif": "AVIF"}
HEIC_EXTRA = "pip install 'captioner[heic]'"
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its shorter side is then still this many
# times as long as needed.
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
"""One image: a path, the content of a file, a file opened in binary mode, a Pillow image, an array
[H, W, 3] of uint8 (RGB), or [H, W, 4], [H, W, 1] or [H, W], or a tensor [3, H, W] of uint8 or of
floats in [0, 1]."""


def is_picture(value: object) -> bool:
    """Whether a value is one image rather than several."""
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim in (2, 3)
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    return isinstance(value, kinds) or hasattr(value, "read")


def as_several(images: Any) -> Iterable[Picture]:
    """Return an iterable of images, from one image or any iterable except a mapping.

    Raises:
        ValueError: it is neither an image nor an iterable.
    """
    if is_picture(images):
        return [images]
    scalar = getattr(images, "ndim", 1) == 0  # an array of one number
    if scalar or isinstance(images, Mapping) or not isinstance(images, Iterable):
        open_image(images)  # raises the error that lists what is accepted
    return cast("Iterable[Picture]", images)


def open_image(source: Picture, *, shorter: int | None = None) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    The EXIF orientation is applied, 16-bit grayscale is scaled to 8 bits, transparent pixels are
    blended with white, and of an animation the first frame is used.

    Args:
        source: a JPEG (also MPO), PNG, WEBP, GIF, BMP, TIFF or AVIF file, or HEIC if pillow-heif
            is installed; or another ``Picture``, such as a Pillow image of any mode. An open file
            is read from its beginning if it is seekable.
        shorter: length in pixels to which the shorter side will be resized. A much larger JPEG file
            is decoded at a reduced size, REDUCING_GAP times as long or longer. None: full size.

    Returns:
        a Pillow image of mode RGB, fully loaded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a folder, empty, damaged, too large or of another format, or memory
            is not sufficient to decode it; or the source is not a ``Picture``.
    """
    if isinstance(source, Image.Image):
        return _decode(source, getattr(source, "filename", "") or "the image")
    if isinstance(source, (np.ndarray, Tensor)):
        array = source if isinstance(source, np.ndarray) else _tensor_to_array(source)
        array = _check_array(array)
        return _decode(Image.fromarray(array), "the image")
    name, content = _name_and_content(source)
    try:
        with _open(content) as image:
            return _decode(image, name, shorter)
    except UnidentifiedImageError:
        raise ValueError(f"{name}: {_unreadable_reason(content)}") from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large(name)) from None
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error})") from None


def find_fault(path: str) -> str:
    """Why an image file cannot be read; "" if it can. A large JPEG is decoded at a reduced size."""
    try:
        open_image(path, shorter=1)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def is_image(path: Path) -> bool:
    """Whether a file is an image by its beginning; the rest may be damaged."""
    try:
        _open(path).close()
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError):
        return False
    return True


def read_content(source: Any) -> Any:
    """Return the content of an open file; anything else unchanged.

    Raises:
        ValueError: the file is closed, was opened in text mode, or is too large.
    """
    if not hasattr(source, "read") or isinstance(source, (Image.Image, os.PathLike)):
        return source
    name = _file_name(source)
    try:
        if source.seekable():
            source.seek(0)
    except AttributeError:  # not a complete file object: read from its position
        pass
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{name}: {reason}; caption it while it is open") from None
    return _read_bounded(source, name)


def _read_bounded(file: Any, name: str) -> bytes:
    """The rest of an open file, which may have no end: a device, a pipe or a connection."""
    parts, size = [], 0
    while part := file.read(_PART):
        if not isinstance(part, (bytes, bytearray)):
            raise ValueError(f"{name}: was opened in text mode; open it with mode 'rb'")
        parts.append(part)
        size += len(part)
        if size > limits.IMAGE_BYTES:
            raise ValueError(
                f"{name}: has more than {limits.IMAGE_BYTES / 2**20:,.0f} MiB, which no image has; "
                "give an image file"
            )
    return b"".join(parts)


_PART = 2**20
"""Bytes that are read at once."""


def _file_name(file: Any) -> str:
    """The name of an open file in an error."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else f"the {type(file).__name__}"


def _name_and_content(source: Any) -> tuple[str | Path, Path | BytesIO]:
    """The name of a file in errors, and its path or content."""
    if isinstance(source, (str, os.PathLike)):
        path = _check_path(Path(os.fsdecode(source)))
        return path, path
    if hasattr(source, "read"):
        name, content = _file_name(source), read_content(source)
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


def _check_path(path: Path) -> Path:
    """Return the path of a file that is not empty, or raise an error."""
    try:
        is_file = path.is_file()  # before `exists`: it may be removed between the two checks
    except ValueError as error:  # a null byte, or a lone surrogate
        raise ValueError(f"{str(path)!r}: cannot be the name of a file ({error})") from None
    if not is_file and not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not is_file:
        raise ValueError(f"{path}: not an image file but a folder or device; name a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes); download or export it again")
    return path


def _open(content: Path | BytesIO) -> Image.Image:
    """Open an image of one of FORMATS, or HEIC or AVIF if a decoder is installed."""
    try:
        return Image.open(content, formats=FORMATS)
    except UnidentifiedImageError:
        formats = _rare_formats() if _is_heif(content) else ()
        if not formats:
            raise
        return Image.open(content, formats=formats)


def _is_heif(content: Path | BytesIO) -> bool:
    """Whether a file is HEIC or AVIF by its content: ISO base media, with the brand at byte 8."""
    if isinstance(content, BytesIO):
        head = content.getvalue()[:12]
    else:
        with open(content, "rb") as file:
            head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf", b"avi")


@functools.cache
def _rare_formats() -> tuple[str, ...]:
    """Which of HEIC and AVIF can be decoded: AVIF by Pillow itself, HEIC by pillow-heif."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(kind for kind in sorted({*RARE_SUFFIXES.values()}) if kind in Image.OPEN)


def unreadable_suffixes() -> set[str]:
    """The file name suffixes of images that no installed decoder can read."""
    formats = _rare_formats()
    return {suffix for suffix, kind in RARE_SUFFIXES.items() if kind not in formats}


def _unreadable_reason(content: Path | BytesIO) -> str:
    """Why a file cannot be read, and what to do."""
    if _is_heif(content):
        advice = f"to read it: {HEIC_EXTRA}" if unreadable_suffixes() else "export it again"
        return f"a HEIC or AVIF image that cannot be read; {advice}"
    rare = {"HEIF": "HEIC", "AVIF": "AVIF"}
    kinds = [*FORMATS, *(rare[kind] for kind in _rare_formats())]
    return f"not a {', '.join(kinds[:-1])} or {kinds[-1]} image; convert it to one of these"


def _check_array(array: np.ndarray) -> np.ndarray:
    """Return an array that Pillow accepts: uint8 [H, W], [H, W, 3 or 4], or uint16 [H, W].

    Raises:
        ValueError: it has another shape or type.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]  # [H, W]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not fits or 0 in array.shape:
        raise ValueError(
            f"an image array of shape {list(array.shape)} is not accepted; give [height, width, 3]"
            ", [height, width, 4] or [height, width]"
        )
    if array.dtype != np.uint8 and not (array.dtype == np.uint16 and array.ndim == 2):
        raise ValueError(
            f"an image array of {array.dtype} is not accepted, as its range is not known; give "
            "uint8 from 0 to 255"
        )
    return np.ascontiguousarray(array)


def _tensor_to_array(image: Tensor) -> np.ndarray:
    """Convert a tensor [3, H, W], uint8 or floats in [0, 1], to an array [H, W, 3] of uint8.

    Raises:
        ValueError: it has another shape, type or range.
    """
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise ValueError(
            f"an image tensor of shape {list(image.shape)} is not accepted; give [3, height, width]"
        )
    image = image.detach()
    if image.is_floating_point():
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError("an image tensor of floats must be in [0, 1]; do not normalize it")
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise ValueError(
            f"an image tensor of {str(image.dtype).removeprefix('torch.')} is not accepted; give "
            "uint8, or floats in [0, 1]"
        )
    return image.permute(1, 2, 0).contiguous().cpu().numpy()


def _decode(image: Image.Image, name: str | Path, shorter: int | None = None) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns below twice this limit
    if limit is not None and image.width * image.height > limit:
        raise ValueError(_too_large(name))
    if image.mode == "F":
        raise ValueError(
            f"{name}: the range of floating point pixels is unknown; save it with 8 bits"
        )
    try:
        if shorter is not None:
            image = _reduced(image, math.ceil(REDUCING_GAP * shorter))
        image.load()  # a truncated file passes verify() and fails only here
        return _to_rgb(_upright(image))
    except MemoryError:
        raise ValueError(
            f"{name}: out of memory while decoding {image.width} x {image.height} pixels; close "
            "other programs, or make the image smaller"
        ) from None
    except Exception as error:  # on damaged files, decoders raise many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{name}: damaged or not supported ({reason}); download or export it again"
        ) from None


def _reduced(image: Image.Image, least: int) -> Image.Image:
    """Let a JPEG be decoded at 1/2, 1/4 or 1/8, with a shorter side of at least `least` pixels."""
    width, height = image.size
    image.draft(None, (least, least))  # has no effect on other formats
    scale = round(width / image.width)
    if scale == 1:
        return image
    # Partial pixels at the right and the bottom are rounded up; cropping keeps the aspect ratio.
    return image.crop((0, 0, round(width / scale), round(height / scale)))


def _too_large(name: str | Path) -> str:
    return (
        f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; "
        "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image  # exif_transpose copies
    except Exception:  # broken EXIF, but valid pixels: use them as they are
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16-bit values at 255: nearly all white
        gray = np.asarray(image).clip(0, 65535).astype(np.uint32)
        image = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
