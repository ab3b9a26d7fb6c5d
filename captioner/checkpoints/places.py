"""Absolute paths in configurations, which therefore mean the same files from every folder.

A run stores its configuration, and may be resumed, evaluated and reported on from another folder.
So paths relative to the current folder are made absolute. Those relative to the dataset
(data.captions, data.images) are not, so that ``data.root`` is enough for a dataset that was moved.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from captioner.checkpoints import bundle
from captioner.config import Config
from captioner.overrides import shell_word
from captioner.process import is_first

_PLACES = (("data", "root"), ("loader", "cache_folder"), ("training", "word_vectors"))
_OUTSIDE: dict[tuple[str, str], Any] = {
    ("loader", "cache_folder"): None,
    ("logger", "wandb"): False,
}
"""Options by which a run writes outside of its folder, and their harmless values."""
EMBEDDED = {"format": "shapes", "root": "datasets/shapes"}
"""Of the data group: this dataset is drawn if it is missing, so its path stays relative."""
WORLDS = {"format": "worlds", "root": "datasets/worlds/"}
"""Likewise; the root is that of one of the worlds below it."""


def anchored(config: Config) -> Config:
    """Make the paths of a configuration, or of some of its groups, absolute.

    Exceptions are the default paths of the built-in datasets, and ``resume_weights`` with the name
    of a bundled model.

    Raises:
        ValueError: a path is empty, which would be the current folder.
    """
    result = dict(config)
    for group, key in _PLACES:
        values = result.get(group) or {}
        if isinstance(values.get(key), str) and not values[key].strip():
            raise ValueError(
                f"{group}.{key}={values[key]!r} is not accepted; give a path, or leave it out"
            )
        if isinstance(values.get(key), str) and not _is_drawn(values):
            result[group] = {**values, key: absolute(values[key])}
    start = result.get("resume_weights")
    if isinstance(start, str) and not _is_bundled(start):
        result["resume_weights"] = absolute(start)
    return result


def confined(config: Config, named: Collection[str]) -> Config:
    """The configuration of a checkpoint without the options that write outside of its run folder.

    A checkpoint may be a stranger's: it does not choose where features are cached, and sends
    nothing to Weights & Biases, unless the user gives the option again. Its other paths
    (``data.root``, ...) are read only.

    Args:
        config: the configuration, or some of its groups.
        named: the options and groups that the user's overrides set; of others a warning says what
            to give.
    """
    result = dict(config)
    for (group, key), harmless in _OUTSIDE.items():
        values = result.get(group) or {}
        if values.get(key, harmless) == harmless:
            continue
        result[group] = {**values, key: harmless}
        option = shell_word(f"{group}.{key}", values[key])
        if not {group, f"{group}.{key}"} & {*named} and is_first():
            warnings.warn(
                f"{option} of the checkpoint is not used, because it writes outside of the run "
                f"folder; give {option} again to use it",
                stacklevel=2,
            )
    return result


def require_apart(run: Path, data: Mapping[str, Any]) -> None:
    """Refuse to train into the folder of the dataset or of its images.

    Args:
        run: the run folder.
        data: the arguments of ``read_records``.

    Raises:
        ValueError: they are the same folder.
    """
    root = Path(os.path.expanduser(data["root"]))
    folders = {"dataset": root, "images": root / os.path.expanduser(data.get("images") or "")}
    for name, folder in folders.items():
        if Path(os.path.expanduser(run)).resolve() == folder.resolve():
            raise ValueError(
                f"run_dir={run} is the folder of the {name}; choose another one, such as runs/NAME"
            )


def _is_drawn(data: Mapping[str, Any]) -> bool:
    """Whether the data group names a dataset that is drawn if it is missing."""
    is_world = data.get("format") == WORLDS["format"] and data["root"].startswith(WORLDS["root"])
    return is_world or EMBEDDED.items() <= data.items()


def absolute(path: str) -> str:
    """Make a path absolute; symbolic links are resolved only if it contains ".."."""
    full = Path(os.path.expanduser(path)).absolute()
    return str(full.resolve() if ".." in full.parts else full)


def without_places(group: Mapping[str, Any], keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Replace absolute paths in a group by the names of their files, for other users.

    Args:
        group: plain data.
        keys: of the paths; None: all keys.
    """
    return {k: _without_folder(v) if keys is None or k in keys else v for k, v in group.items()}


def _without_folder(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_folder(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _is_bundled(name: str) -> bool:
    """Whether a name means a bundled model, and not a path of the same name."""
    if bundle.find(name) is None:
        return False
    from captioner.checkpoints import checkpoint

    return checkpoint.find(name).parent == bundle.HOME / name


def data_name(data: Config) -> str:
    """The name of a dataset in signatures and folders: its root, and any caption file that is set.

    Args:
        data: the arguments of ``read_records``.

    Returns:
        such as "flickr8k", or "flickr8k-Flickr8k-CN.token" if data.captions is
        Flickr8k-CN.token.txt; files whose shortened names may be equal get a digest too.
    """
    root = Path(os.path.expanduser(data["root"])).resolve()
    captions = data.get("captions")
    if captions is None:
        return root.name
    files = [captions] if isinstance(captions, str) else list(captions)
    files = [_below(root, file) for file in files]
    names = "+".join(Path(file).name.removesuffix(".txt") for file in files)
    short = re.sub(r'[/\\*?\[\]|:"<>\x00-\x1f]+', "_", names)[:60]
    full = "+".join(str(file).removesuffix(".txt") for file in files)
    if short != full:
        short += f"-{hashlib.sha256(full.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"
    return f"{root.name}-{short}"


def _below(root: Path, file: str) -> str:
    """The path of a file relative to a folder, if it is in the folder."""
    path = root / os.path.expanduser(file)
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
