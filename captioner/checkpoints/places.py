"""Where the files that a configuration names lie: the same ones, from whatever folder it is read.

A run stores its configuration, and is resumed, evaluated and reported on from other folders. What
stands there relative to the folder of the first command is made absolute; what is relative to the
data set (data.captions, data.images) stays as it is, so that ``data.root`` alone names a moved one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioner.checkpoints import bundle
from captioner.config import Config

_PLACES = (("data", "root"), ("loader", "cache_folder"), ("training", "word_vectors"))
EMBEDDED = {"format": "shapes", "root": "datasets/shapes"}
"""Of the data group: drawn where it is missing, and the same in every folder and on any machine."""


def anchored(config: Config) -> Config:
    """A configuration, or some groups of one, with its paths absolute.

    Left as they are: the default place of the embedded data set, and ``resume_weights`` with the
    name of a bundled model.
    """
    result = dict(config)
    for group, key in _PLACES:
        values = result.get(group) or {}
        if isinstance(values.get(key), str) and not EMBEDDED.items() <= values.items():
            result[group] = {**values, key: absolute(values[key])}
    start = result.get("resume_weights")
    if isinstance(start, str) and not _is_bundled(start):
        result["resume_weights"] = absolute(start)
    return result


def absolute(path: str) -> str:
    """A path from the root of the file system; links in it stay, unless .. follows one."""
    found = Path(os.path.expanduser(path)).absolute()
    return str(found.resolve() if ".." in found.parts else found)


def without_places(group: Mapping[str, Any], keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A group with the names alone of what lies at absolute paths, for others to read.

    Args:
        group: plain data.
        keys: those that are paths; None is all of them.
    """
    return {k: _named(v) if keys is None or k in keys else v for k, v in group.items()}


def _named(value: Any) -> Any:
    if isinstance(value, list):
        return [_named(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _is_bundled(name: str) -> bool:
    """Whether a bundled model is meant, and not a path of the same name."""
    if bundle.find(name) is None:
        return False
    from captioner.checkpoints import checkpoint

    return checkpoint.find(name).parent == bundle.HOME / name
