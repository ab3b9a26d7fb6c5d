"""What the recipes reach on Flickr8k: scores with intervals over seeds and images, and their costs.

    python experiments/flickr8k/results.py runs/flickr8k

reads RUNS/RECIPE-seedN, trained by `captioner train experiment=RECIPE seed=N` and evaluated by
`captioner evaluate` with every decoding that is shown, and writes results.json and the tables of
README.md beside this file. Members of an ensemble were evaluated together, by `captioner evaluate`
of several runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch
import yaml

import captioner
from captioner.comparison import compare
from captioner.costs import FILE as COSTS
from captioner.data.records import write_whole
from captioner.systems import SCORES, read_systems

HERE = Path(__file__).resolve().parent
RECIPES = {
    "flickr8k_nic": "X_0 and an LSTM, cross-entropy",
    "flickr8k_nic_scst": "the same, self-critical",
    "flickr8k_every": "the image with every word, cross-entropy",
    "flickr8k_attend": "Show, Attend and Tell, cross-entropy",
    "flickr8k_updown": "Up-Down, cross-entropy",
    "flickr8k_updown_scst": "the same, self-critical",
    "flickr8k_transformer": "Transformer, cross-entropy",
    "flickr8k_best": "ensemble",
}
DECODINGS = {"beam3-lp0.7": "beam of 3", "beam20-lp0.7-consensus5": "consensus"}
SHOWN = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "METEOR")
WITH_INTERVAL = ("BLEU-4", "CIDEr-D")
VARIETY = ("length", "distinct")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("runs", type=Path, help="the folder that holds RECIPE-seedN")
    parser.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    options = parser.parse_args()
    rows, costs = [], []
    for recipe, what in RECIPES.items():
        runs = sorted(options.runs.glob(f"{recipe}-seed*"), key=_seed)
        if not runs:
            continue
        for label, decoding in DECODINGS.items():
            found = _scored(runs, label, options.resamples)
            if found:
                rows.append({"recipe": recipe, "what": what, "decoding": decoding, **found})
        costs.append({"recipe": recipe, **_cost(runs)})
    if not rows:
        raise SystemExit(f"{options.runs}: holds no evaluated run of a recipe, RECIPE-seedN")
    content = {"scores": rows, "costs": costs, "made": _made()}
    write_whole(HERE / "results.json", json.dumps(content, indent=2) + "\n")
    _show(rows, costs)


RAW = argparse.RawDescriptionHelpFormatter


def _seed(run: Path) -> int:
    found = re.search(r"(\d+)$", run.name)
    return int(found[1]) if found else 0


def _scored(runs: list[Path], label: str, resamples: int) -> dict[str, Any] | None:
    """Mean scores over the seeds that were evaluated so, with 95 % intervals."""
    folders = [folder for run in runs for folder in run.glob(f"evaluation/*-dev/{label}*")]
    folders = [one for one in folders if (one / SCORES).is_file() and _meant(one.name, label)]
    if not folders:
        return None
    (system,) = read_systems([",".join(map(str, folders))])
    found = compare([system], resamples=resamples)
    rows = {row.metric: row for row in found.rows}
    return {
        "seeds": len(folders),
        "scores": {name: row.score for name, row in rows.items()},
        "of_seeds": {name: row.seeds for name, row in rows.items()},
        "intervals": {name: row.interval for name, row in rows.items() if row.interval},
        "signature": found.signature,
    }


def _meant(name: str, label: str) -> bool:
    """The decoding itself, of one model or of an ensemble."""
    return name == label or name.startswith(f"{label}@ensemble")


def _cost(runs: list[Path]) -> dict[str, Any]:
    files = [run / COSTS for run in runs if (run / COSTS).is_file()]
    spent = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not spent:
        return {}
    config = yaml.safe_load((runs[0] / "config.yaml").read_text(encoding="utf-8"))
    return {
        "encoder": config["encoder"]["network"],
        "minutes": statistics.mean(one["minutes"] for one in spent),
        "peak_memory_gib": max(one["peak_memory_gib"] for one in spent),
        "parameters": spent[0]["learned_parameters"],
        "threads": spent[0]["threads"],
    }


def _show(rows: list[dict[str, Any]], costs: list[dict[str, Any]]) -> None:
    columns = ["recipe", "decoding", "seeds", *SHOWN, *VARIETY]
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        cells = [_score(row, name) for name in SHOWN]
        cells += [f"{row['scores'].get(name, float('nan')):.1f}" for name in VARIETY]
        lines.append([row["recipe"], row["decoding"], str(row["seeds"]), *cells])
    _put("scores", lines)
    columns = ["recipe", "minutes", "peak memory, GiB", "million parameters"]
    lines = [columns, ["---"] * len(columns)]
    for cost in costs:
        if "minutes" in cost:
            numbers = [f"{cost['minutes']:.0f}", f"{cost['peak_memory_gib']:.1f}"]
            lines.append([cost["recipe"], *numbers, f"{cost['parameters'] / 1e6:.1f}"])
    _put("costs", lines)


def _score(row: dict[str, Any], name: str) -> str:
    if name not in row["scores"]:
        return ""
    text = f"{row['scores'][name]:.2f}"
    if name in WITH_INTERVAL and name in row["intervals"]:
        low, high = row["intervals"][name]
        text = f"**{text}** ({low:.1f} to {high:.1f})"
    return text


def _put(name: str, lines: list[list[str]]) -> None:
    """Into README.md, between its marks; without these only onto the screen."""
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(table, end="\n\n")
    readme = HERE / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        marks = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        write_whole(readme, re.sub(marks, rf"\g<1>{table}\g<2>", text, flags=re.DOTALL))


def _made() -> dict[str, Any]:
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or None,
        "captioner": captioner.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    main()
