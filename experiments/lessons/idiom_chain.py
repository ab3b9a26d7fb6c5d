"""Idiom chain: the last character starts the next idiom, none is said twice, X_0 is the referee."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lesson import COLORS, Claim, Measured, percent, records_of, spread, trained
from torch.nn.functional import log_softmax

from captioner.api import Captioner
from captioner.data.batches import pad
from captioner.data.idioms import IDIOMS, LINKS, links
from captioner.data.symbols import one_of

DATA = "`idiom_chain`"
TRAININGS = 1
GAMES = 500
DISTANCES = range(2, LINKS + 1)
"""How many idioms ago one was said. At distance 1 none can follow itself."""

Table = dict[str, dict[str, float]]
"""For each first character the probability of each idiom that begins with it."""


def memoryless(captioner: Captioner) -> Table:
    """How often each idiom follows a character in training: a table that knows no more."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records_of(captioner, "train"):
        for idiom in links(record.captions[0]):
            counts[idiom[0]][idiom] += 1
    return {
        first: {idiom: count / row.total() for idiom, count in row.items()}
        for first, row in counts.items()
    }


def games(captioner: Captioner) -> list[list[str]]:
    """GAMES samples, each after a random idiom of the referee, which comes first."""
    source = random.Random(0)
    first = [source.choice(IDIOMS) for _ in range(GAMES)]
    images = [one_of(IDIOMS.index(idiom)) for idiom in first]
    options = {"temperature": 1.0, "max_length": 4 * LINKS, "batch_size": 250}
    said = captioner.caption(images, **options)
    return [[idiom, *links(caption.text)] for idiom, caption in zip(first, said)]


def games_of_table(table: Table) -> list[list[str]]:
    """The same of the table."""
    source, chains = random.Random(0), []
    for _ in range(GAMES):
        chain = [source.choice(IDIOMS)]
        for _ in range(LINKS):
            row = table[chain[-1][3]]
            chain += source.choices(list(row), list(row.values()))
        chains.append(chain)
    return chains


def judge(chains: Sequence[Sequence[str]]) -> dict[str, float]:
    """How often an idiom is said, the rule is kept, and a chain has an idiom twice."""
    said = [(chain[:place], chain[place]) for chain in chains for place in range(1, len(chain))]
    return {
        "idioms": float(np.mean([idiom in IDIOMS for _, idiom in said])),
        "rule": float(np.mean([before[-1][-1] == idiom[0] for before, idiom in said])),
        "first": float(np.mean([chain[0][-1] == chain[1][0] for chain in chains])),
        "repeats": float(np.mean([len(set(chain)) < len(chain) for chain in chains])),
    }


@torch.no_grad()
def again(captioner: Captioner, table: Table) -> dict[int, float]:
    """How probable the network finds a used idiom, by how many idioms ago it was said.

    In the test chains, whenever the rule would allow an idiom that was used: the sum of p(it) of
    the network, divided by the sum of p(it) of the table. 1: nothing is remembered, 0: all is.
    """
    rows = []  # the image, the chain so far with a used idiom, how long ago that was
    for record in records_of(captioner, "test"):
        chain = [_referee(captioner, record.image), *links(record.captions[0])]
        for place in range(1, len(chain)):
            for distance in range(2, place + 1):
                used = chain[place - distance]
                if used[0] == chain[place - 1][3]:
                    rows.append((record.image, [*chain[1:place], used], distance))
    found, given = Counter[int](), Counter[int]()
    for (_, chain, distance), p in zip(rows, _probabilities(captioner, rows)):
        found[distance] += p  # type: ignore[assignment]
        given[distance] += table[chain[-1][0]][chain[-1]]  # type: ignore[assignment]
    return {distance: found[distance] / given[distance] for distance in DISTANCES}


def _referee(captioner: Captioner, image: str) -> str:
    """The idiom that an image stands for: the number of its white pixel."""
    return IDIOMS[int(captioner.encode([captioner.prepare(image)])[0].pooled[0].argmax())]


