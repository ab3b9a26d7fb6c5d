"""What the lessons share: training a run, claims, figures, pages.

A lesson is a module with `measure(seeds) -> Measured` and `draw(numbers, axes)`. Its page is made
from pages/NAME.en.txt and pages/NAME.zh.txt, in which {key} is an entry of `Measured.values`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captioner.api import Captioner
from captioner.config import compose
from captioner.data.read import read_records
from captioner.data.records import Record
from captioner.files import write_whole
from captioner.process import processor
from captioner.training.train import train

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runs import commit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGES = ROOT / "docs" / "lessons"
RUNS = Path("runs") / "lessons"
COLORS = {"rnn": "#d55e00", "gru": "#009e73", "lstm": "#0072b2", "gray": "#777777"}
"""Of Okabe and Ito, which people who confuse colors can tell apart."""
BLANK = np.zeros((16, 16), np.uint8)
"""No input."""


@dataclass(frozen=True)
class Claim:
    """A sentence about what a network does, and whether it was observed.

    Attributes:
        english, chinese: the sentence.
        value: what was measured.
        holds: whether the claim is true of the measured value.
    """

    english: str
    chinese: str
    value: str
    holds: bool


@dataclass(frozen=True)
class Measured:
    """The result of a lesson.

    Attributes:
        claims: with their numbers.
        values: that the pages quote, as text, by key.
        numbers: that the figure shows, plain data for JSON.
    """

    claims: Sequence[Claim]
    values: dict[str, str]
    numbers: dict[str, Any]


def trained(name: str, *overrides: str) -> Captioner:
    """Train as `captioner train experiment=lesson_... run_dir=runs/lessons/NAME` does.

    Args:
        name: of the run folder, which is replaced.
        overrides: experiment=lesson_... first.
    """
    folder = RUNS / name
    shutil.rmtree(folder, ignore_errors=True)
    config = compose([*overrides, "callbacks.samples=0", "logger.csv=false"])
    with warnings.catch_warnings():  # without an input, no caption depends on it
        warnings.filterwarnings("ignore", message="the captions hardly depend on the images")
        run = train(config, folder, report=lambda line: None)
    return Captioner.load(run.best)


def records_of(captioner: Captioner, split: str) -> tuple[Record, ...]:
    """The records of a split of the world that a model was trained on."""
    data = captioner.config["data"]
    return read_records(format=data["format"], root=data["root"]).split(split)


def bigrams(captioner: Captioner) -> dict[str, Counter[str]]:
    """For each token of the training captions and <start>, how often each token follows it."""
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records_of(captioner, "train"):
        for caption in record.captions:
            tokens = ["<start>", *captioner.tokenizer.split(caption), "<end>"]
            for first, second in pairwise(tokens):
                table[first][second] += 1
    return dict(table)


def percent(value: float) -> str:
    """A fraction as text: 0.875 -> "87.5 %"."""
    return f"{100 * value:.1f} %"


def spread(values: Sequence[float], show: Callable[[float], str] = percent) -> str:
    """The mean over seeds, with the smallest and the largest value."""
    mean, least, greatest = float(np.mean(values)), min(values), max(values)
    if show(least) == show(greatest):
        return show(mean)
    return f"{show(mean)} ({show(least)} to {show(greatest)})"


# Pages --------------------------------------------------------------------------------------------

TEXTS = {
    "en": {
        "other": "[中文]({name}.zh.md)",
        "claims": "| claim | measured | holds |\n|---|---|---|",
        "yes": "yes",
        "no": "**no**",
        "how": "## How it was measured",
        "command": "All numbers and the figure on this page are from one run of",
        "facts": "World: {data}. Seeds {seeds}; a range is that over seeds. Commit {commit}, "
        "torch {torch}, {machine}; {seconds:.0f} s in total, {each:.1f} s a training.",
    },
    "zh": {
        "other": "[English]({name}.md)",
        "claims": "| 说法 | 测得 | 是否成立 |\n|---|---|---|",
        "yes": "成立",
        "no": "**不成立**",
        "how": "## 如何测量",
        "command": "本页的全部数字和图都来自一次运行：",
        "facts": "数据：{data}。随机种子 {seeds}；范围是各种子之间的范围。提交 {commit}，"
        "torch {torch}，{machine}；总共 {seconds:.0f} 秒，每次训练 {each:.1f} 秒。",
    },
}


def write_pages(
    name: str, measured: Measured, facts: dict[str, Any], draw: Callable[..., None]
) -> None:
    """Write the figure, the numbers and both pages of a lesson."""
    PAGES.mkdir(parents=True, exist_ok=True)
    draw_figure(PAGES / f"{name}.png", measured.numbers, draw)
    stored = {"facts": facts, "numbers": measured.numbers, "values": measured.values}
    claims = [vars(claim) for claim in measured.claims]
    text = json.dumps({**stored, "claims": claims}, indent=1, ensure_ascii=False, default=float)
    write_whole(HERE / "results" / f"{name}.json", text + "\n")
    write_texts(name)


def write_texts(name: str) -> None:
    """Write both pages of a lesson from results/NAME.json and its templates."""
    stored = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
    claims = [Claim(**claim) for claim in stored["claims"]]
    measured = Measured(claims, stored["values"], stored["numbers"])
    for language, suffix in (("en", ".md"), ("zh", ".zh.md")):
        write_whole(PAGES / f"{name}{suffix}", page(name, measured, stored["facts"], language))


def page(name: str, measured: Measured, facts: dict[str, Any], language: str) -> str:
    """The page of a lesson: its template, the claims, and how they were measured."""
    texts = TEXTS[language]
    template = (HERE / "pages" / f"{name}.{language}.txt").read_text(encoding="utf-8")
    rows = [texts["claims"]]
    for claim in measured.claims:
        sentence = claim.english if language == "en" else claim.chinese
        sentence = sentence.replace("|", "\\|")  # as in p(you | i love), within a table
        rows.append(f"| {sentence} | {claim.value} | {texts['yes' if claim.holds else 'no']} |")
    values = {key: value.replace("<", "&lt;") for key, value in measured.values.items()}
    body = template.format(claims="\n".join(rows), figure=f"{name}.png", **values)
    title, _, rest = body.partition("\n")
    command = f"```\npython experiments/lessons/run.py {name}\n```"
    parts = [title, texts["other"].format(name=name), rest.strip(), texts["how"]]
    parts += [texts["command"], command, texts["facts"].format(**facts)]
    return "\n\n".join(parts) + "\n"


def draw_figure(path: Path, numbers: dict[str, Any], draw: Callable[..., None]) -> None:
    """Draw the figure of a lesson as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    draw(figure, numbers)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def facts_of(data: str, seeds: Sequence[int], start: float, trainings: int) -> dict[str, Any]:
    """What a page says about its run."""
    seconds = time.perf_counter() - start
    return {
        "data": data,
        "seeds": ", ".join(map(str, seeds)),
        "commit": commit(),
        "torch": torch.__version__,
        "machine": f"{processor()}, {torch.get_num_threads()} thread(s)",
        "seconds": seconds,
        "each": seconds / max(1, trainings),
    }
