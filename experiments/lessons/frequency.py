"""Frequency: "i love" continues with "you" or "him" as often as it was heard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lesson import BLANK, COLORS, Claim, Measured, percent, spread, trained

from captioner.api import Captioner

DATA = "`frequency_9_1`, `frequency_7_3`"
HEARD = {"frequency_9_1": 0.9, "frequency_7_3": 0.7}
TRAININGS = len(HEARD)
SAMPLES = 1000
READ = 3  # the step that reads "love": <start> is the first


def probabilities(captioner: Captioner) -> tuple[float, float]:
    """p(you | i love) and p(him | i love)."""
    you = captioner.trace(BLANK, caption="i love you").log_probs[READ - 1]
    him = captioner.trace(BLANK, caption="i love him").log_probs[READ - 1]
    return float(np.exp(you)), float(np.exp(him))


def sampled(captioner: Captioner) -> float:
    """The fraction of "you" in SAMPLES samples."""
    captions = captioner.caption([BLANK] * SAMPLES, temperature=1.0, batch_size=250)
    return sum(caption.text == "i love you" for caption in captions) / SAMPLES


@torch.no_grad()
def read_memory(captioner: Captioner) -> list[tuple[str, float]]:
    """The words that C_3 says if the output gate is open: softmax(W tanh(C_3) + b), best first."""
    trace = captioner.trace(BLANK, caption="i love you")
    memory = torch.from_numpy(trace["cell.memory"][READ, -1])  # [H]
    chances = torch.softmax(captioner.model.decoder.output(torch.tanh(memory)), dim=0)
    words = captioner.tokenizer.vocabulary
    order = chances.argsort(descending=True).tolist()
    return [(words.word(token), float(chances[token])) for token in order]


def measure(seeds: Sequence[int]) -> Measured:
    """Train on 9:1 and on 7:3."""
    numbers: dict[str, Any] = {}
    for world in HEARD:
        rows = []
        for seed in seeds:
            captioner = trained(
                world, "experiment=lesson_frequency", f"data.root=datasets/worlds/{world}",
                f"seed={seed}",
            )  # fmt: skip
            you, him = probabilities(captioner)
            greedy = captioner.caption(BLANK).text
            memory = read_memory(captioner)
            rows.append({"you": you, "him": him, "sampled": sampled(captioner), "greedy": greedy,
                         "memory": memory})  # fmt: skip
        numbers[world] = rows
    return Measured(_claims(numbers), _values(numbers), numbers)


def _claims(numbers: dict[str, Any]) -> list[Claim]:
    claims = []
    for world, heard in HEARD.items():
        rows = numbers[world]
        you = [row["you"] for row in rows]
        share = [row["sampled"] for row in rows]
        error = 3 * (heard * (1 - heard) / SAMPLES) ** 0.5 + 0.02
        claims += [
            Claim(
                f"Heard {heard:.0%} of the time, p(you) after “i love” is {heard:.0%} ± 2 points.",
                f"听到的占 {heard:.0%}，“i love”之后 p(you) 就是 {heard:.0%}（± 2 个百分点）。",
                spread(you),
                max(abs(value - heard) for value in you) <= 0.02,
            ),
            Claim(
                f"Of {SAMPLES} samples that share is “you”, within three standard errors more.",
                f"采样 {SAMPLES} 次，“you”的比例与此相同（再加三个标准误）。",
                spread(share),
                max(abs(value - heard) for value in share) <= error,
            ),
        ]
    greedy = [row["greedy"] for rows in numbers.values() for row in rows]
    memory = [row["memory"] for rows in numbers.values() for row in rows]
    ordered = sum([word for word, _ in words[:2]] == ["you", "him"] for words in memory)
    claims += [
        Claim(
            "Greedy decoding never says “him”: the mode is not the distribution.",
            "贪心解码从不说“him”：众数不是分布。",
            f"{greedy.count('i love you')} / {len(greedy)} “i love you”",
            set(greedy) == {"i love you"},
        ),
        Claim(
            "Read out with an open output gate, C₃ says “you” first and “him” second.",
            "把输出门全部打开来读，C₃ 最先说“you”，其次是“him”。",
            f"{ordered} / {len(memory)}",
            ordered == len(memory),
        ),
    ]
    return claims


def _values(numbers: dict[str, Any]) -> dict[str, str]:
    memory = numbers["frequency_9_1"][0]["memory"][:3]
    return {"memory": ", ".join(f"{word} {percent(chance)}" for word, chance in memory)}


def draw(figure: Any, numbers: dict[str, Any]) -> None:
    """p(you) and the share in samples against what was heard, for each world."""
    axes = figure.subplots()
    for place, (world, heard) in enumerate(HEARD.items()):
        rows = numbers[world]
        bars = {
            "heard": ([heard], COLORS["gray"]),
            "p(you | i love)": ([row["you"] for row in rows], COLORS["lstm"]),
            f"{SAMPLES} samples": ([row["sampled"] for row in rows], COLORS["gru"]),
            "greedy": ([float(row["greedy"] == "i love you") for row in rows], COLORS["rnn"]),
        }
        for number, (label, (values, color)) in enumerate(bars.items()):
            x, mean = place + 0.2 * (number - 1.5), float(np.mean(values))
            axes.bar(x, mean, 0.18, color=color, label=label if place == 0 else None)
            axes.text(x, mean + 0.015, f"{mean:.3f}", ha="center", fontsize=8)
    axes.set_xticks(range(len(HEARD)), ["heard 9 : 1", "heard 7 : 3"])
    axes.set(ylabel="share of “you”", ylim=(0, 1.1))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
