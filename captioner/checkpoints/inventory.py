"""The list of models: bundled ones, and those in a folder of runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from captioner.checkpoints import bundle, checkpoint
from captioner.checkpoints.model_card import describe_decoder
from captioner.checkpoints.places import data_name


@dataclass(frozen=True)
class Entry:
    """A model that other verbs accept by its name.

    Attributes:
        name: of a bundled model, or the path of a run folder.
        kind: "bundled", "run", or "bundle" for an exported one among the runs.
        model: the decoder in a few words.
        data: the dataset it was trained on, as evaluations of it name it.
        dev_bleu4: BLEU-4 on dev of its checkpoint, decoded as in validation; None if unknown.
        dev_cider: CIDEr-D on dev; None if unknown.
        size: of the files that loading reads, in bytes.
        date: of its creation, such as 2026-01-31.
    """

    name: str
    kind: str
    model: str
    data: str
    dev_bleu4: float | None
    dev_cider: float | None
    size: int
    date: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return asdict(self)


def inventory(runs: Path = Path("runs")) -> tuple[list[Entry], list[str]]:
    """List the bundled models, then the runs in a folder, sorted by name.

    Args:
        runs: the folder of run folders; the default ``runs`` need not exist.

    Returns:
        the models, and a line for each one that cannot be read.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if runs != Path("runs") and not runs.is_dir():
        raise FileNotFoundError(f"{runs}: no such folder; --runs names a folder of run folders")
    folders = [bundle.HOME / name for name in bundle.names()]
    folders += sorted(path for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    models, broken = [], []
    for folder in folders:
        file = folder
        try:
            with suppress(FileNotFoundError):  # not a run, but evaluations or a sweep
                file = checkpoint.find(folder)
            if file != folder:
                is_bundle = file.name == bundle.MODEL
                models.append(_bundle_entry(folder) if is_bundle else _run_entry(folder, file))
        except (ValueError, OSError) as error:
            broken.append(str(error))
        except (LookupError, TypeError, AttributeError) as error:
            broken.append(f"{file}: damaged ({error!r})")
    return models, broken


def _bundle_entry(folder: Path) -> Entry:
    content = checkpoint.require_block(folder / bundle.MODEL, bundle.read_model(folder))
    files = (folder / name for name in (bundle.WEIGHTS, bundle.MODEL, bundle.TRAINING))
    size = sum(file.stat().st_size for file in files if file.is_file())
    in_package = folder.parent == bundle.HOME
    name, kind = (folder.name, "bundled") if in_package else (str(folder), "bundle")
    return _entry(name, kind, content, size, content["made"])


def _run_entry(folder: Path, file: Path) -> Entry:
    status = file.stat()
    made = date.fromtimestamp(status.st_mtime).isoformat()
    return _entry(str(folder), "run", checkpoint.read_block(file), status.st_size, made)


def _entry(name: str, kind: str, content: Mapping[str, Any], size: int, made: str) -> Entry:
    config = content["config"]
    data, scores = config["data"], content["scores"]
    dataset = data_name(data) or data["format"]  # the root of the file system has no name
    dev = (scores.get("dev_bleu4"), scores.get("dev_cider"))
    return Entry(name, kind, describe_decoder(config), dataset, *dev, size, str(made)[:10])
