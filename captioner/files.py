"""Atomic writing of files, reading of regular ones, the folder of the cache, printable JSON."""

from __future__ import annotations

import difflib
import errno
import itertools
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Convert plain data to JSON; only lone surrogates, which cannot be printed, are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def format_bytes(count: int) -> str:
    """A size in MB or GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def write_whole(
    path: str | Path,
    data: bytes | str | Iterable[bytes],
    *,
    keep: bool = False,
    durable: bool = True,
) -> Path:
    """Write a file atomically: a crash never leaves a part of it.

    Args:
        path: see ``whole_file``.
        data: its content. A text is written as UTF-8, with its line ends unchanged, and with lone
            surrogates (also for bytes of a file name that are not UTF-8) escaped as in JSON,
            ``\\udce9``; bytes may be an iterable of parts.
        keep, durable: see ``whole_file``.

    Returns:
        the path.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the old file is untouched.
    """
    data = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    with whole_file(path, keep=keep, durable=durable) as file:
        for part in [data] if isinstance(data, bytes) else data:
            file.write(part)
            if keep:
                file.flush()
    return Path(path)


def append(path: str | Path, text: str) -> None:
    """Append a text to a file; if the disk is full, nothing is appended.

    Raises:
        OSError: the file cannot be written to, or the disk is full.
    """
    rest = memoryview(text.encode("utf-8", "backslashreplace"))
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            file.truncate(before)
            raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def whole_file(
    path: str | Path, *, keep: bool = False, durable: bool = True
) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its name only when it is complete.

    The bytes go to a temporary file in the same folder, which then replaces the file and has its
    permissions. Of a symbolic link, the target is replaced. Devices, pipes and descriptors
    (/dev/stdout, a FIFO) are written to directly. Missing parent folders are created.

    Args:
        path: the file to write or replace.
        keep: after a failure, keep what was written, under the name of ``partial``.
        durable: wait until the disk has it. Otherwise a power cut may damage the file, which its
            reader must notice.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the old file is untouched.
    """
    path = Path(path)
    if _is_stream(path):
        with _stream(path) as file:
            yield file
        return
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    target.parent.mkdir(parents=True, exist_ok=True)
    names: list[Path] = []
    try:
        with _open_temporary(target.parent, names) as file:
            _copy_permissions(file, target)
            yield file
            file.flush()
            if durable:  # a power cut must not keep the name and lose the content
                os.fsync(file.fileno())
        os.replace(names[-1], target)
    except BaseException as error:
        if keep and names and names[-1].exists() and names[-1].stat().st_size:
            with suppress(OSError):
                os.replace(names[-1], partial(path))
        if isinstance(error, OSError) and names:
            _set_file_name(error, path, names[-1])
        raise
    finally:
        for temporary in names:
            temporary.unlink(missing_ok=True)


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a file for reading, unless it is a folder, pipe, socket or device, which may never end.

    Raises:
        OSError: it does not exist, or cannot be read.
        ValueError: it is no regular file.
    """
    require_regular(path)
    return open(path, "rb")


def require_regular(path: str | Path) -> None:
    """Raise ValueError for a path that exists and is no regular file, nor a link to one."""
    kind = special_kind(path)
    if kind:
        raise ValueError(
            f"{path}: {kind}, not a file that can be read to its end; replace it by a copy of the "
            "file, or remove it"
        )


def special_kind(path: str | Path) -> str:
    """What a path is if it is no regular file: "a folder", "a pipe"; "" if it is one or missing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # opening it reports the error
        return ""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "a device")


_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def write_folder(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write a new folder of files atomically.

    Args:
        folder: does not exist yet.
        files: content by name, as for ``write_whole``.

    Returns:
        the folder.

    Raises:
        OSError: the folder exists, cannot be written to, or the disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    names: list[Path] = []
    try:
        with _temporary_folder(folder.parent, names):
            for name, data in files.items():
                write_whole(names[-1] / name, data)
            os.rename(names[-1], folder)
    finally:
        for temporary in names:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def walk(
    top: str | Path, *, followlinks: bool = False
) -> Iterator[tuple[str, list[str], list[str]]]:
    """As ``os.walk``, which before Python 3.12 recurses: folders may be nested as deep as they are.

    Args:
        top: the folder.
        followlinks: whether links to folders are followed.

    Yields:
        a folder, the names of its subfolders, which may be removed from the list, and of its files.
    """
    waiting = [str(top)]
    while waiting:
        folder = waiting.pop()
        try:
            names = sorted(os.listdir(folder))
        except OSError:  # not readable, or longer than the system accepts
            continue
        is_folder = {name: os.path.isdir(os.path.join(folder, name)) for name in names}
        below = [name for name in names if is_folder[name]]
        yield folder, below, [name for name in names if not is_folder[name]]
        paths = (os.path.join(folder, name) for name in reversed(below))
        waiting += [path for path in paths if followlinks or not os.path.islink(path)]


def near_file(path: Path) -> str:
    """`` (did you mean PATH?)`` for the nearest name in the folder of a path that does not exist.

    Empty if none is near, or the folder does not exist either.
    """
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, _SCANNED)]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f" (did you mean {path.with_name(near[0])}?)" if near else ""


