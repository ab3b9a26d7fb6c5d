"""Do maps of attribution lie on the figure that a word names? The drawn scenes have the true masks.

    python experiments/attribution/pointing.py [--images 200] [--runs runs/attribution]

trains each decoder with experiment=demo, if its run folder does not exist, reads true captions of
test scenes, and attributes every word of a color or a shape with every method. It writes
results.json and the table of README.md in this folder; with --print it writes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import captioner
from captioner.api import Captioner
from captioner.data.shapes import COLOR_WORDS, SHAPES, Scene, describe, scene_of
from captioner.files import write_whole
from captioner.inspection.attribution import METHODS, readings
from captioner.inspection.reading import SCORES
from captioner.metrics.significance import interval
from captioner.models.recurrence.table import CELLS
from captioner.tracing.trace import Trace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runs import commit, trained

HERE = Path(__file__).resolve().parent
DECODERS = {
    **{f"show_tell, {cell}": ("show_tell", cell) for cell in ("lstm", "gru", "rnn")},
    **{name: (name, "lstm") for name in ("show_attend_tell", "adaptive", "up_down")},
    "transformer": ("transformer", None),
}
"""Row of the table -> decoder and cell."""

SIDE = 128  # of a drawn scene, in pixels, as in training
COVERED = 0.25  # of a position: the map points at the figure
MEASURES = ("pointing", "mass")
RESAMPLES = 10_000

Rows = dict[str, list[list[float]]]
"""Method -> for each image the mean over its words of each of MEASURES."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=200, metavar="N")
    parser.add_argument("--runs", type=Path, default=Path("runs/attribution"), metavar="FOLDER")
    parser.add_argument("--root", default="datasets/shapes", help="of the drawn scenes")
    parser.add_argument("--decoders", nargs="+", default=list(DECODERS), choices=DECODERS)
    parser.add_argument("--print", action="store_true", help="write nothing")
    options = parser.parse_args()
    rows = []
    for name in options.decoders:
        model = captioner.load(run_of(name, options.runs, options.root))
        rows += summaries(name, measure(model, options.images))
        print(table([row for row in rows if row["decoder"] == name]), flush=True)
    if options.print:
        return
    results = {"about": about(options.images), "rows": rows}
    write_whole(HERE / "results.json", json.dumps(results, indent=1) + "\n")
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition("<!-- table -->\n")
    after = rest.partition("<!-- end -->")[2]
    write_whole(HERE / "README.md", f"{before}<!-- table -->\n{table(rows)}<!-- end -->{after}")


def run_of(name: str, runs: Path, root: str) -> Path:
    """The run folder of a decoder, trained if there is none."""
    decoder, cell = DECODERS[name]
    cells = [f"decoder.cell={cell}"] if cell in CELLS else []
    overrides = ["experiment=demo", f"decoder={decoder}", *cells, f"data.root={root}"]
    return trained(runs / name.replace(", ", "-"), overrides)


# One decoder --------------------------------------------------------------------------------------


def measure(model: Captioner, images: int) -> Rows:
    """Every method on the first test scenes."""
    rows: Rows = {}
    noise = np.random.default_rng(0)
    for index in range(images):
        of_words: dict[str, list[list[float]]] = {}
        for coverage, maps in explained(model, scene_of("test", index), index, noise):
            for method, found in maps.items():
                of_words.setdefault(method, []).append(
                    [hit(found, coverage), mass(found, coverage)]
                )
        for method, values in of_words.items():
            rows.setdefault(method, []).append(np.mean(values, axis=0).tolist())
    return rows


