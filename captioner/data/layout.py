"""Where the files of a data set lie: its caption file by name or custom, its images by folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

# What open_image can read, HEIC with an extra; other files beside the images are none of the
# reader's business.
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
    """Raise FileNotFoundError, with what to set, unless the root of the data set is a folder."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.root={str(root)!r} is not a folder: set data.root=... to where the data set lies"
        )


def single(given: str | Sequence[str] | None) -> str | None:
    """The one caption file that is named, for layouts that have one.

    Raises:
        ValueError: several are named.
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
    """Find the caption file of a data set.

    Args:
        root: folder of the data set.
        given: its path relative to root, or absolute, or a glob pattern; None looks for the usual
            names.
        usual: names or glob patterns below root, the most usual first.

    Raises:
        FileNotFoundError: there is none.
        ValueError: several files fit the same pattern.
    """
    found = find_files(root, single(given), usual, together=False)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{root} holds {names}: choose one with data.captions=...")
    return found[0]


def find_files(
    root: Path, given: str | Sequence[str] | None, usual: Sequence[str], *, together: bool = True
) -> list[Path]:
    """Find the caption files of a data set that may have several.

    Args:
        root: folder of the data set.
        given: a path or glob pattern relative to root, or absolute, or a list of such; None looks
            for the usual names.
        usual: names or glob patterns below root, the most usual first.
        together: refuse several files under a usual pattern that do not name splits.

    Raises:
        FileNotFoundError: there is none.
        ValueError: several files fit a usual pattern and cannot be told to belong together.
    """
    require_root(root)
    if given is not None:
        patterns = [given] if isinstance(given, str) else given
        return list(dict.fromkeys(path for one in patterns for path in _matching(root, one)))
    for pattern in usual:
        found = [path for path in sorted(root.glob(pattern)) if path.is_file()]
        found = [path for path in found if not path.name.startswith(".")]
        splits = [split_of_file(path) for path in found]
        if together and len(found) > 1 and (None in splits or len(set(splits)) < len(splits)):
            names = ", ".join(path.name for path in found)
            raise ValueError(
                f"{root} holds {names}: choose one with data.captions=..., "
                "or several as data.captions=[a,b]"
            )
        if found:
            return found
    raise FileNotFoundError(
        f"no caption file in {root}: looked for {', '.join(usual)}; "
        "set data.captions=... to its name, or data.root=... to another folder"
    )


def _matching(root: Path, given: str) -> list[Path]:
    path = root / Path(os.path.expanduser(given))
    found = [path] if path.is_file() else [Path(name) for name in sorted(glob(str(path)))]
    found = [path for path in found if path.is_file()]
    if not found:
        raise FileNotFoundError(
            f"data.captions={given!r} is not there: looked for {path}; "
            "give a path relative to data.root, or an absolute one"
        )
    return found


def standard_split(name: str) -> str | None:
    """Return the split that a release means by a name: "train", "dev", "test", or None."""
    return _SPLIT_NAMES.get(name.strip().lower())


def split_of_file(path: Path) -> str | None:
    """The split that a file's name holds, as in my_train.json or captions_val2017.json."""
    words = re.split(r"[\W\d_]+", path.stem)
    splits = {split for split in map(standard_split, words) if split is not None}
    return splits.pop() if len(splits) == 1 else None


class ImageFolders:
    """The folders in which a data set's images may lie.

    Args:
        root: folder of the data set.
        given: the images folder relative to root, or absolute; None looks for the usual names.
        usual: names below root, the most usual first.
        absolute: let captions name images by absolute paths, which the official releases never do.

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
        """Tell whether a name stays below the images folder, or may be absolute."""
        if os.path.isabs(name) or name.startswith("/"):
            return self._absolute
        return name.split("/", 1)[0] != ".."

    def locate(self, name: str) -> str | None:
        """Return the path of the image with this name, or None where there is none.

        Letters with accents may be one character or two (a Mac writes file names in the latter
        way): both are looked for.
        """
        if name not in self._located:  # each caption asks again
            self._located[name] = self._look_for(name)
        return self._located[name]

    def _look_for(self, name: str) -> str | None:
        names = [name]
        if not name.isascii():
            names += [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
        if self.allows(name):
            for folder in self.folders:
                for one in names:
                    path = os.path.join(folder, one)
                    if os.path.isfile(path):
                        return path
        return None

    def first_there(self, *names: str) -> str:
        """Return the first of several names under which there is an image, else the first name."""
        return next((name for name in names if self.locate(name)), names[0])

    def names(self) -> Iterator[str]:
        """Name the image files directly inside the folders, sorted."""
        for folder in self.folders:
            for name in sorted(os.listdir(folder)):
                if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                    yield name
