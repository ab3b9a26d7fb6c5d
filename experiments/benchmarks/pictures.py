"""How long the way from pictures to captions takes beside the usual one, in the same process.

Each round measures every task once, the usual way and captioner's one after the other, so that a
busy machine slows them alike; what is reported is the median of the rounds' ratios, with the
smallest and the largest, and how many cores other programs took meanwhile. Larger pictures are made
from those of the folder by bicubic enlargement.

The bound is the ratio if captioner took no longer than what it cannot do without, measured in the
same rounds: of input, opening the file at the size that is needed; of the encoder, its FLOPs at the
speed of a large matrix product; of features and folders, the encoder on all cores.

    OMP_NUM_THREADS=1 python experiments/benchmarks/pictures.py RUN FOLDER --json pictures.json

With --only input (or encoder, features, folder) these tasks alone are measured, and take the place
of their rows in the JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from paired import SIDE, product
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import captioner
from captioner.api import Captioner
from captioner.captions import find_images
from captioner.data.features import cache_features
from captioner.data.records import write_whole
from captioner.data.transforms import open_image
from captioner.models import Encoder

SIZES = {
    "500 x 375": (500, 375),
    "1024 x 768": (1024, 768),
    "1600 x 1200": (1600, 1200),
    "4000 x 3000": (4000, 3000),
}
GOALS = {
    "input, as it lies": 2,
    **{f"input, {size}": 2 for size in SIZES},
    "encoder, one image": 1.6,
    "encoder, 8 images": 1.6,
    "encoder, 256 images": 4,
    "encoder, 256 images, beside channels-last": None,
    "encoder in fp32, 256 images": None,
    "features to the cache": None,
    "folder, beam 5": 8,
    "folder, beside the encoder alone": 0.85,
}


class Task(NamedTuple):
    """The usual way, captioner's, and what the latter cannot do without, times a share of it."""

    usual: Callable[[], Any]
    ours: Callable[[], Any]
    least: Callable[[], Any]
    share: float = 1.0


def usual_transform(encoder: Encoder) -> Callable[[str], torch.Tensor]:
    """PIL and torchvision, as their documentation puts them together."""
    from torchvision import transforms

    own = encoder.transform
    steps = transforms.Compose(
        [
            transforms.Resize(own.shorter, transforms.InterpolationMode(own.interpolation)),
            transforms.CenterCrop(own.size),
            transforms.ToTensor(),
            transforms.Normalize(own.mean, own.std),
        ]
    )
    return lambda file: steps(Image.open(file).convert("RGB"))


def own_pixels(encoder: Encoder, file: str) -> torch.Tensor:
    own = encoder.transform
    return own.pixels(open_image(file, shorter=own.shorter))


def enlarged(files: Sequence[str], folder: Path, size: tuple[int, int]) -> list[str]:
    """JPEG files of quality 92 of pictures at another size."""
    made = []
    for number, file in enumerate(files):
        path = folder / f"{size[0]}-{number}.jpg"
        open_image(file).resize(size, Image.Resampling.BICUBIC).save(path, quality=92)
        made.append(str(path))
    return made


def apart(encoder: Encoder, files: Sequence[str]) -> dict[str, float]:
    """How far pixels are from the usual transform's, in levels of 255: the largest and the mean."""
    usual, largest, means = usual_transform(encoder), 0.0, []
    scale = 255 * torch.tensor(encoder.transform.std)[:, None, None]
    for file in files:
        own = encoder.transform.normalise_batch(own_pixels(encoder, file)[None])[0]
        levels = (own - usual(file)).abs() * scale  # [3, S, S]
        largest = max(largest, float(levels.max()))
        means.append(float(levels.mean()))
    return {"largest_pixel": largest, "mean_pixel": statistics.mean(means)}


def input_tasks(encoder: Encoder, files: dict[str, list[str]]) -> dict[str, Task]:
    usual = usual_transform(encoder)

    def task(some: list[str]) -> Task:
        return Task(
            lambda: [usual(file) for file in some],
            lambda: [own_pixels(encoder, file) for file in some],
            lambda: [open_image(file, shorter=encoder.transform.shorter) for file in some],
        )

    return {f"input, {name}": task(some) for name, some in files.items()}


