"""Time and memory of one photograph, compared with `import torch` in a process of its own.

Each round starts these processes one after the other: `import torch`; `captioner caption PHOTO` and
the same in Python with the bundled model, the first time also with an empty cache folder, so that
the networks are folded and kept. The Python process captions a second photograph as well. A ratio
is that of the times of whole processes; "CPU" compares what they computed, which other programs
disturb less.

    python experiments/benchmarks/first_caption.py FOLDER
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from paired import compare, finish, make_parser, report_value, run_guarded, start, with_progress

PYTHON = """
import sys, time
import captioner
model = captioner.load(device="cpu")
model.caption(sys.argv[1])
started = time.perf_counter()
model.caption(sys.argv[2])
print(time.perf_counter() - started)
"""
SHELL, IN_PYTHON, EMPTY, TORCH = "shell", "Python", "shell, empty cache", "import torch"
GOALS = {SHELL: 1.6, IN_PYTHON: 1.6, EMPTY: 2.0}
SECOND, MEMORY = 0.15, 400  # seconds, MB


class Process(NamedTuple):
    """What a process took: seconds, seconds of all its threads, MB, and what it printed."""

    seconds: float
    cpu: float
    memory: float
    output: str


def run(arguments: list[str], environment: Mapping[str, str]) -> Process:
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    output, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise subprocess.CalledProcessError(status, arguments, output, errors)
    cpu = usage.ru_utime + usage.ru_stime
    return Process(seconds, cpu, usage.ru_maxrss / 1000, output)  # from kB, on Linux


def measure(photos: list[str], rounds: int, threads: int) -> dict[str, list[Process]]:
    """All processes of all rounds, after one round that warms up."""
    usual = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    caption = ["-m", "captioner", "caption", photos[0], "--device", "cpu"]
    tasks = {
        TORCH: ["-c", "import torch"],
        SHELL: caption,
        IN_PYTHON: ["-c", PYTHON, *photos],
        EMPTY: caption,
    }
    done: dict[str, list[Process]] = {name: [] for name in tasks}
    for number in with_progress(range(rounds + 1), "rounds"):
        for name, arguments in tasks.items():
            with tempfile.TemporaryDirectory() as folder:
                own = {"CAPTIONER_CACHE": folder} if name == EMPTY else {}
                process = run(arguments, {**usual, **own})
            if number:
                done[name].append(process)
    return done


def rows(done: dict[str, list[Process]]) -> list[dict[str, Any]]:
    torch = done[TORCH]
    second = [float(process.output) for process in done[IN_PYTHON]]
    done[IN_PYTHON] = [
        process._replace(seconds=process.seconds - more, cpu=process.cpu - more)
        for process, more in zip(done[IN_PYTHON], second)
    ]
    table = []
    for name, goal in GOALS.items():
        cpu = [own.cpu / other.cpu for own, other in zip(done[name], torch)]
        table.append(
            compare(
                f"first caption, {name}",
                [process.seconds for process in done[name]],
                [process.seconds for process in torch],
                times=False,
                goal=goal,
                cpu=statistics.median(cpu),
            )
        )
    memory = [process.memory for process in done[SHELL]]
    table.append(report_value("second photograph", statistics.median(second), "s", goal=SECOND))
    table.append(report_value("peak memory", statistics.median(memory), "MB", goal=MEMORY))
    return table


def main() -> None:
    parser = make_parser(__doc__, rounds=7)
    parser.add_argument("folder", metavar="FOLDER", help="photographs, of which two are captioned")
    options = parser.parse_args()
    photos = [str(path.absolute()) for path in sorted(Path(options.folder).rglob("*.jpg"))[:2]]
    if len(photos) < 2:
        raise ValueError(f"{options.folder}: contains fewer than two .jpg files")
    about = start(options)
    done = measure(photos, options.rounds, options.threads)
    finish(about, rows(done), options.json)


if __name__ == "__main__":
    run_guarded(main)
