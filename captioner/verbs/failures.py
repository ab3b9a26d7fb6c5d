"""Exceptions as error messages: one line that says what to do.

The library raises ValueError and OSError with such a line. This module writes it for exceptions of
Lightning, Hydra, torch and the operating system, which it recognizes by name, without importing
them.
"""

from __future__ import annotations

import errno
import re

from captioner.process import is_out_of_memory

TRACEBACK = "CAPTIONER_TRACEBACK"
"""Environment variable that shows the traceback of an exception."""

_READABLE = {"MisconfigurationException", "HydraException", "OmegaConfBaseException"}
_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process.*\n\1: (.*)", re.DOTALL)
_KILLED = re.compile(r"DataLoader worker .* (killed|exited)")
_ADVICE = {
    errno.ENOSPC: "free some space and try again; existing files are complete",
    errno.EDQUOT: "free some space and try again; existing files are complete",
    errno.EFBIG: "allow larger files (ulimit -f) and try again; existing files are complete",
    errno.ENOENT: "check the path, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name (run_dir=...)",
    errno.EACCES: "choose another place, or change its permissions",
    errno.EPERM: "choose another place, or change its permissions",
    errno.EROFS: "choose another place",
    errno.ENOTDIR: "a part of the path is a file; choose another place",
    errno.EEXIST: "it exists already; choose another place",
    errno.ENOMEM: "close other programs, or lower loader.batch_size or loader.workers",
}


def explain(error: BaseException) -> str:
    """The error message of an exception.

    Args:
        error: any exception; for an unexpected one the message has its type and says how to see its
            traceback.
    """
    text = str(error).strip()
    worker = _WORKER.search(text)
    if worker:
        return worker[2].strip()
    if isinstance(error, OSError) and error.strerror:
        return _system_error(error)
    if is_out_of_memory(error) and not isinstance(
        error, ValueError
    ):  # a ValueError names the image
        return (
            f"out of memory{_wanted(text)}; lower loader.batch_size or the model's sizes, or close "
            "other programs"
        )
    if _KILLED.search(text):
        return f"{_first_sentence(text)}: most likely out of memory; try loader.workers=0"
    if "InterpolationResolutionError" in _names(error.__cause__ or error):
        return f"{_interpolation(error)}; for a literal ${{ write \\${{"
    if isinstance(error, ValueError | OSError) or _names(error) & _READABLE:
        return _with_cause(text, error)
    if type(error).__module__.startswith("wandb"):
        return f"Weights & Biases: {text}; set WANDB_MODE=offline, or logger.wandb=false"
    return f"{type(error).__name__}: {text} (unexpected; {TRACEBACK}=1 shows the traceback)"


def _with_cause(text: str, error: BaseException) -> str:
    """The message, with that of the OmegaConf error that caused an error of Hydra."""
    cause = error.__cause__
    known = cause is not None and "OmegaConfBaseException" in _names(cause)
    return f"{text}: {cause}" if known else text or type(error).__name__


def _interpolation(error: BaseException) -> str:
    """The key whose interpolation has no value."""
    cause = error.__cause__ or error
    key = getattr(cause, "full_key", None)
    return (f"{key}: " if key else "") + str(cause).splitlines()[0]


def _system_error(error: OSError) -> str:
    """The message of an OSError: the file, the problem, and what to do."""
    problem = (error.strerror or "").lower()
    line = f"{'writing or reading a file' if error.filename is None else error.filename}: {problem}"
    advice = _ADVICE.get(error.errno or 0)
    return f"{line}; {advice}" if advice else line


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _wanted(text: str) -> str:
    """The amount of memory that could not be allocated, if the message has it."""
    cpu = re.search(r"tried to allocate (\d+) bytes", text)
    gpu = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
    amount = f"{int(cpu[1]) / 2**30:,.1f} GiB" if cpu else gpu[1] if gpu else ""
    return f" ({amount} could not be allocated)" if amount else ""


def _first_sentence(text: str) -> str:
    """The text up to the first full stop or line end."""
    return re.split(r"\.\s|\n", text, maxsplit=1)[0].rstrip(".")
