"""All cells, like for like: scores with intervals, and how far their gradients reach.

    python experiments/cells/run.py                        # 13 cells, 2 matchings, 3 seeds
    python experiments/cells/run.py --data flickr8k --root ~/flickr8k
    python experiments/cells/run.py --cells lstm,rnn,gru --seeds 1 --matching hidden

Each cell is trained on the drawn scenes or on Flickr8k, matched with the LSTM in two ways: by the
hidden size, and by the number of parameters of the decoder (the hidden size that comes nearest).
Finished runs are not repeated and interrupted ones are resumed. Then all runs are evaluated,
compared with the LSTM, and their gradient flow is measured (captioner.inspection.gradients).
DATA.json, the tables of README.md, DATA.png (all cells) and DATA-each.png (a panel each) in this
folder are written from the runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import captioner
from captioner.api import Captioner
from captioner.config import compose
from captioner.data.batches import pad
from captioner.data.read import read_records
from captioner.evaluation.comparison import compare
from captioner.evaluation.results import System, read_result
from captioner.files import write_whole
from captioner.inspection.gradients import gradient_flow, recurrent_norm
from captioner.models.captioning import build_model
from captioner.models.packing import IGNORED
from captioner.models.recurrence.table import CELLS
from captioner.process import processor
from captioner.runs import find_evaluation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runs import commit, evaluate, trained

HERE = Path(__file__).resolve().parent
BASE = "lstm"


@dataclass(frozen=True)
class Data:
    """What the cells are trained on.

    Attributes:
        title: of its tables.
        overrides: of `captioner train`; they set the hidden size of the LSTM.
        split: on which the runs are evaluated.
        vocabulary_size: of the models.
    """

    title: str
    overrides: tuple[str, ...]
    split: str
    vocabulary_size: int


DATA = {
    "shapes": Data("Test split of the drawn scenes", ("experiment=demo",), "test", 56),
    "flickr8k": Data(
        "Dev split of Flickr8k",
        (
            "experiment=flickr8k_quick",
            "decoder.hidden_size=256",
            "decoder.embedding_size=256",
            "callbacks.patience=0",  # BLEU-4 of early, generic captions stops some trainings
        ),
        "dev",
        2543,
    ),
}
METRICS = ("BLEU-4", "CIDEr-D")
CAPTIONS = 256
"""How many captions' gradients are followed, one for each of the first images of the split."""
DISTANCES = (1, 2, 5, 10)


def main() -> None:
    options = _parser().parse_args()
    cells = options.cells.split(",")
    cells = [BASE, *(cell for cell in cells if cell != BASE)]
    data = DATA[options.data]
    results: dict[str, Any] = {"made": _made(options)}
    for matching in options.matching.split(","):
        sizes = {cell: hidden_size(data, cell, matching) for cell in cells}
        runs = {cell: _runs(data, cell, sizes[cell], options) for cell in cells}
        results[matching] = _measure(data, runs, sizes, options.resamples)
    write_whole(HERE / f"{options.data}.json", json.dumps(results, indent=1) + "\n")
    _write_tables(options.data, results)
    _draw(results, HERE / f"{options.data}.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=DATA, default="shapes", help="(default shapes)")
    parser.add_argument("--root", help="the folder of the data, if it is not the usual one")
    parser.add_argument("--cells", default=",".join(CELLS), help="names, separated by commas")
    parser.add_argument("--matching", default="hidden,parameters", help="hidden, parameters")
    parser.add_argument("--seeds", default="1,2,3", help="numbers, separated by commas")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default runs/cells)")
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--override", action="append", default=[], help="of captioner train")
    return parser


def _made(options: argparse.Namespace) -> dict[str, Any]:
    arguments = " ".join(sys.argv[1:]).replace(str(Path.home()), "~")
    return {
        "command": f"python experiments/cells/run.py {arguments}",
        "commit": commit(),
        "version": captioner.__version__,
        "torch": torch.__version__,
        "machine": f"{processor()}, {torch.get_num_threads()} thread"
        + "s" * (torch.get_num_threads() > 1),
        "seeds": options.seeds,
    }


# Matching -----------------------------------------------------------------------------------------


def parameters(data: Data, cell: str, hidden_size: int) -> int:
    """How many numbers the decoder learns."""
    own = [f"decoder.cell={cell}", f"decoder.hidden_size={hidden_size}"]
    config = compose([*data.overrides, *own])
    model = build_model(
        config["encoder"],
        config["decoder"],
        vocabulary_size=data.vocabulary_size,
        initialise=False,
    )
    return sum(parameter.numel() for parameter in model.decoder.parameters())


