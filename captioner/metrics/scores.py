"""Scores of captions, each with a signature that says what it may be compared with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from captioner import __version__
from captioner.config import pick
from captioner.metrics.corpus import Corpus, Result, Unavailable
from captioner.metrics.novelty import CaptionHashes
from captioner.metrics.signature import Signature, reference_hash, to_json
from captioner.metrics.statistics import Statistics
from captioner.metrics.table import METRICS, named
from captioner.metrics.tokenize import TOKENIZE, clustered

CONTEXT = ("decoding", "options", "data", "split", "images")
"""Fields of a signature that only the caller of `score` knows."""


@dataclass(frozen=True)
class Scores:
    """Scores and how they were computed.

    Attributes:
        values: name to score; BLEU, ROUGE-L and METEOR from 0 to 100, CIDEr on the scale
            on which coco-caption's 1.0 is 100.
        signatures: name to signature.
        signature: the fields that all signatures have in common.
        missing: metric to the reason why it was not computed.
        statistics: one row per image, from which the corpus scores follow.
    """

    values: dict[str, float]
    signatures: dict[str, Signature]
    signature: Signature
    missing: dict[str, str] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=lambda: Statistics((), {}))

    def as_dict(self) -> dict[str, Any]:
        """Everything except the statistics as plain data, the content of scores.json."""
        return {
            "scores": dict(self.values),
            **to_json(self.signature, self.signatures),
            "missing": dict(self.missing),
        }

    def to_json(self) -> str:
        """The text of scores.json."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"


def score(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: str = "ptb",
    metrics: Sequence[str] = ("bleu",),
    images: Sequence[str] | None = None,
    several: Sequence[Sequence[str]] | None = None,
    training: Sequence[str] | CaptionHashes | None = None,
    pictures: Sequence[str] | None = None,
    context: Mapping[str, Any] = MappingProxyType({}),
) -> Scores:
    """Score captions against references.

    Args:
        candidates: one caption per image, as text.
        references: for each candidate one or more captions by people, as text.
        tokenize: a key of TOKENIZE: "ptb" or "ptb-jar" for English words, "character" for Chinese.
        metrics: names of metrics or scores, see `named`; the whole metric of a score is computed.
            Scores that cannot be computed here are in `missing`.
        images: their ids, for the statistics; None numbers them.
        several: for each image several captions, best first, for the metrics of their diversity.
        training: the captions that the model was trained on, or their hashes, for novelty.
        pictures: paths of the images, for the metrics that use them.
        context: fields of the signature that only the caller knows: decoding, options, data,
            split, images; any other name is one of its `others`.

    Returns:
        the scores with their signatures.

    Raises:
        ValueError: there is nothing to score, the lists have different lengths, a candidate has no
            references, a caption is not a text, or a tokenization or metric is not known.
    """
    split_texts = pick(TOKENIZE, tokenize, "tokenize")
    wanted = named(metrics)
    _check(candidates, references)
    corpus = _corpus(candidates, references, split_texts, tokenize, several, training, pictures)
    results, missing = _measure(corpus, wanted)
    ids = tuple(str(image) for image in (range(len(candidates)) if images is None else images))
    known = [""] * len(ids) if images is None else ids  # positions do not identify images
    signature = _signature(corpus, context, reference_hash(known, references))
    return _collect(results, missing, ids, signature)


def _collect(
    results: Sequence[Result],
    missing: dict[str, str],
    ids: tuple[str, ...],
    signature: Signature,
) -> Scores:
    """The results of all metrics as one value; `signature` has the fields they have in common."""
    rows = {family: rows for result in results for family, rows in result.rows.items()}
    return Scores(
        values={name: float(value) for result in results for name, value in result.values.items()},
        signatures={
            name: replace(signature, metric=result.name, parts=result.parts)
            for result in results
            for name in result.values
        },
        signature=signature,
        missing=missing,
        statistics=Statistics(ids, rows),
    )


def _corpus(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    split_texts: Callable[[Sequence[str]], list[list[str]]],
    tokenize: str,
    several: Sequence[Sequence[str]] | None,
    training: Sequence[str] | CaptionHashes | None,
    pictures: Sequence[str] | None,
) -> Corpus:
    """The captions in words; all are split in one call, because Java takes long to start."""
    hashes = training if isinstance(training, CaptionHashes) else None
    texts = [] if training is None or isinstance(training, CaptionHashes) else training
    groups = [candidates, texts, *references, *(several or ())]
    stream = iter(split_texts([text for group in groups for text in group]))
    words = [[next(stream) for _ in group] for group in groups]
    end = 2 + len(references)
    return Corpus(
        texts=candidates,
        candidates=words[0],
        reference_texts=references,
        references=words[2:end],
        tokenize=tokenize,
        several=None if several is None else words[end:],
        training=CaptionHashes.of(words[1]) if texts else hashes,
        pictures=pictures,
    )


def _measure(corpus: Corpus, names: Iterable[str]) -> tuple[list[Result], dict[str, str]]:
    """The results of metrics, and why those that are missing could not be computed."""
    results: list[Result] = []
    missing: dict[str, str] = {}
    for name in names:
        try:
            results.append(METRICS[name].measure(corpus))
            missing.update(results[-1].missing)
        except Unavailable as reason:
            missing[name] = str(reason)
    return results, missing


def _signature(corpus: Corpus, context: Mapping[str, Any], references: str) -> Signature:
    """The fields that all scores of a corpus have in common."""
    counts = [len(texts) for texts in corpus.references]
    fewest, most = min(counts), max(counts)
    texts = (text for several in corpus.reference_texts for text in several)
    by_cluster = not corpus.english and clustered(texts)
    return Signature(
        tokenization=corpus.tokenize,
        units="clusters" if by_cluster else None,
        case="lower",
        references_per_image=f"{fewest}" if fewest == most else f"{fewest}-{most}",
        count=len(counts),
        **{name: value for name, value in context.items() if name in CONTEXT},
        others={name: value for name, value in context.items() if name not in CONTEXT},
        references=references,
        version=__version__,
    )


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    for name, texts in (("candidates", candidates), ("references", references)):
        if isinstance(texts, (str, bytes)):
            raise ValueError(f"{name} is one text; give a list, one entry per image")
    if len(candidates) != len(references):
        raise ValueError(
            f"{len(candidates)} candidates and {len(references)} lists of references; "
            "give one list of references per candidate"
        )
    if not candidates:
        raise ValueError("there are no candidates to score; give one or more")
    for index, (candidate, texts) in enumerate(zip(candidates, references)):
        if isinstance(texts, (str, bytes)):
            raise ValueError(f"references[{index}] is one text; give a list of texts")
        if len(texts) == 0:
            raise ValueError(
                f"candidate {index} has no reference; give one or more, or leave it out"
            )
        for text in (candidate, *texts):
            if not isinstance(text, str):
                raise ValueError(f"image {index} has {text!r} as a caption; captions are texts")
