"""Recipes for Flickr8k: train and evaluate them, and tabulate their scores and costs.

    python experiments/flickr8k/recipes.py train flickr8k_nic --root ~/flickr8k
    python experiments/flickr8k/recipes.py train flickr8k_best --root ~/flickr8k
    python experiments/flickr8k/recipes.py ablate --root ~/flickr8k
    python experiments/flickr8k/recipes.py table
    python experiments/flickr8k/recipes.py sheet EVALUATION --root ~/flickr8k

`train` trains RECIPE with every seed into RUNS/RECIPE-seedN, after the runs that it starts from or
consists of, and evaluates each with a beam and by consensus. Finished runs are not repeated, and
interrupted ones are resumed. `ablate` trains the runs of conf/experiment/flickr8k_sweep.yaml, and
flickr8k_every without one ingredient at a time, with seed 1. `table` reads all evaluations and
writes results.json and the tables of README.md in this folder: means over seeds, 95 % intervals
over seeds and images. `sheet` draws twenty images with their captions: the six best, eight random
ones and the six worst by CIDEr-D.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml

import captioner
from captioner.evaluation.comparison import UNDECIDED, compare
from captioner.evaluation.contact_sheet import contact_sheet
from captioner.evaluation.evaluate import ensemble_name
from captioner.evaluation.results import System, read_result, read_systems
from captioner.files import write_whole
from captioner.runs import (
    CAPTIONS,
    CONFIG,
    COSTS,
    STATISTICS,
    checkpoint_file,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runs import call, commit, evaluate, evaluation, trained

HERE = Path(__file__).resolve().parent
RECIPES = (
    "flickr8k_nic",
    "flickr8k_nic_scst",
    "flickr8k_every",
    "flickr8k_every_scst",
    "flickr8k_attend",
    "flickr8k_attend_scst",
    "flickr8k_transformer",
    "flickr8k_updown",
    "flickr8k_updown_scst",
)
STARTS = {name: name.removesuffix("_scst") for name in RECIPES if name.endswith("_scst")}
ENSEMBLES = {
    "flickr8k_best": [
        ("flickr8k_attend_scst", 1),
        ("flickr8k_attend_scst", 2),
        ("flickr8k_attend_scst", 3),
        ("flickr8k_updown_scst", 1),
        ("flickr8k_updown_scst", 2),
    ]
}
"""Recipe and seed of each member."""
DECODINGS = {"beam": "beam3-lp0.7", "consensus": "beam20-lp0.7-consensus5"}
"""Name in conf/decoding -> label of its results."""
SWEEP = {
    "image as X_0, dropout 0.3": "decoder.dropout=0.3,decoder.image=x0",
    "image as X_0, dropout 0.5": "decoder.dropout=0.5,decoder.image=x0",
    "image with every word, dropout 0.3": "decoder.dropout=0.3,decoder.image=every",
    "image with every word, dropout 0.5": "decoder.dropout=0.5,decoder.image=every",
}
"""The runs of conf/experiment/flickr8k_sweep.yaml; the first is the baseline."""
ABLATED = "flickr8k_every"
ABLATIONS = {
    "embeddings not tied": "decoder.tie_weights=false",
    "no label smoothing": "objective.label_smoothing=0",
    "no moving average of the weights": "callbacks.ema=0",
    "one view of each image": "loader.views=1",
}
"""Changes of ABLATED, one at a time."""
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "METEOR")
WITH_INTERVAL = ("BLEU-4", "CIDEr-D")
VARIETY = ("length", "distinct")
RAW = argparse.RawDescriptionHelpFormatter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    what = parser.add_subparsers(required=True, metavar="train | ablate | table | sheet")
    training = what.add_parser("train", help="train and evaluate a recipe")
    training.add_argument("recipe", choices=[*RECIPES, *ENSEMBLES], metavar="RECIPE")
    training.add_argument("--root", type=Path, required=True, help="the folder of Flickr8k")
    training.add_argument("--seeds", default="1,2,3", help="(default 1,2,3)")
    training.set_defaults(
        do=lambda options: train(options.recipe, options.seeds.split(","), options)
    )
    ablating = what.add_parser("ablate", help="train the sweep and the ablations")
    ablating.add_argument("--root", type=Path, required=True, help="the folder of Flickr8k")
    ablating.set_defaults(do=ablate)
    table = what.add_parser("table", help="write the tables of all evaluations")
    table.add_argument("--resamples", type=int, default=2000, help="number of bootstrap resamples")
    table.set_defaults(do=lambda options: write_tables(options.runs, options.resamples))
    sheet = what.add_parser("sheet", help="draw twenty captions")
    sheet.add_argument("evaluation", type=Path, help="the folder of captions.jsonl")
    sheet.add_argument("--root", type=Path, required=True, help="the folder of Flickr8k")
    sheet.add_argument("--output", type=Path, default=Path("sheet.png"), help="(default sheet.png)")
    sheet.set_defaults(do=lambda options: draw(options.evaluation, options.root, options.output))
    for subparser in (training, ablating, table):
        subparser.add_argument(
            "--runs", type=Path, default=Path("runs/flickr8k"), help="the folder of the runs"
        )
    options = parser.parse_args()
    options.do(options)


# Training ---------------------------------------------------------------------------------------


def train(recipe: str, seeds: list[str], options: argparse.Namespace) -> None:
    """Train and evaluate a recipe with each seed, or the members of an ensemble."""
    if recipe in ENSEMBLES:
        for member, number in ENSEMBLES[recipe]:
            train(member, [str(number)], options)
        members = [folder(options.runs, *member) for member in ENSEMBLES[recipe]]
        for name, label in DECODINGS.items():
            if not _evaluated(members, label):
                call("evaluate", *map(str, members), f"decoding={name}")
        return
    for seed in seeds:
        run = folder(options.runs, recipe, seed)
        if all(_evaluated([run], label) for label in DECODINGS.values()):
            continue
        overrides = [f"experiment={recipe}", f"seed={seed}", f"data.root={options.root}"]
        if recipe in STARTS:
            train(STARTS[recipe], [seed], options)
            overrides.append(f"resume_weights={folder(options.runs, STARTS[recipe], seed)}")
        _train_and_evaluate(run, overrides)


def ablate(options: argparse.Namespace) -> None:
    """Train and evaluate the sweep, and one recipe without each ingredient."""
    train(ABLATED, ["1"], options)
    for experiment, group in (("flickr8k_sweep", SWEEP), (ABLATED, ABLATIONS)):
        for run, overrides in zip(_variations(options.runs, group).values(), group.values()):
            if not all(_evaluated([run], label) for label in DECODINGS.values()):
                common = [f"experiment={experiment}", "seed=1", f"data.root={options.root}"]
                _train_and_evaluate(run, [*common, *overrides.split(",")])


def _train_and_evaluate(run: Path, options: list[str]) -> None:
    trained(run, options)
    for name, label in DECODINGS.items():
        evaluate(run, "dev", name, label)


def _variations(runs: Path, group: dict[str, str]) -> dict[str, Path]:
    """Row of a table -> run folder, named by the overrides."""
    place = runs / ("sweep" if group is SWEEP else "ablations")
    return {row: place / re.sub("[=,]", "-", overrides) for row, overrides in group.items()}


def folder(runs: Path, recipe: str, seed: int | str) -> Path:
    return runs / f"{recipe}-seed{seed}"


def _evaluated(members: list[Path], label: str) -> Path | None:
    """The dev evaluation of a run, or of an ensemble; None if there is none."""
    best = [checkpoint_file(member) for member in members]
    name = f"{label}@{ensemble_name(best)}" if len(members) > 1 else label
    return evaluation(members[0], "dev", name)


def _any_evaluation(members: list[Path]) -> bool:
    return any(_evaluated(members, label) for label in DECODINGS.values())


# Captions ---------------------------------------------------------------------------------------


def draw(evaluation: Path, root: Path, output: Path) -> None:
    """Draw and print the best, random and worst captions of an evaluation."""
    if not (evaluation / CAPTIONS).is_file():
        raise SystemExit(
            f"{evaluation}: not the folder of an evaluation, RUN/evaluation/DATA-SPLIT/..."
        )
    lines = (evaluation / CAPTIONS).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    scores = numpy.load(evaluation / STATISTICS)["cider_d"][:, 0]
    order = numpy.argsort(-scores).tolist()
    selected = [*order[:6], *random.Random(7).sample(range(len(rows)), 8), *order[-6:]]
    images = root.expanduser() / "Flicker8k_Dataset"
    cells = [
        (str(images / rows[i]["image"]), rows[i]["caption"], rows[i]["references"])
        for i in selected
    ]
    for i in selected:
        print(f"{scores[i]:6.1f}  {rows[i]['image']}  {rows[i]['caption']}")
    print(f"wrote {write_whole(output, contact_sheet(cells))}")


# Results ----------------------------------------------------------------------------------------


def write_tables(runs: Path, resamples: int) -> None:
    """Write results.json and the tables of README.md."""
    rows, costs = [], []
    systems = {recipe: _seeds(runs, recipe) for recipe in RECIPES}
    for recipe, members in ENSEMBLES.items():
        systems[recipe] = [[folder(runs, *member) for member in members]]
    for recipe, of_seeds in systems.items():
        for name, label in DECODINGS.items():
            evaluations = filter(None, (_evaluated(members, label) for members in of_seeds))
            if folders := list(evaluations):
                scored = _scored(folders, resamples)
                rows.append({"recipe": recipe, "decoding": name, "seeds": len(folders), **scored})
        spent = _cost([members[0] for members in of_seeds if _any_evaluation(members)])
        if spent and recipe in RECIPES:
            costs.append({"recipe": recipe, **spent})
    if not rows:
        raise SystemExit(f"{runs}: contains no evaluated run of a recipe, RECIPE-seedN")
    sweep = [[run] for run in _variations(runs, SWEEP).values()]
    without = [[run] for run in _variations(runs, ABLATIONS).values()]
    whole = [run for (run,) in systems[ABLATED]]
    differences = {
        "sweep": _differences([*SWEEP], sweep, resamples),
        "ablations": _differences([ABLATED, *ABLATIONS], [whole, *without], resamples),
    }
    content = {"scores": rows, "costs": costs, **differences, "made": _versions()}
    write_whole(HERE / "results.json", json.dumps(content, indent=2) + "\n")
    _write_scores(rows, costs)
    for table, rows_of in differences.items():
        _write_differences(table, rows_of)


def _seeds(runs: Path, recipe: str) -> list[list[Path]]:
    seeds = {int(run.name.rpartition("seed")[2]): run for run in runs.glob(f"{recipe}-seed*[0-9]")}
    return [[seeds[seed]] for seed in sorted(seeds) if seeds[seed].is_dir()]


def _scored(folders: list[Path], resamples: int) -> dict[str, Any]:
    """Mean scores over the seeds, with 95 % intervals."""
    (system,) = read_systems([",".join(map(str, folders))])
    comparison = compare([system], resamples=resamples)
    rows = {row.metric: row for row in comparison.rows}
    return {
        "scores": {name: row.score for name, row in rows.items()},
        "of_seeds": {name: row.seeds for name, row in rows.items()},
        "intervals": {name: row.interval for name, row in rows.items() if row.interval},
        "signature": str(comparison.signature),
    }


def _differences(
    names: list[str], of_seeds: list[list[Path]], resamples: int
) -> dict[str, list[dict[str, Any]]]:
    """For each decoding, the scores of some runs and their differences from the first."""
    differences = {}
    for name, label in DECODINGS.items():
        folders = [[_evaluated([run], label) for run in runs] for runs in of_seeds]
        if not all(runs and all(runs) for runs in folders):
            return {}
        systems = [
            System(row, tuple(read_result(folder) for folder in runs if folder))
            for row, runs in zip(names, folders)
        ]
        compared = compare(systems, metrics=WITH_INTERVAL, resamples=resamples)
        differences[name] = [asdict(row) for row in compared.rows]
    return differences


def _cost(runs: list[Path]) -> dict[str, Any]:
    files = [run / COSTS for run in runs if (run / COSTS).is_file()]
    spent = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not spent:
        return {}
    config = yaml.safe_load((runs[0] / CONFIG).read_text(encoding="utf-8"))
    return {
        "encoder": config["encoder"]["network"],
        "minutes": statistics.mean(costs["minutes"] for costs in spent),
        "peak_memory_gib": max(costs["peak_memory_gib"] for costs in spent),
        "parameters": spent[0]["learned_parameters"],
        "threads": spent[0]["threads"],
    }


def _write_scores(rows: list[dict[str, Any]], costs: list[dict[str, Any]]) -> None:
    columns = ["recipe", "decoding", "seeds", *METRICS, *VARIETY]
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        cells = [_score(row, name) for name in METRICS]
        cells += [f"{row['scores'].get(name, float('nan')):.1f}" for name in VARIETY]
        members = len(ENSEMBLES.get(row["recipe"], ()))
        seeds = f"{members} models" if members else str(row["seeds"])
        lines.append([row["recipe"], row["decoding"], seeds, *cells])
    _write_table("scores", lines)
    columns = ["recipe", "minutes", "peak memory, GiB", "million parameters"]
    lines = [columns, ["---"] * len(columns)]
    for cost in costs:
        if "minutes" in cost:
            numbers = [f"{cost['minutes']:.0f}", f"{cost['peak_memory_gib']:.1f}"]
            lines.append([cost["recipe"], *numbers, f"{cost['parameters'] / 1e6:.1f}"])
    _write_table("costs", lines)


def _write_differences(table: str, differences: dict[str, list[dict[str, Any]]]) -> None:
    columns = [f"{metric}, {name}" for name in differences for metric in WITH_INTERVAL]
    cells: dict[str, list[str]] = {}
    for metric, name in ((metric, name) for name in differences for metric in WITH_INTERVAL):
        for row in differences[name]:
            if row["metric"] == metric:
                cells.setdefault(row["system"], []).append(_difference(row))
    if cells:
        lines = [["", *columns], ["---"] * (1 + len(columns))]
        _write_table(table, [*lines, *([name, *values] for name, values in cells.items())])


def _difference(row: dict[str, Any]) -> str:
    """A score and its difference, in bold if it is significant."""
    if row["difference"] is None:
        return f"{row['score']:.2f}"
    value, (low, high) = row["difference"]["value"], row["difference"]["interval"]
    significant = row["difference"]["verdict"] != UNDECIDED
    text = f"**{value:+.2f}**" if significant else f"{value:+.2f}"
    return f"{row['score']:.2f}, {text} [{low:.1f}, {high:.1f}]"


def _score(row: dict[str, Any], name: str) -> str:
    if name not in row["scores"]:
        return ""
    text = f"{row['scores'][name]:.2f}"
    if name in WITH_INTERVAL and name in row["intervals"]:
        low, high = row["intervals"][name]
        text = f"**{text}** ({low:.1f} to {high:.1f})"
    return text


def _write_table(name: str, lines: list[list[str]]) -> None:
    """Print a table, and write it between its marks in README.md, if they exist."""
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(table, end="\n\n")
    readme = HERE / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        marks = rf"(?<=<!-- {name} -->\n)(?:(?!<!--).*\n)*(?=<!-- end -->)"
        write_whole(readme, re.sub(marks, f"{table}\n", text))


def _versions() -> dict[str, Any]:
    return {
        "commit": commit(),
        "captioner": captioner.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    main()
