"""The file of a checkpoint: a zip archive of plain data (a pickle) and of tensors.

It may be damaged or come from a stranger. torch.load with ``weights_only=True`` executes nothing,
but believes what it reads: it compares no checksums, so that a flipped bit would silently give
another model, a compressed part could fill the memory, and one number may pretend to be a million.
So the parts are checked before torch reads them, and the tensors after.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioner import limits
from captioner.plain_data import containers
from captioner.process import is_out_of_memory

_AGAIN = "copy it again from where it came, or train again"
_VALUES = re.compile(r"[^/]+/data/\d+")
"""The names of the parts with the values of tensors."""
_FILLING = re.compile(
    rb"c(?:__builtin__|builtins)\nbytearray\n|c_codecs\nencode\n"
    rb"|_rebuild_device_tensor_from_cpu_tensor\n"
)
"""Functions that torch calls for a pickle and that can fill any amount of memory."""
_SIZES = 26
"""Offset in the header of a part of the sizes of its name and extra field, which end the header."""
_BLOCK = 2**18
"""Bytes read at once: they stay in the processor's cache."""


def load(path: Path, *, mmap: bool = False) -> Any:
    """Read a checkpoint file on the CPU, without executing anything.

    Args:
        path: of the file.
        mmap: map the values of tensors instead of reading them; their checksums are not compared.

    Raises:
        ValueError: it is not a checkpoint, is damaged, or has what captioner does not write.
    """
    try:
        _check_parts(path, values=not mmap)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
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
        raise ValueError(
            f"{path}: not a checkpoint, or a truncated one; copy it again or train again"
        ) from None
    _require_dense(path, content)
    return content


class _Damaged(ValueError):
    """A checkpoint with a wrong checksum, or with parts that captioner does not write."""


def _check_parts(path: Path, *, values: bool) -> None:
    """Check the sizes of the parts of a checkpoint and compare their CRC-32.

    Args:
        path: of the checkpoint.
        values: whether to read the values of tensors as well as the plain data.
    """
    with zipfile.ZipFile(path) as archive, open(path, "rb", buffering=0) as file:
        parts = archive.infolist()
        _check_sizes(path, parts)
        for part in parts:
            plain = not _VALUES.fullmatch(part.filename)
            if not plain and not values:
                continue
            block = bytearray(part.file_size if plain else min(part.file_size, _BLOCK))
            if _crc(file, part, block) != part.CRC:
                raise _Damaged(
                    f"{path}: damaged (the checksum of {part.filename!r} is wrong); copy it "
                    "again, take another checkpoint of the run, or train again"
                )
            if plain and (found := _FILLING.search(block)):
                name = found[0].split()[-1].decode()
                raise _Damaged(f"{path}: calls {name}, which captioner never does; {_AGAIN}")


def _check_sizes(path: Path, parts: Sequence[zipfile.ZipInfo]) -> None:
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
    inside, size = sum(part.file_size for part in parts), path.stat().st_size
    if inside > size:
        raise _Damaged(f"{path}: its parts have {inside:,} bytes, the file {size:,}; {_AGAIN}")


def _crc(file: FileIO, part: zipfile.ZipInfo, block: bytearray) -> int:
    """The CRC-32 of a part, at the place where torch reads it.

    Args:
        file: the archive.
        part: as in the list at the end of the archive.
        block: a buffer; afterwards it has the part, or its last bytes if it is smaller.
    """
    file.seek(part.header_offset + _SIZES)
    name, extra = struct.unpack("<HH", file.read(4))
    file.seek(name + extra, os.SEEK_CUR)
    crc, left = 0, part.file_size
    while left > 0:
        view = memoryview(block)[: min(left, len(block))]
        count = file.readinto(view)
        if not count:
            raise EOFError
        crc, left = zlib.crc32(view[:count], crc), left - count
    return crc


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
            raise _Damaged(f"{path}: {str(name)[:80]} {fault}; {_AGAIN}")


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
            raise ValueError(f"{path}: the weight {str(name)[:80]} is {kind}; {_AGAIN}")
        # The sum takes as long as reading them, but may overflow although all values are finite.
        if not math.isfinite(tensor.sum()) and not tensor.isfinite().all():
            raise ValueError(
                f"{path}: {name[:80]} has values that are not finite; take another checkpoint of "
                "the run, or train again"
            )
    return weights
