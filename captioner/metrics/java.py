"""Java programs that compute metrics; their jars are in pycocoevalcap."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from captioner.metrics.corpus import Unavailable

__all__ = ["Unavailable", "coco_file", "java_command"]


def java_command() -> list[str]:
    """The beginning of a command line that runs Java with UTF-8 input and output.

    Raises:
        Unavailable: there is no Java.
    """
    java = shutil.which("java")
    if java is None:
        raise Unavailable("needs java, which is not on the PATH; install a JRE, version 8 or later")
    return [java, "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-XX:+UseSerialGC"]


def coco_file(name: str) -> Path:
    """A file of pycocoevalcap.

    Args:
        name: its path relative to the package.

    Raises:
        Unavailable: the package is not installed, or does not contain the file.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = (spec and spec.submodule_search_locations) or []
    if not folders:
        raise Unavailable("needs pycocoevalcap: pip install 'captioner[coco]'")
    path = Path(folders[0]) / name
    if not path.is_file():
        raise Unavailable(f"needs {name} of pycocoevalcap, which is not in {folders[0]}")
    return path
