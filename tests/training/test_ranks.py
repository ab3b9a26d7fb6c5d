"""Two processes: signals to one or both, kills at any time, and files that only the first writes.

The processes are forked (``support.forked_ranks``), so that a case takes seconds.
"""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.forked_ranks import ForkedRank, forked_ranks
from support.moments import Moments, Training, command, final_state, finish, kill, start

from captioner.cli import main
from captioner.runs import metric_files
from captioner.training import launcher

pytestmark = [
    pytest.mark.reliability("processes"),
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc"),
]

SECONDS = 30
"""Within which all processes end; they take a second, but on a busy machine much longer."""


class TwoRanks(Training):
    """A training by two processes.

    Attributes:
        second: a file with the id of the process of rank 1, once it has been started.
        written: a file with the changes that rank 1 has made below the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.second, self.written = folder / "second", folder / "written"
        self.written.touch()
        ForkedRank.started = self.begin_second  # type: ignore[assignment]
        super().__init__(folder, "trainer.devices=2")
        self.logs = [file.read_text(encoding="utf-8") for file in metric_files(self.run)]

    def clear(self) -> None:
        super().clear()
        self.second.write_text("")

    def begin_second(self) -> None:
        """Called in the process of rank 1."""
        self.second.write_text(str(os.getpid()))
        Moments(self.run, 0, self._note).watch()

    def _note(self, path: str) -> None:
        with self.written.open("a", encoding="utf-8") as file:
            file.write(f"{path}\n")

    def processes(self, first: int) -> list[int]:
        """The ids of the processes that have been started."""
        return [first, *map(int, self.second.read_text().split())]

    def sender(self, number: signal.Signals, ranks: Sequence[int]) -> Callable[[str], object]:
        """A function that sends a signal to ranks once, the last one first."""
        sent: list[int] = []

        def send(_: str) -> None:
            processes = self.processes(os.getpid())
            if not sent and len(processes) == 2 and os.getpid() != processes[1]:
                sent.append(number)
                for rank in sorted(ranks, reverse=True):
                    os.kill(processes[rank], number)
                time.sleep(0.2)

        return send

    def errors(self) -> list[str]:
        """What was printed from the first error on."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        places = [n for n, line in enumerate(lines) if "error" in line or "Traceback" in line]
        return lines[places[0] :] if places else []

    def all_end(self, first: int) -> bool:
        """Whether no process is left, within some seconds."""
        until = time.monotonic() + SECONDS
        while any(map(is_running, self.processes(first))) and time.monotonic() < until:
            time.sleep(0.02)
        return not any(map(is_running, self.processes(first)))


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Iterator[TwoRanks]:
    before = os.environ["CAPTIONER_CACHE"]
    folder = tmp_path_factory.mktemp("ranks")
    with forked_ranks():
        yield TwoRanks(folder)
    os.environ["CAPTIONER_CACHE"] = before


