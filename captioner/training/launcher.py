"""Several processes for one training: start them, and end all when one ends.

``torchrun`` and SLURM start the processes themselves. Otherwise the first process of a machine
starts the others with the command that started it, and passes their ranks in the environment, as
Lightning does. Lightning's own launcher uses ``sys.argv`` as that command, and when one process
ends it kills all without a message.

When a rank is killed, the others wait in a collective operation. gloo then raises an error
immediately, NCCL after half an hour. So the processes also watch each other: the first process
watches its children, and each child its parent.

Lightning's handler of SIGTERM would leave the ranks waiting as well: it communicates with the other
ranks from within the operation that the signal interrupts. So the handler that the process had
before stays in use (``OwnHandler``).

Ctrl-C in a terminal goes to all processes. Until the others are ready, the first one waits for them
at a pipe, which a signal interrupts, unlike a collective operation. A process that is being started
receives signals when it can end without a traceback (``receive_signals``), and it prints nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy

from captioner.overrides import shell_word
from captioner.process import interruption_of
from captioner.training import ranks

PARENT = "CAPTIONER_PARENT"
"""Environment variable with the id of the process that started this process."""
READY = "CAPTIONER_READY"
"""Environment variable with the descriptor of a pipe; a process writes to it when it is ready."""

_ENDING = (signal.SIGINT, signal.SIGTERM)

INTERVAL = 0.5  # seconds between two checks of the other processes
GRACE = 5.0  # seconds that a process has to end by itself after another one has ended
PATIENCE = 30.0  # seconds that the other processes have to end after the training


class RankLost(ValueError):
    """Another process of this training has ended."""


@dataclass(frozen=True)
class Launch:
    """How the other processes of a training are started, and how a lost process is reported.

    Attributes:
        command: the command that starts this training in the process of another rank; None: the
            current script.
        report: called with one line before this process exits without raising RankLost.
    """

    command: Sequence[str] | None
    report: Callable[[str], object]


@contextlib.contextmanager
def start_ranks(trainer: lightning.Trainer, folder: Path, launch: Launch) -> Iterator[None]:
    """Within the block, all ranks of a training run and can communicate
    (``captioner.training.ranks``).

    The processes that it starts exit at the end of the block: code after the block does not run in
    them. With one device nothing happens.

    Args:
        trainer: the trainer, before ``fit``.
        folder: the run folder, for the error if a rank is lost.
        launch: how the processes are started.

    Raises:
        RankLost: another rank ended before the training did.
        ValueError: there is no script to start.
    """
    if not isinstance(trainer.strategy, DDPStrategy):
        yield
        return
    environment, threads, done = dict(os.environ), torch.get_num_threads(), False
    watch = _watch_for(trainer.strategy, launch)
    # The other processes already have it; Lightning would give all ranks the same seed.
    os.environ.pop("PL_GLOBAL_SEED", None)
    trainer.callbacks.append(OwnHandler(signal.SIGTERM))  # type: ignore[attr-defined]
    try:
        watch.start()
        watch.ready()
        with _default_action(signal.SIGTERM):
            trainer.strategy.setup_environment()
        yield
        done = True
    except BaseException as error:
        watch.explain(error, folder)
        raise
    finally:
        watch.end(PATIENCE if done else 0.0)
        if watch.owns and ranks.joined():
            torch.distributed.destroy_process_group()
        _restore(environment)
        torch.set_num_threads(threads)
    if isinstance(watch, _Child):
        raise SystemExit(0)


class OwnHandler(Callback):
    """Keeps a process's handler of a signal during a training, instead of Lightning's."""

    def __init__(self, number: signal.Signals) -> None:
        self.number, self.handler = number, signal.getsignal(number)

    def on_train_start(self, *unused: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(self.number, self.handler)


@contextlib.contextmanager
def _default_action(number: signal.Signals) -> Iterator[None]:
    """Within the block, a signal ends every rank except the first, even one that waits for others.

    Python runs a signal handler only between two instructions, and waiting is a single instruction.
    """
    if ranks.first() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


def _restore(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def receive_signals() -> None:
    """Receive the signals that a process of another rank has not received since it was started."""
    if started_here() and threading.current_thread() is threading.main_thread():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Signals that arrive within the block are received after it; processes inherit this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def started_here() -> bool:
    """Whether another process of this training has started this process."""
    return PARENT in os.environ


def require_startable(trainer: lightning.Trainer, launch: Launch) -> None:
    """Refuse a training that ``start_ranks`` could not start, before anything is written.

    Raises:
        ValueError: several devices, and no script to start.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and launch.command is None and not started_here():
        assert strategy.cluster_environment is not None
        if not strategy.cluster_environment.creates_processes_externally:
            _own_command()


