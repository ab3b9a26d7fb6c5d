"""Trainings that are killed at a given moment: at one of their writes, or at any time.

A training runs in a forked child of the test, which has imported everything already, so that a case
takes half a second. Python's audit events tell every file that it opens for writing, renames or
removes.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import torch

from captioner import runs
from captioner.checkpoints import checkpoint
from captioner.cli import main
from captioner.data.shapes import draw
from captioner.report.curves import read_log
from captioner.runs import LAST, checkpoint_file

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")


class Moments:
    """Counts the changes of files below a folder, and calls a function at one of them.

    Args:
        root: of the files.
        at: the number of the moment, from 0, or the numbers of several; None: never.
        happen: what happens right before this change, and after a single moment before all later
            ones that need space; called with the path.
    """

    def __init__(
        self, root: Path, at: int | Collection[int] | None, happen: Callable[[str], object]
    ) -> None:
        self.root, self.at, self.happen = str(root), at, happen
        self.names: list[str] = []
        self._fsync = os.fsync

    def watch(self) -> None:
        """Watch this process until it ends: audit hooks cannot be removed."""
        sys.addaudithook(self._audit)
        os.fsync = self._sync  # type: ignore[assignment]  # it has no audit event

    def _audit(self, event: str, values: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = values
            if flags & (os.O_WRONLY | os.O_RDWR) and not flags & os.O_DIRECTORY:
                self._moment("open", path)
        elif event in _CHANGES and os.path.lexists(values[0]) is not (event == "os.mkdir"):
            self._moment(event.removeprefix("os."), values[0])

    def _sync(self, file: int) -> None:
        self._moment("fsync", os.readlink(f"/proc/self/fd/{file}"))
        self._fsync(file)

    def _moment(self, name: str, path: object) -> None:
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if not path.startswith(self.root):
            return
        number = len(self.names)
        self.names.append(f"{name} {path.removeprefix(self.root).lstrip('/')}")
        if self._is_at(number, needs_space=name in ("open", "mkdir", "fsync")):
            self.happen(path)

    def _is_at(self, number: int, *, needs_space: bool) -> bool:
        if isinstance(self.at, Collection):
            return number in self.at
        return self.at is not None and (number == self.at or (number > self.at and needs_space))


def kill(_: str) -> None:
    """End this process as the system does when memory is exhausted, or a battery is empty."""
    os.kill(os.getpid(), signal.SIGKILL)


def full(path: str) -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def start(job: Callable[[], object], log: Path, moments: Moments | None = None) -> int:
    """Run a function in a forked child, and return its process id.

    Args:
        job: its result is the exit status; None: 0.
        log: the file that gets the output of the child; beside it the names of its moments.
        moments: what happens to the child; None: nothing.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        if moments is not None:
            moments.watch()
        status = int(job() or 0)  # type: ignore[call-overload]
        names = [] if moments is None else moments.names
        log.with_suffix(".moments").write_text("\n".join(names), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(child: int) -> int:
    """Wait for a child; its exit status, negative for the signal that has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(arguments: Sequence[str], log: Path, moments: Moments) -> tuple[int, str]:
    """Run a command line in a child, in which something happens at a moment.

    Returns:
        the exit status, and the names of all moments, if the child was not killed.
    """
    names = log.with_suffix(".moments")
    names.unlink(missing_ok=True)
    status = finish(start(lambda: main(arguments), log, moments))
    return status, names.read_text(encoding="utf-8") if names.exists() else ""


@contextmanager
def filling_disk(
    root: Path, log: Path
) -> Iterator[Callable[[Sequence[str], int], tuple[int, list[str]]]]:
    """Within the block, commands can be run on a disk that is full from a moment on.

    A single child runs them all, so that a case takes no longer than its command.

    Args:
        root: the folder whose moments are counted.
        log: the file that gets the output.

    Yields:
        a function that runs a command line with a moment; it returns the exit status and the names
        of the moments of this command.
    """
    ours, theirs = Pipe()
    watched = Moments(root, None, full)

    def serve() -> None:
        ours.close()
        with suppress(EOFError):
            while True:
                arguments, watched.at = theirs.recv()
                watched.names.clear()
                theirs.send((main(arguments), watched.names))

    def run(arguments: Sequence[str], moment: int) -> tuple[int, list[str]]:
        log.write_bytes(b"")
        ours.send((arguments, moment))
        return ours.recv()

    child = start(serve, log, watched)
    theirs.close()
    try:
        yield run
    finally:
        ours.close()
        finish(child)


def final_state(run: Path) -> dict[str, Any]:
    """What a finished training leaves, except times: all values, and the names of all files."""
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    state: dict[str, Any] = {
        "files": [name for name in files if not name.startswith(f"{runs.LOGS}/csv")],
        "log": read_log(run),
        "samples": (run / runs.SAMPLES).read_text(encoding="utf-8"),
        "config": (run / runs.CONFIG).read_text(encoding="utf-8"),
    }
    for path in (run / runs.CHECKPOINTS).glob("*.ckpt"):
        content = checkpoint.read(path).lightning
        state[path.name] = {key: content[key] for key in content.keys() - {"loops"}}
    return state


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """The places where two states differ in any bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        return [] if same else [place]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other}, key=str)
        parts = (differences(one.get(k), other.get(k), f"{place}/{k}") for k in keys)
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{place}: {one!r:.300} and {other!r:.300}"]
        parts = (differences(a, b, f"{place}/{i}") for i, (a, b) in enumerate(zip(one, other)))
    else:
        return [] if one == other else [f"{place}: {one!r:.200} and {other!r:.200}"]
    return [line for part in parts for line in part]


