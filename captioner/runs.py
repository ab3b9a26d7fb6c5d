"""A run folder: how a new one is claimed, so that no two trainings share one.

A training takes the lock of its folder (``flock`` on the folder itself, which the system frees when
the process ends, however that happens, and which leaves no file) and makes the folder of its
checkpoints, which only one process can. Of several processes of one training the first claims; the
others find the folder's name in an environment variable.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from captioner.process import is_first

FOLDER = "checkpoints"
VARIABLE = "CAPTIONER_RUN_DIR"
"""Names the claimed folder to the other processes of a training."""

_OWN = (FOLDER, "config.yaml", "logs", "samples.jsonl", "costs.json")
_DATE = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")


class Taken(ValueError):
    """A folder that holds a run, or belongs to another training."""


class Claim:
    """A run folder that belongs to this training until it ends.

    Attributes:
        folder: the run folder.
        worth: whether something in it is worth keeping if the training fails.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.worth = folder, False
        self._lock: int | None = None
        self._made: list[Path] = []  # folders that were not there, the innermost first
        self._before: set[str] = set()  # what was in the folder

    def take(self, *, resumes: bool) -> Claim:
        """Claim the folder.

        Raises:
            Taken: another training is at work in it; or it holds a run, and that is not resumed.
            OSError: the folder cannot be made.
        """
        folder = self.folder
        self.worth = resumes
        self._made = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
            self._before = set(os.listdir(folder))
            if not resumes:
                self._require_new()
        except OSError as error:
            self._give_up()
            raise OSError(error.errno, error.strerror, f"run_dir={folder}") from None
        except Taken:
            self._give_up()
            raise
        return self

    def _give_up(self) -> None:
        self.release()
        self._remove_empty(*self._made)

    def _require_new(self) -> None:
        try:
            (self.folder / FOLDER).mkdir()
        except FileExistsError:
            if os.listdir(self.folder / FOLDER):
                raise Taken(
                    f"run_dir={self.folder} already holds a run: resume={self.folder} resumes "
                    "it, or choose another run_dir"
                ) from None
            if self._lock is None:  # else one that was killed before its first checkpoint
                raise _busy(self.folder) from None

    def release(self) -> None:
        """Free the lock."""
        if self._lock is not None:
            import fcntl

            fcntl.flock(self._lock, fcntl.LOCK_UN)  # also for processes forked meanwhile
            os.close(self._lock)
            self._lock = None

    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return any((self.folder / FOLDER).glob("*.ckpt"))

    def discard(self) -> None:
        """Remove what this training has made, and the folder if nothing else is in it."""
        for name in set(_OWN) - self._before:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._remove_empty(self.folder / FOLDER, *self._made)

    @staticmethod
    def _remove_empty(*folders: Path) -> None:
        for path in folders:
            with suppress(OSError):  # it is not there, or holds something
                path.rmdir()


@contextmanager
def claimed(folder: Path, *, resumes: bool = False) -> Iterator[Claim]:
    """A run folder for as long as a training lasts; one that is worth nothing is removed after it.

    A name that is a date, which nobody has chosen, gives way to the next free one (DATE_2) where it
    is taken; any other is refused then.

    Args:
        folder: the run folder; ``~`` is the home folder.
        resumes: whether it holds a run that goes on.

    Raises:
        Taken: another training is at work in it, or it holds a run.
        OSError: it cannot be made.
    """
    claim = _first(Path(os.path.expanduser(folder)), resumes)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = os.path.abspath(claim.folder)
    try:
        yield claim
    except OSError:  # a full disk, say: without a checkpoint nothing can go on from here
        if is_first() and not claim.has_checkpoint():
            claim.discard()
        raise
    except BaseException:
        if not claim.worth and is_first():
            claim.discard()
        raise
    finally:
        claim.release()
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def _first(folder: Path, resumes: bool) -> Claim:
    if not is_first():
        return Claim(Path(os.environ.get(VARIABLE, folder)))
    if resumes or not _DATE.fullmatch(folder.name):
        return Claim(folder).take(resumes=resumes)
    for number in itertools.count(1):
        name = folder.name if number == 1 else f"{folder.name}_{number}"
        with suppress(Taken):
            return Claim(folder.with_name(name)).take(resumes=False)
    raise AssertionError


def _locked(folder: Path) -> int | None:
    """The lock of a folder; None on a file system that has no locks."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise _busy(folder) from None
    except OSError:
        os.close(handle)
        return None
    return handle


def _busy(folder: Path) -> Taken:
    return Taken(
        f"run_dir={folder}: another training is at work there; wait until it ends, or choose "
        "another run_dir"
    )
