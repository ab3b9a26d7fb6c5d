"""Time from image files to captions, compared with the usual code in the same process.

Each round measures every task once, alternating between the usual code and captioner. Each row
contains the number of cores that other programs used. Larger images are made from those of the
folder by bicubic interpolation.

The bound is the ratio if captioner needed only the time of the unavoidable work, measured in the
same rounds: for input, opening the file at the required size; for the encoder, its FLOPs at the
speed of a large matrix product; for features and folders, the encoder on all cores.

    python experiments/benchmarks/pictures.py RUN FOLDER

With --only input (or encoder, features, folder) only these tasks are measured. RUN may be a bundled
model, such as flickr8k.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from paired import (
    LARGE,
    Pair,
    compare,
    compare_times,
    find_photographs,
    finish,
    make_parser,
    positive,
    product,
    report_value,
    run_guarded,
    start,
    with_progress,
)
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import captioner
from captioner.api import Captioner
from captioner.data.features import cache_features
from captioner.models.encoders.encoder import Encoder
from captioner.transforms import open_image

SIZES = {
    "500 x 375": (500, 375),
    "1024 x 768": (1024, 768),
    "1600 x 1200": (1600, 1200),
    "4000 x 3000": (4000, 3000),
}
GOALS = {
    "input, original size": 2,
    **{f"input, {size}": 2 for size in SIZES},
    "encoder, one image": 1.6,
    "encoder, 8 images": 1.6,
    "encoder, 256 images": 4,
    "folder, beam 5": 8,
    "folder, compared with the encoder alone": 0.85,
    "folder, default decoding": 8,
    "folder, default decoding, compared with the encoder alone": 0.9,
}
BEAM = {"beam_size": 5, "consensus": 0.0}
WORDS = "input, encoder, features, folder"
MANY = 256
"""Default number of images."""
HELP, MEMORY = 0.3, 3  # seconds of captioner --help, GiB


class Task(NamedTuple):
    """The usual code, captioner, and the unavoidable work, of which a `fraction` counts."""

    usual: Callable[[], Any]
    ours: Callable[[], Any]
    least: Callable[[], Any]
    fraction: float = 1.0


def usual_transform(encoder: Encoder) -> Callable[[str], torch.Tensor]:
    """The transform with PIL and torchvision, as in their documentation."""
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


def resize_files(files: Sequence[str], folder: Path, size: tuple[int, int]) -> list[str]:
    """Write the images at another size, as JPEG files of quality 92."""
    made = []
    for number, file in enumerate(files):
        path = folder / f"{size[0]}-{number}.jpg"
        open_image(file).resize(size, Image.Resampling.BICUBIC).save(path, quality=92)
        made.append(str(path))
    return made


def compare_pixels(encoder: Encoder, name: str, files: Sequence[str]) -> dict[str, Any]:
    """Maximum and mean difference from the usual transform, in units of 1/255."""
    usual, largest, means = usual_transform(encoder), 0.0, []
    scale = 255 * torch.tensor(encoder.transform.std)[:, None, None]
    for file in files:
        own = encoder.transform.normalise_batch(own_pixels(encoder, file)[None])[0]
        difference = (own - usual(file)).abs() * scale  # [3, S, S]
        largest = max(largest, float(difference.max()))
        means.append(float(difference.mean()))
    mean = statistics.mean(means)
    return report_value(f"largest difference of a pixel, {name}", largest, "of 255", mean=mean)


def input_tasks(encoder: Encoder, files: dict[str, list[str]]) -> dict[str, Task]:
    usual = usual_transform(encoder)

    def task(files: list[str]) -> Task:
        return Task(
            lambda: [usual(file) for file in files],
            lambda: [own_pixels(encoder, file) for file in files],
            lambda: [open_image(file, shorter=encoder.transform.shorter) for file in files],
        )

    return {f"input, {name}": task(paths) for name, paths in files.items()}


def encoder_tasks(encoder: Encoder, quick: Encoder, files: Sequence[str]) -> dict[str, Task]:
    """Eager fp32 in the default memory format, compared with the encoder; batches of 8."""
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
        return lambda: [encoder.extract(slow[layout], batch) for batch in images.split(8)]

    def ours(images: torch.Tensor, encoder: Encoder = quick) -> Callable[[], Any]:
        return lambda: [encoder(batch) for batch in images.split(8)]

    with FlopCounterMode(display=False) as counter:
        encoder.extract(slow[torch.contiguous_format], floats[:1])
    of_image = counter.get_total_flops() / LARGE  # in large products
    halves, singles = product(half=quick.computes_in == torch.bfloat16), product(half=False)
    count = len(files)
    return {
        "encoder, one image": Task(eager(floats[:1]), ours(pixels[:1]), halves, of_image),
        "encoder, 8 images": Task(eager(floats[:8]), ours(pixels[:8]), halves, 8 * of_image),
        f"encoder, {count} images": Task(eager(floats), ours(pixels), halves, count * of_image),
        f"encoder, {count} images, compared with channels-last": Task(
            eager(wide, torch.channels_last), ours(pixels), halves, count * of_image
        ),
        f"encoder in fp32, {count} images": Task(
            eager(floats), ours(pixels, encoder), singles, count * of_image
        ),
    }


def folder_tasks(model: Captioner, encoder: Encoder, files: Sequence[str]) -> dict[str, Task]:
    """From files to captions, with beam search of 5 and as the model decodes by default."""
    usual = usual_transform(encoder)
    network = encoder.build(encoder.network, weights=encoder.pretrained, image_size=None)[0].eval()
    pixels = torch.stack([own_pixels(encoder, file) for file in files])

    def naive(**decoding: Any) -> None:
        model._steppers.clear()  # tables do not pay off for single images
        for file in files:
            features = encoder.extract(network, usual(file)[None])
            model.caption_features([features], **decoding)

    def folder(**decoding: Any) -> None:
        captions = model.caption_each(files, **decoding)
        assert not any(isinstance(caption, Exception) for caption in captions)

    def features() -> None:
        with tempfile.TemporaryDirectory() as cache:
            cache_features(model.encoders[0], files, Path(cache), progress=False)

    def encoded() -> None:
        for batch in pixels.split(8):
            model.encoders[0](batch)

    fraction = min(1.0, torch.get_num_threads() / (os.cpu_count() or 1))  # of all cores
    return {
        "features to the cache": Task(
            lambda: [encoder.extract(network, usual(file)[None]) for file in files],
            features,
            encoded,
            fraction,
        ),
        "folder, beam 5": Task(partial(naive, **BEAM), partial(folder, **BEAM), encoded, fraction),
        "folder, compared with the encoder alone": Task(
            encoded, partial(folder, **BEAM), encoded, fraction
        ),
        "folder, default decoding": Task(naive, folder, encoded, fraction),
        "folder, default decoding, compared with the encoder alone": Task(
            encoded, folder, encoded, fraction
        ),
    }


def decoding_row(model: Captioner, files: Sequence[str], rounds: int) -> dict[str, Any]:
    """Default decoding as a fraction of encoding, and of this its matrix products alone."""
    images = [model.prepare(file) for file in files[:32]]
    features = model.encode(images)
    tasks = {
        "encode": lambda: model.encode(images),
        "decode": lambda: model.caption_features(features),
    }
    name = "default decoding, compared with encoding, 32 images"
    return compare_times(tasks, [Pair(name, "decode", "encode")], rounds)[0]


def seconds_of_help() -> float:
    """Seconds of `captioner --help` in a new process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "captioner", "--help"], capture_output=True, check=True)
    return time.perf_counter() - started