def encoder_tasks(encoder: Encoder, quick: Encoder, files: Sequence[str]) -> dict[str, Task]:
    """Eager fp32 in torch's own layout against the encoder, 8 images at a time."""
    pixels = torch.stack([own_pixels(encoder, file) for file in files])  # [256, 3, S, S]
    floats = encoder.transform.normalise_batch(pixels).contiguous()
    wide = floats.contiguous(memory_format=torch.channels_last)
    slow = {
        layout: encoder.build(encoder.network, weights=encoder.pretrained, image_size=None)[0]
        .eval()
        .to(memory_format=layout)
        for layout in (torch.contiguous_format, torch.channels_last)
    }

    def eager(images: torch.Tensor, layout: Any = torch.contiguous_format) -> Callable[[], Any]:
        return lambda: [encoder.extract(slow[layout], some) for some in images.split(8)]

    def ours(images: torch.Tensor, one: Encoder = quick) -> Callable[[], Any]:
        return lambda: [one(some) for some in images.split(8)]

    with FlopCounterMode(display=False) as counter:
        encoder.extract(slow[torch.contiguous_format], floats[:1])
    of_image = counter.get_total_flops() / (2 * SIDE**3)  # beside the large product's
    halves, singles = product(half=quick.computes_in == torch.bfloat16), product(half=False)
    some = len(files)
    return {
        "encoder, one image": Task(eager(floats[:1]), ours(pixels[:1]), halves, of_image),
        "encoder, 8 images": Task(eager(floats[:8]), ours(pixels[:8]), halves, 8 * of_image),
        "encoder, 256 images": Task(eager(floats), ours(pixels), halves, some * of_image),
        "encoder, 256 images, beside channels-last": Task(
            eager(wide, torch.channels_last), ours(pixels), halves, some * of_image
        ),
        "encoder in fp32, 256 images": Task(
            eager(floats), ours(pixels, encoder), singles, some * of_image
        ),
    }


def folder_tasks(model: Captioner, encoder: Encoder, files: Sequence[str]) -> dict[str, Task]:
    """The whole way, with beam search of 5."""
    usual = usual_transform(encoder)
    network = encoder.build(encoder.network, weights=encoder.pretrained, image_size=None)[0].eval()
    pixels = torch.stack([own_pixels(encoder, file) for file in files])

    def naive() -> None:
        model._steppers.clear()  # one image at a time has no use for tables
        for file in files:
            features = encoder.extract(network, usual(file)[None])
            model.caption_features([features], beam_size=5)

    def folder() -> None:
        assert not any(isinstance(one, Exception) for one in model.caption_each(files, beam_size=5))

    def features() -> None:
        with tempfile.TemporaryDirectory() as cache:
            cache_features(model.encoders[0], files, Path(cache), progress=False)

    def encoded() -> None:
        for some in pixels.split(8):
            model.encoders[0](some)

    share = 1 / (os.cpu_count() or 1)
    return {
        "features to the cache": Task(
            lambda: [encoder.extract(network, usual(file)[None]) for file in files],
            features,
            encoded,
            share,
        ),
        "folder, beam 5": Task(naive, folder, encoded, share),
        "folder, beside the encoder alone": Task(encoded, folder, encoded, share),
    }


COLD = """
import time; times = [time.perf_counter()]
def lap(name): times.append(time.perf_counter()); print(name, times[-1] - times[-2])
import captioner.captions, timm; lap("imports")
from captioner import load; model = load({run!r}, device="cpu"); lap("weights")
images = [model.prepare({file!r})]; lap("reading the picture")
model.encoders[0].precision = "auto"; model.encoders[0].computes_in; lap("quick copy")
features = model.encode(images); lap("encode")
model.caption_features(features, beam_size=5); lap("decode")
"""


def cold_start(run: str, file: str) -> dict[str, float]:
    """Seconds of each step to the first caption in a process of its own, and of --help."""
    code = COLD.format(run=run, file=file)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = {}
    for line in done.stdout.splitlines():
        name, _, value = line.rpartition(" ")
        seconds[name] = float(value)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "captioner", "--help"], capture_output=True, check=True)
    return {**seconds, "captioner --help": time.perf_counter() - started}


def elsewhere() -> float:
    """Seconds of processor time that other programs have taken; Linux tells it."""
    ticks = [int(one) for one in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]  # all but idle and waiting for disks
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


class Seconds(NamedTuple):
    """Of one task in one round; and the cores that other programs took meanwhile."""

    usual: float
    ours: float
    least: float
    others: float