_SCANNED = 10_000


# Temporary files ------------------------------------------------------------------------------

# Each is locked as long as its process writes it, so that those of killed processes are recognized:
# the next process that writes into the folder removes them. Without locks they stay.
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def _temporary_name() -> str:
    return f".{secrets.token_hex(8)}.tmp"  # short: the length of names is limited


def _open_temporary(folder: Path, names: list[Path]) -> IO[bytes]:
    """Open a temporary file in a folder, and remove those of killed processes.

    Its name is appended to `names` before it exists: a signal may come at any time.
    """
    remove_abandoned(folder)
    while True:
        names.append(folder / _temporary_name())
        file = open(names[-1], "xb")  # noqa: SIM115
        _lock(file.fileno())
        if os.fstat(file.fileno()).st_nlink:  # else it was removed before it was locked
            return file
        file.close()


@contextmanager
def _temporary_folder(folder: Path, names: list[Path]) -> Iterator[None]:
    """Make a temporary folder in a folder, and hold its lock; its name as above."""
    remove_abandoned(folder)
    while True:
        names.append(folder / _temporary_name())
        names[-1].mkdir()
        descriptor = os.open(names[-1], os.O_RDONLY)
        try:
            _lock(descriptor)
            if names[-1].exists():
                yield
                return
        finally:
            os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders in a folder whose processes were killed."""
    names: list[str] = []
    with suppress(OSError):  # a folder that may be written to, but not read
        names = os.listdir(folder)
    for path in (folder / name for name in names if _TEMPORARY.fullmatch(name)):
        with suppress(OSError):  # another process removes it, or may not write to it
            is_folder = path.is_dir()
            descriptor = os.open(path, os.O_NOFOLLOW | (os.O_RDONLY if is_folder else os.O_RDWR))
            try:
                if _lock(descriptor):
                    shutil.rmtree(path) if is_folder else path.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock an open file or folder; False if another process has, or if there are no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


# Streams, permissions and errors ----------------------------------------------------------------


def partial(path: str | Path) -> Path:
    """The path under which ``whole_file`` keeps an incomplete file."""
    target = Path(os.path.realpath(path))
    return target.with_name(f"{target.name[:100]}.partial")


_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/(?:fd/(\d+)|(stdout)|stderr)")


def _is_stream(path: Path) -> bool:
    """Whether a path is a device, pipe or descriptor; a folder raises an error."""
    if _DESCRIPTOR.fullmatch(str(path)):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:  # it does not exist yet; opening it reports any other error
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file in it", str(path))
    return not stat.S_ISREG(mode)


def _stream(path: Path) -> IO[bytes]:
    """Open a device or pipe; duplicate a descriptor: opening it again would truncate its file."""
    match = _DESCRIPTOR.fullmatch(str(path))
    if not match:
        return open(path, "wb")
    number, out = match.groups()
    sys.stdout.flush()
    return os.fdopen(os.dup(int(number or (1 if out else 2))), "wb")


def _copy_permissions(file: IO[bytes], target: Path) -> None:
    """Copy the permissions and, if allowed, the owner of the existing file to the new one."""
    try:
        before = target.stat()
    except OSError:
        return
    if hasattr(os, "fchown"):
        with suppress(OSError):
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
    os.chmod(file.fileno() if os.chmod in os.supports_fd else file.name, before.st_mode & 0o7777)


def _set_file_name(error: OSError, path: Path, temporary: Path) -> None:
    """Replace the temporary file in an error by the requested one."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None
    if full or error.filename == str(temporary):
        error.filename, error.filename2 = str(path), None


def cache_home(folder: str | None = None) -> Path:
    """Return the folder of the feature cache.

    Args:
        folder: ``loader.cache_folder``.

    Returns:
        the given folder; otherwise $CAPTIONER_CACHE; otherwise captioner/ in the system's folder
        for caches, on Linux $XDG_CACHE_HOME or ~/.cache. If there is no such folder yet but
        ~/.cache/captioner exists, the latter is used.
    """
    named = folder or os.environ.get("CAPTIONER_CACHE")
    if named:
        return Path(os.path.expanduser(named))
    from platformdirs import user_cache_path

    earlier = Path.home() / ".cache" / "captioner"
    usual = user_cache_path("captioner", appauthor=False)
    unusable = not usual.is_absolute()  # $XDG_CACHE_HOME may be relative, and is then ignored
    return earlier if unusable or (earlier.is_dir() and not usual.is_dir()) else usual
