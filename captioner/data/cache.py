"""The folder of the feature caches: where it lies, what is in it, and how it is cleared.

Each encoder has a folder of its own, named by its fingerprint; ``captioner.data.features`` fills
and reads it. ``used`` in it is locked for as long as a process reads the features, and touched when
it begins; ``lock`` while one writes them. Both stay behind when the rest is cleared: a process that
waits for a lock must not wait for a file that is gone.
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

ENTRY_BYTES = 24
"""Bytes that a row takes in ``index``."""
INDEX, ABOUT, USED, LOCK = "index", "encoder.json", "used", "lock"
_NAME = re.compile(r"[0-9a-f]{16}(-grid)?")
_CONTENT = re.compile(r"index|encoder\.json|(pooled|grid(-[0-9a-f]+)?)\.f16|\.[0-9a-f]+\.tmp")


def cache_home(folder: str | None = None) -> Path:
    """Where features are kept.

    Args:
        folder: ``loader.cache_folder``.

    Returns:
        the given folder; otherwise $CAPTIONER_CACHE; otherwise captioner/ in the system's folder
        for caches, on Linux $XDG_CACHE_HOME or ~/.cache. Where there is no such folder yet,
        but a ~/.cache/captioner, it stays in use.
    """
    named = folder or os.environ.get("CAPTIONER_CACHE")
    if named:
        return Path(os.path.expanduser(named))
    from platformdirs import user_cache_path

    earlier = Path.home() / ".cache" / "captioner"
    usual = user_cache_path("captioner", appauthor=False)
    unusable = not usual.is_absolute()  # $XDG_CACHE_HOME may be relative, and is then ignored
    return earlier if unusable or (earlier.is_dir() and not usual.is_dir()) else usual


@dataclass(frozen=True)
class Cached:
    """The features of one encoder.

    Attributes:
        folder: where they lie.
        encoder: the network, its image size, and what else tells it from others; "" where a version
            of this package filled the folder that did not write it down.
        grid: whether the features of all positions are kept, not the pooled ones alone.
        images: how many are cached; each view of an image counts.
        size: of all files, in bytes.
        last_use: when a process last began to read or write it, in local time.
    """

    folder: Path
    encoder: str
    grid: bool
    images: int
    size: int
    last_use: datetime

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        used = self.last_use.isoformat(timespec="seconds")
        return {**asdict(self), "folder": str(self.folder), "last_use": used}


def describe(folder: Path, encoder: Sequence[str]) -> None:
    """Write down whose features a folder holds, in a few words each, where it can be written to."""
    from captioner.files import write_whole

    if not (folder / ABOUT).exists():
        with suppress(OSError):
            write_whole(folder / ABOUT, json.dumps({"encoder": list(encoder)}) + "\n")


def cached(home: Path) -> list[Cached]:
    """What a cache's folder holds, last used first; other files and folders in it do not count."""
    folders = [path for path in _folders(home) if (path / INDEX).is_file()]
    return sorted(map(_cached, folders), key=lambda one: one.last_use, reverse=True)


def old(home: Path, unused_for: timedelta) -> list[Cached]:
    """Of `cached`, what was not used for some time."""
    now = datetime.now()
    return [one for one in cached(home) if now - one.last_use >= unused_for]


def clear(home: Path, *, unused_for: timedelta = timedelta(0)) -> tuple[list[Cached], list[Cached]]:
    """Remove the features that no process reads or writes.

    Args:
        home: the cache's folder, of which only files that this package writes are removed.
        unused_for: what was used later is kept.

    Returns:
        what was removed, and what was to be but is in use.

    Raises:
        OSError: a file cannot be removed.
    """
    removed, busy = list[Cached](), list[Cached]()
    for one in old(home, unused_for):
        with _alone(one.folder) as alone:
            (removed if alone else busy).append(one)
            if alone:
                _empty(one.folder)
    return removed, busy


class Use:
    """While it lives, and the process does, `clear` leaves a folder alone."""

    def __init__(self, folder: Path) -> None:
        self._file: int | None = None
        with suppress(OSError):  # a folder that cannot be written to is not cleared either
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
    times = [stats[USED].st_mtime] if USED in stats else [one.st_mtime for one in stats.values()]
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
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return ", ".join(about["encoder"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody reads or writes a folder; nobody begins to until this is left."""
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


def _empty(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if _CONTENT.fullmatch(path.name))
    for name in sorted(names, key=lambda name: name != INDEX):  # without it the rest counts nothing
        (folder / name).unlink(missing_ok=True)
