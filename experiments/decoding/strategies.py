"""Decode with one model and every strategy: scores with intervals, diversity, captions per second.

    python experiments/decoding/strategies.py RUN [--with RUN ...] [--average FILE]

writes results.json and the table of README.md in this folder, and the evaluation of each strategy
to the run folder, as `captioner evaluate` does.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import captioner
from captioner.api import Captioner
from captioner.evaluation.evaluate import Evaluation, evaluate, result_folder
from captioner.files import write_whole
from captioner.metrics.significance import bootstrap, interval

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runs import commit

HERE = Path(__file__).resolve().parent
METRICS = ("bleu", "rouge-l", "cider-d", "diversity")
SCORES = ("BLEU-4", "ROUGE-L", "CIDEr-D")
VARIETY = ("length", "vocabulary", "distinct", "novelty", "distinct-1", "distinct-2", "mBLEU-4")
BEAM = {"beam_size": 3, "length_penalty": 0.7}
SAMPLED = {"temperature": 1.0, "captions": 5}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam 3": {"beam_size": 3},
    "beam 3, α 0.7": BEAM,
    "beam 3, α 1": {"beam_size": 3, "length_penalty": 1.0},
    "beam 3, GNMT α 1": {"beam_size": 3, "length_penalty": 1.0, "length_rule": "gnmt"},
    "beam 3, α 0.7, without early stopping": {**BEAM, "early_stopping": False},
    "beam 5, α 0.7": {**BEAM, "beam_size": 5},
    "beam 10, α 0.7": {**BEAM, "beam_size": 10},
    "consensus of beam 10, τ 5": {**BEAM, "beam_size": 10, "consensus": 5.0},
    "consensus of beam 20, τ 3": {**BEAM, "beam_size": 20, "consensus": 3.0},
    "consensus of beam 20, τ 5": {**BEAM, "beam_size": 20, "consensus": 5.0},
    "consensus of beam 20, τ 8": {**BEAM, "beam_size": 20, "consensus": 8.0},
    "consensus of beam 40, τ 5": {**BEAM, "beam_size": 40, "consensus": 5.0},
    "beam 5, α 0.7, 5 best": {**BEAM, "beam_size": 5, "captions": 5},
    "diverse beam 5 x 1, α 0.7, λ 0.5, 5 best": {
        **BEAM,
        "beam_size": 5,
        "groups": 5,
        "captions": 5,
    },
    "diverse beam 5 x 2, α 0.7, λ 0.5, 5 best": {
        **BEAM,
        "beam_size": 10,
        "groups": 5,
        "captions": 5,
    },
    "5 samples, τ 1": SAMPLED,
    "5 samples, τ 0.5": {**SAMPLED, "temperature": 0.5},
    "5 samples, top-k 10": {**SAMPLED, "top_k": 10},
    "5 samples, top-p 0.9": {**SAMPLED, "top_p": 0.9},
    "beam 3, α 0.7, 8 words or more": {**BEAM, "min_length": 8},
    "beam 3, α 0.7, no 2 words twice": {**BEAM, "no_repeat_ngram": 2},
    "beam 3, α 0.7, without 'man'": {**BEAM, "banned_words": ["man"]},
    "beam 3, α 0.7, with 'dog'": {**BEAM, "required_words": ["dog"]},
    "beam 3, α 0.7, 'two people' ...": {**BEAM, "prefix": "two people"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run folder")
    parser.add_argument(
        "--with", dest="others", nargs="*", default=[], help="other runs, for ensembles"
    )
    parser.add_argument("--average", help="a checkpoint of captioner average")
    parser.add_argument("--split", default="dev")
    options = parser.parse_args()
    model = captioner.load(options.run)
    rows = [measure(name, model, how, options.split) for name, how in STRATEGIES.items()]
    if options.average:
        mean = captioner.load(options.average)
        rows.append(
            measure("beam 3, α 0.7, weights of the best epochs averaged", mean, BEAM, options.split)
        )
    if options.others:
        several = captioner.load([options.run, *options.others])
        for average in ("probability", "log_probability"):
            name = f"beam 3, α 0.7, {len(several.models)} models, {average.replace('_', ' ')}"
            rows.append(measure(name, several, {**BEAM, "ensemble": average}, options.split))
    results = {"about": about(options.run), "rows": rows}
    write_whole(HERE / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition("<!-- table -->\n")
    after = rest.partition("<!-- end -->")[2]
    write_whole(HERE / "README.md", f"{before}<!-- table -->\n{table(rows)}<!-- end -->{after}")


def measure(name: str, model: Captioner, options: dict[str, Any], split: str) -> dict[str, Any]:
    """Decode the split with one strategy and return the entries of the table."""
    plain = type(model.options)().as_dict()
    decoding = {**plain, **options}
    data, loader = model.config["data"], model.config["loader"]
    result: Evaluation = evaluate(
        model, data=data, decoding=decoding, loader=loader, split=split, metrics=METRICS
    )
    result.write(result_folder(model, decoding, data, split))
    resampled = bootstrap([[result.scores.statistics]])
    print(f"{name:<55}{result.scores.values['CIDEr-D']:6.1f}", flush=True)
    return {
        "name": name,
        "options": options,
        "signature": str(result.scores.signature),
        "scores": {n: result.scores.values[n] for n in SCORES},
        "intervals": {n: interval(resampled[n][0]) for n in SCORES},
        "variety": {n: result.scores.values[n] for n in VARIETY if n in result.scores.values},
        "images_per_second": len(result.captions) / result.seconds,
        "notes": sum(bool(caption.note) for caption in result.captions),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown."""
    heads = [*SCORES, *VARIETY, "images/s"]
    lines = ["| decoding | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row in rows:
        cells = [
            f"{row['scores'][n]:.1f} ({row['intervals'][n][0]:.1f} to {row['intervals'][n][1]:.1f})"
            for n in SCORES
        ]
        cells += [f"{row['variety'][n]:.1f}" if n in row["variety"] else "" for n in VARIETY]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['images_per_second']:.0f} |")
    return "\n".join(lines) + "\n"


def about(run: str) -> dict[str, str]:
    """Run, commit and versions."""
    return {
        "run": Path(run).name,
        "commit": commit(),
        "captioner": captioner.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
