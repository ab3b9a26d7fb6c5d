"""Delayed copy: how long an RNN, a GRU and an LSTM remember X_0, and how far a gradient reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lesson import COLORS, Claim, Measured, records_of, spread, trained

from captioner.api import Captioner
from captioner.data.batches import pad
from captioner.data.worlds import DELAYS, DIGITS
from captioner.inspection.gradients import gradient_flow
from captioner.models.features import Features
from captioner.models.packing import IGNORED

DATA = "`delayed_copy`"
CELLS = ("rnn", "gru", "lstm")
TRAININGS = 2 * len(CELLS)
SHOWN = (1, 10, 20, 40)
"""Distances at which the page quotes the gradient."""


def examples(captioner: Captioner, delay: int) -> tuple[Features, torch.Tensor, torch.Tensor]:
    """The features, inputs and targets of one caption of each digit."""
    wanted = [" ".join(["wait"] * delay + [digit]) for digit in DIGITS]
    images = {record.captions[0]: record.image for record in records_of(captioner, "test")}
    pixels = [captioner.prepare(images[caption]) for caption in wanted]
    ids = [captioner.tokenizer.encode(caption) for caption in wanted]
    return captioner.encode(pixels)[0], *pad(ids, captioner.tokenizer)


@torch.no_grad()
def accuracy(captioner: Captioner, delay: int) -> float:
    """For how many digits it is the most probable of the eight, after the delay."""
    features, inputs, targets = examples(captioner, delay)
    digits = torch.tensor([captioner.tokenizer.vocabulary.id(digit) for digit in DIGITS])
    logits = captioner.model.decoder(features, inputs)[:, delay, digits]  # [8, 8]
    return float((digits[logits.argmax(1)] == targets[:, delay]).float().mean())


def reach(captioner: Captioner) -> list[float]:
    """|dL_t / dX_0| at distance t from 1 to 40, relative to that at 1."""
    features, inputs, targets = examples(captioner, max(DELAYS))
    flow = gradient_flow(captioner.model.decoder, features, inputs, targets, ignored=IGNORED)
    image = flow.image[1 : max(DELAYS) + 1]
    return (image / image[0]).tolist()


def measure(seeds: Sequence[int]) -> Measured:
    """Train each cell; the gradients are those before the first update."""
    right: dict[str, Any] = {cell: {delay: [] for delay in DELAYS} for cell in CELLS}
    gradients: dict[str, Any] = {cell: [] for cell in CELLS}
    for cell in CELLS:
        for seed in seeds:
            overrides = ("experiment=lesson_delayed_copy", f"decoder.cell={cell}", f"seed={seed}")
            captioner = trained(f"delayed_copy_{cell}", *overrides)
            for delay in DELAYS:
                right[cell][delay].append(accuracy(captioner, delay))
            new = trained("delayed_copy_new", *overrides, "optimizer.lr=0", "trainer.max_steps=1")
            gradients[cell].append(reach(new))
    numbers = {"accuracy": right, "gradient": gradients}
    return Measured(_claims(right, gradients), _values(gradients), numbers)


def longest(right: dict[int, list[float]]) -> int:
    """The longest delay that, like all shorter ones, is copied without error by every seed."""
    kept = 0
    for delay, values in right.items():
        if min(values) < 1:
            break
        kept = delay
    return kept


def _claims(right: dict[str, Any], reach: dict[str, Any]) -> list[Claim]:
    kept = {cell: longest(right[cell]) for cell in CELLS}
    far = {
        cell: float(np.mean([curve[max(DELAYS) - 1] for curve in reach[cell]])) for cell in CELLS
    }
    return [
        Claim(
            "The LSTM copies over longer delays than the RNN.",
            "LSTM 能记住的延迟比 RNN 长。",
            ", ".join(f"{cell}: {kept[cell]}" for cell in CELLS),
            kept["lstm"] > kept["rnn"],
        ),
        Claim(
            "The GRU copies over longer delays than the RNN.",
            "GRU 能记住的延迟比 RNN 长。",
            ", ".join(f"{cell}: {kept[cell]}" for cell in ("rnn", "gru")),
            kept["gru"] > kept["rnn"],
        ),
        Claim(
            "Before training, the gradient that reaches X₀ from 40 steps away is at least 1,000 "
            "times as large in the LSTM as in the RNN.",
            "训练之前，从 40 步之外到达 X₀ 的梯度，LSTM 至少是 RNN 的 1000 倍。",
            ", ".join(f"{cell}: {far[cell]:.1e}" for cell in CELLS),
            far["lstm"] >= 1000 * far["rnn"],
        ),
    ]


def _values(reach: dict[str, Any]) -> dict[str, str]:
    rows = []
    for cell in CELLS:
        cells = (
            spread([curve[distance - 1] for curve in reach[cell]], lambda v: f"{v:.1e}")
            for distance in SHOWN
        )
        rows.append(f"| {cell} | " + " | ".join(cells) + " |")
    return {"gradients": "\n".join(rows)}


def draw(figure: Any, numbers: dict[str, Any]) -> None:
    """Accuracy against delay, and the gradient against distance."""
    left, right = figure.subplots(1, 2)
    for cell in CELLS:
        delays = [int(delay) for delay in numbers["accuracy"][cell]]  # JSON has texts
        means = [float(np.mean(values)) for values in numbers["accuracy"][cell].values()]
        width = 5 if cell == "gru" else 1.5  # seen behind an equal LSTM
        left.plot(delays, means, "o-", color=COLORS[cell], label=cell.upper(), linewidth=width)
        curves = np.array(numbers["gradient"][cell])
        right.plot(range(1, curves.shape[1] + 1), curves.T, color=COLORS[cell], alpha=0.6)
    left.axhline(1 / len(DIGITS), color=COLORS["gray"], linestyle=":", linewidth=1)
    left.set(xscale="log", xlabel="delay (words)", ylabel="accuracy", ylim=(0, 1.05))
    left.set_xticks(delays, [str(delay) for delay in delays])
    left.minorticks_off()
    left.legend(frameon=False, loc="lower left")
    right.set(yscale="log", xlabel="distance t (words)", ylabel="|dL$_t$/dX$_0$|, relative")
