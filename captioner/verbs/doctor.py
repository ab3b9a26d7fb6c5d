"""Say what is installed and whether files are intact."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from captioner.verbs.terminal import add_plugin, build_parser, plug_in, print_json

if TYPE_CHECKING:
    from captioner.doctor import Finding

MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def run(argv: Sequence[str]) -> int:
    """Examine the machine, or a run, a model or the folder of a dataset."""
    parser = build_parser(
        "doctor",
        "Say what is installed, which optional packages are missing and what they would give,\n"
        "what this machine can do, and whether the bundled models are intact. With PLACE: whether\n"
        "a run, a model or a dataset is intact, and what to do if not. The exit status is 1 if\n"
        "there is a problem.",
        "  captioner doctor\n"
        "  captioner doctor --json                    for a bug report\n"
        "  captioner doctor runs/nic\n"
        "  captioner doctor flickr8k_cn\n"
        "  captioner doctor ~/flickr8k\n",
    )
    parser.add_argument(
        "place",
        nargs="?",
        metavar="PLACE",
        help="a run folder, a checkpoint, a bundled model, or the folder of a dataset",
    )
    parser.add_argument("--json", action="store_true", help="print JSON objects")
    add_plugin(parser)
    options = parser.parse_args(argv)
    plug_in(options)

    from captioner.doctor import PROBLEM, examine, examine_machine

    findings = list(examine_machine() if options.place is None else examine(options.place))
    if options.json:
        print_json([finding.as_dict() for finding in findings])
    else:
        _print(findings)
    return 1 if any(finding.state == PROBLEM for finding in findings) else 0


def _print(findings: Sequence[Finding]) -> None:
    from captioner.verbs.printing import print_rows

    rows = [
        [MARKS[finding.state], finding.name, finding.value, finding.advice] for finding in findings
    ]
    print_rows(rows, ("", "what", "found", "what to do"), no_wrap=(0,))
    counts = [(state, sum(f.state == state for f in findings)) for state in ("problem", "note")]
    summary = ", ".join(f"{count} {state}{'s' * (count != 1)}" for state, count in counts)
    print(summary, file=sys.stderr)
