"""Files are written whole or not at all; JSON that can always be printed."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Plain data as JSON that can be printed: characters as they are, but for halves of pairs."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_whole(
    path: str | Path, data: bytes | str | Iterable[bytes], *, keep: bool = False
) -> Path:
    """Write a file completely or not at all, so that a crash never leaves half of it.

    Args:
        path: see ``whole_file``.
        data: its content; a text is written as UTF-8 with its line ends as they are, and what is no
            character (half of a pair, or a byte of a name that is not UTF-8) as JSON escapes it,
            ``\\udce9``; bytes may come in pieces.
        keep: see ``whole_file``.

    Returns:
        the path.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the old file is untouched.
    """
    data = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    with whole_file(path, keep=keep) as file:
        for piece in [data] if isinstance(data, bytes) else data:
            file.write(piece)
            if keep:
                file.flush()
    return Path(path)


@contextmanager
def whole_file(path: str | Path, *, keep: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that takes its name in one step, when all is written.

    The bytes go to a temporary file in the same folder, which then replaces the file and has its
    permissions. A symbolic link stays, and the file that it leads to is replaced. Devices, pipes
    and descriptors (/dev/stdout, a FIFO) are written through. Folders above are created.

    Args:
        path: the file to write or replace.
        keep: leave what was written before a failure beside it, as ``partial`` names it.

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
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")  # short: a name has a limit
    try:
        with open(temporary, "xb") as file:
            _take_permissions(file, target)
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the new name and lose the content
        os.replace(temporary, target)
    except BaseException as error:
        if keep and temporary.exists() and temporary.stat().st_size:
            with suppress(OSError):
                os.replace(temporary, partial(path))
        if isinstance(error, OSError):
            _name(error, path, temporary)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def partial(path: str | Path) -> Path:
    """Where ``whole_file`` leaves what was written of a file that could not be finished."""
    target = Path(os.path.realpath(path))
    return target.with_name(f"{target.name[:100]}.partial")


_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/(?:fd/(\d+)|(stdout)|stderr)")


def _is_stream(path: Path) -> bool:
    """Whether a path leads to something that is written through; a folder is refused."""
    if _DESCRIPTOR.fullmatch(str(path)):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:  # not there yet; what else is wrong, opening it will tell
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file in it", str(path))
    return not stat.S_ISREG(mode)


def _stream(path: Path) -> IO[bytes]:
    """Open a device or pipe; of a descriptor take a copy: opened anew, a file would be cut off."""
    found = _DESCRIPTOR.fullmatch(str(path))
    if not found:
        return open(path, "wb")
    number, out = found.groups()
    sys.stdout.flush()
    return os.fdopen(os.dup(int(number or (1 if out else 2))), "wb")


def _take_permissions(file: IO[bytes], target: Path) -> None:
    """Give a new file the permissions and, where that is allowed, the owner of the one there is."""
    try:
        before = target.stat()
    except OSError:
        return
    if hasattr(os, "fchown"):
        with suppress(OSError):
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
    os.chmod(file.fileno() if os.chmod in os.supports_fd else file.name, before.st_mode & 0o7777)


def _name(error: OSError, path: Path, temporary: Path) -> None:
    """Let an error name the file that was asked for, not the temporary one."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None
    if full or error.filename == str(temporary):
        error.filename, error.filename2 = str(path), None
