"""Compare scores of captioner, pycocoevalcap, nltk and sacrebleu for a file of captions.

    python experiments/scores/compare_tools.py captions.jsonl

Every tool scores the same captions. Requires pycocoevalcap, java and sacrebleu:
pip install 'captioner[coco]' sacrebleu
"""

from __future__ import annotations

import contextlib
import os
import sys
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import sacrebleu
from nltk.translate.bleu_score import corpus_bleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from captioner.evaluation.score_files import matched
from captioner.metrics.scores import score
from captioner.metrics.tokenize import ptb_words

Texts = list[str]
Column = dict[str, float]

ORDERS = (1, 2, 3, 4)


def of_captioner(said: Texts, people: list[Texts]) -> Column:
    return score(said, people, metrics=["bleu", "rouge-l", "cider-d", "meteor"]).values


def of_pycocoevalcap(said: Texts, people: list[Texts]) -> Column:
    """With its own tokenization, in java."""
    cut = PTBTokenizer()
    references = cut.tokenize({i: [{"caption": t} for t in one] for i, one in enumerate(people)})
    candidates = cut.tokenize({i: [{"caption": text}] for i, text in enumerate(said)})
    bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    found = {f"BLEU-{n}": value for n, value in zip(ORDERS, bleu)}
    scorers = {"ROUGE-L": Rouge(), "CIDEr-D": Cider(), "METEOR": Meteor()}
    for name, scorer in scorers.items():
        found[name], _ = scorer.compute_score(references, candidates)
    return {name: 100 * float(value) for name, value in found.items()}


def of_nltk(said: list[Texts], people: list[list[Texts]]) -> Column:
    weights = [[1 / n] * n for n in ORDERS]
    found = corpus_bleu(people, said, weights=weights)
    return {f"BLEU-{n}": 100 * float(value) for n, value in zip(ORDERS, found)}


def of_sacrebleu(said: Texts, people: list[Texts], **options: str) -> Column:
    streams = list(zip_longest(*people))  # one per index of a reference
    return {
        f"BLEU-{n}": sacrebleu.BLEU(max_ngram_order=n, **options).corpus_score(said, streams).score
        for n in ORDERS
    }


def columns(said: Texts, people: list[Texts]) -> dict[str, Column]:
    words = [ptb_words(text) for text in said]
    meant = [[ptb_words(text) for text in one] for one in people]
    ready = [" ".join(one) for one in words]
    ready_people = [[" ".join(text) for text in one] for one in meant]
    split = [text.split() for text in said], [[t.split() for t in one] for one in people]
    return {
        "captioner": of_captioner(said, people),
        "pycocoevalcap": of_pycocoevalcap(said, people),
        "nltk, our tokens": of_nltk(words, meant),
        "nltk, split at spaces": of_nltk(*split),
        "sacrebleu, our tokens": of_sacrebleu(
            ready, ready_people, tokenize="none", smooth_method="none"
        ),
        "sacrebleu, defaults": of_sacrebleu(said, people),
    }


def table(found: dict[str, Column]) -> str:
    names = list(found["captioner"])
    lines = [f"| | {' | '.join(found)} |", "|---|" + "---:|" * len(found)]
    for name in names:
        cells = [f"{one[name]:.4f}" if name in one else "" for one in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    rows, references = matched(Path(sys.argv[1]), None)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        found = columns([row.caption or "" for row in rows], [list(one) for one in references])
    print(table(found))
    tools = ("captioner", "pycocoevalcap", "nltk", "sacrebleu")
    print("\n" + ", ".join(f"{tool} {version(tool)}" for tool in tools))
    print(f"{len(rows)} images")


if __name__ == "__main__":
    main()
