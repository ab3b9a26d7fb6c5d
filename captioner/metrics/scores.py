"""Scores of captions, each with a signature that says how it was computed.

Scores of the same name often measure different things: the tokenizer, letter case, the number of
references and the decoding all move BLEU by points. Two scores compare only where their signatures
agree in all but the model (the idea is sacreBLEU's: Post, WMT 2018).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from captioner import __version__
from captioner.config import pick, unknown
from captioner.metrics import bleu, cider, clip, diversity, meteor, rouge, spice
from captioner.metrics.corpus import Corpus, Result, Unavailable
from captioner.metrics.novelty import CaptionHashes
from captioner.metrics.statistics import Statistics
from captioner.metrics.tokenize import TOKENIZE, clustered, composed

__all__ = [
    "METRICS",
    "TOKENIZE",
    "Scores",
    "differences",
    "image_hash",
    "named",
    "reference_hash",
    "score",
]

METRICS: Mapping[str, Callable[[Corpus], Result]] = MappingProxyType(
    {
        "bleu": bleu.measure,
        "rouge-l": rouge.measure,
        "cider-d": cider.measure,
        "cider": cider.measure_plain,
        "meteor": meteor.measure,
        "spice": spice.measure,
        "diversity": diversity.measure,
        "clip": clip.measure,
    }
)
"""Name of a metric -> a corpus to its result; raises Unavailable where it cannot be computed."""

SCORES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "bleu": ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"),
        "rouge-l": ("ROUGE-L",),
        "cider-d": ("CIDEr-D",),
        "cider": ("CIDEr",),
        "meteor": ("METEOR",),
        "spice": ("SPICE",),
        "diversity": (
            *("length", "vocabulary", "distinct", "novelty"),
            *("distinct-1", "distinct-2", "mBLEU-4"),
        ),
        "clip": ("CLIPScore", "RefCLIPScore"),
    }
)
"""Name of a metric -> the scores that it may find."""


def named(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The metrics and scores that people's names for them mean.

    Args:
        names: each of a metric ("bleu") or of one score ("BLEU-4"); case, blanks, hyphens and
            underscores make no difference.

    Returns:
        metric, a key of METRICS -> those of its scores that are meant.

    Raises:
        ValueError: a name of neither.
    """
    meant: dict[str, tuple[str, tuple[str, ...]]] = {}
    for metric, scores in SCORES.items():
        meant.update({_bare(one): (metric, (one,)) for one in scores})
    meant.update({_bare(metric): (metric, scores) for metric, scores in SCORES.items()})
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        if _bare(name) not in meant:
            own = (score for scores in SCORES.values() for score in scores)
            raise unknown("metrics", name, dict.fromkeys((*METRICS, *own)))
        metric, scores = meant[_bare(name)]
        found[metric] = tuple(dict.fromkeys((*found.get(metric, ()), *scores)))
    return found


def _bare(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


@dataclass(frozen=True)
class Scores:
    """Scores and how they were computed.

    Attributes:
        values: name to score; BLEU, ROUGE-L and METEOR from 0 to 100, CIDEr on the same scale,
            where coco-caption's 1.0 is 100.
        signatures: name to signature: metric, its own parts, then the common ones; parted by "|".
        signature: the common parts: tokenizer, case, references per candidate, candidates, what
            the caller added, a hash of the references, version of this package.
        missing: metric to the reason why it was not computed.
        statistics: one row an image, from which the corpus scores follow.
    """

    values: dict[str, float]
    signatures: dict[str, str]
    signature: str
    missing: dict[str, str] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=lambda: Statistics((), {}))

    def as_dict(self) -> dict[str, Any]:
        """Return all but the statistics as plain data, the content of scores.json."""
        return {
            "scores": dict(self.values),
            "signatures": dict(self.signatures),
            "signature": self.signature,
            "missing": dict(self.missing),
        }


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
    context: Mapping[str, str] = MappingProxyType({}),
) -> Scores:
    """Score captions against references.

    Args:
        candidates: one caption an image, as text.
        references: for each candidate one or more captions by people, as text.
        tokenize: a key of TOKENIZE: "ptb" or "ptb-jar" for English words, "character" for Chinese.
        metrics: see `named`; of a score its whole metric is computed. What cannot be computed
            here is named in `missing`.
        images: their ids, for the statistics; None numbers them.
        several: for each image several captions, best first, for what says how they differ.
        training: the captions that the model was trained on, or their hashes, for novelty.
        pictures: paths of the images, for the scores that look at them.
        context: what else the score depends on (data set, split, decoding), for the signature.

    Returns:
        the scores with their signatures.

    Raises:
        ValueError: nothing to score, lists of different lengths, a candidate without references,
            what should be text is not, or a tokenizer or metric that is not known.
    """
    cut = pick(TOKENIZE, tokenize, "tokenize")
    measures = {name: METRICS[name] for name in named(metrics)}
    _check(candidates, references)
    texts = training if training is not None and not isinstance(training, CaptionHashes) else ()
    groups = [candidates, texts, *references, *(several or ())]
    words = _cut(cut, groups)  # all at once, since starting Java takes longer than its work
    split = 2 + len(references)
    corpus = Corpus(
        texts=candidates,
        candidates=words[0],
        reference_texts=references,
        references=words[2:split],
        tokenize=tokenize,
        several=None if several is None else words[split:],
        training=CaptionHashes.of(words[1]) if texts else _hashed(training),
        pictures=pictures,
    )
    results: list[Result] = []
    missing: dict[str, str] = {}
    for name, measure in measures.items():
        try:
            results.append(measure(corpus))
            missing.update(results[-1].missing)
        except Unavailable as reason:
            missing[name] = str(reason)
    ids = [str(one) for one in (range(len(candidates)) if images is None else images)]
    rows = {family: rows for result in results for family, rows in result.rows.items()}
    alike = ids if images is not None else [""] * len(ids)  # an order alone names no image
    common = _common(corpus, context, reference_hash(alike, references))
    return Scores(
        values={name: float(value) for one in results for name, value in one.values.items()},
        signatures={
            name: _joined({**result.parts, **common}, result.name)
            for result in results
            for name in result.values
        },
        signature=_joined(common),
        missing=missing,
        statistics=Statistics(tuple(ids), rows),
    )