OPTIONS = (
    "encoder=pixels",
    "decoder.embedding_size=16",
    "decoder.hidden_size=24",
    "decoder.dropout=0.1",
    "loader.batch_size=20",
    "optimizer.lr=0.01",
    "callbacks.ema=0.9",
    "callbacks.keep=1",
    "callbacks.samples=2",
    "callbacks.save_every=2",
    "callbacks.progress=false",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "logger.tensorboard=false",
)
"""Two epochs, with everything that a run folder may have."""


class Training:
    """A training with its cache and run below a folder; every time it starts from nothing.

    It has two epochs of three steps and no network but the decoder: it takes a quarter of a second.

    Attributes:
        root: the folder, with the run in ``run``.
        log: what the processes print.
        state: that of the run after an uninterrupted training.
        moments: the names of the moments of that training.
    """

    def __init__(self, folder: Path, *more: str) -> None:
        data = draw(folder / "shapes", train=12, dev=4, test=2, size=48, progress=False).parent
        self.root, self.run, self.log = folder / "work", folder / "work" / "run", folder / "log"
        self.start = ["train", *OPTIONS, *more, f"data.root={data}", f"run_dir={self.run}"]
        self.clear()
        # Modules are loaded and the configuration is composed before children are forked.
        assert main(self.start) == 0
        status, names = self.killed_at(None)
        assert status == 0, self.log.read_text()
        self.state, self.moments = final_state(self.run), names.splitlines()

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        self.log.write_bytes(b"")
        os.environ["CAPTIONER_CACHE"] = str(self.root / "cache")

    def killed_at(
        self, moment: int | None, happen: Callable[[str], object] = kill
    ) -> tuple[int, str]:
        """Start and be killed at a moment; exit status, and the names of moments."""
        self.clear()
        return command(self.start, self.log, Moments(self.root, moment, happen))

    def kills(self, moments: Collection[int]) -> Iterator[int]:
        """Start once, and be killed at several moments.

        At each of them the training forks and waits, and the fork, a process in the middle of the
        same write, is killed. Until the next moment is asked for, ``root`` is a copy of what it
        left: files that no living process holds open or has locked.

        Yields:
            the moment.
        """
        self.clear()
        ours, theirs = Pipe()
        aside = self.root.with_name("aside")
        shutil.rmtree(aside, ignore_errors=True)  # of a test that has failed

        def fork(path: str) -> None:
            ours.close()
            victim = os.fork()
            if victim == 0:
                kill(path)
            theirs.send(finish(victim))
            theirs.recv()

        watched = Moments(self.root, moments, fork)
        child = start(lambda: main(self.start), self.log, watched)
        theirs.close()
        with ours:
            for moment in sorted(moments):
                assert ours.recv() == -signal.SIGKILL
                self.root.rename(aside)
                shutil.copytree(aside, self.root, symlinks=True)
                self.log.write_bytes(b"")
                yield moment
                shutil.rmtree(self.root)
                aside.rename(self.root)
                ours.send("go on")
        assert finish(child) == 0, self.log.read_text()
        assert not differences(self.state, final_state(self.run))

    def shortest(self, count: int) -> float:
        """The seconds that an uninterrupted training takes, at least: the machine may be busy."""
        seconds = []
        for _ in range(count):
            self.clear()
            began = time.monotonic()
            assert finish(start(lambda: main(self.start), self.log)) == 0, self.log.read_text()
            seconds.append(time.monotonic() - began)
        return min(seconds)

    def next_command(self) -> list[str]:
        """What the user types after an interruption: resume, or start again."""
        if checkpoint_file(self.run, LAST).is_file():
            return ["train", f"resume={self.run}"]
        return self.start

    def complete(self) -> int:
        """Complete an interrupted training in this process; the exit status."""
        with (
            self.log.open("a", buffering=1, encoding="utf-8") as log,
            redirect_stdout(log),
            redirect_stderr(log),
        ):
            return main(self.next_command())

    def problems(self) -> list[str]:
        """Complete an interrupted training; a line for each difference from the other one."""
        status = self.complete()
        said = self.log.read_text(encoding="utf-8", errors="replace")
        if status and "error: 2 epochs are done" not in said:
            return [f"exit status {status}: {said[-600:]}"]
        left = [str(path) for path in self.root.rglob(".*") if path.is_file()]
        return left + differences(self.state, final_state(self.run))
