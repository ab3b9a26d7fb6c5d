"""Paired timings: two implementations, alternating in one process, and how they are reported.

Each round measures every task once, one after the other, so that other load affects them equally.
The result is the median of the ratios of the rounds with their spread: the quartiles with seven
rounds or more, otherwise the smallest and the largest. A ratio is either the fraction of the other
implementation's time, or how many times as fast captioner is. The bound is the ratio if captioner
needed only the time of the unavoidable work, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from captioner.data.shapes import describe, sample_scene
from captioner.files import write_whole
from captioner.metrics.tokenize import ptb_words
from captioner.models import matmul
from captioner.models.precision import instructions, multiplies_bf16
from captioner.process import keep_memory
from captioner.progress import progress_bar
from captioner.verbs.caption_files import find_images

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runs import commit

Item = TypeVar("Item")

HERE = Path(__file__).resolve().parent
QUARTILES_FROM = 7  # rounds
SKIPPED: list[str] = []
"""Rows that are not measured because this processor only emulates bfloat16."""


def make_parser(description: str | None, *, rounds: int = 0) -> argparse.ArgumentParser:
    """Return a parser with the options of all scripts; --rounds if `rounds` is not 0."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if rounds:
        parser.add_argument("--rounds", type=positive, default=rounds, help="default %(default)s")
    parser.add_argument(
        "--threads", type=positive, default=1, help="number of torch threads; default %(default)s"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file")
    return parser


def positive(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def add_captions(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--flickr8k",
        metavar="FOLDER",
        help="use its training captions; default: those of the built-in dataset",
    )
    return parser


def read_captions(folder: str | None) -> list[str]:
    """Training captions of Flickr8k, or of the built-in dataset of drawn scenes."""
    if not folder:
        rng = random.Random(0)
        scenes = [sample_scene(rng, "train") for _ in range(6000)]
        return [text for scene in scenes for text in describe(scene, rng)]
    root = Path(folder).expanduser()
    training = set((root / "Flickr_8k.trainImages.txt").read_text(encoding="utf-8").split())
    lines = (root / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if "\t" in line]
    return [text for name, text in pairs if name.partition("#")[0] in training]


def find_photographs(folder: str, count: int) -> list[str]:
    """`count` images of a folder, evenly spread over its names; the option is --images."""
    every = [str(path) for path in find_images([folder])]
    if len(every) < count:
        raise ValueError(
            f"{folder}: {len(every)} images; give more, or a smaller number with --images"
        )
    return every[:: max(1, len(every) // count)][:count]


def draw_lengths(folder: str | None, count: int, *, more: int) -> torch.Tensor:
    """Lengths in words of `count` random captions, each plus `more`."""
    drawn = random.Random(0).choices(read_captions(folder), k=count)
    return torch.tensor([len(ptb_words(text)) + more for text in drawn])


def start(options: argparse.Namespace, *packages: str, **more: Any) -> dict[str, Any]:
    """Set up the process and return the conditions of the measurement.

    Args:
        options: of ``make_parser``.
        packages: packages whose versions are recorded, in addition to captioner and torch.
        more: other conditions to record.
    """
    if options.json and not Path(options.json).resolve().parent.is_dir():
        raise ValueError(f"--json {options.json}: its folder does not exist; create it first")
    kept = keep_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if hasattr(options, "flickr8k"):
        source = "Flickr8k, training split" if options.flickr8k else "built-in dataset"
        more = {"captions": source, **more}
    if hasattr(options, "rounds"):
        spread = "quartiles" if options.rounds >= QUARTILES_FROM else "smallest to largest"
        more |= {"rounds": options.rounds, "spread": spread}
    return {
        **more,
        "threads": options.threads,
        "freed memory kept": kept,
        **describe_machine(packages),
    }


def describe_machine(packages: Iterable[str] = ()) -> dict[str, str]:
    """Processor, versions, commit and date."""
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "commit": commit(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("captioner", "torch", *packages)},
    }


def processor() -> str:
    """Name of the processor, its instructions for bfloat16, and a restriction such as AVX2."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    lines = {name.strip(): value for name, value in lines.items()}
    has = [name for name in ("amx_bf16", "avx512_bf16") if name in lines.get("flags", "").split()]
    family = f"family {lines['cpu family']}" if "cpu family" in lines else ""
    limit = f"held to {instructions().upper()}" if instructions() else ""
    words = [lines.get("model name", platform.machine()), family, *has[:1], limit]
    return " ".join(filter(None, words))


def with_progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Iterate with a progress bar in a terminal."""
    with progress_bar(what, len(items)) as advance:
        for item in items:
            yield item
            advance(1)


def take_turns(
    tasks: Mapping[str, Callable[[], Any]], rounds: int, *, what: str = "rounds"
) -> dict[str, list[float]]:
    """Seconds of every task in every round, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in with_progress(range(rounds + 1), what):
        for name, work in tasks.items():
            started = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


# Rows


def is_measured(name: str, *, half: bool) -> bool:
    """Whether to measure a row: bfloat16 only if the processor has instructions for it."""
    if half and not multiplies_bf16():
        SKIPPED.append(name)
        return False
    return True


def compare(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    times: bool,
    least: Sequence[float] | None = None,
    goal: float | None = None,
    images: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """Return a row that compares captioner with another implementation (the peer).

    Args:
        name: of the row.
        ours: seconds of captioner in every round.
        peer: seconds of the peer in the same rounds.
        times: the ratio is how many times as fast captioner is; otherwise its fraction of the
            peer's time.
        least: seconds of the unavoidable work in every round.
        goal: minimum of the ratio with `times`, otherwise its maximum.
        images: number of images per round, to report images per second instead of seconds.
        more: further entries of the row.
    """

    def ratios(own: Sequence[float]) -> list[float]:
        return [b / a if times else a / b for a, b in zip(own, peer)]

    values = ratios(ours)
    ratio, low, high = statistics.median(values), min(values), max(values)
    if len(values) >= QUARTILES_FROM:
        low, _, high = statistics.quantiles(values, n=4)
    seconds = statistics.median(ours), statistics.median(peer)
    return {
        "row": name,
        "captioner": images / seconds[0] if images else seconds[0],
        "peer": images / seconds[1] if images else seconds[1],
        "unit": "/s" if images else "s",
        "ratio": ratio,
        "spread": [low, high],
        "bound": None if least is None else statistics.median(ratios(least)),
        **_goal(ratio, goal, at_least=times),
        **more,
    }


def report_value(
    name: str,
    value: float,
    unit: str,
    *,
    goal: float | None = None,
    at_least: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Return a row with a single value and optionally a goal for it."""
    return {
        "row": name,
        "captioner": value,
        "unit": unit,
        **_goal(value, goal, at_least=at_least),
        **more,
    }


def _goal(value: float, goal: float | None, *, at_least: bool) -> dict[str, Any]:
    if goal is None:
        return {"goal": None}
    met = value >= goal if at_least else value <= goal
    return {"goal": goal, "goal is": "at least" if at_least else "at most", "met": met}


HEAD = "| row | captioner | peer | ratio | spread | bound | goal | met |\n|---|" + 7 * "---:|"


def format_row(row: Mapping[str, Any]) -> str:
    """A row of the table in Markdown."""
    unit, of_value = row["unit"], "ratio" not in row
    cells = [row["row"], format_quantity(row["captioner"], unit)]
    if of_value:
        cells += [""] * 4
    else:
        low, high = map(format_ratio, row["spread"])
        bound = "" if row["bound"] is None else format_ratio(row["bound"])
        cells += [
            format_quantity(row["peer"], unit),
            format_ratio(row["ratio"]),
            f"{low} to {high}",
            bound,
        ]
    if row["goal"] is None:
        cells += ["", ""]
    else:
        goal = format_quantity(row["goal"], unit) if of_value else f"{row['goal']:g}"
        sign = "≥" if row["goal is"] == "at least" else "≤"
        cells += [f"{sign} {goal}", "yes" if row["met"] else "no"]
    return f"| {' | '.join(cells)} |"


def format_ratio(value: float) -> str:
    """A ratio with two or three significant digits."""
    size = abs(value)
    return f"{value:.{3 if size < 0.1 else 2 if size < 10 else 1 if size < 100 else 0}f}"


def format_quantity(value: float, unit: str) -> str:
    """A number with its unit; less than a second in milliseconds."""
    if unit == "s" and abs(value) < 1:
        value, unit = 1000 * value, "ms"
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {unit}".strip()


def format_table(rows: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join([HEAD, *map(format_row, rows)])


def finish(about: dict[str, Any], rows: list[dict[str, Any]], path: str | None) -> None:
    """Print the table, and write the numbers to `path` if given."""
    print(format_table(rows), flush=True)
    if SKIPPED:
        about = {**about, "skipped": f"{'; '.join(SKIPPED)} (bfloat16 is emulated here)"}
        print(f"skipped {about['skipped']}", flush=True)
    if path:
        write_whole(path, json.dumps({"about": about, "rows": rows}, indent=2) + "\n")


def run_guarded(main: Callable[[], None]) -> None:
    """Run a script; errors in its input are printed in one line."""
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: a measured process failed:\n{error.stderr}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


# Bounds by matrix products


class Pair(NamedTuple):
    """Two tasks to compare, with the name of the row and the goal: fraction of the peer's time."""

    name: str
    ours: str
    peer: str
    goal: float | None = None
    half: bool = False
    """Whether captioner's task multiplies in bfloat16."""


FIRST = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1}
"""Index of the first of the two factors among the arguments."""
LINEAR = {"linear": 0, "_linear_pointwise": 0}
"""The same for x W^T: the second factor is [N, K]."""


class Products(TorchDispatchMode):
    """Count the FLOPs of the matrix products computed in this context."""

    flops = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        first = {**FIRST, **LINEAR}.get(name)
        if first is not None:
            a, b = args[first:][:2]  # [..., M, K], [..., K, N]
            self.flops += 2 * a.numel() * b.shape[0 if name in LINEAR else -1]
        return function(*args, **(kwargs or {}))


def count_flops(work: Callable[[], Any]) -> int:
    """Return the FLOPs of the matrix products of a task."""
    with Products() as counted:
        work()
    return counted.flops


SIDE = 2048
LARGE = 2 * SIDE**3  # FLOPs of the large product


def product(*, half: bool) -> Callable[[], Any]:
    """A large matrix product, whose speed is the reference of the bounds."""
    a, b = (torch.randn(SIDE, SIDE, dtype=torch.bfloat16 if half else None) for _ in range(2))
    return lambda: matmul.product(a, b)  # with the library that is fastest on this processor


def compare_times(
    tasks: Mapping[str, Callable[[], Any]], pairs: Sequence[Pair], rounds: int
) -> list[dict[str, Any]]:
    """Measure all tasks in turn; return one row per pair, bounded by captioner's matrix products.

    Pairs in bfloat16, and tasks that only they use, are skipped if bfloat16 is emulated.
    """
    pairs = [pair for pair in pairs if is_measured(pair.name, half=pair.half)]
    needed = {name for pair in pairs for name in (pair.ours, pair.peer)}
    tasks = {name: work for name, work in tasks.items() if name in needed}
    counts = {pair.ours: count_flops(tasks[pair.ours]) for pair in pairs}
    large = {f"product, {half}": product(half=half) for half in {pair.half for pair in pairs}}
    seconds, rows = take_turns({**tasks, **large}, rounds), []
    for name, ours, peer, goal, half in pairs:
        of_large = seconds[f"product, {half}"]
        rows.append(
            compare(
                name,
                seconds[ours],
                seconds[peer],
                times=False,
                least=[counts[ours] / LARGE * value for value in of_large],
                goal=goal,
                gflop=counts[ours] / 1e9,
                gflops=LARGE / 1e9 / statistics.median(of_large),
            )
        )
        print(format_row(rows[-1]), file=sys.stderr)
    return rows
