"""The file of a checkpoint: a zip archive of plain data (a pickle) and of tensors.

It may be damaged or come from a stranger. torch.load with ``weights_only=True`` executes nothing,
but believes what it reads: it compares no checksums, so that a flipped bit would silently give
another model, a compressed part could fill the memory, and one number may pretend to be a million.
So the parts are checked before torch reads them, and the tensors after.

The file is mapped into memory: most values are copied into a model once, and reading them into new
memory first takes twice as long as comparing their checksums.
"""

from __future__ import annotations

import math
import mmap
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioner import limits
from captioner.files import require_regular
from captioner.images import is_image
from captioner.plain_data import containers, shortened
from captioner.process import is_out_of_memory

_AGAIN = "copy it again from where it came, or train again"
_VALUES = re.compile(r"[^/]+/data/\d+")
"""The names of the parts with the values of tensors."""
_FILLING = re.compile(
    rb"c(?:__builtin__|builtins)\nbytearray\n|c_codecs\nencode\n"
    rb"|_rebuild_device_tensor_from_cpu_tensor\n"
)
"""Functions that torch calls for a pickle and that can fill any amount of memory."""
_HEADER = struct.Struct("<26xHH")
"""Of a part: it ends with the sizes of its name and extra field."""


def load(path: Path, *, values: bool = True) -> Any:
    """Read a checkpoint file on the CPU, without executing anything.

    Args:
        path: of the file; while its tensors are used, it may be replaced, but not be written to.
        values: compare the checksums of the values of tensors as well as of the plain data.

    Raises:
        ValueError: it is not a checkpoint or no regular file, is damaged, or has what captioner
            does not write.
    """
    require_regular(path)
    try:
        _check_parts(path, values=values)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: not a captioner checkpoint (it has more than tensors and plain data, which "
            "is never loaded)"
        ) from None
    except (PermissionError, _Damaged):
        raise
    except Exception as error:  # torch and zipfile raise almost any for a damaged file
        if is_out_of_memory(error):
            raise
        if is_image(path):
            raise ValueError(
                f"{path}: an image, not a checkpoint; give a run folder, a .ckpt file, or the name "
                "of a bundled model (captioner caption takes images)"
            ) from None
        raise ValueError(
            f"{path}: not a checkpoint, or a truncated one; copy it again or train again"
        ) from None
    _require_dense(path, content)
    return content


class _Damaged(ValueError):
    """A checkpoint with a wrong checksum, or with parts that captioner does not write."""


def _check_parts(path: Path, *, values: bool) -> None:
    """Check the sizes of the parts of a checkpoint and compare their CRC-32; see `load`."""
    with (
        zipfile.ZipFile(path) as archive,
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory,
        memoryview(memory) as view,
    ):
        parts = archive.infolist()
        _check_sizes(path, parts, len(view))
        for part in parts:
            plain = not _VALUES.fullmatch(part.filename)
            if not plain and not values:
                continue
            with view[_bounds(view, part)] as content:
                if zlib.crc32(content) != part.CRC:
                    raise _Damaged(
                        f"{path}: damaged (the checksum of {part.filename!r} is wrong); copy it "
                        "again, take another checkpoint of the run, or train again"
                    )
                if plain and (found := _FILLING.search(content)):
                    name = bytes(found[0]).split()[-1].decode()
                    raise _Damaged(f"{path}: calls {name}, which captioner never does; {_AGAIN}")


def _check_sizes(path: Path, parts: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Refuse parts that are larger in memory than in the file, and too much plain data."""
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size:
            raise _Damaged(
                f"{path}: {part.filename!r} is compressed, which torch never does; {_AGAIN}"
            )
    plain = sum(part.file_size for part in parts if not _VALUES.fullmatch(part.filename))
    if plain > limits.PICKLE_BYTES:
        raise _Damaged(
            f"{path}: has {plain / 2**20:,.0f} MiB of plain data; at most "
            f"{limits.PICKLE_BYTES / 2**20:.0f} MiB are accepted; {_AGAIN}"
        )
    inside = sum(part.file_size for part in parts)
    if inside > size:
        raise _Damaged(f"{path}: its parts have {inside:,} bytes, the file {size:,}; {_AGAIN}")


def _bounds(view: memoryview, part: zipfile.ZipInfo) -> slice:
    """The place of a part where torch reads it: after a header, a name and an extra field."""
    name, extra = _HEADER.unpack_from(view, part.header_offset)
    start = part.header_offset + _HEADER.size + name + extra
    return slice(start, start + part.file_size)


def _require_dense(path: Path, content: Any) -> None:
    """Refuse tensors that are not dense, such as one number expanded to a large tensor."""
    total, size = 0, 2 * path.stat().st_size  # tied weights are in the file once
    for container in containers(content, path, most=limits.VALUES):
        named = container.items() if isinstance(container, dict) else enumerate(container)
        for name, tensor in named:
            if not isinstance(tensor, Tensor):
                continue
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
                fault = f"is not dense and real, but {tensor.layout} of {tensor.dtype}"
            elif tensor.device.type != "cpu":
                fault = f"is on {tensor.device}"
            elif tensor.nbytes > tensor.untyped_storage().nbytes():
                fault = f"has {tensor.numel():,} values, more than the file"
            elif (total := total + tensor.nbytes) > size:
                fault = "and others have more values than the file"
            else:
                continue
            raise _Damaged(f"{path}: {shortened(name)} {fault}; {_AGAIN}")


def require_weights(path: Path, weights: Any) -> dict[str, Tensor]:
    """Check that weights are named tensors of finite values.

    Args:
        path: their file, for errors.
        weights: as read from it.

    Raises:
        ValueError: they are something else.
    """
    if not isinstance(weights, dict):
        raise ValueError(f"{path}: its weights are {type(weights).__name__}; {_AGAIN}")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(f"{path}: the weight {shortened(name)} is {kind}; {_AGAIN}")
        # The sum takes as long as reading them, but may overflow although all values are finite.
        if not math.isfinite(tensor.sum()) and not tensor.isfinite().all():
            raise ValueError(
                f"{path}: {shortened(name)} has values that are not finite; "
                "take another checkpoint of the run, or train again"
            )
    return weights
