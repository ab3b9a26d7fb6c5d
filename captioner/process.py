"""Set up the process before torch loads: its memory, how threads wait, what it prints; which it is.

What oneDNN keeps is bounded, and so is how long threads wait awake. glibc may be asked to keep
what is freed:

By default glibc maps each large block anew and unmaps it when it is freed, so that every training
step pays for the same pages again. With both thresholds raised, freed memory is kept for the next
step. The process stays as large as it once was, and, as batches differ in size, grows on for a
while: a training on Flickr8k held 7 GB after six epochs and was no faster. So it is done only where
CAPTIONER_KEEP_MEMORY=1 asks for it; no result changes.

Any setting of the allocator's own comes first (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_,
MALLOC_TOP_PAD_, GLIBC_TUNABLES). See mallopt(3).
"""

from __future__ import annotations

import codecs
import ctypes
import importlib.abc
import importlib.machinery
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

SWITCH = "CAPTIONER_KEEP_MEMORY"
OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**31 - 1  # mallopt takes an int
# Older glibc accepts no more than half a heap.
THRESHOLDS = (2**30, 2**25)


# oneDNN, which multiplies bfloat16, and on some processors float32, keeps a program and its
# workspace for every shape it has met. Batches of real words only have hundreds of shapes: 1,024 of
# them, the default, take gigabytes.
CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}


def bound_caches() -> None:
    """Bound what oneDNN keeps, unless the user has; to be called before the first product."""
    for name, shapes in CACHES.items():
        os.environ.setdefault(name, shapes)


# Where threads meet, GNU OpenMP's wait awake, and by default for long. When a core has other work
# as well, its thread is late and the others wait in vain: of a training on two cores beside one
# busy process no epoch ended in 50 s; with this, one took 17 s. Alone it takes 7.2 s, by default
# 6.5 s.
SPINS = 5000


def bound_spinning() -> None:
    """Bound how long threads wait awake, unless the user has; to be called before torch loads."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def keep_memory() -> bool:
    """Keep freed memory in this process and those it forks; whether that was done.

    Nothing is done outside Linux with glibc, where the user has set the allocator, or unless
    CAPTIONER_KEEP_MEMORY is 1.
    """
    if os.environ.get(SWITCH) != "1" or any(name in os.environ for name in OWN):
        return False
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mapped = any(mallopt(M_MMAP_THRESHOLD, size) for size in THRESHOLDS)
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST)) and mapped


NAMES = "captioner.names"
"""For ``errors=`` of text that holds file names: a name that is not UTF-8 is written as the bytes
that it is; what the encoding lacks becomes an escape (``\\u6587``)."""


def print_any_name() -> None:
    """Let nothing that is printed fail, whatever the file names and the terminal's encoding."""
    codecs.register_error(NAMES, _bytes_of_names)
    with suppress(AttributeError, ValueError):  # no file, or a closed one
        sys.stdout.reconfigure(errors=NAMES)  # type: ignore[union-attr]


class _StderrHandler(logging.Handler):
    """Writes messages to the standard error of the moment, as lines without a prefix."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@contextmanager
def logs_on_stderr() -> Iterator[None]:
    """Show what the package logs (level INFO) on standard error, while the block runs."""
    logger, handler = logging.getLogger("captioner"), _StderrHandler()
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def encode_names(text: str) -> bytes:
    """A text with file names as UTF-8, each name as the bytes that it is."""
    codecs.register_error(NAMES, _bytes_of_names)
    return text.encode("utf-8", NAMES)


def _bytes_of_names(error: UnicodeError) -> tuple[bytes | str, int]:
    if not isinstance(error, UnicodeEncodeError):  # who reads back what was printed
        return codecs.lookup_error("surrogateescape")(error)
    found = b""
    for character in error.object[error.start : error.end]:
        escaped = 0xDC80 <= ord(character) <= 0xDCFF  # as os.fsdecode leaves a byte, PEP 383
        handler = "surrogateescape" if escaped else "backslashreplace"
        found += character.encode("ascii", handler)
    return found, error.end


# What torchrun, Lightning or SLURM tell a process of several; 0, or nothing, in the first one.
NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def is_first() -> bool:
    """Whether this is the first of the processes of a training, as its environment says."""
    return not any(int(os.environ.get(name) or 0) for name in NUMBERS)


def this_program() -> list[str]:
    """What starts this program again: the installed script, or ``python -m captioner``."""
    import __main__

    script = Path(sys.argv[0])
    if getattr(__main__, "__spec__", None) is None and script.is_file():
        return [sys.executable, str(script.absolute())]
    return [sys.executable, "-m", "captioner"]


class _TorchvisionGuard(importlib.abc.MetaPathFinder):
    """Let torchvision be imported where its compiled operators do not fit the installed torch.

    PyPI's torchvision is linked against the CUDA build of torch. Beside a CPU build its operators
    are missing, and registering their shapes fails with "operator torchvision::nms does not exist"
    (pytorch/vision #8985). Declaring the two schemas first is enough for everything but detection
    and torchvision's own image decoders, neither of which is used here. Where torchvision's library
    loads, nothing is changed.
    """

    _library: Any = None  # kept alive: the schemas are withdrawn with it

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision._meta_registrations" and self._library is None:
            extension = sys.modules.get("torchvision.extension")
            if extension is not None and not extension._has_ops():
                import torch

                self._library = torch.library.Library("torchvision", "DEF")
                for operator in ("nms", "qnms"):
                    self._library.define(
                        f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    )
        return None


def guard_torchvision() -> None:
    """Let torchvision be imported beside a torch that its operators do not fit."""
    if not any(isinstance(finder, _TorchvisionGuard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionGuard())