def _watch_for(strategy: DDPStrategy, launch: Launch) -> _Watch:
    if ranks.joined():
        return _Watch(launch.report)
    if started_here():
        return _Child(int(os.environ[PARENT]), launch.report)
    assert strategy.cluster_environment is not None
    if strategy.cluster_environment.creates_processes_externally:
        return _Watch(launch.report)
    global _scripts_started
    command = launch.command
    if command is None:
        command = _own_command()
        _scripts_started += 1
    return _Parent(*_start(strategy, command), launch.report)


def _start(
    strategy: DDPStrategy, command: Sequence[str]
) -> tuple[dict[int, subprocess.Popen[bytes]], int]:
    """The other processes of this machine, by rank, and a pipe that ends when all are ready."""
    cluster = strategy.cluster_environment
    assert cluster is not None
    processes, node = strategy.num_processes, cluster.node_rank()
    os.environ.update(
        MASTER_ADDR=cluster.main_address,
        MASTER_PORT=str(cluster.main_port),
        NODE_RANK=str(node),
        LOCAL_RANK="0",
        WORLD_SIZE=str(processes * strategy.num_nodes),
    )
    pipe, end = os.pipe()
    own = {PARENT: str(os.getpid()), READY: str(end)}
    with _blocked_signals():
        children = {
            node * processes + local_rank: subprocess.Popen(
                command,
                env={**os.environ, "LOCAL_RANK": str(local_rank), **own},
                stdin=subprocess.DEVNULL,
                pass_fds=(end,),
            )
            for local_rank in range(1, processes)
        }
    os.close(end)
    return children, pipe


_scripts_started = 0


def _own_command() -> list[str]:
    """The command that runs the current script again.

    Raises:
        ValueError: there is no script, or it has already been run again.
    """
    import __main__

    if _scripts_started:
        raise ValueError(
            "a script can train on several devices only once, because the other processes run it "
            "from its start; use `captioner train`, or one script for each model"
        )
    module, file = getattr(__main__, "__spec__", None), getattr(__main__, "__file__", None)
    if module is None and (file is None or not Path(file).is_file()):
        raise ValueError(
            "trainer.devices: the other processes run the training script, but there is no such "
            "file; put the program into a file, use `captioner train`, or set trainer.devices=1"
        )
    script = ["-m", module.name] if module is not None else [os.path.abspath(str(file))]
    return [sys.executable, *script, *sys.argv[1:]]


