"""1997: the cell without a forget gate beside today's, on problems that follow without a reset."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lesson import BLANK, COLORS, Claim, Measured, spread, trained

from captioner.api import Captioner
from captioner.data.batches import pad
from captioner.data.worlds import KEPT, PROBLEMS, problem

DATA = "`stream`, `single_problem`"
CELLS = {"lstm_no_forget": "1997", "lstm": "2000"}
WORLDS = ("stream", "single_problem")
TRAININGS = len(CELLS) * len(WORLDS)
CASES = {
    "1997, single problems, reset by hand": ("lstm_no_forget", "single_problem", True),
    "1997, single problems": ("lstm_no_forget", "single_problem", False),
    "1997, streams": ("lstm_no_forget", "stream", False),
    "2000, single problems": ("lstm", "single_problem", False),
    "2000, streams": ("lstm", "stream", False),
}
"""What is measured: the cell, what it is trained on, and whether its state is reset."""
SHOWN = (1, 2, 8, 20, 80)
"""Problems of a stream that the page quotes."""
STREAMS, LONG = 100, 10 * PROBLEMS
"""Streams that are read, and their problems: ten times as many as in training."""


def streams() -> list[list[str]]:
    """The problems of each stream, the same in every call."""
    source = random.Random(0)
    return [[problem(source) for _ in range(LONG)] for _ in range(STREAMS)]


@torch.no_grad()
def read(captioner: Captioner, *, reset: bool = False) -> dict[str, list[float]]:
    """Read the streams step by step.

    Args:
        reset: h and C are set to zero before each problem.

    Returns:
        for each problem, as means over the streams: how often the word to keep is the most
        probable of all words to keep ("right"), and |C| at that step, divided by the square root of
        the number of units ("length").
    """
    problems, words = streams(), captioner.tokenizer.vocabulary
    captions = [captioner.tokenizer.encode(" ".join(row)) for row in problems]
    inputs, targets = pad(captions, captioner.tokenizer)  # [STREAMS, T]
    first, asked = _places(problems)
    kept = torch.tensor([words.id(word) for word in KEPT])
    image = captioner.encode([captioner.prepare(BLANK)])[0]
    state = captioner.model.decoder.start(image.rows(torch.zeros(STREAMS, dtype=torch.long)))
    right, length = [], []
    for step, tokens in enumerate(inputs.T):
        if reset:
            begins = torch.from_numpy((first == step).any(1))  # [STREAMS]
            state = {n: t.masked_fill(begins[:, None, None], 0) for n, t in state.items()}
        logits, state = captioner.model.decoder.step(tokens, state)
        right.append((kept[logits[:, kept].argmax(1)] == targets[:, step]).numpy())
        length.append(state["c"].square().mean((1, 2)).sqrt().numpy())
    rows = np.arange(STREAMS)[:, None]
    return {
        "right": np.array(right)[asked, rows].mean(0).tolist(),
        "length": np.array(length)[asked, rows].mean(0).tolist(),
    }


def _places(problems: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """The steps that read the first word and the "say" of each problem, [STREAMS, LONG] each.

    Step 0 reads <start>.
    """
    counts = np.array([[len(text.split()) for text in row] for row in problems])
    ends = counts.cumsum(1)  # the step that reads the last word
    return ends - counts + 1, ends - 1


def measure(seeds: Sequence[int]) -> Measured:
    """Train both cells on single problems and on streams, and read longer streams."""
    numbers: dict[str, Any] = {case: [] for case in CASES}
    for seed in seeds:
        for cell in CELLS:
            for world in WORLDS:
                captioner = trained(
                    f"without_forget_gate_{cell}_{world}", "experiment=lesson_without_forget_gate",
                    f"decoder.cell={cell}", f"data.root=datasets/worlds/{world}", f"seed={seed}",
                )  # fmt: skip
                for case, (of_cell, of_world, reset) in CASES.items():
                    if (of_cell, of_world) == (cell, world):
                        numbers[case].append(read(captioner, reset=reset))
    return Measured(_claims(numbers), _values(numbers), numbers)


def _right(numbers: dict[str, Any], case: str) -> np.ndarray:
    """[seeds, LONG]."""
    return np.array([run["right"] for run in numbers[case]])


def _growth(numbers: dict[str, Any], case: str) -> list[float]:
    """How much longer C is at the last problem than at the last one of a training stream."""
    return [run["length"][-1] / run["length"][PROBLEMS - 1] for run in numbers[case]]


def _values(numbers: dict[str, Any]) -> dict[str, str]:
    rows, lengths = [], []
    for case in CASES:
        right = _right(numbers, case)
        length = np.array([run["length"] for run in numbers[case]])
        cells = [spread(right[:, place - 1].tolist()) for place in SHOWN]
        rows.append(f"| {case} | " + " | ".join(cells) + " |")
        texts = [spread(length[:, p - 1].tolist(), lambda v: f"{v:.1f}") for p in SHOWN]
        lengths.append(f"| {case} | " + " | ".join(texts) + " |")
    return {"right": "\n".join(rows), "length": "\n".join(lengths)}


def _claims(numbers: dict[str, Any]) -> list[Claim]:
    by_hand = _right(numbers, "1997, single problems, reset by hand")
    alone = _right(numbers, "1997, single problems")
    old, new = _right(numbers, "1997, streams"), _right(numbers, "2000, streams")
    grown = {case: _growth(numbers, case) for case in ("1997, streams", "2000, streams")}
    chance = 1 / len(KEPT)
    later = alone[:, PROBLEMS:].mean(1).tolist()
    return [
        Claim(
            "Trained on single problems and reset by hand before each, the cell of 1997 is right "
            "in more than 95 % at every place of the stream.",
            "用单个问题训练、每题之前由人清零，1997 年的单元在每个位置都有 95 % 以上答对。",
            f"lowest: {spread(by_hand.min(1).tolist())}",
            bool(by_hand.min() > 0.95),
        ),
        Claim(
            "Without the reset it is right at the first problem, and within 10 points of chance "
            "(25 %) after the eighth.",
            "不清零，它只答对第一题；第八题之后与随机猜（25 %）相差不到 10 个百分点。",
            f"{spread(alone[:, 0].tolist())}; {spread(later)}",
            bool(alone[:, 0].min() > 0.95 and np.abs(np.array(later) - chance).max() < 0.1),
        ),
        Claim(
            "Trained on streams of eight, today’s cell is right in more than 95 % at each of the "
            "eight, the cell of 1997 in fewer than 50 %.",
            "用八题一串训练，今天的单元在八题的每一题都有 95 % 以上答对，1997 年的单元不到 50 %。",
            f"2000, lowest: {spread(new[:, :PROBLEMS].min(1).tolist())}; "
            f"1997, mean: {spread(old[:, :PROBLEMS].mean(1).tolist())}",
            bool(new[:, :PROBLEMS].min() > 0.95 and old[:, :PROBLEMS].mean(1).max() < 0.5),
        ),
        Claim(
            "On streams ten times as long, today’s cell is still right in more than 95 %.",
            "一串长十倍，今天的单元仍有 95 % 以上答对。",
            spread(new.mean(1).tolist()),
            bool(new.mean(1).min() > 0.95),
        ),
        Claim(
            "From problem 8 to problem 80, C of the cell of 1997 becomes at least twice as long, "
            "that of today’s cell at most 1.5 times.",
            "从第 8 题到第 80 题，1997 年的单元的 C 至少长到两倍，今天的单元至多 1.5 倍。",
            f"1997: {spread(grown['1997, streams'], lambda v: f'{v:.1f}')}; "
            f"2000: {spread(grown['2000, streams'], lambda v: f'{v:.1f}')}",
            min(grown["1997, streams"]) >= 2 and max(grown["2000, streams"]) <= 1.5,
        ),
    ]


def draw(figure: Any, numbers: dict[str, Any]) -> None:
    """What is right, and |C|, by the place in the stream."""
    left, right = figure.subplots(1, 2)
    styles = {
        "1997, single problems, reset by hand": ("gray", ":", "1997, reset by hand"),
        "1997, single problems": ("gru", "-", "1997, not reset"),
        "1997, streams": ("rnn", "-", "1997, trained on streams"),
        "2000, streams": ("lstm", "-", "2000, trained on streams"),
    }
    places = range(1, LONG + 1)
    for case, (color, line, label) in styles.items():
        for seed, run in enumerate(
            numbers[case]
        ):  # a mean would hide the seed that has not learned
            style = {"color": COLORS[color], "linestyle": line, "alpha": 0.7}
            left.plot(places, run["right"], **style)
            right.plot(places, run["length"], label=None if seed else label, **style)
    for axes in (left, right):
        axes.axvline(PROBLEMS, color=COLORS["gray"], linewidth=0.8)
        axes.set(xscale="log", xlabel="problem of the stream")
        axes.set_xticks([1, 2, 4, 8, 20, 40, 80], ["1", "2", "4", "8", "20", "40", "80"])
        axes.minorticks_off()
    left.set(ylabel="right", ylim=(0, 1.05))
    right.set(ylabel="|C| per unit (root mean square)", yscale="log")
    right.legend(frameon=False, fontsize=8)
