"""Look inside a model while it captions one photograph."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.verbs.attribution import add_attribution, print_attribution
from captioner.verbs.decoding_flags import add_decoding, decoding_of
from captioner.verbs.printing import print_rows
from captioner.verbs.terminal import (
    PAGES,
    add_plugin,
    build_parser,
    new_folder,
    plug_in,
    print_json,
    require_output,
    wrote,
)

if TYPE_CHECKING:
    from captioner.api import Captioner
    from captioner.tracing.edits import AnyEdit
    from captioner.tracing.trace import Trace


def run(argv: Sequence[str]) -> int:
    """Look inside a model while it captions one photograph."""
    parser = _parser()
    options = parser.parse_intermixed_args(argv)
    _check(parser, options)
    plug_in(options)
    inputs = [*options.photos, *([options.patch] if options.patch else [])]
    require_output(options.output, PAGES, inputs)
    require_output(options.save, (".safetensors",), inputs)
    if options.playground:
        return _write_playground(options)

    from captioner.api import Captioner

    captioner = Captioner.load(options.model, device=options.device)
    decoding = decoding_of(options)
    if options.caption is not None:
        decoding["caption"] = options.caption
    if options.sites:
        return _print_sites(captioner)
    if options.patch:
        return _print_patching(captioner, options, decoding)
    if options.dependence:
        return _print_dependence(captioner, options, decoding)
    if options.attribute:
        return print_attribution(captioner, options, decoding)
    return _show_trace(captioner, options, decoding)


def _show_trace(captioner: Captioner, options: argparse.Namespace, decoding: Any) -> int:
    """Trace the caption; save it, and print it or write its page."""
    photo, edits = options.photos[0], _edits(options)
    if options.equations:
        decoding.setdefault("precision", "fp32")
    trace = captioner.trace(photo, edits=edits, hypotheses=options.hypotheses, **decoding)
    for edit in trace.unapplied:
        values = " ".join(f"{name}={value}" for name, value in edit.items())
        print(f"captioner: note: no step of the caption has the edit {values}", file=sys.stderr)
    if options.save:
        made = new_folder(options.save)
        print(wrote(trace.save(options.save), made), file=sys.stderr)
    if options.output:
        from captioner.inspection.page import write_page

        made = new_folder(options.output)
        print(wrote(write_page(captioner, trace, photo, options.output), made), file=sys.stderr)
    if options.equations:
        return _print_equations(captioner, trace, options)
    if options.json:
        return print_json(trace.as_dict())
    if not options.output:
        _print_trace(trace, captioner.trace(photo, **decoding) if edits else None)
    return 0


def _parser() -> Any:
    parser = build_parser(
        "inspect",
        "Caption one photograph and show what the model computed for each word: its probability\n"
        "and alternatives, the gates, and how much of the memory was kept and written.\n"
        "Step 0 reads the image as X_0, step 1 reads <start>, step t gives word t.",
        "  captioner inspect photo.jpg\n"
        "  captioner inspect photo.jpg --model runs/nic --beam-size 5 --hypotheses\n"
        "  captioner inspect photo.jpg --output page.html\n"
        "  captioner inspect a.jpg b.jpg --playground --output play.html --model runs/lstm\n"
        "  captioner inspect photo.jpg --equations --step 3 --unit 17\n"
        "  captioner inspect photo.jpg --edit cell.forget_gate@3=0\n"
        "  captioner inspect photo.jpg --edit 'cell.memory[17,20-23]+=2' --edit reset=4\n"
        "  captioner inspect photo.jpg --patch other.jpg\n"
        "  captioner inspect photo.jpg --dependence --caption 'a dog runs'\n"
        "  captioner inspect photo.jpg --attribute --word 2 --rather-than cat\n"
        "  captioner inspect photo.jpg --save trace.safetensors --json\n"
        "  captioner inspect --sites --model runs/nic\n",
    )
    parser.add_argument(
        "photos", nargs="*", metavar="PHOTO", help="an image file; several for --playground"
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="RUN",
        help="run folder, checkpoint or bundled model (default: the bundled one)",
    )
    parser.add_argument(
        "--caption",
        metavar="TEXT",
        help="let the model read this caption instead of generating one",
    )
    parser.add_argument(
        "--hypotheses", action="store_true", help="trace the other captions of the search as well"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save", metavar="FILE", help="write the trace, as safetensors")
    parser.add_argument("--output", metavar="FILE", help="write a page (HTML) to look at")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    _add_questions(parser)
    add_decoding(parser)
    add_plugin(parser)
    return parser


def _add_questions(parser: argparse.ArgumentParser) -> None:
    """Add what else can be shown."""
    group = parser.add_argument_group("what to show instead of the table")
    group.add_argument("--sites", action="store_true", help="list the sites of the model")
    group.add_argument(
        "--equations", action="store_true", help="the equations of a unit, in numbers"
    )
    text = "whose equations are printed (default {})"
    group.add_argument("--step", type=int, metavar="N", help=f"the step {text.format(1)}")
    group.add_argument("--unit", type=int, metavar="N", help=f"the unit {text.format(0)}")
    group.add_argument("--layer", type=int, metavar="N", help=f"the layer {text.format(0)}")
    group.add_argument(
        "--patch",
        metavar="OTHER",
        help="how the log probability of each word changes by X_0, h and C of another photograph",
    )
    group.add_argument(
        "--dependence",
        action="store_true",
        help="how much each word depends on the image: the divergence from the mean image",
    )
    add_attribution(group)
    group.add_argument(
        "--playground",
        action="store_true",
        help="write a page (--output) in which the models run: each --model is one of them",
    )
    group = parser.add_argument_group("changes of values")
    group.add_argument(
        "--edit",
        action="append",
        default=[],
        metavar="EDIT",
        help="SITE[UNITS]/LAYER@STEPS=VALUE, +=VALUE, =from:PHOTO, or reset=WORDS; repeatable",
    )
    group.add_argument("--edits", metavar="FILE", help="a JSON list of edits")


def _check(parser: Any, options: argparse.Namespace) -> None:
    """Exit with status 2 for flags that do not fit together."""
    if not options.photos and not options.sites:
        parser.error("the following arguments are required: PHOTO")
    if len(options.photos) > 1 and not options.playground:
        number = len(options.photos)
        parser.error(f"{number} photographs; give one, or several with --playground")
    if options.playground and not options.output:
        parser.error("--playground needs --output FILE")
    questions = ("sites", "equations", "patch", "dependence", "attribute", "playground")
    asked = [f"--{name}" for name in questions if getattr(options, name)]
    if len(asked) > 1:
        parser.error(f"{' and '.join(asked)} cannot be combined; give one of them")
    if not options.attribute and (options.word is not None or options.rather_than is not None):
        parser.error("--word and --rather-than belong to --attribute")
    if options.output and asked not in ([], ["--playground"]):
        parser.error(f"--output is the page of the caption; {asked[0]} prints, or has --json")
    if options.save and asked not in ([], ["--equations"]):
        parser.error(f"--save writes the trace of the caption; {asked[0]} has none")
    place = [f"--{name}" for name in PLACE if getattr(options, name) is not None]
    if place and not options.equations:
        parser.error(f"{place[0]} belongs to --equations")
    edits = options.edit or options.edits
    if asked and edits:
        parser.error(f"{asked[0]} takes no --edit")
    if options.hypotheses and (options.caption is not None or asked):
        parser.error("--hypotheses is for the table and the page of a generated caption alone")


PLACE = {"step": 1, "unit": 0, "layer": 0}
"""Which equations are printed: the flags and their defaults."""


def _edits(options: argparse.Namespace) -> list[AnyEdit]:
    """The edits of --edits and --edit."""
    from captioner.tracing import edits

    parsed = [edits.parse(text) for text in options.edit]
    if not options.edits:
        return parsed
    path = Path(options.edits)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError(f"{path} is not a list of edits, such as {EXAMPLE}")
    return [edits.from_dict(value) for value in values] + parsed


EXAMPLE = '[{"edit": "set", "site": "cell.forget_gate", "value": 0, "step": 3}]'


def _write_playground(options: argparse.Namespace) -> int:
    from captioner.api import Captioner
    from captioner.inspection.playground import write_playground
    from captioner.verbs.caption_files import find_images

    names = options.model or ["flickr8k"]
    captioners = [Captioner.load(name, device=options.device) for name in names]
    made = new_folder(options.output)
    titles = [Path(name).name for name in names]
    photos = list(find_images(options.photos))
    path = write_playground(captioners, titles, photos, options.output)
    print(f"{wrote(path, made)} ({path.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    return 0


# Printing -----------------------------------------------------------------------------------------


def _print_trace(trace: Trace, plain: Trace | None) -> None:
    """Print two tables, of words and of gates, for the caption and for other hypotheses."""
    from captioner.inspection.tables import summary_headings, summary_row

    if plain is not None:
        print(f"without edits: {plain.text}  (log p {plain.log_prob:.2f})")
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
    import math

    p = 100 * math.exp(log_prob)
    return f"{p:.1f}%" if p >= 0.05 else "0%"


def _print_sites(captioner: Captioner) -> int:
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


def _print_equations(captioner: Captioner, trace: Trace, options: argparse.Namespace) -> int:
    from captioner.inspection.equations import equations

    given = {name: getattr(options, name) for name in PLACE}
    place = {n: PLACE[n] if value is None else value for n, value in given.items()}
    lines = equations(trace, captioner.model.decoder, **place)
    if options.json:
        return print_json([{"left": e.left, "right": e.right, "numbers": list(e.numbers),
                            "value": e.value} for e in lines])  # fmt: skip
    print(f"{trace.text}\nx_{place['step']} = {trace.reads[place['step']]}, unit {place['unit']}\n")
    for equation in lines:
        print(equation)
    return 0


def _print_patching(captioner: Captioner, options: argparse.Namespace, decoding: Any) -> int:
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


def _print_dependence(captioner: Captioner, options: argparse.Namespace, decoding: Any) -> int:
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
