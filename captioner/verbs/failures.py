"""What an exception tells a person: one line with the way out.

The library raises ValueError and OSError with such a line. What Lightning, Hydra, torch and the
operating system raise for a user's mistake is put into words here; it is known by its name, for
this module imports none of them.
"""

from __future__ import annotations

import errno
import re

from captioner.process import is_out_of_memory

TRACEBACK = "CAPTIONER_TRACEBACK"
"""The environment variable that, where it is set, lets an exception pass with its traceback."""

_MEANT_FOR_PEOPLE = {"MisconfigurationException", "HydraException", "OmegaConfBaseException"}
_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process.*\n\1: (.*)", re.DOTALL)
_KILLED = re.compile(r"DataLoader worker .* (killed|exited)")
_WAYS_OUT = {
    errno.ENOSPC: "make room and try again; files that were there are whole",
    errno.EDQUOT: "make room and try again; files that were there are whole",
    errno.EFBIG: "allow larger files (ulimit -f) and try again; files that were there are whole",
    errno.ENOENT: "look for a slip in the path, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter one (run_dir=...)",
    errno.EACCES: "choose another place, or change its permissions",
    errno.EPERM: "choose another place, or change its permissions",
    errno.EROFS: "choose another place",
    errno.ENOTDIR: "a part of the path is a file; choose another place",
    errno.EEXIST: "it is in the way; choose another place",
    errno.ENOMEM: "close other programs, or take less at once (loader.batch_size, loader.workers)",
}


def explain(error: BaseException) -> str:
    """The line that an exception is printed as.

    Args:
        error: any; one that nobody foresaw keeps its type, and the line says how to see more.
    """
    text = str(error).strip()
    worker = _WORKER.search(text)
    if worker:
        return worker[2].strip()
    if isinstance(error, OSError) and error.strerror:
        return _of_the_system(error)
    if is_out_of_memory(error) and not isinstance(error, ValueError):  # which name the image
        return (
            f"out of memory{_wanted(text)}; lower loader.batch_size or the model's sizes, or close "
            "other programs"
        )
    if _KILLED.search(text):
        return f"{_first_sentence(text)}: most likely out of memory; try loader.workers=0"
    if "InterpolationResolutionError" in _names(error.__cause__ or error):
        return f"{_interpolation(error)}; where ${{ is meant as it stands, write \\${{"
    if isinstance(error, ValueError | OSError) or _names(error) & _MEANT_FOR_PEOPLE:
        return _with_cause(text, error)
    if type(error).__module__.startswith("wandb"):
        return (
            f"Weights & Biases: {text}; WANDB_MODE=offline, or logger.wandb=false, goes without it"
        )
    return f"{type(error).__name__}: {text} (not foreseen; {TRACEBACK}=1 shows where it arose)"


def _with_cause(text: str, error: BaseException) -> str:
    """Hydra's errors keep what is the matter in that of OmegaConf which caused them."""
    cause = error.__cause__
    known = cause is not None and "OmegaConfBaseException" in _names(cause)
    return f"{text}: {cause}" if known else text or type(error).__name__


def _interpolation(error: BaseException) -> str:
    """Which key refers to something that is not there."""
    cause = error.__cause__ or error
    key = getattr(cause, "full_key", None)
    return (f"{key}: " if key else "") + str(cause).splitlines()[0]


def _of_the_system(error: OSError) -> str:
    """Of an exception of the operating system: the file, what is the matter, and the way out."""
    said = (error.strerror or "").lower()
    line = f"{'writing or reading a file' if error.filename is None else error.filename}: {said}"
    way_out = _WAYS_OUT.get(error.errno or 0)
    return f"{line}; {way_out}" if way_out else line


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _wanted(text: str) -> str:
    """How much could not be had, where an error of memory tells it."""
    cpu = re.search(r"tried to allocate (\d+) bytes", text)
    gpu = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
    amount = f"{int(cpu[1]) / 2**30:,.1f} GiB" if cpu else gpu[1] if gpu else ""
    return f" ({amount} could not be had)" if amount else ""


def _first_sentence(text: str) -> str:
    """Up to the first full stop or line end."""
    return re.split(r"\.\s|\n", text, maxsplit=1)[0].rstrip(".")
