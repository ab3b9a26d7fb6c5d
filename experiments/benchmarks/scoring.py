"""How long scoring takes beside pycocoevalcap, on the same words in the same process.

Each round measures every task once, one after the other, so that a busy machine slows them alike;
what is reported is the median of the rounds' ratios, with the smallest and the largest. Beside it
stands a bound: the ratio if ours took no longer than what counting n-grams with numpy, or cutting
words in Python, cannot do without.

    OMP_NUM_THREADS=1 python experiments/benchmarks/scoring.py --flickr8k ~/flickr8k
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider as CocoCider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from captioner.data.records import write_whole
from captioner.data.shapes import describe, sample_scene
from captioner.metrics.bleu import bleu_rows
from captioner.metrics.cider import Cider
from captioner.metrics.ngrams import ORDERS, References
from captioner.metrics.statistics import from_bleu_rows
from captioner.metrics.tokenize import TOKENIZE, ptb_words

IMAGES, REFERENCES, TEXTS = 40_000, 5, 200_000
SHIFT = 15  # bits of a word's number


def captions(folder: str | None) -> list[str]:
    """The captions to draw from: Flickr8k's, else those of the embedded grammar."""
    if folder:
        text = (Path(folder).expanduser() / "Flickr8k.token.txt").read_text(encoding="utf-8")
        return [line.partition("\t")[2] for line in text.splitlines() if "\t" in line]
    chance = random.Random(0)
    scenes = [sample_scene(chance, "train") for _ in range(7000)]
    return [text for scene in scenes for text in describe(scene, chance)]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    gc.freeze()  # else each task pays for searching the results of those before it
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def score_once(said: list[list[str]], people: list[list[list[str]]]) -> dict[str, float]:
    """Seconds of every task, in one round; the values are held together."""
    texts = {i: [" ".join(words) for words in one] for i, one in enumerate(people)}
    alone = {i: [" ".join(words)] for i, words in enumerate(said)}
    seconds = {}
    seconds["coco CIDEr-D"], (_, theirs) = timed(lambda: CocoCider().compute_score(texts, alone))
    seconds["CIDEr-D, cold"], ours = timed(lambda: Cider(References(people)).rows(said))
    assert numpy.abs(ours[:, 0] / 100 - theirs).max() < 1e-9

    scorer = Cider(References(people))
    seconds["CIDEr-D, references kept"], ours = timed(lambda: scorer.rows(said))
    assert numpy.abs(ours[:, 0] / 100 - theirs).max() < 1e-9

    seconds["coco BLEU"], (theirs, _) = timed(
        lambda: Bleu(4).compute_score(texts, alone, verbose=0)
    )
    seconds["BLEU counts, cold"], ours = timed(
        lambda: bleu_rows(References(people), said, coco=True)
    )
    values = list(from_bleu_rows(ours.mean(axis=0)).values())
    assert numpy.abs(numpy.array(values) / 100 - theirs).max() < 1e-9

    references = References(people)
    seconds["BLEU counts, references kept"], ours = timed(
        lambda: bleu_rows(references, said, coco=True)
    )
    assert list(from_bleu_rows(ours.mean(axis=0)).values()) == values

    everything = [*said, *(words for one in people for words in one)]
    seconds["bound, cold"], _ = timed(lambda: numbered_and_sorted(everything))
    seconds["bound, references kept"], _ = timed(lambda: numbered_and_sorted(said))
    return seconds


def numbered_and_sorted(texts: list[list[str]]) -> None:
    """What counting n-grams cannot do without: each word looked up, each order's keys sorted."""
    numbers: dict[str, int] = {}
    ids = [numbers.setdefault(word, len(numbers)) for words in texts for word in words]
    keys = last = numpy.array(ids)
    for _ in ORDERS:
        numpy.sort(keys)
        keys, last = keys[:-1] << SHIFT | last[1:], last[1:]


def cut_once(texts: list[str]) -> dict[str, float]:
    """Seconds of both tokenizers; the words are held together."""
    asked = {i: [{"caption": text}] for i, text in enumerate(texts)}
    seconds = {}
    with contextlib.redirect_stderr(io.StringIO()):
        seconds["coco words"], theirs = timed(lambda: PTBTokenizer().tokenize(asked))
    seconds["words of 200,000 captions"], ours = timed(lambda: TOKENIZE["ptb"](texts))
    assert all(theirs[i][0].split() == words for i, words in enumerate(ours))
    gc.disable()  # as ours
    seconds["bound, words"], _ = timed(lambda: [text.lower().split() for text in texts])
    gc.enable()
    return seconds


class Row(NamedTuple):
    """What is compared with what, what it cannot be faster than, and the share aimed at."""

    task: str
    other: str
    bound: str
    goal: float


ROWS = (
    Row("CIDEr-D, cold", "coco CIDEr-D", "bound, cold", 0.1),
    Row("CIDEr-D, references kept", "coco CIDEr-D", "bound, references kept", 0.03),
    Row("BLEU counts, cold", "coco BLEU", "bound, cold", 0.4),
    Row("BLEU counts, references kept", "coco BLEU", "bound, references kept", 0.06),
    Row("words of 200,000 captions", "coco words", "bound, words", 0.35),
)


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Median seconds and ratios, with the spread of the ratios."""
    found = {}
    for task, other, bound, goal in ROWS:
        ratios = [one[task] / one[other] for one in rounds]
        found[task] = {
            "seconds": statistics.median(one[task] for one in rounds),
            "pycocoevalcap_seconds": statistics.median(one[other] for one in rounds),
            "ratio": statistics.median(ratios),
            "smallest": min(ratios),
            "largest": max(ratios),
            "bound": statistics.median(one[bound] / one[other] for one in rounds),
            "goal": goal,
        }
    return found


def table(found: dict[str, Any]) -> str:
    lines = [
        "| task | captioner (s) | pycocoevalcap (s) | ratio | smallest to largest | bound | goal |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for task, one in found.items():
        lines.append(
            f"| {task} | {one['seconds']:.2f} | {one['pycocoevalcap_seconds']:.2f} "
            f"| {one['ratio']:.3f} | {one['smallest']:.3f} to {one['largest']:.3f} "
            f"| {one['bound']:.3f} | {one['goal']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flickr8k", default=os.environ.get("CAPTIONER_FLICKR8K"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=str(Path(__file__).with_name("scoring.json")))
    options = parser.parse_args()
    pool = captions(options.flickr8k)
    chance = random.Random(0)
    words = [ptb_words(text) for text in pool]
    people = [[chance.choice(words) for _ in range(REFERENCES)] for _ in range(IMAGES)]
    said = [chance.choice(one if chance.random() < 0.3 else words) for one in people]
    texts = [chance.choice(pool) for _ in range(TEXTS)]
    rounds = []
    for number in range(1, options.rounds + 1):
        rounds.append({**score_once(said, people), **cut_once(texts)})
        print(f"round {number} of {options.rounds}", file=sys.stderr)
    found = summary(rounds)
    about = {
        "captions": "Flickr8k" if options.flickr8k else "embedded grammar",
        "images": IMAGES,
        "references": REFERENCES,
        "rounds": options.rounds,
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "threads": os.environ.get("OMP_NUM_THREADS", "not limited"),
        **{name: version(name) for name in ("captioner", "numpy", "pycocoevalcap")},
    }
    write_whole(options.output, json.dumps({"about": about, "tasks": found}, indent=2) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
