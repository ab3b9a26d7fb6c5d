"""Weights that are computed once per installation, kept in the cache and mapped into memory.

The packages that contain pretrained weights store them as pickles with other names. Reading one and
rearranging it takes longer than captioning a photograph, and so does folding its normalization
layers. Both results are kept as safetensors files in ``networks/`` of the cache folder. A mapped
file takes memory only where it is read. What it contains is compared with a checksum in its header:
a damaged file is ignored and written again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import mmap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.files import cache_home, special_kind, write_whole
from captioner.models.snapshot import checksum, sums

log = logging.getLogger(__name__)

FOLDER = "networks"
_FORMAT = "2"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}
_LARGEST_HEADER = 10_000_000
_PAGES = Path("/proc/self/pagemap")  # a number for each page of the process
_PAGE = np.dtype(np.uint64)
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


@dataclass(frozen=True)
class Kept:
    """Tensors, and the memory into which their file is mapped.

    Attributes:
        tensors: by name, on the CPU; those with four dimensions are in channels_last. They may be
            changed: the file does not change with them.
        memory: None if they could not be kept.
    """

    tensors: dict[str, Tensor]
    memory: mmap.mmap | None = None

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether tensors are those of the file and not copies."""
        own = {tensor.data_ptr() for tensor in self.tensors.values()}
        return all(tensor.data_ptr() in own for tensor in tensors)

    def unwritten(self) -> bool:
        """Whether the tensors surely have the values of the file, without reading any.

        A page that is written becomes the process's own, of which Linux tells
        (https://docs.kernel.org/admin-guide/mm/pagemap.html). False: it does not tell, or a page
        was written.
        """
        if self.memory is None:
            return False
        first = np.frombuffer(self.memory, np.uint8).ctypes.data // mmap.PAGESIZE
        size = -(-len(self.memory) // mmap.PAGESIZE) * _PAGE.itemsize
        try:
            with _PAGES.open("rb", buffering=0) as file:
                file.seek(first * _PAGE.itemsize)
                pages = np.frombuffer(file.read(size), _PAGE)
        except OSError:
            return False
        exists = pages & (_PRESENT | _SWAPPED) != 0
        return pages.nbytes == size and not np.any(exists & (pages & _OF_FILE == 0))

    def release(self) -> None:
        """Give the memory back to the system: the values are read from the file when they are used.

        The tensors must have the values of the file: changes are lost.
        """
        if self.memory is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED)


def kept(
    name: str,
    make: Callable[[], dict[str, Tensor]],
    *,
    only_if: Callable[[], bool] = lambda: True,
) -> Kept:
    """Return tensors from the cache, or make them and keep them there.

    Args:
        name: of the file; it must change with everything that the tensors depend on.
        make: computes them; float32, bfloat16 or int64.
        only_if: whether they are to be kept; asked only if they are not yet.
    """
    path = cache_home() / FOLDER / f"{name}.safetensors"
    found = _read(path)
    if found is None:
        made = make()
        try:
            if only_if():
                _write(path, made)
        except OSError as error:  # a full disk, a folder that is read-only, a link
            log.debug("%s is not kept: %s", path, error)
        found = _read(path) or Kept(made)  # mapped: the process does not hold them twice
    return found


def version_of(file: Path) -> str:
    """A name for the present content of a file: another one if it is replaced."""
    about = file.stat()
    text = f"{file.resolve()}|{about.st_size}|{about.st_mtime_ns}|{_FORMAT}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    stored = {name: _stored(tensor).contiguous() for name, tensor in tensors.items()}
    if path.is_symlink() or special_kind(path):
        raise OSError(errno.EEXIST, "is a link or no regular file", str(path))
    write_whole(path, save(stored, _about(path, tensors)), durable=False)  # damage is noticed


def _read(path: Path) -> Kept | None:
    """The content of a file; None if there is no such file, or it is damaged."""
    if special_kind(path):  # a pipe would be waited for
        return None
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        found = Kept(_tensors(path, memory), memory)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if path.is_file():
            log.debug("%s is damaged, and made again: %s", path, error)
        return None
    found.release()
    return found


def _tensors(path: Path, memory: mmap.mmap) -> dict[str, Tensor]:
    """The tensors of a mapped file: the length of a JSON header, the header, their values."""
    length = int.from_bytes(memory[:8], "little")
    if length > _LARGEST_HEADER:
        raise ValueError("its header is too long")
    header: dict[str, Any] = json.loads(memory[8 : 8 + length])
    about = header.pop("__metadata__")
    tensors = {name: _tensor(memory, 8 + length, entry) for name, entry in header.items()}
    if about != _about(path, tensors):
        raise ValueError("its checksum, or its name, differs")
    return tensors


def _tensor(memory: mmap.mmap, start: int, entry: Mapping[str, Any]) -> Tensor:
    shape, dtype = torch.Size(entry["shape"]), _DTYPES[entry["dtype"]]
    offset = start + entry["data_offsets"][0]
    values = torch.frombuffer(memory, dtype=dtype, count=shape.numel(), offset=offset)
    return _restored(values.view(shape))


def _about(path: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """What the header says: a file under another name has the tensors of another network."""
    total = checksum(sums(tensors[name]) for name in sorted(tensors))
    return {"format": _FORMAT, "name": path.stem, "checksum": total}


def _stored(tensor: Tensor) -> Tensor:
    """[D, D', rows, columns] -> [D, rows, columns, D']: a file stores one memory order only."""
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def _restored(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor
