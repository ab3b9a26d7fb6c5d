"""Paired timings: two ways to do one thing, in turns, in one process.

Each round measures every task once, one after the other, so that a busy machine slows them alike.
What is reported is the median of the rounds' ratios, and the quartiles of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from captioner.allocator import keep_memory
from captioner.data.records import write_whole
from captioner.data.shapes import describe, sample_scene
from captioner.metrics.tokenize import ptb_words


class Row(NamedTuple):
    """One comparison: what is compared, the names of both tasks, and the share aimed at."""

    name: str
    ours: str
    peer: str
    goal: float | None = None


def parser(description: str, output: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--flickr8k",
        metavar="FOLDER",
        default=os.environ.get("CAPTIONER_FLICKR8K"),
        help="for the lengths of its training captions; else those of the embedded grammar",
    )
    found.add_argument("--rounds", type=int, default=11)
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--json", metavar="FILE", default=str(Path(__file__).with_name(output)))
    return found


def captions(folder: str | None) -> list[str]:
    """Training captions of Flickr8k, else of the embedded grammar."""
    if not folder:
        chance = random.Random(0)
        scenes = [sample_scene(chance, "train") for _ in range(6000)]
        return [text for scene in scenes for text in describe(scene, chance)]
    root = Path(folder).expanduser()
    training = set((root / "Flickr_8k.trainImages.txt").read_text(encoding="utf-8").split())
    lines = (root / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if "\t" in line]
    return [text for name, text in pairs if name.partition("#")[0] in training]


def lengths(folder: str | None, count: int, *, more: int) -> torch.Tensor:
    """The words of `count` captions drawn at random, and `more` for each."""
    drawn = random.Random(0).choices(captions(folder), k=count)
    return torch.tensor([len(ptb_words(text)) + more for text in drawn])


def measure(tasks: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every task in every round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, work in tasks.items():
            started = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compared(seconds: Mapping[str, list[float]], rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Each row with median seconds and ratios."""
    found = []
    for row in rows:
        ratios = [a / b for a, b in zip(seconds[row.ours], seconds[row.peer])]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found.append(
            {
                "row": row.name,
                "captioner_ms": 1e3 * statistics.median(seconds[row.ours]),
                "peer_ms": 1e3 * statistics.median(seconds[row.peer]),
                "ratio": middle,
                "quartiles": [low, high],
                "goal": row.goal,
            }
        )
        print(line(found[-1]), file=sys.stderr)
    return found


def line(one: Mapping[str, Any]) -> str:
    low, high = one["quartiles"]
    return (
        f"| {one['row']} | {one['captioner_ms']:.0f} | {one['peer_ms']:.0f} "
        f"| {one['ratio']:.2f} | {low:.2f} to {high:.2f} | {one['goal'] or ''} |"
    )


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Set up the process alike for both sides, and say how."""
    kept = keep_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return {
        "lengths": "Flickr8k, training captions" if options.flickr8k else "embedded grammar",
        "threads": options.threads,
        "rounds": options.rounds,
        "memory kept": kept,
        "processor": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("captioner", "torch")},
    }


def processor() -> str:
    """What the kernel calls it, and whether it multiplies bfloat16 in tiles."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")
    return name + (" with AMX" if any("amx_bf16" in x for x in lines) else "")


def finish(about: dict[str, Any], found: list[dict[str, Any]], path: str) -> None:
    """Write the numbers, print the table."""
    write_whole(path, json.dumps({"about": about, "rows": found}, indent=2) + "\n")
    print("| row | captioner (ms) | peer (ms) | ratio | quartiles | goal |")
    print("|---|---:|---:|---:|---:|---:|")
    print("\n".join(line(one) for one in found))