def _probabilities(captioner: Captioner, rows: Sequence[Any]) -> list[float]:
    """p of the last four characters of each chain, given those before and the image."""
    found: list[float] = []
    for start in range(0, len(rows), 200):
        part = rows[start : start + 200]
        features = captioner.encode([captioner.prepare(image) for image, _, _ in part])[0]
        ids = [captioner.tokenizer.encode("".join(chain)) for _, chain, _ in part]
        inputs, targets = pad(ids, captioner.tokenizer)
        log_probs = log_softmax(captioner.model.decoder(features, inputs), dim=2)
        own = log_probs.gather(2, targets.clamp_min(0).unsqueeze(2))[..., 0]  # [B, T]
        found += [float(row[len(i) - 4 : len(i)].sum().exp()) for row, i in zip(own, ids)]
    return found


def measure(seeds: Sequence[int]) -> Measured:
    """Train once for each seed, play, and ask for used idioms."""
    network, memory, example = [], [], []
    for seed in seeds:
        captioner = trained("idiom_chain", "experiment=lesson_idiom_chain", f"seed={seed}")
        table = memoryless(captioner)
        chains = games(captioner)
        network.append(judge(chains))
        memory.append(list(again(captioner, table).values()))
        example = chains[0]
    of_table = judge(games_of_table(table))
    numbers = {
        "network": network,
        "table": of_table,
        "distances": list(DISTANCES),
        "memory": memory,
    }
    return Measured(_claims(numbers), _values(numbers, example), numbers)


def _values(numbers: dict[str, Any], example: Sequence[str]) -> dict[str, str]:
    rows = [
        f"| {distance} | {spread([row[place] for row in numbers['memory']])} |"
        for place, distance in enumerate(numbers["distances"])
    ]
    idioms = spread([row["idioms"] for row in numbers["network"]])
    referee, *said = example
    return {"memory": "\n".join(rows), "idioms": idioms, "referee": referee, "said": " ".join(said)}


def _claims(numbers: dict[str, Any]) -> list[Claim]:
    column = {name: [row[name] for row in numbers["network"]] for name in numbers["table"]}
    of_table = numbers["table"]["repeats"]
    near, far = (
        np.mean(part, axis=0) for part in zip(*((r[:3], r[-3:]) for r in numbers["memory"]))
    )
    return [
        Claim(
            "The rule is kept: more than 95 % of what is said begins with the last character of "
            "what was said before.",
            "规则守得住：95 % 以上的成语以上一个的尾字开头。",
            spread(column["rule"]),
            min(column["rule"]) > 0.95,
        ),
        Claim(
            "Also at the first idiom, where only X₀ has the character: more than 95 %.",
            "第一个成语也是，那里只有 X₀ 带着这个字：95 % 以上。",
            spread(column["first"]),
            min(column["first"]) > 0.95,
        ),
        Claim(
            "A chain has a repeated idiom at most half as often as in a table without memory.",
            "一条接龙里有重复成语的比例，至多是没有记忆的表的一半。",
            f"{spread(column['repeats'])}; {percent(of_table)}",
            max(column["repeats"]) <= of_table / 2,
        ),
        Claim(
            "What was used long ago is forgotten more: p(a used idiom), relative to the table, is "
            "greater 6 to 8 idioms later than 2 to 4 later.",
            "越久以前用过的，忘得越多：隔 6 到 8 个成语时，再说一遍的概率（与表相比）"
            "比隔 2 到 4 个时大。",
            f"{percent(float(near.mean()))}; {percent(float(far.mean()))}",
            float(far.mean()) > float(near.mean()),
        ),
    ]


def draw(figure: Any, numbers: dict[str, Any]) -> None:
    """Repeated chains, and p(a used idiom) by distance."""
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    repeats = [row["repeats"] for row in numbers["network"]]
    for place, value in enumerate((numbers["table"]["repeats"], float(np.mean(repeats)))):
        left.bar(place, value, 0.6, color=COLORS["lstm" if place else "rnn"])
        left.text(place, value + 0.01, percent(value), ha="center", fontsize=8)
    left.set_xticks(range(2), ["table", "LSTM"])
    left.set(ylabel="chains with a repeated idiom", xlim=(-0.6, 1.6))
    curves = np.array(numbers["memory"])
    right.plot(numbers["distances"], curves.T, color=COLORS["lstm"], alpha=0.35, linewidth=1)
    right.plot(numbers["distances"], curves.mean(0), "o-", color=COLORS["lstm"], label="LSTM")
    right.axhline(1, color=COLORS["rnn"], linestyle="--", label="table: no memory")
    right.set(xlabel="idioms since it was said", ylabel="p(used idiom), relative", ylim=(0, 1.3))
    right.legend(frameon=False)
