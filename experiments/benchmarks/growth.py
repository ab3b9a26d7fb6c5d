"""Time and memory of an epoch of training as a function of the size of the data.

Each size is a training in its own process, on the first images of Flickr8k's training split with
their five captions: two epochs, of which the second is timed, batches only, without validation.
Features are cached before. The memory is the peak of the process. One more size has as many
captions as another one, but five times the images.

    python experiments/benchmarks/growth.py ~/flickr8k --json growth.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from paired import finish, make_parser, report_value, run_guarded, start, with_progress

from captioner.evaluation.comparison_figure import require_matplotlib

SIZES = ((200, 5), (1000, 5), (5000, 1), (2000, 5), (4000, 5), (6000, 5))  # images, captions each
MARK = "measured: "
MEMORY = 3  # GiB


def train(root: Path, images: int, captions: int) -> dict[str, Any]:
    """Train on a number of images and captions per image in a new process; return its numbers."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "data"
        part.mkdir()
        training = (root / "Flickr_8k.trainImages.txt").read_text().split()[:images]
        dev = (root / "Flickr_8k.devImages.txt").read_text().split()[:64]
        lines = (root / "Flickr8k.token.txt").read_text().splitlines()
        most = {**dict.fromkeys(training, captions), **dict.fromkeys(dev, 5)}
        named = [(*line.partition("\t")[0].split("#"), line) for line in lines]
        lines = [line for image, number, line in named if int(number) < most.get(image, 0)]
        (part / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
        (part / "Flickr_8k.trainImages.txt").write_text("\n".join(training) + "\n")
        (part / "Flickr_8k.devImages.txt").write_text("\n".join(dev) + "\n")
        arguments = [
            "experiment=flickr8k_quick",
            "loader.batch_size=64",
            f"data.root={part}",
            f"data.images={next(root.glob('*/*.jpg')).parent}",
            f"run_dir={folder}/run",
            "trainer.max_epochs=2",
        ]
        command = [sys.executable, __file__, "--measured", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise SystemExit(f"the training of {images} images failed:\n{done.stdout}{done.stderr}")
    return {
        "images": images,
        "captions": captions * images,
        **json.loads(lines[-1].removeprefix(MARK)),
    }


def run_measured(arguments: list[str]) -> None:
    """Run `captioner train` and time the batches of each epoch."""
    import resource

    from captioner import cli
    from captioner.training import module

    measured: dict[str, Any] = {"seconds": []}

    class Timed(module.LitCaptioner):
        def on_train_epoch_start(self) -> None:
            measured["started"] = time.perf_counter()

        def on_validation_epoch_start(self) -> None:
            measured["seconds"].append(time.perf_counter() - measured.pop("started"))
            measured["vocabulary"] = len(self.tokenizer.vocabulary)
            super().on_validation_epoch_start()

    module.LitCaptioner = Timed  # type: ignore[misc]
    sys.argv = ["captioner", "train", *arguments]
    code = cli.main()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    measured["seconds"] = measured["seconds"][-1]
    print(MARK + json.dumps({**measured, "peak_gib": peak}))
    sys.exit(code)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds per epoch and peak memory over the number of captions."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    rows = [row for row in rows if row["captions"] == 5 * row["images"]]
    captions = [row["captions"] for row in rows]
    left.plot(captions, [row["seconds"] for row in rows], "o-")
    left.set(xlabel="training captions", ylabel="seconds per epoch", ylim=0, xlim=0)
    right.plot(captions, [row["peak_gib"] for row in rows], "o-", color="tab:orange")
    right.set(xlabel="training captions", ylabel="peak memory, GiB", ylim=0, xlim=0)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    if "--measured" in sys.argv[1:2]:
        run_measured(sys.argv[2:])
    arguments = make_parser(__doc__)
    arguments.add_argument("root", metavar="ROOT", type=Path, help="the folder of Flickr8k")
    options = arguments.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.json:
        require_matplotlib("the figure next to --json")
    root, about = options.root.expanduser().resolve(), start(options)
    sizes = [train(root, *size) for size in with_progress(SIZES, "trainings")]
    rows = []
    for size in sizes:
        name = f"{size['captions']} captions of {size['images']} images"
        per_caption = 1000 * size["seconds"] / size["captions"]
        rows.append(report_value(f"{name}: training", per_caption, "ms per caption", **size))
        rows.append(report_value(f"{name}: peak memory", size["peak_gib"], "GiB", goal=MEMORY))
    finish(about, rows, options.json)
    if options.json:
        draw(sizes, Path(options.json).with_suffix(".svg"))


if __name__ == "__main__":
    run_guarded(main)
