"""How long it is from image files to a trained model, and what that model scores.

The recipe `flickr8k_quick` is trained from an empty feature cache, in a process of its own, and
evaluated on dev by consensus in another: both with the start of Python. Then dev is captioned with
a beam of 3, all in fp32, with the encoder in bf16, and with the decoder in bf16. Last, the encoder
reads and encodes pictures for an empty cache in a process that is held to one core.

    python experiments/benchmarks/whole_training.py ~/flickr8k --run-dir runs/quick
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

from paired import alone, finish, guarded, parser, start

import captioner
from captioner.api import Captioner
from captioner.captions import find_images
from captioner.costs import FILE as COSTS
from captioner.evaluation import evaluate

MINUTES, BLEU, MEMORY, PER_SECOND, APART = 8, 18.5, 3, 150, 0.2  # what was aimed at
EXTRACTED = 1536
BEAM = {"beam_size": 3, "length_penalty": 0.7}
PRECISIONS = {"bf16 encoder": ("bf16", "fp32"), "bf16 decoder": ("fp32", "bf16")}

EXTRACT = """
import os, sys, time, tempfile; from pathlib import Path
if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import captioner, torch
from captioner.data.features import cache_features
torch.set_num_threads(1)
encoder = captioner.load(sys.argv[1], device="cpu").encoders[0]
encoder.precision = "auto"; encoder.make_ready()
with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()
    cache_features(encoder, sys.argv[2:], Path(folder), progress=False)
    print(time.perf_counter() - started)
"""


def command(*arguments: str, environment: dict[str, str], shown: bool) -> tuple[float, str]:
    """Seconds of a run of the command line, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "captioner", *arguments],
        env={**os.environ, **environment},
        stdout=sys.stderr if shown else subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"captioner {arguments[0]} ended with {done.returncode}")
    return time.perf_counter() - started, done.stdout


def on_one_core(path: Path, root: Path) -> float:
    """Images a second from files to an empty cache, in a process that has one core."""
    images = find_images([str(root)])
    files = [str(file) for _, file in zip(range(EXTRACTED), images)]
    code = [sys.executable, "-c", EXTRACT, str(path), *files]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    return len(files) / float(done.stdout)


def scores(model: Captioner, encoder: str, decoder: str, cache: str) -> dict[str, Any]:
    """Scores of dev with a beam of 3, and their signature."""
    model.encoders[0].precision = encoder
    result = evaluate(
        model,
        data=model.config["data"],
        decoding={**type(model.options)().as_dict(), **BEAM, "precision": decoder},
        loader={**model.config["loader"], "cache_folder": cache},
        metrics=("bleu", "cider-d"),
    )
    return {**result.scores.values, "signature": result.scores.signature}


def main() -> None:
    arguments = parser(__doc__)
    arguments.set_defaults(threads=os.cpu_count() or 1)
    arguments.add_argument("root", metavar="ROOT", type=Path, help="Flickr8k's folder")
    arguments.add_argument(
        "--run-dir",
        metavar="FOLDER",
        type=Path,
        default=Path("runs/quick"),
        help="a new run folder",
    )
    arguments.add_argument("--seed", type=int, default=1, help="default %(default)s")
    options = arguments.parse_args()
    root, run_dir = options.root.expanduser().resolve(), options.run_dir.expanduser().resolve()
    if run_dir.exists():
        raise ValueError(f"{run_dir}: is there already; name a new folder with --run-dir")
    about = start(options, "torchvision", "timm", split="dev", seed=options.seed)
    with tempfile.TemporaryDirectory() as cache:
        environment = {"CAPTIONER_CACHE": cache, "OMP_NUM_THREADS": str(options.threads)}
        recipe = ("experiment=flickr8k_quick", f"data.root={root}", f"seed={options.seed}")
        seconds, _ = command(
            "train", *recipe, f"run_dir={run_dir}", environment=environment, shown=True
        )
        costs = json.loads((run_dir / COSTS).read_text())
        evaluating, printed = command(
            *("evaluate", str(run_dir), "decoding=consensus", "--format", "json"),
            environment=environment,
            shown=False,
        )
        found = json.loads(printed)
        model = captioner.load(run_dir, device="cpu")
        plain = scores(model, "fp32", "fp32", cache)
        others = {name: scores(model, *how, cache) for name, how in PRECISIONS.items()}
    consensus = found["scores"]
    rows = [
        alone("training, from image files", seconds / 60, "min", goal=MINUTES, costs=costs),
        alone("its peak memory", costs["peak_memory_gib"], "GiB", goal=MEMORY),
        alone("its evaluation by consensus", evaluating, "s"),
        alone("BLEU-4, consensus", consensus["BLEU-4"], "", goal=BLEU, at_least=True, **found),
        alone("BLEU-4, beam of 3, fp32", plain["BLEU-4"], "", scores=plain),
    ]
    for name, other in others.items():
        apart = abs(other["BLEU-4"] - plain["BLEU-4"])
        rows.append(alone(f"BLEU-4 apart with {name}", apart, "", goal=APART, scores=other))
    rate = on_one_core(run_dir, root)
    rows.append(alone("features on one core", rate, "images/s", goal=PER_SECOND, at_least=True))
    finish(about, rows, options.json)


if __name__ == "__main__":
    guarded(main)
