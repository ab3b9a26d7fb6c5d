"""Ctrl-C and SIGTERM, once or more often: one line, no remains, and a run that can be resumed."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.moments import finish, start

from captioner import cli
from captioner.cli import main
from captioner.runs import LAST, checkpoint_file

pytestmark = pytest.mark.reliability("interrupted")

ENDLESS = (
    "trainer.max_epochs=-1",
    "schedule=constant",
    "schedule.warmup=0",
    "callbacks.patience=0",
)


def wait_for(path: Path, process: int) -> None:
    while not path.exists():
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.01)


def errors(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8").splitlines()
    places = [number for number, line in enumerate(lines) if line.startswith("captioner: error:")]
    return lines[places[0] :] if places else lines


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT] * 2, [signal.SIGINT, signal.SIGTERM], [signal.SIGTERM] * 2]
)
@pytest.mark.parametrize(
    "pause", [0.02, *(pytest.param(pause, marks=pytest.mark.slow) for pause in (0.0, 0.1))]
)
def test_a_second_signal_prints_nothing_more(tiny, tmp_path, signals, pause: float) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["train", *tiny, *ENDLESS, f"run_dir={run}"]
    child = start(lambda: main(arguments), log)
    wait_for(run / "samples.jsonl", child)
    for number in signals:
        os.kill(child, number)
        time.sleep(pause)
    assert finish(child) == 130
    # If Python drops the exception of the first signal, the second one is named.
    reasons = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated (SIGTERM)"}
    says = f"; `captioner train resume={run}` resumes from the last checkpoint"
    assert errors(log) in [[f"captioner: error: {reasons[number]}{says}"] for number in signals]
    assert checkpoint_file(run, LAST).is_file()
    assert not list(run.rglob(".*"))


@pytest.mark.slow
def test_the_process_of_the_program_exits_without_a_word(tiny, tmp_path) -> None:
    """The second signal comes while Python ends."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "captioner", "train", *tiny, *ENDLESS, f"run_dir={run}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        wait_for(run / "samples.jsonl", process.pid)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        while not line.startswith("captioner: error: interrupted; `captioner train resume="):
            line = process.stderr.readline().decode()
            assert line
        for _ in range(20):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        assert process.wait() == 130
        assert process.stderr.read() == b""
    finally:
        process.kill()  # the training is endless


def test_a_third_signal_ends_a_command_that_does_not_end(monkeypatch, tmp_path) -> None:
    started = tmp_path / "started"

    def run(_: object) -> int:
        try:
            started.touch()
            signal.pause()
        finally:
            started.unlink()
            while True:
                time.sleep(1)

    monkeypatch.setattr("captioner.verbs.models.run", run)
    child = start(lambda: cli.main(["models"]), tmp_path / "log")
    wait_for(started, child)
    os.kill(child, signal.SIGINT)
    while started.exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    time.sleep(0.1)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGINT)
    assert finish(child) == 130
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_not_lost_if_a_library_catches_it(monkeypatch, tmp_path, number) -> None:
    started = tmp_path / "started"

    def run(_: object) -> int:
        try:
            started.touch()
            signal.pause()
        except BaseException:
            pass
        time.sleep(60)
        return 0

    monkeypatch.setattr("captioner.verbs.models.run", run)
    child = start(lambda: cli.main(["models"]), tmp_path / "log")
    wait_for(started, child)
    os.kill(child, number)
    assert finish(child) == 130
    reason = "interrupted" if number == signal.SIGINT else "terminated (SIGTERM)"
    assert (tmp_path / "log").read_text() == f"captioner: error: {reason}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_not_lost_in_the_garbage_collector(monkeypatch, tmp_path, number) -> None:
    """Python drops what its callbacks raise, and pytest keeps what was dropped."""

    def interrupt(*unused: object) -> None:
        gc.callbacks.remove(interrupt)
        signal.raise_signal(number)

    def run(_: object) -> int:
        gc.collect()
        gc.freeze()  # so that no finalizer of another test runs with the next one
        gc.callbacks.append(interrupt)
        gc.collect()
        time.sleep(60)
        return 0

    monkeypatch.setattr("captioner.verbs.models.run", run)
    assert finish(start(lambda: cli.main(["models"]), tmp_path / "log")) == 130
    reason = "interrupted" if number == signal.SIGINT else "terminated (SIGTERM)"
    assert (tmp_path / "log").read_text() == f"captioner: error: {reason}\n"


def test_an_error_that_a_signal_causes_is_told_as_an_interruption(monkeypatch, capsys) -> None:
    def run(_: object) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904

    monkeypatch.setattr("captioner.verbs.models.run", run)
    assert cli.main(["models"]) == 130
    assert capsys.readouterr().err == "captioner: error: interrupted\n"


def test_a_training_in_a_program_leaves_its_handlers(tiny, tmp_path, monkeypatch) -> None:
    """Lightning ignores Ctrl-C from the first one on; then no later one could end the program."""
    from captioner.config import compose
    from captioner.training.module import LitCaptioner
    from captioner.training.train import train

    def interrupt(*unused: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LitCaptioner, "training_step", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(compose(tiny), tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
