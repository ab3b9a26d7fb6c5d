"""Time of scoring, compared with pycocoevalcap on the same words in the same process.

Each round measures every task once, one after the other, and compares the results. The bound is the
ratio if captioner needed only the time of the unavoidable work of counting n-grams with numpy, or
of tokenizing in Python.

    python experiments/benchmarks/scoring.py --flickr8k ~/flickr8k
"""

from __future__ import annotations

import contextlib
import gc
import io
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
from paired import (
    add_captions,
    compare,
    finish,
    make_parser,
    read_captions,
    run_guarded,
    start,
    with_progress,
)
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider as CocoCider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from captioner.metrics.bleu import bleu_rows, from_bleu_rows
from captioner.metrics.cider import Cider
from captioner.metrics.ngrams import ORDERS, References
from captioner.metrics.tokenize import TOKENIZE, ptb_words

IMAGES, REFERENCES, TEXTS = 40_000, 5, 200_000
SHIFT = 15  # bits of a word id


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    gc.freeze()  # otherwise each task also searches the results of earlier ones
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def score_once(candidates: list[list[str]], references: list[list[list[str]]]) -> dict[str, float]:
    """Seconds of every task in one round; the results must be equal."""
    texts = {i: [" ".join(words) for words in texts] for i, texts in enumerate(references)}
    single = {i: [" ".join(words)] for i, words in enumerate(candidates)}
    seconds = {}
    seconds["coco CIDEr-D"], (_, theirs) = timed(lambda: CocoCider().compute_score(texts, single))
    seconds["CIDEr-D, cold"], ours = timed(lambda: Cider(References(references)).rows(candidates))
    assert numpy.abs(ours[:, 0] / 100 - theirs).max() < 1e-9

    scorer = Cider(References(references))
    seconds["CIDEr-D, references kept"], ours = timed(lambda: scorer.rows(candidates))
    assert numpy.abs(ours[:, 0] / 100 - theirs).max() < 1e-9

    seconds["coco BLEU"], (theirs, _) = timed(
        lambda: Bleu(4).compute_score(texts, single, verbose=0)
    )
    seconds["BLEU counts, cold"], ours = timed(
        lambda: bleu_rows(References(references), candidates, coco=True)
    )
    values = list(from_bleu_rows(ours.mean(axis=0)).values())
    assert numpy.abs(numpy.array(values) / 100 - theirs).max() < 1e-9

    kept = References(references)
    seconds["BLEU counts, references kept"], ours = timed(
        lambda: bleu_rows(kept, candidates, coco=True)
    )
    assert list(from_bleu_rows(ours.mean(axis=0)).values()) == values

    everything = [*candidates, *(words for texts in references for words in texts)]
    seconds["bound, cold"], _ = timed(lambda: count_minimally(everything))
    seconds["bound, references kept"], _ = timed(lambda: count_minimally(candidates))
    return seconds


def count_minimally(texts: list[list[str]]) -> None:
    """The unavoidable work of counting n-grams: look up each word, sort the keys of each order."""
    numbers: dict[str, int] = {}
    ids = [numbers.setdefault(word, len(numbers)) for words in texts for word in words]
    keys = last = numpy.array(ids)
    for _ in ORDERS:
        numpy.sort(keys)
        keys, last = keys[:-1] << SHIFT | last[1:], last[1:]


def tokenize_once(texts: list[str]) -> dict[str, float]:
    """Seconds of both tokenizers; the words must be equal."""
    captions = {i: [{"caption": text}] for i, text in enumerate(texts)}
    seconds = {}
    with contextlib.redirect_stderr(io.StringIO()):
        seconds["coco words"], theirs = timed(lambda: PTBTokenizer().tokenize(captions))
    seconds["tokenization of 200,000 captions"], ours = timed(lambda: TOKENIZE["ptb"](texts))
    assert all(theirs[i][0].split() == words for i, words in enumerate(ours))
    gc.disable()  # as in captioner
    seconds["bound, words"], _ = timed(lambda: [text.lower().split() for text in texts])
    gc.enable()
    return seconds


class Row(NamedTuple):
    """A task, its peer, its bound, and the goal: fraction of the peer's time."""

    task: str
    other: str
    least: str
    goal: float


ROWS = (
    Row("CIDEr-D, cold", "coco CIDEr-D", "bound, cold", 0.1),
    Row("CIDEr-D, references kept", "coco CIDEr-D", "bound, references kept", 0.03),
    Row("BLEU counts, cold", "coco BLEU", "bound, cold", 0.4),
    Row("BLEU counts, references kept", "coco BLEU", "bound, references kept", 0.06),
    Row("tokenization of 200,000 captions", "coco words", "bound, words", 0.35),
)


def main() -> None:
    options = add_captions(make_parser(__doc__, rounds=3)).parse_args()
    about = start(options, "numpy", "pycocoevalcap", images=IMAGES, references=REFERENCES)
    pool = read_captions(options.flickr8k)
    rng = random.Random(0)
    words = [ptb_words(text) for text in pool]
    references = [[rng.choice(words) for _ in range(REFERENCES)] for _ in range(IMAGES)]
    candidates = [rng.choice(own if rng.random() < 0.3 else words) for own in references]
    texts = [rng.choice(pool) for _ in range(TEXTS)]
    rounds = [
        {**score_once(candidates, references), **tokenize_once(texts)}
        for _ in with_progress(range(options.rounds), "rounds")
    ]
    rows = []
    for task, other, least, goal in ROWS:
        ours, peer, bound = ([r[name] for r in rounds] for name in (task, other, least))
        rows.append(compare(task, ours, peer, times=False, least=bound, goal=goal))
    finish(about, rows, options.json)


if __name__ == "__main__":
    run_guarded(main)
