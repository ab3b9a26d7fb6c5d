"""What the GPU benchmark computes: sizes, caption lengths, batches, and how time is taken."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # paired.py

from captioner.models.features import Features
from captioner.models.packing import IGNORED
from captioner.models.recurrence.fused import CHOICE

HISTOGRAM = {
    2: 15, 3: 126, 4: 346, 5: 861, 6: 1959, 7: 2536, 8: 2928, 9: 3317, 10: 3321, 11: 3131, 12: 2777,
    13: 2322, 14: 1847, 15: 1327, 16: 977, 17: 662, 18: 515, 19: 366, 20: 204, 21: 136, 22: 110,
    23: 74, 24: 52, 25: 33, 26: 20, 27: 11, 28: 6, 29: 10, 30: 4, 31: 3, 32: 1, 33: 2, 36: 1,
}  # fmt: skip
"""Words -> how many of the 30,000 training captions of Flickr8k have them.

Counted with ``captioner.metrics.tokenize.ptb_words`` over Flickr8k.token.txt (Hodosh et al., JAIR
2013), so that no dataset has to be on the machine with the GPU.
"""


class Sizes(NamedTuple):
    """The sizes of a run; E = H."""

    batches: tuple[int, ...] = (32, 128, 512)
    steps: tuple[int, ...] = (128, 1024)
    hidden: int = 512
    full: int = 16
    features: int = 1280
    positions: int = 49
    vocabulary: int = 3000
    images: int = 256
    files: int = 2048
    captions: int = 30_000
    epochs: int = 10
    rounds: int = 11
    calls: int = 10


QUICK = Sizes((8,), (8,), 16, 4, 12, 4, 50, 8, 8, 64, 1, 2, 1)
"""Sizes of a dry run on a CPU."""


def draw_lengths(count: int, *, more: int, seed: int = 0) -> Tensor:
    """Lengths of `count` captions of Flickr8k, each plus `more`, [count]."""
    drawn = random.Random(seed).choices([*HISTOGRAM], [*HISTOGRAM.values()], k=count)
    return torch.tensor(drawn) + more


def draw_batch(words: Tensor, sizes: Sizes) -> tuple[Features, Tensor, Tensor]:
    """Features, and inputs and targets [B, T], whose tokens follow Zipf's law; on the CPU."""
    frequencies = 1.0 / torch.arange(4, sizes.vocabulary).float()
    tokens = 4 + torch.multinomial(frequencies, len(words) * int(words.max()), replacement=True)
    targets = tokens.view(len(words), -1)
    inputs = torch.cat([torch.ones(len(words), 1, dtype=torch.long), targets[:, :-1]], dim=1)
    real = torch.arange(targets.shape[1]) < words[:, None]
    pooled = torch.randn(len(words), sizes.features)
    grid = torch.randn(len(words), sizes.positions, sizes.features)
    return Features(pooled, grid), inputs.where(real, 0), targets.where(real, IGNORED)


def loops(device: torch.device) -> list[str]:
    """The loops over time that can run on a device (CAPTIONER_CUDA_LOOP)."""
    if device.type != "cuda":
        return ["plain"]
    return ["plain", *(["triton"] if find_spec("triton") else []), "graphs"]


@contextmanager
def loop(name: str) -> Iterator[None]:
    """Run the recurrences on CUDA with this loop."""
    before = os.environ.get(CHOICE)
    os.environ[CHOICE] = name
    try:
        yield
    finally:
        del os.environ[CHOICE]
        if before is not None:
            os.environ[CHOICE] = before


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Let products and cuDNN use TF32 for float32, or not."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = on
        yield
    finally:
        for setting, value in zip(settings, before):
            setting.allow_tf32 = value


def with_loop(name: str, work: Callable[[], Any]) -> Callable[[], Any]:
    """Some work with this loop."""

    def run() -> Any:
        with loop(name):
            return work()

    return run


def take_turns(
    tasks: Mapping[str, Callable[[], Any]], sizes: Sizes, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per call of every task in every round, in turn, after two rounds to warm up.

    A task is called several times before the GPU is waited for, as in a training.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(sizes.rounds + 2):
        for name, work in tasks.items():
            wait(device)
            started = time.perf_counter()
            for _ in range(sizes.calls):
                work()
            wait(device)
            if number > 1:
                seconds[name].append((time.perf_counter() - started) / sizes.calls)
    return seconds


def wait(device: torch.device) -> None:
    """Wait until the device has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
