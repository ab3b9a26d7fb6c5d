"""Look inside a model while it captions one photograph."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.verbs.attribution import add_attribution, print_attribution
from captioner.verbs.decoding_flags import add_decoding, decoding_of
from captioner.verbs.inspect_tables import (
    PLACE,
    note_unapplied,
    print_dependence,
    print_equations,
    print_lens,
    print_patching,
    print_sites,
    print_trace,
    print_unedited,
)
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
        return print_sites(captioner)
    if options.patch:
        return print_patching(captioner, options, decoding)
    if options.dependence:
        return print_dependence(captioner, options, decoding)
    if options.lens:
        return print_lens(captioner, options, decoding, _edits(options))
    if options.attribute:
        return print_attribution(captioner, options, decoding, _edits(options))
    return _show_trace(captioner, options, decoding)


def _show_trace(captioner: Captioner, options: argparse.Namespace, decoding: Any) -> int:
    """Trace the caption; save it, and print it or write its page."""
    photo, edits = options.photos[0], _edits(options)
    if options.equations:
        decoding.setdefault("precision", "fp32")
    trace = captioner.trace(photo, edits=edits, hypotheses=options.hypotheses, **decoding)
    note_unapplied(trace)
    if options.save:
        made = new_folder(options.save)
        print(wrote(trace.save(options.save), made), file=sys.stderr)
    if options.output:
        from captioner.inspection.page import write_page

        made = new_folder(options.output)
        path = write_page(captioner, trace, photo, options.output, edits=edits)
        print(wrote(path, made), file=sys.stderr)
    if options.equations:
        return print_equations(captioner, trace, options)
    if options.json:
        return print_json(trace.as_dict())
    if not options.output:
        if edits:
            print_unedited(captioner, photo, decoding)
        print_trace(trace)
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
        "  captioner inspect photo.jpg --lens\n"
        "  captioner inspect photo.jpg --attribute --word 2 --rather-than cat\n"
        "  captioner inspect photo.jpg --lens --edit cell.forget_gate@3=0\n"
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
    group.add_argument(
        "--lens",
        action="store_true",
        help="the words that h and C would give at each step (logit lens)",
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
    questions = ("sites", "equations", "patch", "dependence", "lens", "attribute", "playground")
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
    if edits and asked not in ([], ["--lens"], ["--attribute"]):
        parser.error(f"{asked[0]} takes no --edit")
    if options.hypotheses and (options.caption is not None or asked):
        parser.error("--hypotheses is for the table and the page of a generated caption alone")


def _edits(options: argparse.Namespace) -> list[AnyEdit]:
    """The edits of --edits and --edit."""
    from captioner.tracing import edits

    parsed = [edits.parse(text) for text in options.edit]
    return [*edits.read(Path(options.edits)), *parsed] if options.edits else parsed


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
