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


def score_captioner(candidates: Texts, references: list[Texts]) -> Column:
    return score(candidates, references, metrics=["bleu", "rouge-l", "cider-d", "meteor"]).values


def score_pycocoevalcap(captions: Texts, people: list[Texts]) -> Column:
    """Scores with the tool's own tokenization, in java."""
    tokenize = PTBTokenizer().tokenize
    references = tokenize({i: [{"caption": t} for t in ts] for i, ts in enumerate(people)})
    candidates = tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
    bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    scores = {f"BLEU-{n}": value for n, value in zip(ORDERS, bleu)}
    scorers = {"ROUGE-L": Rouge(), "CIDEr-D": Cider(), "METEOR": Meteor()}
    for name, scorer in scorers.items():
        scores[name], _ = scorer.compute_score(references, candidates)
    return {name: 100 * float(value) for name, value in scores.items()}


def score_nltk(candidates: list[Texts], references: list[list[Texts]]) -> Column:
    weights = [[1 / n] * n for n in ORDERS]
    values = corpus_bleu(references, candidates, weights=weights)
    return {f"BLEU-{n}": 100 * float(value) for n, value in zip(ORDERS, values)}


def score_sacrebleu(candidates: Texts, references: list[Texts], **options: str) -> Column:
    streams = list(zip_longest(*references))  # one per index of a reference
    metrics = {n: sacrebleu.BLEU(max_ngram_order=n, **options) for n in ORDERS}
    return {f"BLEU-{n}": metrics[n].corpus_score(candidates, streams).score for n in ORDERS}


def columns(candidates: Texts, references: list[Texts]) -> dict[str, Column]:
    words = [ptb_words(text) for text in candidates]
    reference_words = [[ptb_words(text) for text in texts] for texts in references]
    joined = [" ".join(tokens) for tokens in words]
    joined_references = [[" ".join(tokens) for tokens in texts] for texts in reference_words]
    split = [text.split() for text in candidates]
    split_references = [[text.split() for text in texts] for texts in references]
    return {
        "captioner": score_captioner(candidates, references),
        "pycocoevalcap": score_pycocoevalcap(candidates, references),
        "nltk, our tokens": score_nltk(words, reference_words),
        "nltk, split at spaces": score_nltk(split, split_references),
        "sacrebleu, our tokens": score_sacrebleu(
            joined, joined_references, tokenize="none", smooth_method="none"
        ),
        "sacrebleu, defaults": score_sacrebleu(candidates, references),
    }


def table(columns: dict[str, Column]) -> str:
    names = list(columns["captioner"])
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name in names:
        cells = [f"{scores[name]:.4f}" if name in scores else "" for scores in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    rows, references = matched(Path(sys.argv[1]), None)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        scores = columns([row.caption or "" for row in rows], [list(texts) for texts in references])
    print(table(scores))
    tools = ("captioner", "pycocoevalcap", "nltk", "sacrebleu")
    print("\n" + ", ".join(f"{tool} {version(tool)}" for tool in tools))
    print(f"{len(rows)} images")


if __name__ == "__main__":
    main()
