"""Finds the files of a dataset: caption files by name or by their usual names, images by folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

# The formats that open_image reads (HEIC with an extra); readers ignore other files.
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png"}
    | {".tif", ".tiff", ".webp"}
)

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("dev", "development", "val", "valid", "validation"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def require_root(root: Path) -> None:
    """Raise FileNotFoundError, with the option to set, unless the root is a folder."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.root={str(root)!r} is not a folder: set data.root=... to that of the dataset"
        )


def single(given: str | Sequence[str] | None) -> str | None:
    """Return the caption file for layouts that have only one; None if none is given.

    Raises:
        ValueError: several are given.
    """
    if given is None or isinstance(given, str):
        return given
    if len(given) != 1:
        raise ValueError(
            f"data.captions={list(given)} names {len(given)} files; this data.format reads one "
            "(coco, json and table read several)"
        )
    return given[0]


def find_file(root: Path, given: str | Sequence[str] | None, usual: Sequence[str]) -> Path:
    """Find the caption file of a dataset.

    Args:
        root: folder of the dataset.
        given: its path relative to root, or absolute, or a glob pattern; None looks for the usual
            names.
        usual: names or glob patterns relative to root, the most usual first.

    Raises:
        FileNotFoundError: there is none.
        ValueError: several files match the same pattern.
    """
    paths = find_files(root, single(given), usual, together=False)
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"{root} has {names}: choose one with data.captions=...")
    return paths[0]


def find_files(
    root: Path, given: str | Sequence[str] | None, usual: Sequence[str], *, together: bool = True
) -> list[Path]:
    """Find the caption files of a dataset that may have several.

    Args:
        root: folder of the dataset.
        given: a path or glob pattern relative to root, or absolute, or a list of such; None looks
            for the usual names.
        usual: names or glob patterns relative to root, the most usual first.
        together: several files that match a usual pattern must have names of different splits;
            False: any number of files.

    Raises:
        FileNotFoundError: there is none.
        ValueError: several files match a usual pattern, without different splits in their names.
    """
    require_root(root)
    if given is not None:
        patterns = [given] if isinstance(given, str) else given
        return list(dict.fromkeys(path for p in patterns for path in _match_files(root, p)))
    for pattern in usual:
        paths = [path for path in sorted(root.glob(pattern)) if path.is_file()]
        paths = [path for path in paths if not path.name.startswith(".")]
        splits = [split_of_file(path) for path in paths]
        if together and len(paths) > 1 and (None in splits or len(set(splits)) < len(splits)):
            names = ", ".join(path.name for path in paths)
            raise ValueError(
                f"{root} has {names}: choose one with data.captions=..., "
                "or several as data.captions=[a,b]"
            )
        if paths:
            return paths
    raise FileNotFoundError(
        f"no caption file in {root}: looked for {', '.join(usual)}; "
        "set data.captions=... to its name, or data.root=... to another folder"
    )


def _match_files(root: Path, given: str) -> list[Path]:
    path = root / Path(os.path.expanduser(given))
    paths = [path] if path.is_file() else [Path(name) for name in sorted(glob(str(path)))]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise FileNotFoundError(
            f"data.captions={given!r} does not exist: looked for {path}; "
            "give a path relative to data.root, or an absolute one"
        )
    return paths


def standard_split(name: str) -> str | None:
    """Return "train", "dev" or "test" for a usual name of a split, or None."""
    return _SPLIT_NAMES.get(name.strip().lower())


def split_of_file(path: Path) -> str | None:
    """The split in a file name, as in my_train.json or captions_val2017.json, or None."""
    words = re.split(r"[\W\d_]+", path.stem)
    splits = {split for split in map(standard_split, words) if split is not None}
    return splits.pop() if len(splits) == 1 else None


class ImageFolders:
    """The folders that are searched for the images of a dataset.

    Args:
        root: folder of the dataset.
        given: the images folder relative to root, or absolute; None looks for the usual names.
        usual: names relative to root, the most usual first.
        absolute: accept absolute paths as names of images; official releases never have them.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(
        self, root: Path, given: str | None, usual: Sequence[str], *, absolute: bool = False
    ) -> None:
        require_root(root)
        names = usual if given is None else (str(Path(os.path.expanduser(given))),)
        self.folders = [root / name for name in names if (root / name).is_dir()]
        self._absolute = absolute
        self._located: dict[str, str | None] = {}
        if not self.folders:
            fault = f"no images folder in {root}" if given is None else f"data.images={given!r}"
            raise FileNotFoundError(
                f"{fault}: looked for {', '.join(str(root / name) for name in names)}; "
                "set data.images=... to the folder with the images"
            )

    def allows(self, name: str) -> bool:
        """Whether a name is a path in the images folder, or absolute if that is accepted."""
        if os.path.isabs(name) or name.startswith("/"):
            return self._absolute
        return name.split("/", 1)[0] != ".."

    def locate(self, name: str) -> str | None:
        """Return the path of the image with this name, or None if there is none.

        Accented letters may be composed or decomposed (as in file names on a Mac): both forms are
        tried.
        """
        if name not in self._located:  # cached, as it is called for each caption
            self._located[name] = self._find(name)
        return self._located[name]

    def _find(self, name: str) -> str | None:
        names = [name]
        if not name.isascii():
            names += [unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]
        if self.allows(name):
            for folder in self.folders:
                for form in names:
                    path = os.path.join(folder, form)
                    if os.path.isfile(path):
                        return path
        return None

    def first_there(self, *names: str) -> str:
        """Return the first of several names that is an image, else the first name."""
        return next((name for name in names if self.locate(name)), names[0])

    def names(self) -> Iterator[str]:
        """Yield the names of the image files directly in the folders, sorted."""
        for folder in self.folders:
            for name in sorted(os.listdir(folder)):
                if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                    yield name
