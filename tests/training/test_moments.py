"""A training that is killed at any moment resumes to the bit, and leaves nothing behind.

Of a short training, every moment at which a file is opened, synchronized, renamed or removed is
found; the training is then killed at each of them, resumed, and compared with one that was not.
"""

import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.moments import Moments, Training, finish, full, kill, start

from captioner.cli import main
from captioner.data.shapes import draw

pytestmark = pytest.mark.reliability("interrupted")


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Iterator[Training]:
    before = os.environ["CAPTIONER_CACHE"]
    folder = tmp_path_factory.mktemp("moments")
    yield Training(folder)
    os.environ["CAPTIONER_CACHE"] = before


PARTS, REST = 10, ((1, 2, 3), (4, 5, 6), (7, 8, 9))
"""The moments are tested in parts, the first of which is fast enough for every run."""


@pytest.mark.parametrize(
    "parts", [(0,), *(pytest.param(parts, marks=pytest.mark.slow) for parts in REST)]
)
def test_a_training_killed_at_any_write_resumes_to_the_bit(
    training, record_property, parts: tuple[int, ...]
) -> None:
    assert len(training.moments) > 65
    moments = [n for n in range(len(training.moments)) if n % PARTS in parts]
    bad = []
    for moment in training.kills(moments):
        lines = training.problems()
        bad += [f"{moment}, before {training.moments[moment]}: {line}" for line in lines[:4]]
    record_property("cases", len(moments))
    assert not bad, "\n".join(bad)


@pytest.mark.slow
def test_a_training_killed_at_random_times_resumes_to_the_bit(training, record_property) -> None:
    """Fifty times kill -9 while it starts, trains or resumes, up to four times for a training."""
    times, kills, bad, seconds = random.Random(7), 0, [], training.shortest(3)
    while kills < 50:
        training.clear()
        for _ in range(times.randrange(1, 5)):
            child = start(lambda: main(training.next_command()), training.log)
            time.sleep(times.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            kills += finish(child) == -signal.SIGKILL
        bad += training.problems()[:4]
    record_property("cases", kills)
    assert not bad, "\n".join(bad)


def test_a_training_killed_before_its_first_step_is_started_again(training) -> None:
    """There is nothing to resume; the message says what to do."""
    first = next(n for n, name in enumerate(training.moments) if name.startswith("open cache/"))
    training.killed_at(first)
    assert training.run.is_dir()
    assert finish(start(lambda: main(["train", f"resume={training.run}"]), training.log)) == 1
    assert training.log.read_text().splitlines()[-1] == (
        f"captioner: error: resume={training.run}: this run ended before its first step, so there "
        "is nothing to resume; start it again with the command that started it and "
        f"run_dir={training.run}"
    )
    assert training.problems() == []


def test_half_a_line_of_the_samples_is_removed(training) -> None:
    written = [n for n, name in enumerate(training.moments) if name == "open run/samples.jsonl"]
    training.killed_at(written[1])
    with (training.run / "samples.jsonl").open("a") as file:
        file.write('{"epoch": 2, "ima')
    assert training.problems() == []


@pytest.mark.parametrize("happen", [kill, full])
def test_a_drawing_that_is_killed_is_drawn_again(tmp_path, record_property, happen) -> None:
    """The table is written last, so a dataset without all images is never read."""
    counts = {"train": 3, "dev": 2, "test": 1, "size": 32, "progress": False}
    expected = {path.name: path.read_bytes() for path in _files(draw(tmp_path / "a", **counts))}
    folder = tmp_path / "work"
    for moment in itertools.count():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        job: Callable[[], Any] = lambda: draw(folder / "data", **counts) and 0  # noqa: E731
        status = finish(start(job, tmp_path / "log", Moments(folder, moment, happen)))
        assert (folder / "data" / "captions.jsonl").exists() is (status == 0)
        files = _files(draw(folder / "data", **counts))
        assert {path.name: path.read_bytes() for path in files} == expected, moment
        if status == 0:
            break
    record_property("cases", moment)
    assert moment > 8


def _files(table: Path) -> list[Path]:
    return sorted(path for path in table.parent.rglob("*") if path.is_file())
