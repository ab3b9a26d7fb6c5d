"""Correctness and speed on one GPU: recurrence, training step, decoding, features, training.

    python experiments/benchmarks/gpu/run.py --json gpu.json
    python experiments/benchmarks/gpu/run.py --device cpu --quick        a dry run, without a GPU

It needs no dataset: images are drawn, and caption lengths are those of Flickr8k (workload.py). It
stops starting new parts after --minutes and names those that are left out. See README.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import checks
import timings
import torch
from paired import format_row, format_table, make_parser, run_guarded, start
from workload import QUICK, Sizes, loops

from captioner.files import write_whole

PARTS: dict[str, Callable[[Sizes, torch.device], Iterable[dict[str, Any]]]] = {
    "recurrences are right": checks.recurrences,
    "captions are right": checks.captions,
    "recurrence": timings.recurrence,
    "step": timings.step,
    "attention": timings.attention,
    "whole training": timings.whole_training,
    "decoding": timings.decoding,
    "features": timings.features,
}


def run_parts(
    sizes: Sizes, device: torch.device, minutes: float = 12.0
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run the parts while there is time: the rows, and why parts are left out."""
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    end = time.monotonic() + 60 * minutes
    for name, part in PARTS.items():
        if time.monotonic() > end:
            left_out.append(f"{name}: no time left")
            continue
        started = time.monotonic()
        try:
            for row in part(sizes, device):
                row = {**row, "goal": None} if sizes == QUICK and "goal" in row else row
                rows.append({"part": name, **row})
                print(_format(row), flush=True)
        except (RuntimeError, ImportError) as error:
            left_out.append(f"{name}: {type(error).__name__}: {error}")
        print(f"({name}: {time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
    return rows, left_out


def _format(row: dict[str, Any]) -> str:
    """A row of the tables: a check has its value and the largest that is right."""
    if "most" not in row:
        return format_row(row)
    ties = f", {row['ties']} ties" if row.get("ties") else ""
    met = "yes" if row["met"] else "NO"
    return f"| {row['row']} | {row['value']:.2g}{ties} | ≤ {row['most']:g} | {met} |"


def format_result(about: dict[str, Any], rows: list[dict[str, Any]], left_out: list[str]) -> str:
    """The tables in Markdown."""
    checked = [_format(row) for row in rows if "most" in row]
    timed = [row for row in rows if "most" not in row]
    head = "| check | value | tolerance | met |\n|---|---:|---:|---|"
    texts = [f"{about['device']}, torch {about['torch']}", "\n".join([head, *checked])]
    texts += [format_table(timed), *(f"left out: {reason}" for reason in left_out)]
    return "\n\n".join(texts)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a dry run")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--minutes", type=float, default=12.0, help="default %(default)s")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: there is no GPU; --device cpu --quick is a dry run")
    on_cuda = device.type == "cuda"
    about = start(
        options,
        device=torch.cuda.get_device_name(device) if on_cuda else "no GPU: a dry run",
        cudnn=torch.backends.cudnn.version() if on_cuda else None,
        loops=loops(device),
    )
    rows, left_out = run_parts(QUICK if options.quick else Sizes(), device, options.minutes)
    print("\n" + format_result(about, rows, left_out))
    if options.json:
        about["left out"] = left_out
        write_whole(options.json, json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    if not all(row["met"] for row in rows if "most" in row):
        sys.exit("error: results are wrong; the times mean nothing")


if __name__ == "__main__":
    run_guarded(main)