def time_of_others() -> float:
    """Processor time of other programs in seconds, from Linux's /proc/stat."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]  # without idle and iowait
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


class Seconds(NamedTuple):
    """Seconds of one task in one round, and the number of cores that other programs used."""

    usual: float
    ours: float
    least: float
    others: float


@torch.inference_mode()
def measure(tasks: dict[str, Task]) -> dict[str, Seconds]:
    measured = {}
    for name, task in tasks.items():
        seconds, before = [], time_of_others()
        for way in (task.usual, task.ours, task.least):
            started = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - started)
        others = (time_of_others() - before) / sum(seconds)
        measured[name] = Seconds(seconds[0], seconds[1], task.fraction * seconds[2], others)
    return measured


def row(name: str, seconds: Sequence[Seconds]) -> dict[str, Any]:
    usual, ours, least, others = zip(*seconds)
    return compare(
        name,
        ours,
        usual,
        times=True,
        least=least,
        goal=GOALS.get(name),
        other_cores=statistics.median(others),
    )


def main() -> None:
    arguments = make_parser(__doc__, rounds=3)
    arguments.add_argument("run", metavar="RUN", help="a run folder whose encoder is frozen")
    arguments.add_argument("folder", metavar="FOLDER", help="a folder of images")
    arguments.add_argument(
        "--only", metavar="WORD", default="", help="only tasks whose name starts with this"
    )
    arguments.add_argument(
        "--images", type=positive, default=MANY, help="how many; default %(default)s"
    )
    options = arguments.parse_args()
    files = find_photographs(options.folder, options.images)
    model, plain = (captioner.load(options.run, device="cpu") for _ in range(2))
    quick, encoder = model.encoders[0], plain.encoders[0]
    quick.precision, encoder.precision = "auto", "fp32"
    about = start(
        options,
        "torchvision",
        "timm",
        "pillow",
        images=len(files),
        precision=str(quick.computes_in),
    )
    rows = []
    with tempfile.TemporaryDirectory() as made:
        pictures = {"original size": files[:64]}
        for name, size in SIZES.items():
            pictures[name] = resize_files(files[: 4 if size[0] > 3000 else 16], Path(made), size)
        tasks = {
            **input_tasks(encoder, pictures),
            **encoder_tasks(encoder, quick, files),
            **folder_tasks(model, encoder, files),
        }
        tasks = {name: task for name, task in tasks.items() if name.startswith(options.only)}
        if not tasks:
            raise ValueError(
                f"--only {options.only}: no task starts with this; choose one of {WORDS}"
            )
        rounds = [measure(tasks) for _ in with_progress(range(options.rounds + 1), "rounds")][1:]
        rows += [row(name, [r[name] for r in rounds]) for name in tasks]
        if "folder".startswith(options.only):
            rows.append(decoding_row(model, files, options.rounds))
        if "input".startswith(options.only):
            rows += [compare_pixels(encoder, name, paths) for name, paths in pictures.items()]
    if not options.only:
        value = statistics.median(seconds_of_help() for _ in range(options.rounds))
        rows.append(report_value("captioner --help", value, "s", goal=HELP))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows.append(report_value("peak memory", peak, "GiB", goal=MEMORY))
    finish(about, rows, options.json)


if __name__ == "__main__":
    run_guarded(main)