def hidden_size(data: Data, cell: str, matching: str) -> int:
    """The hidden size of a cell: that of the LSTM, or that with the same number of parameters."""
    base = int(compose(list(data.overrides))["decoder"]["hidden_size"])
    if matching == "hidden" or cell == BASE:
        return base
    wanted = parameters(data, BASE, base)
    low, high = 1, 8 * base
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(data, cell, middle) <= wanted else (low, middle)
    return min((low, high), key=lambda size: abs(parameters(data, cell, size) - wanted))


# Training and evaluation --------------------------------------------------------------------------


def _runs(data: Data, cell: str, size: int, options: argparse.Namespace) -> list[Path]:
    """The runs of a cell, one for each seed, trained and evaluated."""
    runs = []
    root = [f"data.root={options.root}"] if options.root else []
    folder = options.runs or Path("runs/cells") / options.data
    for seed in options.seeds.split(","):
        run = folder / f"{cell}-{size}-seed{seed}"
        own = [f"decoder.cell={cell}", f"decoder.hidden_size={size}", f"seed={seed}"]
        trained(run, [*data.overrides, *root, *own, *options.override])
        evaluate(run, data.split, metrics="bleu,cider-d")  # others need java
        runs.append(run)
    return runs


def _measure(
    data: Data, runs: dict[str, list[Path]], sizes: dict[str, int], resamples: int
) -> dict[str, dict[str, Any]]:
    systems = []
    for cell, folders in runs.items():
        results = [read_result(find_evaluation(run, split=data.split)) for run in folders]
        systems.append(System(cell, tuple(results)))
    compared = compare(systems, metrics=METRICS, resamples=resamples)
    measured: dict[str, dict[str, Any]] = {}
    for cell, folders in runs.items():
        rows = {row.metric: row for row in compared.rows if row.system == cell}
        measured[cell] = {
            "hidden_size": sizes[cell],
            "parameters": parameters(data, cell, sizes[cell]),
            "scores": {
                name: {
                    "score": row.score,
                    "seeds": list(row.seeds),
                    "interval": row.interval,
                    "difference": None if row.difference is None else asdict(row.difference),
                }
                for name, row in rows.items()
            },
            "gradients": [_gradients(run, data.split) for run in folders],
        }
    return measured


# Gradients ----------------------------------------------------------------------------------------


def _gradients(run: Path, split: str) -> dict[str, Any]:
    """How far the gradients of the captions of a run reach: means by distance."""
    model = Captioner.load(run)
    data = model.config["data"]
    dataset = read_records(format=data["format"], root=data["root"])
    records = [record for record in dataset.records if record.split == split][:CAPTIONS]
    images = [model.prepare(record.image) for record in records]
    [features] = model.encode(images)
    tokens = [model.tokenizer.encode(record.captions[0]) for record in records]
    inputs, targets = pad(tokens, model.tokenizer)
    decoder = model.model.decoder
    flow = gradient_flow(decoder, features, inputs, targets, ignored=IGNORED)
    forget = {} if flow.forget is None else {"f": _rounded(flow.by_distance("f"))}
    return {
        **{f"d{letter}": _rounded(flow.by_distance(letter)) for letter in flow.norms},
        **forget,
        "dX_0": _rounded(flow.image),
        "W_hh": round(recurrent_norm(decoder.recurrence), 3),
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 5) for value in values]


# Tables and figure --------------------------------------------------------------------------------


def _write_tables(name: str, results: dict[str, Any]) -> None:
    """Replace what is between the markers of README.md."""
    path = HERE / "README.md"
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    parts = [_table(matching, rows) for matching, rows in results.items() if matching != "made"]
    made = results["made"]
    source = (
        f"{DATA[name].title}, greedy decoding, seeds {made['seeds']}; captioner "
        f"{made['version']}, torch {made['torch']}, commit {made['commit']}, {made['machine']}:\n"
        f"`{made['command'].strip()}`"
    )
    write_whole(
        path, before + begin + "\n\n" + "\n\n".join([*parts, source]) + "\n\n" + end + after
    )


TITLES = {"hidden": "The same hidden size", "parameters": "The same number of parameters"}


