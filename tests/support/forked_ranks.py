"""The second process of a training, forked from the first one instead of started anew.

A process that is started anew imports torch for seconds; a forked one begins at once, so that many
cases can be tested. Signals, collective operations and files are those of two real processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from captioner.cli import main
from captioner.training import launcher


def train(command: Sequence[str]) -> int:
    """Run `captioner train` with the arguments of a command line; its exit status."""
    return main(command[command.index("train") :])


class ForkedRank:
    """Replaces ``subprocess.Popen`` in ``launcher``: runs a command in a forked process.

    Args:
        command: the command line.
        env: the environment of the process.
    """

    started: Callable[[], object] = staticmethod(lambda: None)
    """Called in the new process, before anything else."""
    run: Callable[[Sequence[str]], object] = staticmethod(train)
    """Called with the command line; its result is the exit status, None: 0."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], **unused: Any) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(command, env)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("train", timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@contextmanager
def forked_ranks(run: Callable[[Sequence[str]], object] = train) -> Iterator[None]:
    """Within the block, the second process of a training is a `ForkedRank`, with this `run`."""
    with pytest.MonkeyPatch.context() as patch:
        forking = SimpleNamespace(**{**vars(subprocess), "Popen": ForkedRank})
        patch.setattr(launcher, "subprocess", forking)
        patch.setattr(ForkedRank, "started", ForkedRank.started)
        patch.setattr(ForkedRank, "run", run)
        patch.setattr(launcher, "INTERVAL", launcher.INTERVAL / 10)  # forked ranks end at once
        yield


def _become(command: Sequence[str], env: Mapping[str, str]) -> None:
    """Run a command line in this process, with an environment, and exit."""
    status = 1
    try:
        ForkedRank.started()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        GlobalHydra.instance().clear()  # the first process is within a job of Hydra
        os.environ.clear()
        os.environ.update(env)
        status = int(ForkedRank.run(command) or 0)  # type: ignore[call-overload]
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
