"""Scores of captions, each with a signature that says how it was computed.

Scores of the same name often measure different things: the tokenizer, letter case, the number of
references and the decoding all move BLEU by points. Two scores compare only where their signatures
agree in all but the model (the idea is sacreBLEU's: Post, WMT 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from types import MappingProxyType

from captioner import __version__
from captioner.config import pick
from captioner.metrics.bleu import bleu
from captioner.metrics.tokenize import characters, ptb_words

__all__ = ["TOKENIZE", "Scores", "score"]

TOKENIZE: dict[str, Callable[[str], list[str]]] = {"ptb": ptb_words, "character": characters}


@dataclass(frozen=True)
class Scores:
    """Scores and how they were computed.

    Attributes:
        values: name to score, 0 to 100.
        signature: metric and version, tokenizer, case, references per candidate, candidates,
            what the caller added, version of this package; parted by "|".
    """

    values: dict[str, float]
    signature: str

    def as_dict(self) -> dict[str, float | str]:
        """Return the scores and their signature as plain data."""
        return {**self.values, "signature": self.signature}


def score(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: str = "ptb",
    context: Mapping[str, str] = MappingProxyType({}),
) -> Scores:
    """Score captions against references.

    Args:
        candidates: one caption an image, as text.
        references: for each candidate one or more captions by people, as text.
        tokenize: "ptb" for English words, "character" for Chinese.
        context: what else the score depends on (data set, split, decoding), for the signature.

    Returns:
        BLEU-1 to BLEU-4 with their signature.

    Raises:
        ValueError: nothing to score, lists of different lengths, a candidate without references,
            what should be text is not, or the tokenizer is not known.
    """
    cut = pick(TOKENIZE, tokenize, "tokenize")
    _check(candidates, references)
    values = bleu(
        [cut(text) for text in candidates], [[cut(text) for text in texts] for texts in references]
    )
    counts = [len(texts) for texts in references]
    fewest, most = min(counts), max(counts)
    parts = {
        "nltk": version("nltk"),
        "tok": tokenize,
        "case": "lower",
        "refs": f"{fewest}" if fewest == most else f"{fewest}-{most}",
        "n": len(candidates),
        **context,
        "captioner": __version__,
    }
    entries = (f"{name}:{value}".replace("|", "_") for name, value in parts.items())
    return Scores(values, "|".join(["BLEU", *entries]))


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
