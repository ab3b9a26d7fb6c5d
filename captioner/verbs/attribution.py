"""captioner inspect --attribute: what each word depends on, in tables."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captioner.progress import progress_bar
from captioner.verbs.inspect_tables import note_unapplied, print_unedited
from captioner.verbs.printing import print_rows
from captioner.verbs.terminal import print_json

if TYPE_CHECKING:
    import numpy as np

    from captioner.api import Captioner
    from captioner.inspection.attribution import Attribution
    from captioner.inspection.attribution_checks import Checks
    from captioner.tracing.edits import AnyEdit

AUTO = "integrated-gradients"
"""The method if the flag has no value."""


def add_attribution(group: Any) -> None:
    """Add the flags to a group of a parser."""
    group.add_argument(
        "--attribute",
        nargs="?",
        const=AUTO,
        metavar="METHOD",
        help="how much each position of the image and each word before speaks for a word: "
        f"{AUTO} (default), gradient-x-input, occlusion or lrp",
    )
    group.add_argument(
        "--word", type=int, metavar="N", help="of --attribute: the word, with its map and checks"
    )
    group.add_argument(
        "--rather-than", metavar="WORD", help="of --attribute: what speaks for it rather than WORD"
    )


def print_attribution(
    captioner: Captioner, options: argparse.Namespace, decoding: Any, edits: Sequence[AnyEdit]
) -> int:
    """Print the contributions of all words of the caption, or of one with its checks."""
    from captioner.inspection.attribution import attribute, method_named, readings
    from captioner.inspection.attribution_checks import check

    method_named(options.attribute)
    photo = options.photos[0]
    trace = captioner.trace(photo, edits=edits, **decoding)
    note_unapplied(trace)
    questions = readings(
        captioner,
        photo,
        trace,
        words=None if options.word is None else [options.word],
        rather_than=options.rather_than,
        edits=edits,
    )
    vocabulary = captioner.tokenizer.vocabulary
    found = []
    with progress_bar("attributing", len(questions), unit="words") as advance:
        for question in questions:
            found.append(attribute(question, options.attribute, vocabulary))
            advance(1)
    checks = None if options.word is None else check(questions[0], found[0])
    if options.json:
        more = {} if checks is None else {"checks": checks.as_dict()}
        return print_json([{**attribution.as_dict(), **more} for attribution in found])
    if edits:
        print_unedited(captioner, photo, decoding)
    print(f"{trace.text}\n{options.attribute} of {_score(found[0])}", end="")
    if checks is None:
        print()
        _print_all(found)
    else:
        print(f": {found[0].word}")
        _print_one(found[0], checks)
    return 0


def _score(attribution: Attribution) -> str:
    other = attribution.rather_than
    return "the logit" if other is None else f"the logit, less that of {other}"


def _print_all(found: list[Attribution]) -> None:
    rows = []
    for one in found:
        most = max(range(len(one.reads)), key=lambda t: abs(one.words[t]))
        values = (one.value, one.baseline, one.map.sum(), one.words.sum(), one.error)
        rows.append(
            [one.word, *(f"{value:.2f}" for value in values)]
            + [f"{one.reads[most]} {one.words[most]:+.2f}"]
        )
    headings = ["word", "f", "baseline", "image", "words", "error", "most of a word"]
    print_rows(rows, headings, right=range(1, 6))


def _print_one(one: Attribution, checks: Checks) -> None:
    print_rows(
        [["the image", f"{one.map.sum():+.3f}"]]
        + [[word, f"{value:+.3f}"] for word, value in zip(one.reads, one.words)]
        + [["all", f"{one.map.sum() + one.words.sum():+.3f}"]]
        + [["f - f of the baseline", f"{one.value - one.baseline:+.3f}"]],
        ["what was read", "speaks for the word"],
        right=[1],
    )
    _print_map(one.map)
    curves, correlations = checks.curves, checks.correlations
    print(f"completeness error {checks.error:+.3f}")
    print(f"deletion: f is lower than in random orders by {curves.deletion_gain:.3f}")
    print(f"insertion: f is higher than in random orders by {curves.insertion_gain:.3f}")
    print(
        "rank correlation with the maps of decoders with random weights: "
        f"{', '.join(f'{r:.2f}' for r in correlations)} "
        f"(mean {correlations.mean():.2f}, mean size {abs(correlations).mean():.2f})"
    )


def _print_map(values: np.ndarray) -> None:
    """The contributions of the positions as a square, row by row, if they are one."""
    if not values.any():
        print("the image: no contribution; it is the mean image")
        return
    side = math.isqrt(len(values))
    print("the image:")
    for row in values.reshape(side if side * side == len(values) else 1, -1):
        print(" ".join(f"{value:+7.3f}" for value in row))