@torch.inference_mode()
def measure(tasks: dict[str, Task]) -> dict[str, Seconds]:
    found = {}
    for name, task in tasks.items():
        seconds, before = [], elsewhere()
        for way in (task.usual, task.ours, task.least):
            started = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - started)
        others = (elsewhere() - before) / sum(seconds)
        found[name] = Seconds(seconds[0], seconds[1], task.share * seconds[2], others)
    return found


def summary(rounds: list[dict[str, Seconds]]) -> list[dict[str, Any]]:
    rows = []
    for name in rounds[0]:
        ratios = [one[name].usual / one[name].ours for one in rounds]
        rows.append(
            {
                "task": name,
                "usual_seconds": statistics.median(one[name].usual for one in rounds),
                "seconds": statistics.median(one[name].ours for one in rounds),
                "ratio": statistics.median(ratios),
                "smallest": min(ratios),
                "largest": max(ratios),
                "bound": statistics.median(one[name].usual / one[name].least for one in rounds),
                "goal": GOALS[name],
                "other_cores": statistics.median(one[name].others for one in rounds),
            }
        )
    return rows


def show(found: dict[str, Any]) -> None:
    print(
        "| task | usual (s) | captioner (s) | ratio | smallest to largest | bound | goal | others |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in found["rows"]:
        print(
            f"| {row['task']} | {row['usual_seconds']:.3f} | {row['seconds']:.3f} "
            f"| {row['ratio']:.2f} | {row['smallest']:.2f} to {row['largest']:.2f} "
            f"| {row['bound']:.2f} | {row['goal'] or ''} | {row['other_cores']:.2f} |"
        )
    for size, values in found["pixels"].items():
        print(f"{size}: largest {values['largest_pixel']:.0f}, mean {values['mean_pixel']:.2f}")
    for step, seconds in found["cold"].items():
        print(f"{step}: {seconds:.2f} s")
    print(f"peak memory: {found['about']['peak_gib']:.2f} GiB")


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What was measured before, with what was measured anew in its place."""
    rows = {row["task"]: row for row in (*old.get("rows", ()), *new["rows"])}
    peaks = [one["about"]["peak_gib"] for one in (old, new) if "about" in one]
    return {
        "about": {**new["about"], "peak_gib": max(peaks)},
        "rows": [rows[task] for task in GOALS if task in rows],
        **{part: {**old.get(part, {}), **new[part]} for part in ("pixels", "cold")},
    }


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run folder whose encoder is frozen")
    parser.add_argument("folder", help="pictures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", metavar="WORD", help="tasks that begin so")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    every = list(find_images([options.folder]))
    files = every[:: max(1, len(every) // options.images)][: options.images]
    model, plain = (captioner.load(options.run, device="cpu") for _ in range(2))
    quick, encoder = model.encoders[0], plain.encoders[0]
    quick.precision, encoder.precision = "auto", "fp32"
    pixels: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        pictures = {"as it lies": files[:64]}
        for name, size in SIZES.items():
            pictures[name] = enlarged(files[: 4 if size[0] > 3000 else 16], Path(made), size)
        tasks = {
            **input_tasks(encoder, pictures),
            **encoder_tasks(encoder, quick, files),
            **folder_tasks(model, encoder, files),
        }
        tasks = {name: task for name, task in tasks.items() if name.startswith(options.only or "")}
        rounds = [measure(tasks) for _ in range(options.rounds + 1)][1:]  # the first warms up
        if options.only in (None, "input"):
            pixels = {name: apart(encoder, some) for name, some in pictures.items()}
    cold = [cold_start(options.run, files[0]) for _ in range(options.rounds * (not options.only))]
    found = {
        "about": {
            "threads": options.threads,
            "images": len(files),
            "precision": str(quick.computes_in),
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "python": platform.python_version(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
            **{name: version(name) for name in ("torch", "torchvision", "timm", "pillow")},
        },
        "rows": [{**row, "commit": commit()} for row in summary(rounds)],
        "pixels": pixels,
        "cold": {s: statistics.median(one[s] for one in cold) for s in (cold or [{}])[0]},
    }
    show(found)
    if options.json:
        path = Path(options.json)
        old = json.loads(path.read_text()) if options.only and path.exists() else {}
        write_whole(path, json.dumps(merged(old, found), indent=2) + "\n")


if __name__ == "__main__":
    main()