def _table(matching: str, rows: dict[str, Any]) -> str:
    headings = ["cell", "H", "parameters", *METRICS, "CIDEr-D - LSTM"]
    headings += [f"gradient at {distance}" for distance in DISTANCES]
    lines = [
        f"### {TITLES[matching]}\n",
        "| " + " | ".join(headings) + " |",
        "|---|" + "---:|" * (len(headings) - 1),
    ]
    order = sorted(rows, key=lambda cell: -rows[cell]["scores"]["CIDEr-D"]["score"])
    for cell in order:
        row = rows[cell]
        scores = [_score(row["scores"][metric]) for metric in METRICS]
        difference = row["scores"]["CIDEr-D"]["difference"]
        versus = "" if difference is None else _interval(difference)
        cells = [cell, str(row["hidden_size"]), f"{row['parameters']:,}", *scores, versus]
        cells += [_reach(row["gradients"], distance) for distance in DISTANCES]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _score(score: dict[str, Any]) -> str:
    low, high = score["interval"]
    return f"{score['score']:.1f} [{low:.1f}, {high:.1f}]"


def _interval(difference: dict[str, Any]) -> str:
    low, high = difference["interval_seeds"] or difference["interval"]
    return f"{difference['value']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _reach(gradients: list[dict[str, Any]], distance: int) -> str:
    """|dL_t / dC_{t-d}| relative to d = 0 (of h in a cell without C), the range over the seeds."""
    values = [g.get("dC", g["dh"])[distance] for g in gradients]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{min(known):.2f}" if len(known) == 1 else f"{min(known):.2f} to {max(known):.2f}"


def _draw(results: dict[str, Any], path: Path) -> None:
    """Draw the mean gradient by distance of all cells, and a panel for each of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matchings = [name for name in results if name != "made"]
    across, axes = pyplot.subplots(
        1, len(matchings), figsize=(6.4 * len(matchings), 4.9), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, matching in zip(axes[0], matchings):
        axis.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)
        for cell, row in results[matching].items():
            style = {"rnn": "-.", "irnn": "-.", "gru": "--", "gru_reset_first": "--", "mgu": "--"}
            name = "dC" if "dC" in row["gradients"][0] else "dh"
            axis.plot(_mean(row, name), style.get(cell, "-"), label=cell)
        axis.set(title=TITLES[matching], xlabel="distance t - k in steps", yscale="log")
    axes[0][0].set_ylabel("|dL_t / dC_k|, or h, relative to distance 0")
    lines, names = axes[0][-1].get_legend_handles_labels()
    across.legend(lines, names, fontsize=8, ncol=4 * len(matchings), loc="outside lower center")
    across.savefig(path, dpi=110)
    each = _draw_each(results[matchings[0]], pyplot)
    each.savefig(path.with_stem(f"{path.stem}-each"), dpi=110)


def _draw_each(rows: dict[str, Any], pyplot: Any) -> Any:
    """A panel for each cell: its gradients, the product of its forget gates, the RNN's bound."""
    columns = min(4, len(rows))
    height = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(
        height, columns, figsize=(3.1 * columns, 2.5 * height), sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    for axis, (cell, row) in zip(axes.flat, rows.items()):
        for name, (style, label) in CURVES.items():
            if name in row["gradients"][0]:
                axis.plot(_mean(row, name), style, label=label)
        if cell == "rnn":
            norm = np.mean([gradient["W_hh"] for gradient in row["gradients"]])
            axis.plot(norm ** np.arange(FARTHEST), "k:", label="bound |W_hh|^d")
        axis.set(title=cell, yscale="log", ylim=(1e-3, 30), xticks=range(0, FARTHEST, 4))
        axis.legend(fontsize=6)
    figure.supxlabel("distance t - k in steps", fontsize=9)
    figure.supylabel("relative to distance 0", fontsize=9)
    figure.tight_layout()
    return figure


CURVES = {
    "dh": ("C0-", "|dL_t / dh_k|"),
    "dC": ("C1-", "|dL_t / dC_k|"),
    "f": ("C2--", "product of f"),
}
FARTHEST = 13
"""Distances that are drawn: beyond, few captions are long enough."""


def _mean(row: dict[str, Any], name: str) -> np.ndarray:
    """The mean of a curve over the seeds."""
    return np.nanmean(np.array([g[name] for g in row["gradients"]], dtype=float), axis=0)[:FARTHEST]


if __name__ == "__main__":
    main()
