"""Paired timings: two ways to do one thing, in turns, in one process.

Each round measures every task once, one after the other, so that a busy machine slows them alike.
What is reported is the median of the rounds' ratios, and the quartiles of them. Beside it stands a
bound: what the ratio would be if ours took no longer than its matrix products at the speed of a
large one, which is measured in the same process.
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
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from captioner.data.records import write_whole
from captioner.data.shapes import describe, sample_scene
from captioner.metrics.tokenize import ptb_words
from captioner.process import keep_memory


class Row(NamedTuple):
    """One comparison: what is compared, the names of both tasks, and the share aimed at."""

    name: str
    ours: str
    peer: str
    goal: float | None = None
    half: bool = False
    """Whether ours multiplies bfloat16."""


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


FIRST = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1}
"""Where the first of the two factors stands among the arguments."""


class Products(TorchDispatchMode):
    """Adds up the FLOPs of the matrix products that are computed within."""

    flops = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in FIRST:
            a, b = args[FIRST[name] :][:2]  # [..., M, K], [..., K, N]
            self.flops += 2 * a.numel() * b.shape[-1]
        return function(*args, **(kwargs or {}))


def flops(work: Callable[[], Any]) -> int:
    """FLOPs of the matrix products of a task."""
    with Products() as counted:
        work()
    return counted.flops


SIDE = 2048


def product(*, half: bool) -> Callable[[], Any]:
    """A large product, which shows how fast the machine multiplies."""
    a, b = (torch.randn(SIDE, SIDE, dtype=torch.bfloat16 if half else None) for _ in range(2))
    return lambda: a @ b


def compared(
    tasks: Mapping[str, Callable[[], Any]], rows: Sequence[Row], rounds: int
) -> list[dict[str, Any]]:
    """Measure all tasks; each row with median seconds, ratios and the bound."""
    counts = {row.ours: flops(tasks[row.ours]) for row in rows}
    products = {f"product, {half}": product(half=half) for half in {row.half for row in rows}}
    seconds, found = measure({**tasks, **products}, rounds), []
    for row in rows:
        ours, peer = seconds[row.ours], seconds[row.peer]
        low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, peer)], n=4)
        large = seconds[f"product, {row.half}"]
        share = counts[row.ours] / (2 * SIDE**3)  # of the large product's work
        found.append(
            {
                "row": row.name,
                "captioner_ms": 1e3 * statistics.median(ours),
                "peer_ms": 1e3 * statistics.median(peer),
                "ratio": middle,
                "quartiles": [low, high],
                "bound": statistics.median(share * a / b for a, b in zip(large, peer)),
                "goal": row.goal,
                "gflop": counts[row.ours] / 1e9,
                "gflops": 2e-9 * SIDE**3 / statistics.median(large),
            }
        )
        print(line(found[-1]), file=sys.stderr)
    return found


def line(one: Mapping[str, Any]) -> str:
    low, high = one["quartiles"]
    return (
        f"| {one['row']} | {one['captioner_ms']:.0f} | {one['peer_ms']:.0f} "
        f"| {one['ratio']:.2f} | {low:.2f} to {high:.2f} "
        f"| {one['bound']:.2f} | {one['goal'] or ''} |"
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
    print("| row | captioner (ms) | peer (ms) | ratio | quartiles | bound | goal |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    print("\n".join(line(one) for one in found))
