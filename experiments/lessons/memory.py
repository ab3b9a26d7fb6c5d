"""Three seconds of memory: the state is reset every k words; how much of a sentence is right?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lesson import COLORS, Claim, Measured, bigrams, percent, records_of, spread, trained

from captioner.api import Captioner
from captioner.tracing.edits import Reset

DATA = "`dictation`"
WORDS = 7
EVERY = (1, 2, 3, 4, 5, 6, 7, 8)
TRAININGS = 1


def share(said: Sequence[str], meant: Sequence[str]) -> float:
    """The fraction of the words of a sentence that are said at their place."""
    return sum(a == b for a, b in zip(said, meant)) / len(meant)


def with_reset(captioner: Captioner, every: int | None) -> tuple[float, str]:
    """The mean share over the test sentences, and what is said of the first."""
    edits = [] if every is None else [Reset(every=every)]
    shares, texts = [], []
    for record in records_of(captioner, "test"):
        text = captioner.trace(record.image, edits=edits, max_length=WORDS + 1).text
        texts.append(text)
        shares.append(share(text.split(), record.captions[0].split()))
    return float(np.mean(shares)), texts[0]


def of_bigrams(captioner: Captioner) -> float:
    """The same of a table of bigrams, which knows the word before and no more."""
    table, word, said = bigrams(captioner), "<start>", []
    while len(said) < WORDS and word != "<end>":
        word = table[word].most_common(1)[0][0]
        said.append(word)
    records = records_of(captioner, "test")
    return float(np.mean([share(said, record.captions[0].split()) for record in records]))


def measure(seeds: Sequence[int]) -> Measured:
    """Train once for each seed; then reset the state, which needs no training."""
    curves, whole = [], []
    for seed in seeds:
        captioner = trained("memory", "experiment=lesson_memory", f"seed={seed}")
        whole.append(with_reset(captioner, None)[0])
        results = [with_reset(captioner, every) for every in EVERY]
        curves.append([score for score, _ in results])
    table = of_bigrams(captioner)
    said = {every: text for every, (_, text) in zip(EVERY, results)}
    meant = records_of(captioner, "test")[0].captions[0]
    rising = np.diff(np.mean(curves, axis=0))
    first = [curve[0] for curve in curves]
    above = min(c - min(k, WORDS) / WORDS for row in curves for c, k in zip(row, EVERY))
    claims = (
        Claim(
            "Without a reset all words of unseen sentences are right.",
            "不清空状态时，没见过的句子每个词都对。",
            spread(whole),
            min(whole) >= 0.99,
        ),
        Claim(
            "The longer the memory, the more words are right: from k to k + 1 the mean over seeds "
            "never falls by 2 points.",
            "记忆越长，对的词越多：从 k 到 k + 1，各种子的平均从不下降 2 个百分点。",
            "k = 1 … 8: " + ", ".join(f"{100 * v:.0f}" for v in np.mean(curves, axis=0)) + " %",
            bool((rising > -0.02).all() and rising.sum() > 0.3),
        ),
        Claim(
            "With a memory of one word the network is no better than a table of bigrams.",
            "只记得一个词时，网络不比二元语法表好。",
            f"{spread(first)}; {percent(table)}",
            max(first) <= table + 0.05,
        ),
        Claim(
            "A memory of k words gives at least the first k words.",
            "能记 k 个词，前 k 个词就对。",
            f"at least k / 7 + {percent(above)}",
            above > -1e-9,
        ),
    )
    rows = "\n".join(f"| {every} | {text} |" for every, text in said.items())
    values = {"said": rows, "meant": meant}
    return Measured(claims, values, {"every": EVERY, "curves": curves, "bigrams": table})


def draw(figure: Any, numbers: dict[str, Any]) -> None:
    """The share of right words by k."""
    axes = figure.subplots()
    curves, every = np.array(numbers["curves"]), numbers["every"]
    axes.plot(every, curves.T, color=COLORS["lstm"], alpha=0.35, linewidth=1)
    axes.plot(every, curves.mean(0), "o-", color=COLORS["lstm"], label="state reset every k words")
    axes.plot(every, np.minimum(every, WORDS) / WORDS, ":", color=COLORS["gray"], label="k / 7")
    axes.axhline(numbers["bigrams"], color=COLORS["rnn"], linestyle="--", label="table of bigrams")
    axes.set(xlabel="k: words that are remembered", ylabel="words that are right", ylim=(0, 1.05))
    axes.legend(frameon=False)
