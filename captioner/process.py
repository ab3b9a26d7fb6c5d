"""Settings of the process: its memory, its threads, what it prints, and its rank.

They must be made before torch is loaded. The caches of oneDNN are bounded, and so are the pools of
glibc and the time that OpenMP threads wait actively. Optionally, glibc keeps freed memory.

By default, glibc maps each large block again and unmaps it when it is freed, so that every training
step pays for the same pages again. With both thresholds raised, freed memory is kept for the next
step. The process then stays at its maximum size, and grows for a while, as batches differ in size:
a training on Flickr8k used 7 GB after six epochs and was no faster. So this is done only with
CAPTIONER_KEEP_MEMORY=1; no result changes.

Settings of the allocator itself take precedence (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_,
MALLOC_TOP_PAD_, GLIBC_TUNABLES). See mallopt(3).
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import gc
import importlib.abc
import importlib.machinery
import logging
import os
import platform
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

SWITCH = "CAPTIONER_KEEP_MEMORY"
OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
LARGEST = 2**31 - 1  # mallopt takes an int
# Older versions of glibc accept at most half a heap.
THRESHOLDS = (2**30, 2**25)


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


# oneDNN, which multiplies bfloat16 and, on some processors, float32, keeps a kernel and its
# workspace for every shape it has computed. Packed batches have hundreds of shapes: 1,024, the
# default, take gigabytes.
CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}


def bound_caches() -> None:
    """Bound the caches of oneDNN, unless the user did; call it before the first product."""
    for name, shapes in CACHES.items():
        os.environ.setdefault(name, shapes)


# At a barrier, threads of GNU OpenMP wait actively, by default for a long time. If a core is shared
# with another process, its thread is late and the others waste time: next to one busy process,
# training on two cores finished no epoch in 50 s; with this setting, one took 17 s. Without other
# processes it takes 7.2 s, by default 6.5 s.
SPINS = 5000


def bound_spinning() -> None:
    """Bound how long threads wait actively, unless the user did; call it before torch loads."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def bound_pools() -> bool:
    """Let glibc have one pool of memory per core, unless the user has configured it; did it?

    Its default is eight, and what was freed in one pool no other can use. No more threads than
    there are cores compute at the same time.
    """
    if not _has_glibc() or any(
        name in os.environ for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    ):
        return False
    cores = len(os.sched_getaffinity(0))
    return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, cores))


def prepare() -> None:
    """Make all settings, unless torch is loaded: it would not see them. The package calls this."""
    if "torch" not in sys.modules:
        bound_caches()
        bound_spinning()
        bound_pools()
        keep_memory()


class ForkedLock:
    """A lock that is free in a forked process, whichever thread held it when the process forked.

    What it guards must be valid at any moment: the forked process may find it half made.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *unused: object) -> None:
        self._lock.release()


def interruption_of(error: BaseException) -> KeyboardInterrupt | None:
    """The Ctrl-C from which an error comes; None if it comes from none.

    A library that is interrupted may raise another error: torch.save that it cannot close a file,
    Lightning SystemExit.
    """
    context: BaseException | None = error
    while context is not None and not isinstance(context, KeyboardInterrupt):
        context = context.__cause__ or context.__context__
    return context


def processor() -> str:
    """The name of the processor; the machine's architecture if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def keep_memory() -> bool:
    """Keep freed memory in this process and its forks, and return whether that was done.

    It is done only on Linux with glibc, if CAPTIONER_KEEP_MEMORY is 1 and the user has not
    configured the allocator.
    """
    if os.environ.get(SWITCH) != "1" or any(name in os.environ for name in OWN):
        return False
    if not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mapped = any(mallopt(M_MMAP_THRESHOLD, size) for size in THRESHOLDS)
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST)) and mapped


def release_memory() -> None:
    """Give freed memory back to the system now, unless it is to be kept."""
    kept = os.environ.get(SWITCH) == "1" or any(name in os.environ for name in OWN)
    if _has_glibc() and not kept:
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names


