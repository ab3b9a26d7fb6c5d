"""captioner inspect: its tables, one function for each question."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captioner.verbs.printing import print_rows
from captioner.verbs.terminal import print_json

if TYPE_CHECKING:
    from captioner.api import Captioner
    from captioner.inspection.lens import Lens
    from captioner.tracing.edits import AnyEdit
    from captioner.tracing.trace import Trace

PLACE = {"step": 1, "unit": 0, "layer": 0}
"""Which equations are printed: the flags and their defaults."""


def note_unapplied(found: Trace | Lens) -> None:
    """Say which edits changed nothing."""
    from captioner.tracing.edits import as_text

    for edit in found.unapplied:
        print(
            f"captioner: note: --edit {as_text(edit)} has no effect: the caption has the steps 0 "
            f"to {len(found.words)}",
            file=sys.stderr,
        )


def print_unedited(captioner: Captioner, photo: str, decoding: Any) -> None:
    """Print the caption without edits."""
    plain = captioner.trace(photo, **decoding)
    print(f"without edits: {plain.text}  (log p {plain.log_prob:.2f})")


def print_trace(trace: Trace) -> None:
    """Print two tables, of words and of gates, for the caption and for other hypotheses."""
    from captioner.inspection.tables import summary_headings, summary_row

    for number, hypothesis in enumerate((trace, *trace.hypotheses)):
        if number:
            print()
        print(f"{hypothesis.text}  (log p {hypothesis.log_prob:.2f})")
        print_rows(_word_rows(hypothesis), _WORD_HEADINGS, right=[0, 3, 4])
        rows = [
            [str(step), read, *summary_row(hypothesis, step)]
            for step, read in enumerate(hypothesis.reads)
        ]
        headings = ["step", "reads", *summary_headings(hypothesis)]
        if len(headings) > 2:  # an ensemble has no gates of its own
            print_rows(rows, headings, right=[0, *range(2, len(headings))])


_WORD_HEADINGS = ("step", "reads", "gives", "p", "p(<end>)", "alternatives")


def _word_rows(trace: Trace) -> list[list[str]]:
    """The cells of the table of words: each step from 1 on."""
    rows = []
    steps = zip(
        trace.reads[1:], trace.words, trace.log_probs, trace.end_log_probs, trace.alternatives
    )
    for step, (read, word, log_prob, of_end, pairs) in enumerate(steps, start=1):
        others = [f"{other} {_percent(value)}" for other, value in pairs if other != word]
        row = [str(step), read, word, _percent(log_prob), _percent(of_end), ", ".join(others[:3])]
        rows.append(row)
    return rows


def _percent(log_prob: float) -> str:
    p = 100 * math.exp(log_prob)
    return f"{p:.1f}%" if p >= 0.05 else "0%"


def print_sites(captioner: Captioner) -> int:
    from captioner.models.sites import SITES

    meanings = {
        **SITES,
        "cell.kept": "the part of the new memory that was kept, such as f_t * C_{t-1}; read only",
        "cell.written": "the part that was written, such as i_t * C~_t; read only",
    }
    rows = []
    for site, shape in captioner.sites().items():
        known = meanings.get(site.rpartition(":")[2].replace("attention_cell.", "cell."), "")
        rows.append([site, "x".join(map(str, shape)), known])
    print_rows(rows, ["site", "shape", "what it is"], right=[1], no_wrap=[0])
    return 0


def print_equations(captioner: Captioner, trace: Trace, options: argparse.Namespace) -> int:
    from captioner.inspection.equations import equations, word_equations

    given = {name: getattr(options, name) for name in PLACE}
    place = {n: PLACE[n] if value is None else value for n, value in given.items()}
    decoder, known = captioner.model.decoder, captioner.tokenizer.vocabulary.words
    lines = equations(trace, decoder, **place)
    lines += word_equations(trace, decoder, known, step=place["step"])
    if options.json:
        return print_json([{"left": e.left, "right": e.right, "numbers": list(e.numbers),
                            "value": e.value} for e in lines])  # fmt: skip
    print(f"{trace.text}\nx_{place['step']} = {trace.reads[place['step']]}, unit {place['unit']}\n")
    for equation in lines:
        print(equation)
    return 0


def print_patching(captioner: Captioner, options: argparse.Namespace, decoding: Any) -> int:
    from captioner.inspection.patching import patch

    table = patch(captioner, options.photos[0], options.patch, **decoding)
    if options.json:
        return print_json(table.as_dict())
    headings = [
        "word",
        "log p",
        "X_0",
        *("h" if "hidden" in site else "C" for site in table.states),
    ]
    rows = [
        [word, f"{log_prob:.2f}", f"{of_image:+.2f}"]
        + [f"{changes[step, step]:+.2f}" for changes in table.states.values()]
        for step, (word, log_prob, of_image) in enumerate(
            zip(table.words, table.log_probs, table.image)
        )
    ]
    print(f"how log p changes with values of {options.patch}, at the step of the word:")
    print_rows(rows, headings, right=range(1, len(headings)))
    return 0


def print_dependence(captioner: Captioner, options: argparse.Namespace, decoding: Any) -> int:
    from captioner.inspection.patching import image_dependence

    trace, divergences = image_dependence(captioner, options.photos[0], **decoding)
    if options.json:
        return print_json({"words": list(trace.words), "kl": divergences.tolist()})
    longest = max(divergences.max(), 1e-9)
    rows = [
        [word, _percent(log_prob), f"{kl:.2f}", "█" * round(30 * kl / longest)]
        for word, log_prob, kl in zip(trace.words, trace.log_probs, divergences)
    ]
    print("KL(p(. | image, words) || p(. | mean image, words)), in nats:")
    print_rows(rows, ["word", "p", "KL", ""], right=[1, 2])
    return 0


def print_lens(
    captioner: Captioner, options: argparse.Namespace, decoding: Any, edits: Sequence[AnyEdit]
) -> int:
    """Print the most probable words of h and C at each step."""
    from captioner.inspection.lens import lens

    photo = options.photos[0]
    found = lens(captioner, photo, edits=edits, **decoding)
    note_unapplied(found)
    if options.json:
        return print_json(found.as_dict())
    if edits:
        print_unedited(captioner, photo, decoding)
    rows = []
    for step, read in enumerate(found.reads):
        tops = [found.top(state, step, 3) for state in found.log_probs]
        cells = [", ".join(f"{word} {_percent(value)}" for word, value in top) for top in tops]
        rows.append([str(step), read, found.words[step - 1] if step else "", *cells])
    print(f"{found.text}\nthe words that each state would give:")
    print_rows(rows, ["step", "reads", "gives", *found.log_probs], right=[0])
    return 0
