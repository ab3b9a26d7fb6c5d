"""Forgetting: what a later sentence does to an earlier one; and the forget gate in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lesson import BLANK, COLORS, RUNS, Claim, Measured, percent, records_of, spread, trained

from captioner.api import Captioner
from captioner.data.worlds import ARTS
from captioner.tracing.edits import AnyEdit, Set
from captioner.tracing.trace import Trace

DATA = "`sports`, `table_tennis`, `rehearsal`, `second_thoughts`"
FIRST, SECOND = "篮球", "乒乓球"
PERSONS = ("我", "他", "她")
UPDATES = (0, 1, 3, 10, 30, 100, 300)
"""Of the second training."""
LATER = ("table_tennis", "rehearsal")
TRAININGS = 2 + len(LATER) * (len(UPDATES) - 1)


def shares(captioner: Captioner) -> dict[str, tuple[float, float]]:
    """p(篮球) and p(乒乓球) after "WHO 喜欢打", for each person."""
    result = {}
    for person in PERSONS:
        prompt = f"{person}喜欢打"
        traces = (captioner.trace(BLANK, caption=prompt + sport) for sport in (FIRST, SECOND))
        first, second = (float(np.exp(sum(t.log_probs[len(prompt) :]))) for t in traces)
        result[person] = (first, second)
    return result


def later(seed: int) -> dict[str, Any]:
    """The shares by updates on each later world; update 0 is the first training alone."""
    start = ("experiment=lesson_forgetting", f"seed={seed}")
    before = shares(trained("forgetting_first", *start))
    curves: dict[str, Any] = {}
    for world in LATER:
        curves[world] = [before]
        for updates in UPDATES[1:]:
            captioner = trained(
                "forgetting_second", *start, f"data.root=datasets/worlds/{world}",
                f"resume_weights={RUNS / 'forgetting_first'}", "optimizer.lr=0.001",
                "schedule=constant", "schedule.warmup=0", "loader.batch_size=1",
                f"trainer.max_steps={updates}",
            )  # fmt: skip
            curves[world].append(shares(captioner))
    return curves


# Within a sentence: step k + 2 reads character k, counted from 0 ----------------------------------

Choice = Callable[[str], Sequence[AnyEdit]]
"""The edits for a sentence."""


def keep(sentence: str) -> list[AnyEdit]:
    """f = 1 while "改学画" is read: nothing is forgotten."""
    start = sentence.index("改") + 2
    return [Set("cell.forget_gate", 1.0, step=range(start, start + 3))]


def erase(sentence: str) -> list[AnyEdit]:
    """f = 0 while "就" is read: everything is forgotten."""
    return [Set("cell.forget_gate", 0.0, step=sentence.index("就") + 2)]


EDITS: dict[str, Choice] = {"none": lambda sentence: [], "keep": keep, "erase": erase}


def answer(captioner: Captioner, trace: Trace) -> str:
    """The most probable of the four arts at the last character."""
    ids = [captioner.tokenizer.vocabulary.id(art) for art in ARTS]
    return ARTS[int(trace["output.logits"][-2, ids].argmax())]  # the last step gives <end>


def within(captioner: Captioner) -> dict[str, Any]:
    """Answers and forget gates over the test sentences with a second thought."""
    texts = [record.captions[0].replace("，", "") for record in records_of(captioner, "test")]
    texts = [text for text in texts if "改" in text]
    result: dict[str, Any] = {}
    for name, edits in EDITS.items():
        traces = [captioner.trace(BLANK, caption=text, edits=edits(text)) for text in texts]
        said = [answer(captioner, trace) for trace in traces]
        new = float(np.mean([art == text[-1] for art, text in zip(said, texts)]))
        old = float(np.mean([art == text[2] for art, text in zip(said, texts)]))
        result[name] = {"new": new, "old": old}
        if name == "none":
            result["gates"] = gates(traces)
    return result


def gates(traces: Sequence[Trace]) -> dict[str, float]:
    """The mean of f over units and sentences, by the character that is read."""
    read: dict[str, list[float]] = {}
    for trace in traces:
        for character, gate in zip(trace.reads, trace["cell.forget_gate"][:, -1].mean(1)):
            read.setdefault(character, []).append(float(gate))
    return {character: float(np.mean(read[character])) for character in "嗯改"}


def measure(seeds: Sequence[int]) -> Measured:
    """Train twice, one after the other; and once on sentences with second thoughts."""
    numbers: dict[str, Any] = {"updates": UPDATES, "curves": [], "within": []}
    for seed in seeds:
        numbers["curves"].append(later(seed))
        captioner = trained(
            "second_thoughts", "experiment=lesson_forgetting", f"seed={seed}",
            "data.root=datasets/worlds/second_thoughts", "trainer.max_epochs=100",
        )  # fmt: skip
        numbers["within"].append(within(captioner))
    return Measured(_claims(numbers), _values(numbers), numbers)


def _claims(numbers: dict[str, Any]) -> list[Claim]:
    return _claims_later(numbers["curves"]) + _claims_within(numbers["within"])


def _claims_later(curves: Sequence[dict[str, Any]]) -> list[Claim]:
    before = [seed[LATER[0]][0] for seed in curves]
    alone, mixed = ([seed[world][-1] for seed in curves] for world in LATER)
    told = [min(shares["我"][0], shares["他"][0], shares["她"][1]) for shares in before]
    new, old = ([shares["我"][place] for shares in alone] for place in (1, 0))
    spilled = [shares["他"][0] for shares in alone]
    rehearsed = [min(shares["我"][1], shares["他"][0]) for shares in mixed]
    return [
        Claim(
            "At first each person has the sport that was heard of them: the least share is above "
            "90 %.",
            "起初，听说谁打什么球，就说什么球：最小的比例高于 90 %。",
            spread(told),
            min(told) > 0.9,
        ),
        Claim(
            f"After {UPDATES[-1]} times 我喜欢打乒乓球, p(乒乓球 | 我喜欢打) is above 95 %, and "
            "p(篮球 | 我喜欢打) below 5 %.",
            f"再听 {UPDATES[-1]} 遍“我喜欢打乒乓球”，p(乒乓球 | 我喜欢打) 高于 95 %，"
            "p(篮球 | 我喜欢打) 低于 5 %。",
            f"{spread(new)}; {spread(old)}",
            min(new) > 0.95 and max(old) < 0.05,
        ),
        Claim(
            "It forgets what nobody contradicted: p(篮球 | 他喜欢打) falls below 50 %.",
            "没有人否定过的也忘了：p(篮球 | 他喜欢打) 降到 50 % 以下。",
            spread(spilled),
            max(spilled) < 0.5,
        ),
        Claim(
            "Not if the old sentences are heard again between the new ones: p(乒乓球 | 我喜欢打) "
            "and p(篮球 | 他喜欢打) are above 90 %.",
            "如果新句子中间也重听旧句子，就不会：p(乒乓球 | 我喜欢打) 和 "
            "p(篮球 | 他喜欢打) 都高于 90 %。",
            f"the least: {spread(rehearsed)}",
            min(rehearsed) > 0.9,
        ),
    ]


def _claims_within(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    right = [row["none"]["new"] for row in rows]
    thought, pause = ([row["gates"][character] for row in rows] for character in "改嗯")
    kept = {which: [row["keep"][which] for row in rows] for which in ("new", "old")}
    erased = [row["erase"]["new"] for row in rows]
    return [
        Claim(
            "Within a sentence the later art is answered: at least 95 % are right.",
            "在一句话里，回答的是后说的那一样：至少 95 % 正确。",
            spread(right),
            min(right) >= 0.95,
        ),
        Claim(
            "The forget gate is lower at 改 than at 嗯 (mean over units).",
            "读“改”时的遗忘门比读“嗯”时低（各神经元的平均）。",
            f"{spread(thought, _plain)}; {spread(pause, _plain)}",
            all(low < high for low, high in zip(thought, pause)),
        ),
        Claim(
            "If it cannot forget (f = 1 while 改学画 is read), the earlier art is answered more "
            "often than the later one.",
            "如果不许它忘（读“改学画”时 f = 1），先说的那一样就比后说的回答得更多。",
            f"{spread(kept['old'])}; {spread(kept['new'])}",
            all(old > new for old, new in zip(kept["old"], kept["new"])),
        ),
        Claim(
            "If it must forget (f = 0 while 就 is read), fewer than half are right.",
            "如果强迫它忘（读“就”时 f = 0），答对的不到一半。",
            spread(erased),
            max(erased) < 0.5,
        ),
    ]


def _plain(value: float) -> str:
    return f"{value:.2f}"


def _values(numbers: dict[str, Any]) -> dict[str, str]:
    states = {"before": (LATER[0], 0), "after": (LATER[0], -1), "mixed": (LATER[1], -1)}
    values = {}
    for name, (world, place) in states.items():
        cells = []
        for person in PERSONS:
            pairs = [seed[world][place][person] for seed in numbers["curves"]]
            cells.append(" : ".join(percent(value) for value in np.mean(pairs, axis=0)))
        values[name] = " | ".join(cells)
    return values


def draw(figure: Any, numbers: dict[str, Any]) -> None:
    """p(basketball) and p(table tennis) by updates, for 我 and 他, alone and with rehearsal."""
    titles = {"table_tennis": "the new sentence alone", "rehearsal": "with the old ones"}
    lines = {
        "p(first | I)": ("我", 0, "rnn", "-"),
        "p(second | I)": ("我", 1, "lstm", "-"),
        "p(first | he)": ("他", 0, "rnn", ":"),
    }
    for axes, world in zip(figure.subplots(1, 2, sharey=True), LATER):
        for label, (person, place, color, style) in lines.items():
            curves = np.array(
                [[each[person][place] for each in seed[world]] for seed in numbers["curves"]]
            )
            line = {"color": COLORS[color], "linestyle": style}
            axes.plot(numbers["updates"], curves.T, alpha=0.3, linewidth=1, **line)
            axes.plot(numbers["updates"], curves.mean(0), label=label, linewidth=2, **line)
        axes.set(xscale="symlog", title=titles[world], xlabel="updates", ylim=(-0.03, 1.05))
        axes.set_xticks(numbers["updates"], [str(updates) for updates in numbers["updates"]])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("probability")
    figure.axes[0].legend(frameon=False, loc="center left")