def says(number: signal.Signals, ranks: Sequence[int], run: Path) -> tuple[int, list[str]]:
    """The exit status of the first process, and a pattern for each line of error."""
    resumes = rf"resume={re.escape(str(run))}"
    if number == signal.SIGKILL and 0 in ranks:
        lost = rf"rank 0 \(process \d+\) was ended, which ended the training; {resumes} resumes .*"
        return -9, [lost] if 1 not in ranks else []
    if 0 in ranks:
        reason = "interrupted" if number == signal.SIGINT else r"terminated \(SIGTERM\)"
        return 130, [rf"{reason}; `captioner train {resumes}` resumes from the last checkpoint"]
    ended = "ended by SIGKILL" if number == signal.SIGKILL else "interrupted"
    return 1, [rf"rank 1 \(process \d+\) was {ended}, which ended the training; {resumes} .*"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [[0], [1], [0, 1]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_ranks_with_one_line(
    training, record_property, number: signal.Signals, ranks: Sequence[int]
) -> None:
    """At the first write of last.ckpt after a step, and at another moment; it resumes."""
    names, bad = training.moments, []
    within = [n for n, name in enumerate(names) if re.search("checkpoints/|metrics|samples", name)]
    last = [n for n in within if names[n].startswith("fsync run/checkpoints/")][1]
    # After the last validation rank 1 does not wait for rank 0 any more: it may have ended.
    validated = max(n for n in within if "samples" in names[n])
    other = random.Random(number + len(ranks)).choice([n for n in within[3:] if n < validated])
    moments = [last, other]
    status, lines = says(number, ranks, training.run)
    for moment in moments:
        got, _ = training.killed_at(moment, training.sender(number, ranks))
        errors = training.errors() if training.all_end(0) else ["a process is left"]
        pattern = "\n".join(f"captioner: error: {line}" for line in lines)
        if got != status or not re.fullmatch(pattern, "\n".join(errors)):
            bad.append(f"{moment}, {names[moment]}: exit status {got}, {errors}")
        bad += [f"{moment}, {names[moment]}: {line}" for line in training.problems()[:4]]
    record_property("cases", len(moments))
    assert not bad, "\n".join(bad)


@pytest.mark.slow
def test_ranks_killed_at_random_times_resume_to_the_bit(
    training, record_property, monkeypatch
) -> None:
    """Ten times kill -9 of one rank, also while both start, up to three times for a training."""
    monkeypatch.setattr(launcher, "GRACE", 1.0)  # the other one may wait for a connection
    times, kills, bad, seconds = random.Random(11), 0, [], training.shortest(2)
    while kills < 10:
        training.clear()
        for _ in range(times.randrange(1, 4)):
            training.second.write_text("")
            first = start(lambda: main(training.next_command()), training.log)
            time.sleep(times.uniform(0, seconds))
            victim = times.choice(training.processes(first))
            if is_running(victim):
                os.kill(victim, signal.SIGKILL)
                kills += 1
            finish(first)
            bad += [] if training.all_end(first) else ["a process is left"]
        bad += training.problems()[:4]
    record_property("cases", kills)
    assert not bad, "\n".join(bad)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_resumes_with_another_number_of_ranks(training, before: int, after: int) -> None:
    """Its random numbers are others, so the weights are as well; all files are as usual."""
    training.clear()
    second_epoch = 20 + next(n for n, name in enumerate(training.moments) if "samples" in name)
    arguments = [*training.start, f"trainer.devices={before}"]
    status, _ = command(arguments, training.log, Moments(training.root, second_epoch, kill))
    assert status == -signal.SIGKILL and training.all_end(0)
    more = ["train", f"resume={training.run}", f"trainer.devices={after}"]
    assert finish(start(lambda: main(more), training.log)) == 0, training.log.read_text()
    state = final_state(training.run)
    assert state["files"] == training.state["files"]
    assert places(state) == places(training.state)
    assert state["last.ckpt"]["captioner"]["config"]["trainer"]["devices"] == after


def places(state: dict[str, Any]) -> tuple[Any, ...]:
    """The columns and steps of the log, the epochs and images of the samples, and the last step."""
    samples = [json.loads(line) for line in state["samples"].splitlines()]
    return (
        [(name, step) for name, points in state["log"].items() for step, _ in points],
        [(row["epoch"], row["image"]) for row in samples],
        state["last.ckpt"]["global_step"],
    )


def test_only_the_first_rank_writes(training) -> None:
    """Everything exists once, whatever has happened to the trainings of this file before."""
    _, samples, last = places(training.state)
    assert len(samples) == len(set(samples)) == 4 and last == 6
    assert len(training.logs) == 1
    rows = [
        row["step"] for row in csv.DictReader(training.logs[0].splitlines()) if row["train_loss"]
    ]
    assert len(rows) == len(set(rows)) == 6
    names = ["checkpoints/best.ckpt", "checkpoints/epoch-02.ckpt", "checkpoints/last.ckpt"]
    assert training.state["files"] == [*names, "config.yaml", "costs.json", "samples.jsonl"]
    assert training.written.read_text() == ""


@pytest.mark.slow
def test_ctrl_c_while_the_second_process_starts_prints_one_line(tiny, tmp_path) -> None:
    """It goes to both, as in a terminal, while the second one imports its modules."""
    options = [*tiny, "trainer.devices=2", f"run_dir={tmp_path / 'run'}"]
    first = subprocess.Popen(
        [sys.executable, "-m", "captioner", "train", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
    while not children.read_text():
        assert first.poll() is None
        time.sleep(0.02)
    second = int(children.read_text())
    os.killpg(first.pid, signal.SIGINT)
    _, errors = first.communicate(timeout=120)
    assert errors.splitlines()[-1] == (
        "captioner: error: interrupted before the first step: there is nothing to resume, no run "
        "folder is left"
    )
    assert (first.returncode, errors.count("\n")) == (130, 1)
    assert not (tmp_path / "run").exists()
    until = time.monotonic() + SECONDS  # it receives the signal when it has imported its modules
    while is_running(second) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_running(second)