NAMES = "captioner.names"
"""An error handler for text with file names: names that are not UTF-8 are written as their bytes,
characters that the encoding does not have as escapes (``\\u6587``)."""


def print_any_name() -> None:
    """Print any file name without an error, in any encoding of the terminal."""
    codecs.register_error(NAMES, _bytes_of_names)
    with suppress(AttributeError, ValueError):  # not a file, or a closed one
        sys.stdout.reconfigure(errors=NAMES)  # type: ignore[union-attr]


class _StderrHandler(logging.Handler):
    """Writes messages to the current standard error, as lines without a prefix."""

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


def printable(text: str) -> str:
    """A text with its control characters as Python writes them, so that it stays on one line.

    A file name may contain them, and they can break or forge lines in a terminal or a pipe.
    """
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def encode_names(text: str) -> bytes:
    """Encode a text with file names as UTF-8, and names that are not UTF-8 as their bytes."""
    codecs.register_error(NAMES, _bytes_of_names)
    return text.encode("utf-8", NAMES)


def _bytes_of_names(error: UnicodeError) -> tuple[bytes | str, int]:
    if not isinstance(error, UnicodeEncodeError):  # when printed text is read
        return codecs.lookup_error("surrogateescape")(error)
    encoded = b""
    for character in error.object[error.start : error.end]:
        escaped = 0xDC80 <= ord(character) <= 0xDCFF  # as os.fsdecode leaves a byte, PEP 383
        handler = "surrogateescape" if escaped else "backslashreplace"
        encoded += character.encode("ascii", handler)
    return encoded, error.end


# Set by torchrun, Lightning or SLURM in each of several processes; 0 or unset in the first one.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def is_first() -> bool:
    """Whether this process has rank 0, by its environment variables."""
    return not any(int(os.environ.get(name) or 0) for name in RANKS)


def this_program() -> list[str]:
    """The command that starts this program: the installed script, or ``python -m captioner``."""
    import __main__

    script = Path(sys.argv[0])
    if getattr(__main__, "__spec__", None) is None and script.is_file():
        return [sys.executable, str(script.absolute())]
    return [sys.executable, "-m", "captioner"]


_OUT_OF_MEMORY = re.compile(
    r"out of memory|can.t allocate memory|Cannot allocate memory|size calculation overflowed|"
    r"Overflow when unpacking",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or the operating system means that memory is not enough."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


class _TorchvisionGuard(importlib.abc.MetaPathFinder):
    """Defines missing operators of torchvision while it is imported.

    PyPI's torchvision is linked against the CUDA build of torch. With a CPU build its operators are
    missing, and registering their shapes fails with "operator torchvision::nms does not exist"
    (pytorch/vision #8985). Defining the two schemas first is enough for everything except detection
    and torchvision's own image decoders, neither of which is used here. If torchvision's library
    loads, nothing is changed.
    """

    _library: Any = None  # the schemas exist as long as this object

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
    """Let torchvision be imported with a build of torch that its compiled operators do not fit.

    Called by the package itself, since torchvision may be imported before any of its modules.
    """
    _watch(_TorchvisionGuard)


def freeze_torch() -> None:
    """When torch is imported, take its objects from Python's garbage collector for ever.

    They are some 250,000, and stay as long as the process. The collector would go through all of
    them several times while modules are imported, and once more at the end, which takes a quarter
    of the time of a first caption. All other objects that exist by then are taken as well, so this
    is for a process that does nothing before: the command line.
    """
    _watch(_TorchImporter)


def _watch(kind: type[importlib.abc.MetaPathFinder]) -> None:
    if not any(isinstance(finder, kind) for finder in sys.meta_path):
        sys.meta_path.insert(0, kind())


class _TorchImporter(importlib.abc.MetaPathFinder):
    """Imports torch while the garbage collector pauses, and freezes what it would look at."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader: Any = spec.loader if spec else None
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module
                enabled = gc.isenabled()
                gc.disable()
                try:
                    execute(module)
                    gc.freeze()
                finally:
                    if enabled:
                        gc.enable()

            loader.exec_module = exec_module
        return spec
