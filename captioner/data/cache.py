"""The folder of the feature cache: its location, its content, and clearing it.

Each encoder has a subfolder, named by its fingerprint; ``captioner.data.features`` writes and
reads its files. A process that reads the features touches the file ``used`` in this folder and
keeps it locked; a process that writes them keeps ``lock`` locked. Both files remain when the rest
is cleared: another process may wait for a lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from captioner.files import cache_home as cache_home
from captioner.plain_data import read_json

ENTRY_BYTES = 24
"""Size of a row in ``index``."""
NETWORKS = "networks"
"""The subfolder with the kept weights of networks."""
INDEX, ABOUT, USED, LOCK = "index", "encoder.json", "used", "lock"
_NAME = re.compile(r"[0-9a-f]{16}(-grid)?")
_CONTENT = re.compile(
    r"index|encoder\.json|sums-(pooled|grid(-[0-9a-f]+)?)|(pooled|grid(-[0-9a-f]+)?)\.f16"
    r"|\.[0-9a-f]+\.tmp"
)


@dataclass(frozen=True)
class Cached:
    """The cached features of one encoder.

    Attributes:
        folder: of the features.
        encoder: the network, its image size, and other properties; "" for a folder of an earlier
            version of this package, which did not store them.
        grid: whether the grids are cached as well as the pooled features.
        images: number of cached images; each view counts.
        size: of all files, in bytes.
        last_use: local time when a process last started to read or write the features.
    """

    folder: Path
    encoder: str
    grid: bool
    images: int
    size: int
    last_use: datetime

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        used = self.last_use.isoformat(timespec="seconds")
        return {**asdict(self), "folder": str(self.folder), "last_use": used}


def describe(folder: Path, encoder: Sequence[str]) -> None:
    """Store a description of the encoder in its folder, if that is writable."""
    from captioner.files import write_whole

    if not (folder / ABOUT).exists():
        with suppress(OSError):
            write_whole(folder / ABOUT, json.dumps({"encoder": list(encoder)}) + "\n")


def cached(home: Path) -> list[Cached]:
    """The content of a cache's folder, last used first; other files and folders are ignored."""
    folders = [path for path in _folders(home) if (path / INDEX).is_file()]
    return sorted(map(_cached, folders), key=lambda features: features.last_use, reverse=True)


def old(home: Path, unused_for: timedelta) -> list[Cached]:
    """The cached features that were not used for some time."""
    now = datetime.now()
    return [features for features in cached(home) if now - features.last_use >= unused_for]


def clear(home: Path, *, unused_for: timedelta = timedelta(0)) -> tuple[list[Cached], list[Cached]]:
    """Remove features, unless a process reads or writes them.

    Args:
        home: the cache's folder, in which only files of this package are removed.
        unused_for: only features that were not used for this time are removed.

    Returns:
        the removed features, and those that were kept because they are in use.

    Raises:
        OSError: a file cannot be removed.
    """
    removed, busy = list[Cached](), list[Cached]()
    for features in old(home, unused_for):
        with _exclusive(features.folder) as unused:
            (removed if unused else busy).append(features)
            if unused:
                _remove_content(features.folder)
    return removed, busy


def networks(home: Path, unused_for: timedelta = timedelta(0)) -> list[Path]:
    """The files of kept networks (``captioner.models.encoders.kept``) not used for some time."""
    now = datetime.now().timestamp()
    stats = {path: path.stat() for path in sorted(home.glob(f"{NETWORKS}/*.safetensors"))}
    age = {path: now - max(stat.st_atime, stat.st_mtime) for path, stat in stats.items()}
    return [path for path in stats if age[path] >= unused_for.total_seconds()]


class Use:
    """Prevents `clear` from removing the content of a folder, as long as this object exists."""

    def __init__(self, folder: Path) -> None:
        self._file: int | None = None
        with suppress(OSError):  # a folder that is not writable is not cleared either
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / USED, os.O_RDWR | os.O_CREAT, 0o666)
            os.utime(self._file)
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def _folders(home: Path) -> list[Path]:
    if not home.is_dir():
        return []
    return [path for path in sorted(home.iterdir()) if _NAME.fullmatch(path.name)]


def _cached(folder: Path) -> Cached:
    files = [path for path in folder.iterdir() if path.is_file()]
    stats = {path.name: path.stat() for path in files}
    times = [stats[USED].st_mtime] if USED in stats else [s.st_mtime for s in stats.values()]
    return Cached(
        folder=folder,
        encoder=_encoder(folder),
        grid=folder.name.endswith("-grid"),
        images=stats[INDEX].st_size // ENTRY_BYTES,
        size=sum(stat.st_size for name, stat in stats.items() if _CONTENT.fullmatch(name)),
        last_use=datetime.fromtimestamp(max(times)),
    )


def _encoder(folder: Path) -> str:
    try:
        about = read_json(folder / ABOUT, fault="damaged")
        return ", ".join(about["encoder"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


@contextmanager
def _exclusive(folder: Path) -> Iterator[bool]:
    """Yield whether no process reads or writes a folder; none can start to inside the block."""
    from filelock import FileLock, Timeout

    writing = FileLock(folder / LOCK)
    try:
        writing.acquire(timeout=0)
    except Timeout:
        yield False
        return
    using = os.open(folder / USED, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _locked(using)
    finally:
        os.close(using)
        writing.release()


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_content(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if _CONTENT.fullmatch(path.name))
    for name in sorted(
        names, key=lambda name: name != INDEX
    ):  # the index first: without it no row is valid
        (folder / name).unlink(missing_ok=True)