def explained(
    model: Captioner, scene: Scene, index: int, noise: np.random.Generator
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """For each word of a color or shape: the true coverage of the positions [P], and the maps."""
    picture = scene.draw(SIDE)
    caption = describe(scene, random.Random(index))[0]
    trace = model.trace(picture, caption=caption, precision="fp32")
    places = named(trace.words, scene)
    numbers = [place + 1 for place, _ in places]
    questions = {
        score: readings(model, picture, trace, words=numbers, score=score) for score in SCORES
    }
    for which, (place, figures) in enumerate(places):
        positions = questions["logit"][which].inputs.grid.shape[1]
        maps = {"random": noise.random(positions)}
        for score, asked in questions.items():
            maps.update(attributed(asked[which], score))
        maps.update(attention(trace, place + 1, positions))
        yield covered(model, scene, figures, positions), maps


def attributed(question: Any, score: str) -> dict[str, np.ndarray]:
    """The maps of all methods that know the decoder."""
    maps = {}
    for name, method in METHODS.items():
        try:
            maps[f"{name}, {score}"] = method(question)[0].cpu().numpy()
        except ValueError:  # lrp has no rule for some decoders
            continue
    return maps


def attention(trace: Trace, step: int, positions: int) -> dict[str, np.ndarray]:
    """The weights of the attention, a mean over the heads of the last layer."""
    if "attention.weights" not in trace:
        return {}
    weights = trace["attention.weights"][step]
    weights = weights[-1].mean(axis=0) if weights.ndim == 3 else weights
    return {"attention weights": weights[:positions]}


def named(words: Sequence[str], scene: Scene) -> list[tuple[int, list[int]]]:
    """The places of words of colors and shapes, and the figures that each names."""
    groups = [[0], [1]] if scene.relation else [list(range(len(scene.figures)))]
    found, place = [], 0
    for group in groups:
        for known in (COLOR_WORDS, SHAPES):
            while words[place].removesuffix("s") not in known:
                place += 1
            found.append((place, group))
            place += 1
    return found


def covered(model: Captioner, scene: Scene, figures: Sequence[int], positions: int) -> np.ndarray:
    """The fraction of each position that lies on the figures, [P]."""
    masks = scene.masks(SIDE)
    inside = np.max([np.asarray(masks[figure]) for figure in figures], axis=0)
    mask = Image.fromarray(inside).convert("RGB")
    cropped = Image.fromarray(model.encoders[0].transform.center_crop(mask)).convert("L")
    side = math.isqrt(positions)
    small = cropped.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small).reshape(-1) / 255


def hit(found: np.ndarray, coverage: np.ndarray) -> float:
    """The pointing game (Zhang et al., 2016): whether the maximum lies on the figure."""
    return float(coverage[found.argmax()] >= COVERED)


def mass(found: np.ndarray, coverage: np.ndarray) -> float:
    """The fraction of what is positive in a map that lies on the figure (Arras et al., 2022)."""
    positive = np.maximum(found, 0)
    return float(positive @ coverage / positive.sum()) if positive.any() else 0.0


# Tables -------------------------------------------------------------------------------------------


def summaries(decoder: str, rows: Rows) -> list[dict[str, Any]]:
    """Means over the images, 0 to 100, with 95 % bootstrap intervals, and differences to random."""
    random_rows = np.array(rows["random"])
    images = len(random_rows)
    drawn = np.random.default_rng(1).multinomial(images, np.full(images, 1 / images), RESAMPLES)
    summary = []
    for method, values in rows.items():
        entry: dict[str, Any] = {"decoder": decoder, "method": method}
        for column, measure_name in enumerate(MEASURES):
            own, base = (100 * np.array(v)[:, column] for v in (values, random_rows))
            entry[measure_name] = float(own.mean())
            entry[f"{measure_name}_interval"] = interval(drawn @ own / images)
            entry[f"{measure_name}_above_random"] = interval(drawn @ (own - base) / images)
        summary.append(entry)
    return summary


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown; a star marks what is not shown to be above random."""
    lines = ["| decoder | method | pointing game | relevance mass |", "|---|---|---|---|"]
    for row in rows:
        cells = []
        for name in MEASURES:
            low, high = row[f"{name}_interval"]
            star = "" if row[f"{name}_above_random"][0] > 0 or row["method"] == "random" else " *"
            cells.append(f"{row[name]:.1f} ({low:.1f} to {high:.1f}){star}")
        lines.append(f"| {row['decoder']} | {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def about(images: int) -> dict[str, Any]:
    """Data, commit and versions."""
    return {
        "images": images,
        "split": "test of the drawn scenes, seed 0",
        "commit": commit(),
        "captioner": captioner.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
