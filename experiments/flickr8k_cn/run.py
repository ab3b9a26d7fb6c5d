"""Chinese captions of Flickr8k, by character and by word: scores with intervals.

    python experiments/flickr8k_cn/run.py --root ~/flickr8k

trains experiment=flickr8k_cn and experiment=flickr8k_cn_words with three seeds, and evaluates each
on dev with a beam and by consensus. Both are scored by character. Finished runs are not repeated
and interrupted ones are resumed. results.json and the table of README.md in this folder are written
from the runs. With --table nothing is trained: the table is of the runs that are finished.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import captioner
from captioner.evaluation.comparison import compare
from captioner.evaluation.results import System, read_result
from captioner.files import write_whole
from captioner.process import processor
from captioner.runs import COSTS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runs import commit, evaluate, evaluation, trained

HERE = Path(__file__).resolve().parent
RECIPES = {"flickr8k_cn": "characters", "flickr8k_cn_words": "words"}
DECODINGS = {"beam": "beam3-lp0.7", "consensus": "beam20-lp0.7-consensus5"}
"""Name in conf/decoding -> label of its results."""
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
WITH_INTERVAL = ("BLEU-4", "CIDEr-D")
BEGIN, END = "<!-- table -->\n", "<!-- end -->"


def main() -> None:
    options = _parser().parse_args()
    if not options.table:
        for recipe in RECIPES:
            for seed in options.seeds.split(","):
                _train(recipe, seed, options)
    rows = [row for name in DECODINGS for row in _rows(name, options)]
    if not rows:
        raise SystemExit(f"{options.runs}: contains no evaluated run, RECIPE-seedN")
    results = {"made": _made(), "rows": rows}
    write_whole(HERE / "results.json", json.dumps(results, indent=1) + "\n")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write_whole(readme, before + BEGIN + _table(rows) + END + after)
    print(_table(rows), end="")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("datasets/flickr8k"))
    parser.add_argument("--seeds", default="1,2,3", help="numbers, separated by commas")
    parser.add_argument("--runs", type=Path, default=Path("runs/flickr8k_cn"))
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--table", action="store_true", help="train nothing")
    return parser


# Training and evaluation --------------------------------------------------------------------------


def _train(recipe: str, seed: str, options: argparse.Namespace) -> None:
    overrides = [f"experiment={recipe}", f"data.root={options.root}", f"seed={seed}"]
    run = trained(options.runs / f"{recipe}-seed{seed}", overrides)
    for name, label in DECODINGS.items():
        evaluate(run, "dev", name, label)


# Results ------------------------------------------------------------------------------------------


def _rows(decoding: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each recipe with finished runs; differences are to the first."""
    systems, runs = [], {}
    for recipe in RECIPES:
        folders = sorted(options.runs.glob(f"{recipe}-seed[0-9]*"))
        found = {run: evaluation(run, "dev", DECODINGS[decoding]) for run in folders}
        evaluated = {run: path for run, path in found.items() if path is not None}
        if evaluated:
            runs[recipe] = list(evaluated)
            results = tuple(read_result(path) for path in evaluated.values())
            systems.append(System(recipe, results))
    if not systems:
        return []
    compared = compare(systems, metrics=METRICS, resamples=options.resamples)
    scores: dict[str, dict[str, Any]] = {recipe: {} for recipe in runs}
    for row in compared.rows:
        scores[row.system][row.metric] = asdict(row)
    return [
        {
            "recipe": recipe,
            "decoding": decoding,
            "signature": str(compared.signature),
            "scores": scores[recipe],
            **_cost(runs[recipe]),
        }
        for recipe in runs
    ]


def _cost(runs: list[Path]) -> dict[str, Any]:
    costs = [json.loads((run / COSTS).read_text(encoding="utf-8")) for run in runs]
    return {
        "minutes": statistics.mean(cost["minutes"] for cost in costs),
        "parameters": costs[0]["learned_parameters"],
    }


def _table(rows: list[dict[str, Any]]) -> str:
    headings = ["tokens", "decoding", "seeds", *METRICS, "CIDEr-D, words - characters"]
    lines = [headings, ["---", "---", *["---:"] * (len(headings) - 2)]]
    for row in rows:
        scores = row["scores"]
        seeds = str(len(scores["BLEU-4"]["seeds"]))
        cells = [RECIPES[row["recipe"]], row["decoding"], seeds]
        cells += [_score(scores[name], name in WITH_INTERVAL) for name in METRICS]
        lines.append([*cells, _difference(scores["CIDEr-D"]["difference"])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _score(row: dict[str, Any], with_interval: bool) -> str:
    text = f"{row['score']:.2f}"
    if with_interval and row["interval"]:
        text += " ({:.1f} to {:.1f})".format(*row["interval"])
    return text


def _difference(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    low, high = difference["interval_seeds"] or difference["interval"]
    return f"{difference['value']:+.2f} [{low:+.1f}, {high:+.1f}]"


def _made() -> dict[str, Any]:
    return {
        "commit": commit(),
        "captioner": captioner.__version__,
        "torch": torch.__version__,
        "machine": f"{processor()}, {torch.get_num_threads()} thread(s)",
    }


if __name__ == "__main__":
    main()
