"""Time for a folder of photographs with faster decodings and smaller models, beside the default.

The default is the bundled model with its own decoding, the consensus of 20 beams. Each round
captions the same photographs with every variant in turn. A ratio says how many times as fast a
variant is as the default. Scores are compared with `captioner evaluate` and `captioner compare`.

    python experiments/benchmarks/variants.py FOLDER
    python experiments/benchmarks/variants.py FOLDER --model runs/small
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from paired import (
    compare,
    find_photographs,
    finish,
    make_parser,
    positive,
    run_guarded,
    start,
    take_turns,
)

import captioner
from captioner.api import Captioner

DECODINGS: dict[str, dict[str, Any]] = {
    "consensus of 20": {"beam_size": 20, "length_penalty": 0.7, "consensus": 5.0},
    "beam 5": {"beam_size": 5, "length_penalty": 0.7, "consensus": 0.0},
    "beam 3": {"beam_size": 3, "length_penalty": 0.7, "consensus": 0.0},
    "greedy": {"beam_size": 1, "length_penalty": 0.0, "consensus": 0.0},
}
BUNDLED = "flickr8k"
DEFAULT = f"{BUNDLED}, consensus of 20"


def caption_all(model: Captioner, files: list[str], decoding: dict[str, Any]) -> None:
    failed = [one for one in model.caption_each(files, **decoding) if isinstance(one, Exception)]
    if failed:
        raise failed[0]


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("folder", metavar="FOLDER", help="a folder of photographs")
    parser.add_argument("--model", action="append", default=[], help="a smaller one, or several")
    parser.add_argument("--images", type=positive, default=64, help="how many; default %(default)s")
    options = parser.parse_args()
    files = find_photographs(options.folder, options.images)
    about = start(options, images=len(files))
    tasks: dict[str, Callable[[], None]] = {}
    for name in [BUNDLED, *options.model]:
        model = captioner.load(name, device="cpu")
        for label, decoding in DECODINGS.items():
            tasks[f"{name}, {label}"] = partial(caption_all, model, files, decoding)
    seconds = take_turns(tasks, options.rounds)
    rows = [
        compare(name, own, seconds[DEFAULT], times=True, images=len(files))
        for name, own in seconds.items()
    ]
    finish(about, rows, options.json)


if __name__ == "__main__":
    run_guarded(main)