def started_by_torchrun(devices: int | str, num_nodes: int) -> tuple[int | str, int]:
    """Devices per machine, and machines; numbers of 1 are replaced by those of torchrun.

    Raises:
        ValueError: torchrun has started a different number of processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return devices, num_nodes
    local, world = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if str(devices) in ("1", "auto"):
        devices = local
    if num_nodes == 1:
        num_nodes = world // local
    if str(devices).isdigit() and int(devices) * num_nodes != world:
        raise ValueError(
            f"trainer.devices={devices} and trainer.num_nodes={num_nodes} do not match the {world} "
            "processes that torchrun has started; leave them out"
        )
    return devices, num_nodes


# Watching -------------------------------------------------------------------------------------


class _Watch(threading.Thread):
    """Watches nothing: another program (torchrun, SLURM) starts and ends the processes."""

    owns = False  # whether the process group is destroyed after the training

    def __init__(self, report: Callable[[str], object]) -> None:
        super().__init__(daemon=True, name="ranks")
        self.report = report
        self._over = threading.Event()

    def lost(self) -> str | None:
        """A text that names the rank that has ended, and how; None if all ranks run."""
        return None

    def ready(self) -> None:
        """Wait until the processes that this one has started are ready to communicate."""

    def run(self) -> None:
        while not self._over.wait(INTERVAL):
            lost = self.lost()
            if lost is not None:
                if not self._over.wait(GRACE):  # the training still waits for the lost rank
                    self.end(0.0)
                    self.leave(_message(lost, None))
                return

    def explain(self, error: BaseException, folder: Path) -> None:
        """Raise RankLost instead of an error that was caused by the end of another rank."""
        if _is_of_another_rank(error):
            raise RankLost(_message("another rank was ended", folder)) from None

    def leave(self, line: str) -> None:
        """Report an error and exit this process immediately, even if its threads are waiting."""
        self.report(line)
        os._exit(1)

    def end(self, patience: float) -> None:
        """Stop watching."""
        self._over.set()


class _Parent(_Watch):
    """Watches the processes that this process has started."""

    owns = True

    def __init__(
        self,
        children: dict[int, subprocess.Popen[bytes]],
        pipe: int,
        report: Callable[[str], object],
    ) -> None:
        super().__init__(report)
        self.children, self._pipe, self._starting = children, pipe, len(children)

    def ready(self) -> None:
        try:
            while os.read(self._pipe, 1):  # at its end, all have closed it, or have ended
                self._starting -= 1
        finally:
            os.close(self._pipe)
        if self._starting:
            raise RankLost(_message(_wait_for(self.lost) or "another rank was ended", None))

    def lost(self) -> str | None:
        for rank, child in self.children.items():
            status = child.poll()
            if status is not None:
                return f"rank {rank} (process {child.pid}) {_ended(status)}"
        return None

    def explain(self, error: BaseException, folder: Path) -> None:
        if _is_of_another_rank(error):
            lost = _wait_for(self.lost) or "another rank was ended"
            raise RankLost(_message(lost, folder)) from None

    def end(self, patience: float) -> None:
        """Stop watching, and kill the processes that have not ended after `patience` seconds."""
        super().end(patience)
        until = time.monotonic() + patience
        for child in self.children.values():
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class _Child(_Watch):
    """Watches the process that has started this one, and reports the error if that one cannot."""

    def __init__(self, parent: int, report: Callable[[str], object]) -> None:
        super().__init__(report)
        self.parent = parent

    def ready(self) -> None:
        pipe = int(os.environ[READY])
        os.write(pipe, b"1")
        os.close(pipe)

    def lost(self) -> str | None:
        return None if os.getppid() == self.parent else f"rank 0 (process {self.parent}) was ended"

    def explain(self, error: BaseException, folder: Path) -> None:
        if interruption_of(error) is not None:
            return
        lost = _wait_for(
            self.lost
        )  # a parent with the same error kills this process while it waits
        if lost:
            self.leave(_message(lost, folder))


def _wait_for(lost: Callable[[], str | None]) -> str | None:
    """A text about a rank that has ended or ends within GRACE seconds; None if none does."""
    until = time.monotonic() + GRACE
    while (text := lost()) is None and time.monotonic() < until:
        time.sleep(0.05)
    return text


def _is_of_another_rank(error: BaseException) -> bool:
    """Whether an error was caused by the end of another rank; gloo has no error class."""
    kinds: Any = getattr(torch.distributed, "DistError", ())
    return isinstance(error, kinds) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )


def _message(lost: str, folder: Path | None) -> str:
    ended = f"{lost}, which ended the training"
    if folder is None:
        return ended
    return f"{ended}; {shell_word('resume', folder)} resumes from the last checkpoint, if any"


def _ended(status: int) -> str:
    """How a process has ended, by its exit status; negative: by that signal."""
    if status == 130:  # of the command line
        return "was interrupted"
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
