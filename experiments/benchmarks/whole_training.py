"""Time from image files to a trained model, and the scores of that model.

The recipe `flickr8k_quick` is trained with an empty feature cache in one process and evaluated on
dev by consensus in another; both times include the start of Python. Then dev is captioned with a
beam of 3: all in fp32, with the encoder in bf16, and with the decoder in bf16. Last, the encoder
computes features with an empty cache in a process that is restricted to one core.

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

from paired import finish, is_measured, make_parser, report_value, run_guarded, start

import captioner
from captioner.api import Captioner
from captioner.evaluation.evaluate import evaluate
from captioner.runs import COSTS
from captioner.verbs.caption_files import find_images

MINUTES, BLEU, MEMORY, PER_SECOND, DIFFERENCE = 8, 18.5, 3, 150, 0.2  # goals
EXTRACTED = 1536
BEAM = {"beam_size": 3, "length_penalty": 0.7}
PRECISIONS = {"bf16 encoder": ("bf16", "fp32"), "bf16 decoder": ("fp32", "bf16")}

EXTRACT = """
import os, sys, time, tempfile; from pathlib import Path
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
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


def run_command(*arguments: str, environment: dict[str, str], prints: bool) -> tuple[float, str]:
    """Run a command; return the seconds it took and its output."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "captioner", *arguments],
        env={**os.environ, **environment},
        stdout=sys.stderr if prints else subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"captioner {arguments[0]} ended with {done.returncode}")
    return time.perf_counter() - started, done.stdout


def extract_on_one_core(path: Path, root: Path) -> float:
    """Images per second from files to an empty cache, in a process with one core."""
    images = find_images([str(root)])
    files = [str(file) for _, file in zip(range(EXTRACTED), images)]
    code = [sys.executable, "-c", EXTRACT, str(path), *files]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    return len(files) / float(done.stdout)


def score_dev(model: Captioner, encoder: str, decoder: str, cache: str) -> dict[str, Any]:
    """Dev scores with a beam of 3, and their signature."""
    model.encoders[0].precision = encoder
    result = evaluate(
        model,
        data=model.config["data"],
        decoding={**type(model.options)().as_dict(), **BEAM, "precision": decoder},
        loader={**model.config["loader"], "cache_folder": cache},
        metrics=("bleu", "cider-d"),
    )
    return {**result.scores.values, "signature": str(result.scores.signature)}


def train_and_evaluate(root: Path, run_dir: Path, cache: str, options: Any) -> list[dict[str, Any]]:
    """Rows of a training with an empty cache and of its evaluation."""
    environment = {"CAPTIONER_CACHE": cache, "OMP_NUM_THREADS": str(options.threads)}
    recipe = ("experiment=flickr8k_quick", f"data.root={root}", f"seed={options.seed}")
    seconds, _ = run_command(
        "train", *recipe, f"run_dir={run_dir}", environment=environment, prints=True
    )
    costs = json.loads((run_dir / COSTS).read_text())
    evaluating, printed = run_command(
        *("evaluate", str(run_dir), "decoding=consensus", "--format", "json"),
        environment=environment,
        prints=False,
    )
    result = json.loads(printed)
    score = result["scores"]["BLEU-4"]
    kept = {name: result[name] for name in ("scores", "signature")}
    rows = [
        report_value("training, from image files", seconds / 60, "min", goal=MINUTES, costs=costs),
        report_value("its evaluation by consensus", evaluating, "s"),
        report_value("BLEU-4, consensus", score, "", goal=BLEU, at_least=True, **kept),
    ]
    peak = costs["peak_memory_gib"]  # 0 if the system does not report it
    return rows + [report_value("its peak memory", peak, "GiB", goal=MEMORY)] * bool(peak)


def compare_precisions(run_dir: Path, cache: str) -> list[dict[str, Any]]:
    """Differences from the scores in fp32 with the encoder or the decoder in bf16, beam search."""
    model = captioner.load(run_dir, device="cpu")
    plain = score_dev(model, "fp32", "fp32", cache)
    rows = [report_value("BLEU-4, beam of 3, fp32", plain["BLEU-4"], "", scores=plain)]
    for name, precisions in PRECISIONS.items():
        title = f"BLEU-4 difference with {name}"
        if not is_measured(title, half=True):
            continue
        other = score_dev(model, *precisions, cache)
        difference = abs(other["BLEU-4"] - plain["BLEU-4"])
        rows.append(report_value(title, difference, "", goal=DIFFERENCE, scores=other))
    return rows


def main() -> None:
    arguments = make_parser(__doc__)
    arguments.set_defaults(threads=os.cpu_count() or 1)
    arguments.add_argument("root", metavar="ROOT", type=Path, help="the folder of Flickr8k")
    arguments.add_argument(
        "--run-dir", metavar="FOLDER", type=Path, default="runs/quick", help="a new run folder"
    )
    arguments.add_argument("--seed", type=int, default=1, help="default %(default)s")
    options = arguments.parse_args()
    root, run_dir = options.root.expanduser().resolve(), options.run_dir.expanduser().resolve()
    if run_dir.exists():
        raise ValueError(f"{run_dir}: exists already; choose a new folder with --run-dir")
    about = start(options, "torchvision", "timm", split="dev", seed=options.seed)
    with tempfile.TemporaryDirectory() as cache:
        rows = train_and_evaluate(root, run_dir, cache, options)
        rows += compare_precisions(run_dir, cache)
    if hasattr(os, "sched_setaffinity"):  # Linux
        rate = extract_on_one_core(run_dir, root)
        goal = {"goal": PER_SECOND, "at_least": True}
        rows.append(report_value("features on one core", rate, "images/s", **goal))
    finish(about, rows, options.json)


if __name__ == "__main__":
    run_guarded(main)
