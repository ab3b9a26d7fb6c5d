"""Agreement: the number of the subject over growing distance, and the unit that carries it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lesson import BLANK, COLORS, Claim, Measured, bigrams, percent, spread, trained

from captioner.api import Captioner
from captioner.data.batches import pad
from captioner.data.worlds import ACTIONS, BESIDE, PERSONS, singular_or_plural
from captioner.tracing.edits import Zero

DATA = "`agreement`"
CELLS = ("rnn", "gru", "lstm")
TRAININGS = len(CELLS)
DISTANCES = (0, 1, 2, 4, 8, 12)
"""Numbers of phrases between subject and verb; the sentences of the world have 4 at most."""
EACH = 100
"""How many sentences are tested at each distance."""
LESION, EXAMINED = 4, 40
"""The distance at which units are examined, and the number of sentences for this."""

Beginning = tuple[str, bool]
"""A sentence without its verb, and whether its subject is plural."""


def beginnings(phrases: int) -> list[Beginning]:
    """EACH beginnings, half of them plural; the noun before the verb has the other number."""
    source, result = random.Random(phrases), []
    for number in range(EACH):
        plural = number % 2 == 0
        nouns = [source.choice(PERSONS) + "s" * plural]
        nouns += [singular_or_plural(source) for _ in range(phrases - 1)]
        nouns += [source.choice(PERSONS) + "s" * (not plural)] * (phrases > 0)
        words = ["the", nouns[0]]
        for noun in nouns[1:]:
            words += [source.choice(BESIDE), "the", noun]
        result.append((" ".join(words), plural))
    return result


def are_right(captioner: Captioner, logits: np.ndarray, plural: Sequence[bool]) -> list[bool]:
    """Whether the verbs of the right number are more probable together: logits [B, V]."""
    word = captioner.tokenizer.vocabulary.id
    forms = [[word(action + ending) for action in ACTIONS] for ending in ("s", "")]
    singular, many = (np.logaddexp.reduce(logits[:, ids], axis=1) for ids in forms)
    return ((many > singular) == np.array(plural)).tolist()


@torch.no_grad()
def accuracy(captioner: Captioner, phrases: int) -> float:
    """How often the verb agrees, for a distance."""
    texts, plural = zip(*beginnings(phrases))
    features = captioner.encode([captioner.prepare(BLANK)] * EACH)[0]
    inputs, _ = pad([captioner.tokenizer.encode(text) for text in texts], captioner.tokenizer)
    logits = captioner.model.decoder(features, inputs)[:, -1].numpy()  # [B, V]
    return float(np.mean(are_right(captioner, logits, plural)))


def of_bigrams(captioner: Captioner, phrases: int) -> float:
    """The same of a table of bigrams, which knows the last noun alone."""
    table, right = bigrams(captioner), []
    for text, plural in beginnings(phrases):
        heard = table[text.split()[-1]]
        many, singular = (sum(heard[a + s] for a in ACTIONS) for s in ("", "s"))
        right.append((many > singular) == plural)
    return float(np.mean(right))


def selectivity(captioner: Captioner) -> list[float]:
    """For each unit, the least |correlation| of C_t with the number, from the noun to the verb."""
    texts, plural = zip(*beginnings(LESION)[:EXAMINED])
    traces = [captioner.trace(BLANK, caption=text) for text in texts]
    memory = np.stack([trace["cell.memory"][3:, -1] for trace in traces])  # [B, T, H]
    number = np.array(plural, float)
    number = (number - number.mean()) / number.std()
    memory = (memory - memory.mean(0)) / (memory.std(0) + 1e-9)
    return np.abs(np.einsum("bth,b->th", memory, number) / len(texts)).min(0).tolist()


def lesions(captioner: Captioner, units: int) -> list[float]:
    """The accuracy at distance LESION with each unit of C held at 0."""
    texts, plural = zip(*beginnings(LESION)[:EXAMINED])
    result = []
    for unit in range(units):
        edits = [Zero("cell.memory", units=[unit])]
        traces = [captioner.trace(BLANK, caption=text, edits=edits) for text in texts]
        logits = np.stack([trace["output.logits"][-1] for trace in traces])  # [B, V]
        result.append(float(np.mean(are_right(captioner, logits, plural))))
    return result


def measure(seeds: Sequence[int]) -> Measured:
    """Train each cell; look for the unit in the LSTM."""
    right: dict[str, Any] = {cell: {n: [] for n in DISTANCES} for cell in CELLS}
    units: list[dict[str, Any]] = []
    for seed in seeds:
        for cell in CELLS:
            overrides = (f"decoder.cell={cell}", f"seed={seed}")
            captioner = trained(f"agreement_{cell}", "experiment=lesson_agreement", *overrides)
            for phrases in DISTANCES:
                right[cell][phrases].append(accuracy(captioner, phrases))
        selective = selectivity(captioner)  # of the LSTM, the last one
        units.append({"selectivity": selective, "accuracy": lesions(captioner, len(selective))})
    table = {phrases: of_bigrams(captioner, phrases) for phrases in DISTANCES}
    numbers = {"accuracy": right, "bigrams": table, "units": units}
    return Measured(_claims(numbers), _values(numbers), numbers)


def _claims(numbers: dict[str, Any]) -> list[Claim]:
    return _claims_distance(numbers["accuracy"], numbers["bigrams"]) + _claims_unit(numbers)


def _claims_distance(right: dict[str, Any], table: dict[int, float]) -> list[Claim]:
    far = {cell: right[cell][DISTANCES[-1]] for cell in CELLS}
    worst = {cell: min(min(values) for values in right[cell].values()) for cell in CELLS}
    return [
        Claim(
            "A table of bigrams is always wrong when another noun stands before the verb.",
            "动词前是另一个名词时，二元语法表总是错。",
            percent(max(table[phrases] for phrases in DISTANCES[1:])),
            max(table[phrases] for phrases in DISTANCES[1:]) == 0,
        ),
        Claim(
            "The LSTM is right in 95 % at every distance, also at 12 phrases, more than it heard.",
            "LSTM 在每个距离上都对 95 % 以上，12 个短语也一样，比它听过的都长。",
            f"the least: {percent(worst['lstm'])}",
            worst["lstm"] >= 0.95,
        ),
        Claim(
            "So is the GRU.",
            "GRU 也是。",
            f"the least: {percent(worst['gru'])}",
            worst["gru"] >= 0.95,
        ),
        Claim(
            "The RNN forgets: at 12 phrases it is right less often than the LSTM, by 5 points.",
            "RNN 会忘：隔 12 个短语时，它比 LSTM 少对 5 个百分点以上。",
            f"rnn {spread(far['rnn'])}; lstm {spread(far['lstm'])}",
            float(np.mean(far["rnn"])) <= float(np.mean(far["lstm"])) - 0.05,
        ),
    ]


def found(units: dict[str, Any]) -> tuple[int, float, float]:
    """The most selective unit, the accuracy without it, and the mean of that without another."""
    unit = int(np.argmax(units["selectivity"]))
    others = np.delete(units["accuracy"], unit)
    return unit, units["accuracy"][unit], float(np.mean(others))


def _claims_unit(numbers: dict[str, Any]) -> list[Claim]:
    best = [max(units["selectivity"]) for units in numbers["units"]]
    without = [found(units)[1] for units in numbers["units"]]
    others = [found(units)[2] for units in numbers["units"]]
    return [
        Claim(
            "One unit of the LSTM carries the number: from the noun to the verb the correlation "
            "of its C with the number never falls below 0.8.",
            "LSTM 里有一个神经元记着单复数：从名词到动词，它的 C 与单复数的相关系数从不低于 0.8。",
            spread(best, lambda value: f"{value:.2f}"),
            min(best) >= 0.8,
        ),
        Claim(
            f"Without this unit (C held at 0) at most 60 % agree at {LESION} phrases.",
            f"去掉这个神经元（C 保持为 0），隔 {LESION} 个短语时一致的至多 60 %。",
            spread(without),
            max(without) <= 0.6,
        ),
        Claim(
            "Without one of the other 31 units, in the mean at least 90 % do.",
            "去掉另外 31 个神经元中的一个，平均至少 90 % 一致。",
            spread(others),
            min(others) >= 0.9,
        ),
    ]


def _values(numbers: dict[str, Any]) -> dict[str, str]:
    units = [found(units)[0] for units in numbers["units"]]
    return {"units": ", ".join(map(str, units))}


def draw(figure: Any, numbers: dict[str, Any]) -> None:
    """Accuracy by distance, and by selectivity of the unit that is held at 0."""
    left, right = figure.subplots(1, 2, sharey=True)
    for cell, width in zip(CELLS, (6, 3.5, 1.5)):  # equal lines are seen behind one another
        distances = [int(phrases) for phrases in numbers["accuracy"][cell]]
        means = [float(np.mean(values)) for values in numbers["accuracy"][cell].values()]
        left.plot(distances, means, "o-", color=COLORS[cell], label=cell.upper(), linewidth=width)
    left.plot(
        distances, list(numbers["bigrams"].values()), "--", color=COLORS["gray"], label="bigrams"
    )
    left.set(
        xlabel="phrases between subject and verb", ylabel="verbs that agree", ylim=(-0.03, 1.05)
    )
    left.legend(frameon=False, loc="center right")
    for units, marker in zip(numbers["units"], "osD"):
        right.plot(units["selectivity"], units["accuracy"], marker, color=COLORS["lstm"], alpha=0.6)
    right.set(xlabel="|correlation| of C with the number", xlim=(-0.03, 1.03))
    right.set_title("without one unit", fontsize=10)
