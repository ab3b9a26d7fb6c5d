"""Memorization: after many 我爱你，我也爱你 the prompt 我爱你 is answered 我也爱你."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from lesson import BLANK, COLORS, Claim, Measured, bigrams, spread, trained

from captioner.api import Captioner

DATA = "`memorization`"
PROMPT, ANSWER = "我爱你", "我也爱你"
HEARD = (5, 10, 20, 50, 100, 200)
TRAININGS = len(HEARD)


def probability(captioner: Captioner) -> float:
    """p(answer <end> | prompt)."""
    trace = captioner.trace(BLANK, caption=PROMPT + ANSWER)
    return float(np.exp(sum(trace.log_probs[len(PROMPT) :])))


def of_bigrams(captioner: Captioner) -> float:
    """The same of a table of bigrams."""
    table, product = bigrams(captioner), 1.0
    tokens = [*PROMPT, *ANSWER, "<end>"]
    for first, second in pairwise(tokens[len(PROMPT) - 1 :]):
        product *= table[first][second] / table[first].total()
    return product


def refusal(captioner: Captioner, word: str) -> str:
    """The error for a prompt with a word; empty if the model accepts it."""
    try:
        captioner.caption(BLANK, prefix=word)
    except ValueError as error:
        return str(error)
    return ""


def measure(seeds: Sequence[int]) -> Measured:
    """Train on 5 to 200 sentences; nothing but their number changes."""
    curves, answers = [], []
    for seed in seeds:
        curve = []
        for heard in HEARD:
            captioner = trained(
                "memorization", "experiment=lesson_memorization", f"seed={seed}",
                "schedule=constant", "schedule.warmup=0", "loader.batch_size=1",
                f"trainer.max_steps={heard}",
            )  # fmt: skip
            curve.append(probability(captioner))
        curves.append(curve)
        answers.append(captioner.caption(BLANK, prefix=PROMPT).text)
    table = of_bigrams(captioner)
    known = "".join(sorted(captioner.tokenizer.vocabulary.ordinary))
    last = [curve[-1] for curve in curves]
    right = sum(answer == PROMPT + ANSWER for answer in answers)
    error = refusal(captioner, "不")
    claims = (
        Claim(
            f"After {HEARD[-1]} sentences the prompt {PROMPT} is answered {ANSWER}.",
            f"听过 {HEARD[-1]} 句之后，对“{PROMPT}”的回答是“{ANSWER}”。",
            f"{right} / {len(seeds)}",
            right == len(seeds),
        ),
        Claim(
            f"After {HEARD[-1]} sentences p(answer) is above 95 %; after {HEARD[0]} below 5 %.",
            f"听过 {HEARD[-1]} 句之后 p(回答) 高于 95 %，只听过 {HEARD[0]} 句时低于 5 %。",
            f"{spread(last)}; {spread([curve[0] for curve in curves])}",
            min(last) > 0.95 and max(curve[0] for curve in curves) < 0.05,
        ),
        Claim(
            "A table of bigrams has p(answer) = 1/8; the state of the network has more.",
            "二元语法表的 p(回答) 是 1/8；有状态的网络更高。",
            spread([table]),
            abs(table - 0.125) < 1e-9 and min(last) > table,
        ),
        Claim(
            "Its vocabulary is all it knows: a prompt with 不 is refused.",
            "词表就是它知道的一切：含“不”的提示被拒绝。",
            known,
            bool(error) and "不" not in known,
        ),
    )
    values = {"known": known, "error": error, "table": spread([table]), "last": spread(last)}
    return Measured(claims, values, {"heard": HEARD, "curves": curves, "bigrams": table})


def draw(figure: Any, numbers: dict[str, Any]) -> None:
    """p(answer) by the number of sentences."""
    axes = figure.subplots()
    curves = np.array(numbers["curves"])
    axes.plot(numbers["heard"], curves.T, color=COLORS["lstm"], alpha=0.35, linewidth=1)
    axes.plot(numbers["heard"], curves.mean(0), "o-", color=COLORS["lstm"], label="LSTM")
    axes.axhline(numbers["bigrams"], color=COLORS["rnn"], linestyle="--", label="table of bigrams")
    axes.set(
        xscale="log", xlabel="sentences heard", ylabel="p(answer | prompt)", ylim=(-0.03, 1.03)
    )
    axes.set_xticks(numbers["heard"], [str(heard) for heard in numbers["heard"]])
    axes.minorticks_off()
    axes.legend(frameon=False)
