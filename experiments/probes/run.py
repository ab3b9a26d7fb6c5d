"""What do states hold? Linear probes with control tasks, against untrained decoders.

    python experiments/probes/run.py                       # lstm, gru, rnn; one seed each
    python experiments/probes/run.py --cells lstm --seed 2 --override data.root=datasets/shapes

Each cell is trained as `captioner train experiment=demo`; finished runs are not repeated. Then it
reads captions of the train and of the test split (captioner.inspection.collecting), and so does the
same decoder with new random weights. Probes are trained on the states of the train split and
measured on those of the test split (captioner.inspection.probes). results.json and the tables of
README.md in this folder are written from the runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import captioner
from captioner.api import Captioner
from captioner.files import write_whole
from captioner.inspection import labels
from captioner.inspection.collecting import collect
from captioner.inspection.probes import CONTROLS, probe, untrained
from captioner.inspection.states import StateTable
from captioner.process import processor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runs import commit, trained

HERE = Path(__file__).resolve().parent
IMAGES = 400
"""Images of the train split on whose captions the probes are trained."""
SITES = {"h": "cell.hidden", "C": "cell.memory"}
TASKS = {
    "words so far": labels.steps_so_far,
    "words to the end": labels.steps_to_end,
    "number of figures": labels.number,
    "inside the first or second name": labels.inside_phrase,
    "first color named": labels.first_color,
}
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


def main() -> None:
    options = _parser().parse_args()
    results: dict[str, Any] = {"made": _made(options), "cells": {}}
    for cell in options.cells.split(","):
        results["cells"][cell] = _measure(_run(cell, options), options.references)
    write_whole(HERE / "results.json", json.dumps(results, indent=1) + "\n")
    _write_tables(results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", default="lstm,gru,rnn", help="names, separated by commas")
    parser.add_argument("--seed", type=int, default=1, help="of the training")
    parser.add_argument("--references", type=int, default=5, help="captions of each image")
    parser.add_argument("--runs", type=Path, default=Path("runs/probes"), help="folder of the runs")
    parser.add_argument("--override", action="append", default=[], help="of captioner train")
    return parser


def _made(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": "python experiments/probes/run.py",
        "cells": options.cells,
        "seed": options.seed,
        "references": options.references,
        "commit": commit(),
        "version": captioner.__version__,
        "torch": torch.__version__,
        "machine": f"{processor()}, {torch.get_num_threads()} thread(s)",
    }


def _run(cell: str, options: argparse.Namespace) -> Path:
    """The run of a cell, trained."""
    overrides = ["experiment=demo", f"decoder.cell={cell}", f"seed={options.seed}"]
    return trained(options.runs / f"{cell}-seed{options.seed}", [*overrides, *options.override])


def _measure(run: Path, references: int) -> dict[str, Any]:
    """The probes of a trained and of an untrained decoder: state -> task -> numbers."""
    model = Captioner.load(run)
    pairs = {
        "trained": _tables(model, references),
        "untrained": _tables(untrained(model), references),
    }
    found: dict[str, Any] = {}
    for letter, site in SITES.items():
        if site not in pairs["trained"][0].sites:
            continue
        for name, task in TASKS.items():
            numbers = {
                kind: probe(*tables, task, site=site).as_dict() for kind, tables in pairs.items()
            }
            found.setdefault(letter, {})[name] = numbers
            print(run.name, letter, name, flush=True)
    return found


def _tables(model: Captioner, references: int) -> tuple[StateTable, StateTable]:
    """The states on images of the train split, and on those of the test split."""
    options: dict[str, Any] = {name: model.config[name] for name in ("data", "loader")}
    options |= {"references": references, "sites": tuple(SITES.values()), "progress": False}
    train = collect(model, split="train", limit=IMAGES, **options)
    return train, collect(model, split="test", **options)


# Tables -------------------------------------------------------------------------------------------


def _write_tables(results: dict[str, Any]) -> None:
    """Replace what is between the markers of README.md."""
    path = HERE / "README.md"
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = results["made"]
    source = (
        f"Drawn scenes, probes trained on {IMAGES} images of the train split and measured on the "
        f"test split, {made['references']} captions of each image, training seed {made['seed']}, "
        f"{CONTROLS} control tasks each; captioner {made['version']}, torch {made['torch']}, "
        f"commit {made['commit']}, {made['machine']}:\n`{made['command']}`"
    )
    parts = [*(_table(task, results["cells"]) for task in TASKS), source]
    write_whole(path, before + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after)


def _table(task: str, cells: dict[str, Any]) -> str:
    rows = [(cell, state, found[task]) for cell, of in cells.items() for state, found in of.items()]
    first = rows[0][2]["trained"]
    lines = [
        f"### {task.capitalize()}: {first['labels']} labels, the most frequent one "
        f"{100 * first['majority']:.0f} %\n",
        "| cell | state | accuracy | control | selectivity | untrained: accuracy | selectivity |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for cell, state, numbers in rows:
        own, random = numbers["trained"], numbers["untrained"]
        values = [own["accuracy"], own["control"], own["selectivity"]]
        values += [random["accuracy"], random["selectivity"]]
        lines.append(f"| {cell} | {state} | " + " | ".join(map(_interval, values)) + " |")
    return "\n".join(lines)


def _interval(estimate: dict[str, float]) -> str:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