def _hashed(training: Sequence[str] | CaptionHashes | None) -> CaptionHashes | None:
    return training if isinstance(training, CaptionHashes) else None


def image_hash(images: Iterable[str]) -> str:
    """What a signature calls a list of image ids, whatever their order: 8 hexadecimal digits."""
    return hashlib.sha256("\n".join(sorted(images)).encode("utf-8", "replace")).hexdigest()[:8]


def reference_hash(images: Iterable[str], references: Iterable[Sequence[str]]) -> str:
    """What a signature calls the references of images: 8 hexadecimal digits.

    Neither the order of the images nor that of an image's texts matters, for no score depends on
    them; nor do blanks beside one another and forms of Unicode, which readers of data compose.

    Args:
        images: their ids.
        references: for each image its captions by people, as text.
    """
    rows = (
        (i, sorted(composed(" ".join(t.split())) for t in one))
        for i, one in zip(images, references)
    )
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()[:8]


def differences(a: str, b: str) -> dict[str, tuple[str, str]]:
    """In what two signatures differ; scores compare where it is nothing, or nothing that matters.

    Args:
        a: a signature of `Scores`.
        b: another one.

    Returns:
        the parts' names, with the value in either, "" where a signature lacks the part; the name
        of the metric itself is the part "metric".
    """
    one, other = _parts(a), _parts(b)
    names = [*one, *(name for name in other if name not in one)]
    pairs = {name: (one.get(name, ""), other.get(name, "")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _parts(signature: str) -> dict[str, str]:
    found = {}
    for part in signature.split("|"):
        name, colon, value = part.partition(":")
        found.update({name: value} if colon else {"metric": name})
    return found


def _joined(parts: Mapping[str, Any], *names: str) -> str:
    entries = (f"{name}:{value}".replace("|", "_") for name, value in parts.items())
    return "|".join([*names, *entries])


def _common(corpus: Corpus, context: Mapping[str, str], references: str) -> dict[str, Any]:
    counts = [len(texts) for texts in corpus.references]
    fewest, most = min(counts), max(counts)
    texts = (text for several in corpus.reference_texts for text in several)
    by_cluster = corpus.tokenize == "character" and clustered(texts)
    return {
        "tok": corpus.tokenize,
        **({"units": "clusters"} if by_cluster else {}),  # Chinese has none: as ever
        "case": "lower",
        "refs": f"{fewest}" if fewest == most else f"{fewest}-{most}",
        "n": len(counts),
        **context,
        "references": references,
        "captioner": __version__,
    }


def _cut(
    cut: Callable[[Sequence[str]], list[list[str]]], groups: Sequence[Sequence[str]]
) -> list[list[list[str]]]:
    """The words of groups of texts, cut in one go."""
    words = iter(cut([text for group in groups for text in group]))
    return [[next(words) for _ in group] for group in groups]


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    for name, texts in (("candidates", candidates), ("references", references)):
        if isinstance(texts, (str, bytes)):
            raise ValueError(f"{name} is one text; give a list, one entry an image")
    if len(candidates) != len(references):
        raise ValueError(
            f"{len(candidates)} candidates and {len(references)} lists of references; "
            "give one list of references a candidate"
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
