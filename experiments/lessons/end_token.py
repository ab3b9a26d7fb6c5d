"""The end token: p(<end>) over the steps, trained with and without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lesson import BLANK, COLORS, Claim, Measured, percent, spread, trained

from captioner.api import Captioner
from captioner.data.worlds import COUNTED, DIGITS

DATA = "`counting`"
LONGEST = 30
TRUE = [1 / (COUNTED + 1 - said) for said in range(1, COUNTED + 1)]
"""p(<end>) after each number of words, in the data."""
_WEIGHTS = [1 / (last + 1) for last in range(1, COUNTED + 1)]
BY_LENGTH = [_WEIGHTS[said] / sum(_WEIGHTS[said:]) for said in range(COUNTED)]
"""The same if a batch has captions of one length, and its loss is the mean over its tokens: a
caption of n words then weighs 1 / (n + 1)."""
KINDS = {
    "with": (),
    "without": ("objective.end_token=false",),
    "by_length": ("loader.batch_size=20", "trainer.max_epochs=40"),
}
TRAININGS = len(KINDS)


def ends(captioner: Captioner) -> list[float]:
    """p(<end>) after 0, 1, ... COUNTED words."""
    trace = captioner.trace(BLANK, caption=" ".join(DIGITS[:COUNTED]))
    return np.exp(trace.end_log_probs).tolist()


def lengths(captioner: Captioner) -> list[int]:
    """The numbers of words of 200 samples."""
    options = {"temperature": 1.0, "max_length": LONGEST}
    return [len(c.text.split()) for c in captioner.caption([BLANK] * 200, **options)]


def measure(seeds: Sequence[int]) -> Measured:
    """Train with and without <end> as a target, and with it in batches by length."""
    numbers: dict[str, Any] = {kind: [] for kind in KINDS}
    numbers["lengths"] = {kind: [] for kind in KINDS}
    for seed in seeds:
        for kind, overrides in KINDS.items():
            captioner = trained(
                f"end_token_{kind}", "experiment=lesson_end_token", f"seed={seed}", *overrides
            )
            numbers[kind].append(ends(captioner))
            numbers["lengths"][kind].append(lengths(captioner))
    means = {kind: np.mean(numbers[kind], axis=0)[1:] for kind in KINDS}
    rows = {"true": TRUE, "with": means["with"], "without": means["without"]}
    rows |= {"predicted": BY_LENGTH, "by_length": means["by_length"]}
    values = {name: " | ".join(percent(value) for value in row) for name, row in rows.items()}
    unended = np.concatenate(numbers["lengths"]["without"])
    values |= {"longer": percent((unended > COUNTED).mean()), "mean": f"{unended.mean():.1f}"}
    return Measured(_claims(numbers), values, numbers)


def errors(numbers: dict[str, Any], kind: str, expected: Sequence[float]) -> list[float]:
    """For each seed the greatest difference from what is expected."""
    return [max(abs(p - q) for p, q in zip(row[1:], expected)) for row in numbers[kind]]


def _claims(numbers: dict[str, Any]) -> list[Claim]:
    learned, sorted_ = errors(numbers, "with", TRUE), errors(numbers, "by_length", BY_LENGTH)
    never = [max(row) for row in numbers["without"]]
    longest = [max(each) for each in numbers["lengths"]["with"]]
    unended = [float(np.mean(np.array(each) == LONGEST)) for each in numbers["lengths"]["without"]]
    return [
        Claim(
            "With it, p(&lt;end&gt;) after n words is 1 / (6 − n), to 5 points.",
            "用了结束符，说了 n 个词之后 p(&lt;end&gt;) 是 1 / (6 − n)，误差在 5 个百分点内。",
            f"greatest error {spread(learned)}",
            max(learned) <= 0.05,
        ),
        Claim(
            "With it, no sample is longer than five words.",
            "用了结束符，没有一句采样超过五个词。",
            f"longest: {', '.join(map(str, longest))}",
            max(longest) <= COUNTED,
        ),
        Claim(
            "Without it, p(&lt;end&gt;) stays below 1 % at every step.",
            "不用结束符，每一步 p(&lt;end&gt;) 都低于 1 %。",
            f"greatest: {spread(never, lambda value: f'{100 * value:.2f} %')}",
            max(never) < 0.01,
        ),
        Claim(
            f"Without it, more than 90 % of the samples run to the limit of {LONGEST} words.",
            f"不用结束符，超过 90 % 的采样一直说到 {LONGEST} 个词的上限。",
            spread(unended),
            min(unended) > 0.9,
        ),
        Claim(
            "In batches sorted by length, short sentences weigh more: p(&lt;end&gt;) is as if a "
            "sentence of n words occurred 1 / (n + 1) times as often, to 5 points.",
            "按长度分批时，短句的权重更大：p(&lt;end&gt;) 就像 n 个词的句子出现次数乘以 "
            "1 / (n + 1)，误差在 5 个百分点内。",
            f"greatest error {spread(sorted_)}",
            max(sorted_) <= 0.05,
        ),
    ]


def draw(figure: Any, numbers: dict[str, Any]) -> None:
    """p(<end>) after each number of words."""
    axes = figure.subplots()
    steps = range(COUNTED + 1)
    axes.plot(range(1, COUNTED + 1), TRUE, "x", color="black", markersize=9, label="1 / (6 − n)")
    labels = {"with": "with <end>", "without": "without", "by_length": "with, batches by length"}
    for kind, cell in (("with", "lstm"), ("without", "rnn"), ("by_length", "gru")):
        curves = np.array(numbers[kind])
        axes.plot(steps, curves.T, color=COLORS[cell], alpha=0.35, linewidth=1)
        axes.plot(steps, curves.mean(0), "o-", color=COLORS[cell], label=f"trained {labels[kind]}")
    axes.set(xlabel="n: words said so far", ylabel="p(<end>)", ylim=(-0.03, 1.05))
    axes.legend(frameon=False)
